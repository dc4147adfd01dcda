"""The figures of an evaluation as text: a row for each figure, and a column for each model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sealed_experts.evaluation.gains import rewarded_gain

UNKNOWN = "–"
_LONG = 100  # numbers from here on are shown without decimals

Evaluation = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure for every model. `change` is the change in `shown_gain`, or `–` if it is not compared."""

    label: str
    unit: str
    cells: Sequence[str]
    change: str = UNKNOWN


@dataclass(frozen=True)
class AxisShare:
    """The contribution of one axis to one model's reward: weight · mean, and its share of all contributions."""

    points: float
    share: float


def model_names(evaluation: Evaluation) -> list[str]:
    """Return the models in the order in which they were made: the base, then the stages."""
    gains = evaluation["gains"]
    return [gains[0]["from"], *(gain["to"] for gain in gains)] if gains else list(evaluation["models"])


def shown_gain(evaluation: Evaluation) -> Mapping[str, Any] | None:
    """Return the gain that tables show: that of the stage with the reward, or of the last stage."""
    return rewarded_gain(evaluation) or next(reversed(evaluation["gains"]), None)


def figure_rows(evaluation: Evaluation) -> list[Row]:
    """Return every figure that at least one model has."""
    rows = [row for about in evaluation["metrics"] for row in _metric_rows(evaluation, about)]
    rows += [
        _row(evaluation, "KL", "nats per token, from the stage before", lambda model: number(model["kl"], ".3f")),
        _row(evaluation, "Entropy", "nats per token", lambda model: number(model["entropy"], ".3f")),
        _row(evaluation, "Answer length", "tokens", lambda model: number(model["response_tokens"], ".1f")),
        _row(evaluation, "Cut answers", "at the longest length", lambda model: number(model["truncated_share"], ".0%")),
    ]
    return [row for row in rows if any(cell != UNKNOWN for cell in row.cells)]


def axis_shares(evaluation: Evaluation, model: str) -> dict[str, AxisShare]:
    """Return the contribution of each axis with a weight to a model's reward; empty if no reward was measured."""
    measured = evaluation["models"][model]["metrics"]
    weights = (evaluation["reward"] or {}).get("weights", {})
    points = {
        axis: weight * measured[f"reward.{axis}"]["mean"]
        for axis, weight in weights.items()
        if f"reward.{axis}" in measured
    }
    total = sum(points.values())
    return {axis: AxisShare(value, value / total if total else 0.0) for axis, value in points.items()}


def with_interval(value: Mapping[str, Any] | None, *, sign: str = "") -> str:
    """Return a figure with its 95 % interval: `0.512 [0.483, 0.541]`."""
    if value is None or value["mean"] is None:
        return UNKNOWN
    form = f"{sign}.3f" if abs(value["mean"]) < _LONG else f"{sign},.0f"
    mean = format(value["mean"], form)
    if value["low"] is None or value["high"] is None:
        return mean
    return f"{mean} [{format(value['low'], form)}, {format(value['high'], form)}]"


def signed_interval(value: Mapping[str, Any] | None) -> str:
    """Return a change with its 95 % interval: `+0.052 [+0.031, +0.074]`."""
    return with_interval(value, sign="+")


def number(value: float | None, form: str) -> str:
    """Return a number as text, `–` for None."""
    return UNKNOWN if value is None else format(value, form)


def _metric_rows(evaluation: Evaluation, about: Mapping[str, Any]) -> list[Row]:
    """Return a metric's row, and a row with the usable share if not everything was usable."""
    name, gain = about["metric"], shown_gain(evaluation)
    row = _row(evaluation, about["title"], about["unit"], lambda model: with_interval(model["metrics"].get(name)))
    change = signed_interval(gain["metrics"].get(name)) if gain else UNKNOWN
    rows = [Row(row.label, row.unit, row.cells, change)]
    covered = {model["metrics"].get(name, {}).get("coverage") for model in evaluation["models"].values()}
    if "." not in name and covered - {None, 1.0}:
        rows.append(
            _row(evaluation, "· usable", "share", lambda model: number(model["metrics"][name]["coverage"], ".1%"))
        )
    return rows


def _row(evaluation: Evaluation, label: str, unit: str, cell: Callable[[Mapping[str, Any]], str]) -> Row:
    return Row(label, unit, [cell(evaluation["models"][name]) for name in model_names(evaluation)])
