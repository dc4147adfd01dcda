"""Answers with their rewards: what a policy says to a set of prompts, and how good that is."""

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

# Nothing is kept for a backward pass while answers are sampled, so many more tokens fit than in a physical batch.
_SAMPLING_TOKENS = 16
_MOST_ROWS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout(Example):
    """A prompt with the answer that was sampled to it: `ids` holds both.

    Attributes:
        nucleus: for each token of the answer, how many of the likeliest it was sampled from.
        log_probs: for each token of the answer, its log-probability among those.
        truncated: whether the answer was cut at its longest length.
        response: the answer as text.
        score: its reward.
        advantage: what the score term is multiplied by.
    """

    nucleus: tuple[int, ...]
    log_probs: tuple[float, ...]
    truncated: bool
    response: str
    score: Score
    advantage: float = 0.0


class AnswerSettings(Protocol):
    """What sampling asks of the settings of a stage or of an evaluation."""

    max_seq_len: int
    token_budget: int
    max_new_tokens: int
    temperature: float
    top_p: float
    privacy: PrivacySettings

    @property
    def logical_batch(self) -> int:
        """Prompts a step."""


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
            UserError: one does not; it names the longest.
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
        """Sample one prompt at a time where, on this machine, a row of a batch depends on the other rows.

        Args:
            examples: some to try it with.
        """
        prompts = [example.ids[: example.prompt_length] for example in examples[: self._sampling.rows]]
        if prompts and not check_row_independence(model, prompts, sampling=self._sampling):
            print("rows of a batch depend on each other here: answers are sampled one at a time", flush=True)
            self._sampling = dataclasses.replace(self._sampling, rows=1)

    def roll_out(
        self, model: Any, examples: Sequence[Example], *, stream: Stream, step: int, held_out: bool = False
    ) -> list[Rollout]:
        """Return a scored answer to each example's prompt, decided by (stream, step, unit).

        Held-out prompts come many at once, also where a step draws few. Under privacy every pass of a step has one
        shape, see `rollouts`; held-out prompts are always the same ones, and without privacy the draw is no secret.

        Raises:
            UserError: the reward fails, or leaves its range.
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
        """Return how these prompts are sampled: no wider than they need, unless a draw's own size must not show."""
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
    """Return mean, spread and axes of the rewards, the answers' mean length in tokens and the share that was cut.

    They are functions of private records. Without any rollout (an empty draw) they are None.
    """
    return figures_of_observed([observed(rollout) for rollout in rollouts])


def observed(rollout: Rollout) -> dict[str, Any]:
    """Return what `figures_of_observed` needs of a rollout, as plain data."""
    return {
        "reward": rollout.score.value,
        "axes": dict(rollout.score.axes),
        "tokens": rollout.response_tokens,
        "truncated": rollout.truncated,
    }


def figures_of_observed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `reward_figures` from what was `observed` of each rollout, in whichever process."""
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
    assert isinstance(value, int), "load_tokenizer makes sure of both tokens"
    return value
