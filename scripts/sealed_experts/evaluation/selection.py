"""Which stage of an expert is exported, sealed and assembled, and why.

The reason enters packages, so it holds no number: those of held-out records stay in selection.json.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.metrics import metric_of
from sealed_experts.settings.job_text import read_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionJob:
    """Which of an expert's stages is shipped. `metric` is None where nothing is measured: the last stage is taken."""

    expert: str
    stages: tuple[str, ...]
    select: str
    metric: str | None


def selection_from_json(settings: str) -> SelectionJob:
    """Read back the text of `configuration.jobs.selection_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = read_text(settings, {"expert", "stages", "select", "metric"})
    return SelectionJob(**text | {"stages": tuple(text["stages"])})


def selected_stage(run: SelectionJob, *, metrics: Sequence[Path], evaluation: Path | None) -> dict[str, Any]:
    """Return the content of selection.json.

    `receipt` names the metrics whose privacy covers the package. Those are the last stage's also where an earlier one
    is chosen: the choice looked at every stage, and the last one's ledger holds them all.

    Args:
        metrics: each stage's metrics, in the order of the stages.
        evaluation: the expert's evaluation.json, for `select: best`.

    Raises:
        UserError: a file is missing or does not hold what the choice needs.
    """
    values = _values(run, evaluation) if run.select == "best" else {}
    stage = _best(run, values) if run.select == "best" else run.stages[-1]
    chosen = metrics[run.stages.index(stage)]
    measured = {"metric": run.metric, "values": values} if run.select == "best" else {}
    return {
        "expert": run.expert,
        "stage": stage,
        "adapter": _adapter_of(chosen),
        "metrics": str(chosen),
        "receipt": str(metrics[-1]),
        "reason": _reason(run),
        "candidates": list(run.stages),
        "select": run.select,
        **measured,
    }


def _reason(run: SelectionJob) -> str:
    stages = ", ".join(run.stages)
    if len(run.stages) == 1:
        return "the only stage"
    if run.select == "best":
        return f"the best of {stages} by {run.metric} on held-out records"
    return f"the last of the stages {stages}"


def _best(run: SelectionJob, values: Mapping[str, float]) -> str:
    """Return the stage with the best value of the metric; the later one of equals."""
    sign = 1.0 if run.metric is not None and metric_of(run.metric).higher_is_better else -1.0
    return max(reversed(run.stages), key=lambda stage: sign * values[stage])  # `max` keeps the first of equals


def _values(run: SelectionJob, evaluation: Path | None) -> dict[str, float]:
    if evaluation is None:
        raise UserError(
            f"`select: best` chooses among the stages of {run.expert} by its evaluation.json: give its path"
        )
    content = read_json(evaluation)
    if not isinstance(content, Mapping) or content.get("expert") != run.expert:
        raise UserError(f"{evaluation} is not the evaluation of {run.expert}: delete it and run again")
    return {stage: _value(run, content, stage, evaluation) for stage in run.stages}


def _value(run: SelectionJob, content: Mapping[str, Any], stage: str, path: Path) -> float:
    """Return `models.<stage>.metrics.<metric>.mean`."""
    keys = ["models", stage, "metrics", str(run.metric), "mean"]
    value: Any = content
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(
            f"{path}: {'.'.join(keys)} must be a number, not {value!r}: `select: best` by {run.metric} compares it with"
            " that of the other stages; delete the file and run again, or choose by another select_metric"
        )
    return float(value)


def _adapter_of(metrics: Path) -> str:
    content = read_json(metrics)
    if not isinstance(content, Mapping) or not isinstance(content.get("adapter_file"), str):
        raise UserError(f"{metrics} names no adapter_file: delete it and run again")
    return str(content["adapter_file"])
