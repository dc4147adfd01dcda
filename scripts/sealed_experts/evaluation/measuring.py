"""What one model does with held-out records: its losses, its answers and what these are worth."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.evaluation.bootstrap import Interval, Resampling
from sealed_experts.training.batches import Batch
from sealed_experts.training.held_out import HeldOutAnswers
from sealed_experts.training.response import response_logits
from sealed_experts.training.scoring import Rollout, reward_figures


@dataclass(frozen=True)
class Losses:
    """Losses on held-out records.

    Attributes:
        mean: over all response tokens, in nats, as the stages' validation takes it; None without any token.
        sums: each record's, over its own response tokens.
        tokens: each record's number of response tokens.
    """

    mean: float | None
    sums: list[float]
    tokens: list[int]


@torch.no_grad()
def record_losses(model: torch.nn.Module, batches: Sequence[Batch], *, records: int) -> Losses:
    """Return the losses on `batches`, whose examples have the units 0 to `records` - 1.

    The mean is added up in the order of `mean_response_loss`, so that it is the stages' to the last bit.
    """
    sums, tokens, total = [0.0] * records, [0] * records, 0.0
    for batch in batches:
        response = response_logits(model, batch)
        losses = response.losses().to(torch.float64)
        total += float(losses.sum())
        rows = torch.zeros(len(batch.examples), dtype=torch.float64).index_add(0, response.row.cpu(), losses.cpu())
        for example, value, count in zip(batch.examples, rows.tolist(), response.counts.tolist(), strict=True):
            sums[example.unit], tokens[example.unit] = value, count
    return Losses(total / sum(tokens) if sum(tokens) else None, sums, tokens)


@dataclass(frozen=True)
class Measured:
    """One model on the held-out records; `answers` are to every prompt each, and none where no reward is known."""

    losses: Losses
    answers: tuple[HeldOutAnswers, ...]

    @property
    def rollouts(self) -> list[Rollout]:
        """All answers."""
        return [rollout for answers in self.answers for rollout in answers.rollouts]

    @property
    def rewards(self) -> list[float]:
        """Each prompt's mean reward."""
        return self._of_prompts(lambda rollout: rollout.score.value)

    def axis(self, name: str) -> list[float]:
        """Return each prompt's mean score on one axis."""
        return self._of_prompts(lambda rollout: rollout.score.axes[name])

    def _of_prompts(self, measure: Callable[[Rollout], float]) -> list[float]:
        by_prompt = zip(*(answers.rollouts for answers in self.answers), strict=True)
        return [statistics.fmean(map(measure, rollouts)) for rollouts in by_prompt]

    @property
    def axes(self) -> list[str]:
        """The names of the reward's axes."""
        return list(self.rollouts[0].score.axes) if self.rollouts else []


def model_figures(model: Measured, resampling: Resampling) -> dict[str, Any]:
    """Return one model's entry of evaluation.json's `models`; what is not measured is None."""
    losses = model.losses
    loss = resampling.interval(losses.sums, weights=losses.tokens)
    figures = reward_figures(model.rollouts)
    return {
        "loss": losses.mean,
        "loss_interval": _ends(loss),
        "perplexity": _exponential(losses.mean),
        "perplexity_interval": {name: _exponential(end) for name, end in _ends(loss).items()},
        "reward": _mean(model.rewards, resampling) if model.rollouts else None,
        "axes": {name: _mean(model.axis(name), resampling) for name in model.axes},
        "kl": _mean_known([answers.kl for answers in model.answers]),
        "entropy": _mean_known([answers.entropy for answers in model.answers]),
        "response_tokens": figures["response_tokens"],
        "truncated_share": figures["truncated_share"],
    }


def gain_figures(before: Measured, after: Measured, resampling: Resampling) -> dict[str, Any]:
    """Return what changed from one model to another, record by record: an entry of evaluation.json's `gains`."""
    worse = _differences(before.losses.sums, after.losses.sums)
    known = before.losses.mean is not None and after.losses.mean is not None
    return {
        "loss": {
            "mean": after.losses.mean - before.losses.mean if known else None,  # type: ignore[operator]
            **_ends(resampling.interval(worse, weights=after.losses.tokens)),
        },
        "reward": _mean(_differences(before.rewards, after.rewards), resampling) if after.rollouts else None,
        "axes": {name: _mean(_differences(before.axis(name), after.axis(name)), resampling) for name in after.axes},
    }


def _mean(values: Sequence[float], resampling: Resampling) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), **_ends(resampling.interval(values))}


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _ends(interval: Interval | None) -> dict[str, float | None]:
    return {"low": interval.low if interval else None, "high": interval.high if interval else None}


def _differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    return [new - old for old, new in zip(before, after, strict=True)]


def _exponential(loss: float | None) -> float | None:
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None  # JSON has no infinity
