"""Choose the stage of an expert that is exported, sealed and assembled, and give the reason.

The reason enters packages, so it contains no number: figures of held-out records stay in selection.json.
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
    """How to choose the stage that is shipped. Without a `metric` nothing is measured, and the last stage is chosen."""

    expert: str
    stages: tuple[str, ...]
    select: str
    metric: str | None


def selection_from_json(settings: str) -> SelectionJob:
    """Read the text that `configuration.jobs.selection_settings` wrote.

    Raises:
        UserError: the text is not from that function.
    """
    text = read_text(settings, {"expert", "stages", "select", "metric"})
    return SelectionJob(**text | {"stages": tuple(text["stages"])})


def selected_stage(job: SelectionJob, *, metrics: Sequence[Path], evaluation: Path | None) -> dict[str, Any]:
    """Return the content of selection.json.

    `receipt` names the metrics whose privacy covers the package. They are always those of the last stage: the choice
    looked at every stage, and the last stage's ledger contains them all.

    Args:
        metrics: each stage's metrics, in the order of the stages.
        evaluation: the expert's evaluation.json, for `select: best`.

    Raises:
        UserError: a file is missing, or lacks a figure that the choice needs.
    """
    values = _values(job, evaluation) if job.select == "best" else {}
    stage = _best(job, values) if job.select == "best" else job.stages[-1]
    chosen = metrics[job.stages.index(stage)]
    measured = {"metric": job.metric, "values": values} if job.select == "best" else {}
    return {
        "expert": job.expert,
        "stage": stage,
        "adapter": _adapter_of(chosen),
        "metrics": str(chosen),
        "receipt": str(metrics[-1]),
        "reason": _reason(job),
        "candidates": list(job.stages),
        "select": job.select,
        **measured,
    }


def _reason(job: SelectionJob) -> str:
    stages = ", ".join(job.stages)
    if len(job.stages) == 1:
        return "the only stage"
    if job.select == "best":
        return f"the best of {stages} by {job.metric} on held-out records"
    return f"the last of the stages {stages}"


def _best(job: SelectionJob, values: Mapping[str, float]) -> str:
    """Return the stage with the best value of the metric; among equal ones, the last."""
    sign = 1.0 if job.metric is not None and metric_of(job.metric).higher_is_better else -1.0
    return max(reversed(job.stages), key=lambda stage: sign * values[stage])  # `max` keeps the first of equal values


def _values(job: SelectionJob, evaluation: Path | None) -> dict[str, float]:
    if evaluation is None:
        raise UserError(
            f"`select: best` chooses among the stages of {job.expert} by its evaluation.json: give its path"
        )
    content = read_json(evaluation)
    if not isinstance(content, Mapping) or content.get("expert") != job.expert:
        raise UserError(f"{evaluation} is not the evaluation of {job.expert}: delete it and run again")
    return {stage: _value(job, content, stage, evaluation) for stage in job.stages}


def _value(job: SelectionJob, content: Mapping[str, Any], stage: str, path: Path) -> float:
    """Return `models.<stage>.metrics.<metric>.mean`."""
    keys = ["models", stage, "metrics", str(job.metric), "mean"]
    value: Any = content
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(
            f"{path}: {'.'.join(keys)} must be a number, not {value!r}: `select: best` by {job.metric} compares it with"
            " that of the other stages; delete the file and run again, or choose by another select_metric"
        )
    return float(value)


def _adapter_of(metrics: Path) -> str:
    content = read_json(metrics)
    if not isinstance(content, Mapping) or not isinstance(content.get("adapter_file"), str):
        raise UserError(f"{metrics} names no adapter_file: delete it and run again")
    return str(content["adapter_file"])
