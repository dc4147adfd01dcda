"""Sample a policy's answers to a set of prompts, and score them with a reward."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sealed_experts.privacy.streams import Stream
from sealed_experts.rewards import Score, Scoring
from sealed_experts.training.answers import Answer, Answering, AnswerSettings
from sealed_experts.training.batches import Example
from sealed_experts.training.rollouts import unchecked_shapes
from sealed_experts.training.sampling_check import find_sampling_shapes
from sealed_experts.training.shapes import up_to_power_of_two


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout(Answer):
    """An answer with its reward.

    Attributes:
        score: its reward.
        advantage: factor of the score term.
    """

    score: Score
    advantage: float = 0.0


class Scorer:
    """Samples one answer to each prompt of a step and scores it."""

    def __init__(
        self,
        *,
        settings: AnswerSettings,
        reward: Scoring,
        tokenizer: PreTrainedTokenizerBase,
        token_budget: int,
        rows: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`rows` is how many prompts of a step are this process's, about."""
        self.answering = Answering(settings=settings, tokenizer=tokenizer, token_budget=token_budget, check=check)
        self._reward, self._check = reward, check
        widest = max(shape.rows for shape in self.answering.sampling.shapes)
        shapes = unchecked_shapes(min(widest, up_to_power_of_two(rows)))
        self._sampling = dataclasses.replace(self.answering.sampling, shapes=shapes)

    def settle(self, model: Any) -> None:
        """Choose passes in which rows do not depend on each other on this machine, as privacy needs."""
        self._sampling = find_sampling_shapes(model, sampling=self._sampling, check=self._check)

    def roll_out(self, model: Any, examples: Sequence[Example], *, stream: Stream, step: int) -> list[Rollout]:
        """Return a scored answer to each example's prompt, decided by (stream, step, unit).

        Raises:
            UserError: the reward fails, or its value is out of range.
        """
        answers = self.answering.answer(model, examples, stream=stream, step=step, sampling=self._sampling)
        return self.scored(answers)

    def scored(self, answers: Sequence[Answer]) -> list[Rollout]:
        """Return these answers with their rewards.

        Raises:
            UserError: as `roll_out`.
        """
        return [Rollout(**vars(answer), score=self._reward.score(answer.prompt, answer.response)) for answer in answers]


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
