"""The figures of an evaluation as text, a row for each and a column for each model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sealed_experts.evaluation.gains import rewarded_gain

UNKNOWN = "–"

Evaluation = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure of every model; `change` is that of the stage with the reward, `–` where it is not compared."""

    label: str
    unit: str
    cells: Sequence[str]
    change: str


@dataclass(frozen=True)
class AxisShare:
    """What one axis contributes to one model's reward: weight · mean, and its share of what all axes contribute."""

    mean: float
    points: float
    share: float


def model_names(evaluation: Evaluation) -> list[str]:
    """Return the models in the order in which they were made: the base, then the stages."""
    gains = evaluation["gains"]
    return [gains[0]["from"], *(gain["to"] for gain in gains)] if gains else list(evaluation["models"])


def figure_rows(evaluation: Evaluation) -> list[Row]:
    """Return every figure of the models, those that no model has left out."""
    rows = [
        _row(evaluation, "Held-out loss", "nats per token", _loss, "loss"),
        _row(evaluation, "Perplexity", "", _perplexity),
        _row(evaluation, "Reward", "mean, 0 to 1", lambda model: with_interval(model["reward"]), "reward"),
        *(_axis_row(evaluation, name) for name in axis_names(evaluation)),
        _row(evaluation, "KL", "nats a token, from the stage before", lambda model: number(model["kl"], ".3f")),
        _row(evaluation, "Entropy", "nats a token", lambda model: number(model["entropy"], ".3f")),
        _row(evaluation, "Answer length", "tokens", lambda model: number(model["response_tokens"], ".1f")),
        _row(evaluation, "Cut answers", "at the longest length", lambda model: number(model["truncated_share"], ".0%")),
    ]
    return [row for row in rows if any(cell != UNKNOWN for cell in row.cells)]


def axis_names(evaluation: Evaluation) -> list[str]:
    """Return the reward's axes: those with a weight, then those for information."""
    weights = (evaluation["reward"] or {}).get("weights", {})
    known = {name: None for model in evaluation["models"].values() for name in model["axes"]}
    return sorted(known, key=lambda name: name not in weights)


def axis_shares(evaluation: Evaluation, model: str) -> dict[str, AxisShare]:
    """Return what each axis with a weight contributes to a model's reward; none where no reward was measured."""
    axes = evaluation["models"][model]["axes"]
    weights = {name: weight for name, weight in (evaluation["reward"] or {}).get("weights", {}).items() if name in axes}
    points = {name: weight * axes[name]["mean"] for name, weight in weights.items()}
    total = sum(points.values())
    return {
        name: AxisShare(axes[name]["mean"], points[name], points[name] / total if total else 0.0) for name in weights
    }


def with_interval(value: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """Return a mean with its 95 % interval: `0.512 [0.483, 0.541]`."""
    if value is None or value["mean"] is None:
        return UNKNOWN
    mean = format(value["mean"], form)
    if value["low"] is None or value["high"] is None:
        return mean
    return f"{mean} [{format(value['low'], form)}, {format(value['high'], form)}]"


def signed_interval(value: Mapping[str, Any] | None) -> str:
    """Return a change with its 95 % interval: `+0.052 [+0.031, +0.074]`."""
    return with_interval(value, "+.3f")


def number(value: float | None, form: str) -> str:
    """Return a number as text, `–` for None."""
    return UNKNOWN if value is None else format(value, form)


def _row(
    evaluation: Evaluation, label: str, unit: str, cell: Callable[[Mapping[str, Any]], str], changed: str | None = None
) -> Row:
    gain = rewarded_gain(evaluation["gains"])
    change = signed_interval(gain[changed]) if gain and changed else UNKNOWN
    return Row(label, unit, [cell(evaluation["models"][name]) for name in model_names(evaluation)], change)


def _axis_row(evaluation: Evaluation, name: str) -> Row:
    weight = (evaluation["reward"] or {}).get("weights", {}).get(name)
    unit = "for information" if weight is None else f"weight {weight:g}"
    row = _row(evaluation, f"· {name}", unit, lambda model: with_interval(model["axes"].get(name)))
    gain = rewarded_gain(evaluation["gains"])
    return Row(row.label, row.unit, row.cells, signed_interval(gain["axes"].get(name)) if gain else UNKNOWN)


def _loss(model: Mapping[str, Any]) -> str:
    return with_interval({"mean": model["loss"], **model["loss_interval"]})


def _perplexity(model: Mapping[str, Any]) -> str:
    value = model["perplexity"]
    form = ".2f" if value is None or value < 100 else ",.0f"
    return with_interval({"mean": value, **model["perplexity_interval"]}, form)
