"""Compute the figures of each model, and the gains of each stage, from losses and answers on held-out records."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealed_experts.evaluation.bootstrap import Interval, Resampling
from sealed_experts.metrics import Case, Losses, Metric, differences
from sealed_experts.rewards import Scoring
from sealed_experts.training.batches import Batch
from sealed_experts.training.held_out import HeldOutAnswers
from sealed_experts.training.response import response_logits


@torch.no_grad()
def record_losses(model: torch.nn.Module, batches: Sequence[Batch], *, records: int) -> Losses:
    """Return the losses on `batches`, whose examples have the units 0 to `records` - 1.

    The mean is added up in the order of `mean_response_loss`, so it equals the stages' mean to the last bit.
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
class Figure:
    """The values of one metric for one model, one per record; a record's value is the mean over its answers.

    Attributes:
        metric: the metric.
        values: the value of each record; None for one that does not count.
        columns: the numbers to add up, each [records].
        coverage: share of answers, or of records, that can be measured; None without any record.
        losses: the model's losses.
    """

    metric: Metric
    values: list[float | None]
    columns: list[list[float]]
    coverage: float | None
    losses: Losses

    def entry(self, resampling: Resampling) -> dict[str, float | None]:
        """Return its entry in evaluation.json."""
        known = [value for value in self.values if value is not None]
        spread = {"min": min(known), "max": max(known)} if known else {"min": None, "max": None}
        ends = _ends(resampling.interval(*self.columns, figure=self.metric.figure)) if self.columns else _ends(None)
        shown = {name: _shown(self.metric, value) for name, value in {**ends, **spread}.items()}
        return {"mean": self.mean(), **shown, "count": len(known), "coverage": self.coverage}

    def mean(self) -> float | None:
        """Return the figure of all records; None if nothing was measured."""
        return _shown(self.metric, self.metric.combined(self.columns, self.losses))

    def gain(self, before: "Figure", resampling: Resampling) -> dict[str, float | None]:
        """Return mean and interval of the change from another model, over the same records."""
        if not (self.columns and before.columns):
            return {"mean": None, **_ends(None)}
        if type(self.metric).figure is Metric.figure and self.columns[1] == before.columns[1]:
            # The change of a mean is the mean of the changes. So a record's difficulty cancels out, to the last bit.
            columns = [differences(self.columns[0], before.columns[0]), self.columns[1]]
            mean = self.metric.combined(columns, self.losses.minus(before.losses))
            return {"mean": mean, **_ends(resampling.interval(*columns, figure=self.metric.figure))}
        now, then = (self.metric.combined(one.columns, one.losses) for one in (self, before))
        figure, own = self.metric.figure, len(self.columns)
        ends = resampling.interval(
            *self.columns, *before.columns, figure=lambda *sums: figure(*sums[:own]) - figure(*sums[own:])
        )
        return {"mean": None if now is None or then is None else now - then, **_ends(ends)}


class Measured:
    """One model on the held-out records."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        cases: Sequence[Sequence[Case]],
        losses: Losses,
        answers: Sequence[HeldOutAnswers] = (),
    ) -> None:
        """Take each record's cases (one per answer, or a single one), and the rounds of answers to all prompts."""
        self._answers = answers
        self._rows = [[(case, _values(metrics, case)) for case in of_record] for of_record in cases]
        names = {name: None for row in self._rows for _, values in row for name in values}
        self._figures = {
            name: _figure(metric, name, self._rows, losses)
            for metric in metrics
            for name in dict.fromkeys([metric.feature, *filter(metric.owns, names)])
        }

    def entry(self, resampling: Resampling) -> dict[str, Any]:
        """Return the model's entry in evaluation.json; figures that were not measured are None."""
        answers = [answer for once in self._answers for answer in once.answers]
        return {
            "metrics": {name: figure.entry(resampling) for name, figure in self._figures.items()},
            "kl": _mean([once.kl for once in self._answers]),
            "entropy": _mean([once.entropy for once in self._answers]),
            "response_tokens": _mean([answer.response_tokens for answer in answers]),
            "truncated_share": _mean([answer.truncated for answer in answers]),
        }

    def gains(self, before: "Measured", resampling: Resampling) -> dict[str, Any]:
        """Return the changes from another model, by metric."""
        return {
            name: figure.gain(before._figures[name], resampling)
            for name, figure in self._figures.items()
            if figure.metric.compared and name in before._figures
        }

    def described(self, reward: Scoring | None) -> list[dict[str, Any]]:
        """Return the facts that tables need to show the metrics, in order."""
        return [figure.metric.described(name, reward) for name, figure in self._figures.items()]

    def told(self) -> str:
        """Return the figures as one line for the log."""
        return ", ".join(f"{name} {figure.mean()}" for name, figure in self._figures.items())

    def predictions(self, record: int) -> list[dict[str, Any]]:
        """Return a record's answers with their scores."""
        return [{"prediction": case.prediction, "scores": self._scores(values)} for case, values in self._rows[record]]

    def sample(self, record: int, prompt: int) -> dict[str, Any]:
        """Return the first answer to a record, and its scores. The record must be one of the prompts."""
        answer, (_, values) = self._answers[0].answers[prompt], self._rows[record][0]
        asked = {name: value for name, value in values.items() if self._figures[name].metric.needs != "losses"}
        return {"text": answer.response, "scores": self._scores(asked), "truncated": answer.truncated}

    def _scores(self, values: Mapping[str, float]) -> dict[str, float | None]:
        return {name: self._figures[name].metric.shown(value) for name, value in values.items()}


def _values(metrics: Sequence[Metric], case: Case) -> dict[str, float]:
    """Return a case's values by name. A case without a value counts as the metric's worst, if it counts at all."""
    found: dict[str, float] = {}
    for metric in metrics:
        found |= metric.values(case) or ({} if metric.worst is None else {metric.feature: metric.worst})
    return found


def _figure(
    metric: Metric, name: str, rows: Sequence[Sequence[tuple[Case, Mapping[str, float]]]], losses: Losses
) -> Figure:
    asked = [row[:1] if metric.needs == "losses" else row for row in rows]
    records: list[float | None] = []
    parts: list[list[float]] = []
    for row in asked:
        known = [(case, values.get(name, metric.worst)) for case, values in row]
        counted = [(value, metric.parts(case, value)) for case, value in known if value is not None]
        records.append(statistics.fmean(value for value, _ in counted) if counted else None)
        parts.append([statistics.fmean(part) for part in zip(*(part for _, part in counted), strict=True)])
    width = max(map(len, parts), default=0)
    columns = [list(column) for column in zip(*(row or [0.0] * width for row in parts), strict=True)]
    return Figure(metric, records, columns, _mean([metric.usable(case) for row in asked for case, _ in row]), losses)


def _shown(metric: Metric, value: float | None) -> float | None:
    return None if value is None else metric.shown(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _ends(interval: Interval | None) -> dict[str, float | None]:
    return {"low": interval.low if interval else None, "high": interval.high if interval else None}
