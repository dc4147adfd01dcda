"""Sample a policy's answers to a set of prompts, and score them with a reward."""

import dataclasses
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from sealed_experts.errors import UserError
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.privacy.streams import Stream
from sealed_experts.rewards import Score, Scoring
from sealed_experts.training.batches import Example
from sealed_experts.training.rollouts import Sampled, Sampling, check_row_independence, sample_answers

# Sampling keeps nothing for a backward pass, so a pass can hold this many times the tokens of a physical batch.
_SAMPLING_TOKENS = 16
_MOST_ROWS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout(Example):
    """A prompt with its sampled answer: `ids` holds both.

    Attributes:
        nucleus: for each token of the answer, the size of the nucleus that it was sampled from.
        log_probs: for each token of the answer, its log-probability within that nucleus.
        truncated: whether the answer was cut at the longest length.
        response: the answer as text.
        score: its reward.
        advantage: factor of the score term.
    """

    nucleus: tuple[int, ...]
    log_probs: tuple[float, ...]
    truncated: bool
    response: str
    score: Score
    advantage: float = 0.0


class AnswerSettings(Protocol):
    """The settings of a stage or of an evaluation that sampling needs."""

    max_seq_len: int
    token_budget: int
    max_new_tokens: int
    temperature: float
    top_p: float
    privacy: PrivacySettings

    @property
    def logical_batch(self) -> int:
        """Prompts per step."""


class Scorer:
    """Samples one answer to each prompt and scores it."""

    def __init__(
        self,
        *,
        settings: AnswerSettings,
        reward: Scoring,
        tokenizer: PreTrainedTokenizerBase,
        check: Callable[[], None] = lambda: None,
        processes: int = 1,
    ) -> None:
        """`processes` share the prompts of a step."""
        self._reward, self._tokenizer, self._check = reward, tokenizer, check
        self._longest = settings.max_seq_len
        self._private = settings.privacy.enabled
        most = max(1, min(_MOST_ROWS, _SAMPLING_TOKENS * settings.token_budget // self._longest))
        self._held_out = Sampling(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            end=_token(tokenizer.eos_token_id),
            pad=_token(tokenizer.pad_token_id),
            prompt_tokens=self._longest - settings.max_new_tokens,
            rows=most,
        )
        self._sampling = dataclasses.replace(self._held_out, rows=min(most, -(-settings.logical_batch // processes)))

    def check_room(self, examples: Sequence[Example], *, path: Path) -> None:
        """Check that every prompt, read from `path`, leaves room for an answer.

        Raises:
            UserError: a prompt is too long; the message names the longest one.
        """
        longest = max(examples, key=lambda example: example.prompt_length, default=None)
        if longest is None or longest.prompt_length <= self._sampling.prompt_tokens:
            return
        held = "at least " if longest.prompt_length == self._longest else ""
        raise UserError(
            f"{path}: the prompt {textwrap.shorten(longest.prompt, 80)!r} has {held}{longest.prompt_length} tokens;"
            f" with reinforce.max_new_tokens {self._sampling.max_new_tokens} that is more than reinforce.max_seq_len"
            f" {self._longest}: raise max_seq_len (at most to the base's context), lower max_new_tokens, or shorten the"
            " record"
        )

    def settle(self, model: Any, examples: Sequence[Example]) -> None:
        """Test whether rows of a batch depend on each other on this machine; if so, sample one prompt at a time.

        Args:
            examples: examples for the test.
        """
        prompts = [example.ids[: example.prompt_length] for example in examples[: self._sampling.rows]]
        if prompts and not check_row_independence(model, prompts, sampling=self._sampling):
            print("rows of a batch depend on each other here: answers are sampled one at a time", flush=True)
            self._sampling = dataclasses.replace(self._sampling, rows=1)

    def roll_out(
        self, model: Any, examples: Sequence[Example], *, stream: Stream, step: int, held_out: bool = False
    ) -> list[Rollout]:
        """Return a scored answer to each example's prompt. (stream, step, unit) decide each answer.

        Under privacy all passes of a step have the same shape, see `rollouts`. This is not needed for held-out prompts,
        which are always the same, nor without privacy, where the draw is not secret. Held-out prompts are sampled many
        at once, even if a step draws few.

        Raises:
            UserError: the reward fails, or its value is out of range.
        """
        prompts = [example.ids[: example.prompt_length] for example in examples]
        answers = sample_answers(
            model,
            prompts,
            units=[example.unit for example in examples],
            sampling=self._fitting(prompts, held_out=held_out),
            stream=stream,
            step=step,
            check=self._check,
        )
        return [self._scored(example, answer) for example, answer in zip(examples, answers, strict=True)]

    def _fitting(self, prompts: Sequence[Sequence[int]], *, held_out: bool) -> Sampling:
        """Return the sampling for these prompts: no larger than needed, unless the draw's size must stay hidden."""
        sampling = self._held_out if held_out else self._sampling
        if not prompts or (self._private and not held_out):
            return sampling
        longest = max(map(len, prompts))
        return dataclasses.replace(sampling, prompt_tokens=longest, rows=min(sampling.rows, len(prompts)))

    def _scored(self, example: Example, answer: Sampled) -> Rollout:
        text = str(self._tokenizer.decode(list(answer.tokens), skip_special_tokens=True)).strip()
        return Rollout(
            ids=(*example.ids[: example.prompt_length], *answer.tokens),
            prompt_length=example.prompt_length,
            unit=example.unit,
            prompt=example.prompt,
            nucleus=answer.nucleus,
            log_probs=answer.log_probs,
            truncated=answer.truncated,
            response=text,
            score=self._reward.score(example.prompt, text),
        )


def reward_figures(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return the rewards' mean, spread and axes, the answers' mean length in tokens, and the share of cut answers.

    They are functions of private records. Without any rollout (an empty draw) they are None.
    """
    return figures_of_observed([observed(rollout) for rollout in rollouts])


def observed(rollout: Rollout) -> dict[str, Any]:
    """Return the part of a rollout that `figures_of_observed` needs, as plain data."""
    return {
        "reward": rollout.score.value,
        "axes": dict(rollout.score.axes),
        "tokens": rollout.response_tokens,
        "truncated": rollout.truncated,
    }


def figures_of_observed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the `reward_figures` of rollouts that any process has `observed`."""
    rewards = [row["reward"] for row in rows]
    return {
        "reward_mean": _mean(rewards),
        "reward_std": statistics.pstdev(rewards) if rewards else None,
        "reward_min": min(rewards, default=None),
        "reward_max": max(rewards, default=None),
        "axes": axis_means([row["axes"] for row in rows]),
        "response_tokens": _mean([row["tokens"] for row in rows]),
        "truncated_share": _mean([row["truncated"] for row in rows]),
    }


def axis_means(axes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each axis."""
    return {name: statistics.fmean(scores[name] for scores in axes) for name in (axes[0] if axes else {})}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _token(value: Any) -> int:
    assert isinstance(value, int), "load_tokenizer checks both tokens"
    return value
