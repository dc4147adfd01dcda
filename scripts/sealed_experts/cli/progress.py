"""The progress of every expert's stages, read from the files that trainers write.

Reading never disturbs a trainer and never fails on a half-written file: the last line of `metrics.jsonl` may be
incomplete. A killed trainer could not update its `state.json`, so the folder's lock shows whether it still runs: the
operating system frees the lock when the process ends.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.files.locks import is_locked
from sealed_experts.text import one_line
from sealed_experts.training.objectives import STAGES, Stage, stage_of_folder

STATES = ("waiting", "running", "resumed", "done", "failed", "interrupted")

_LOG_TAIL_BYTES = 16384
_CUT_SHORT = {"privacy_budget": "privacy budget spent", "early_stopping": "no better validation loss"}
_CTRL_C = "KeyboardInterrupt"
_PACE_LINES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageProgress:
    """One stage of one expert at one moment. None means: not known yet.

    Attributes:
        state: one of STATES.
        figures: {head of a column: newest value}, for the columns that the stage's `watched` names.
        epsilon: the ε spent so far; None if no ε is claimed.
        target_epsilon: the budget of ε; None if no ε is claimed.
        seconds_left: an estimate that assumes the present speed up to step `max_steps`.
        note: why a finished stage ended early, or where an interrupted one stopped.
    """

    expert: str
    stage: str
    state: str = "waiting"
    step: int | None = None
    max_steps: int | None = None
    figures: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    epsilon: float | None = None
    target_epsilon: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    resumed_from: int | None = None
    error: str | None = None
    note: str | None = None


def found_stages(results: Path) -> list[tuple[str, str]]:
    """Return the (expert, stage) pairs that have files under `results`/experts, sorted by name."""
    folders = sorted(path for path in (results / "experts").glob("*/*") if path.is_dir())
    return [(path.parent.name, stage_of_folder(path.name)) for path in folders if _is_stage_folder(path)]


def packages_without_adapters(results: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (package, adapter) for packages that exist although an adapter of their stages is missing.

    If the user asks for such a package by its file name, Snakemake believes that it is up to date.
    """
    for package in sorted((results / "packages").glob("*.tgsp")):
        folder = results / "experts" / package.stem
        stages = (read_state(folder / "selection.json") or {}).get("candidates", [])
        for stage in (STAGES[name] for name in stages if name in STAGES):
            adapter = folder / stage.folder() / stage.adapter_file
            if not adapter.exists():
                yield package, adapter


def read_progress(*, results: Path, stages: Iterable[tuple[str, str]], now: float) -> list[StageProgress]:
    """Return the progress of each (expert, stage) pair, in the order given; `now` is the unix time in seconds."""
    return [_stage_progress(results / "experts" / expert, expert, stage, now) for expert, stage in stages]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a `metrics.jsonl`. Incomplete lines are skipped; a missing file has no objects."""
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [value for value in map(_json_object, lines) if value is not None]


def read_state(path: Path) -> dict[str, Any] | None:
    """Return the object in a `state.json`, or None if there is none."""
    try:
        return _json_object(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def last_error(path: Path) -> str | None:
    """Return the error at the end of a job's log, or None if the log is missing or contains no error.

    An error is the last `error: …` line, or the line after the last traceback. Control characters are removed, so that
    nothing in a log can control the user's terminal.
    """
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = None
    in_traceback = False
    for line in lines:
        if line.startswith("Traceback (most recent call last):"):
            in_traceback = True
        elif line.startswith("error: "):
            found = line.removeprefix("error: ")
        elif in_traceback and line and not line[0].isspace():
            found, in_traceback = line, False
    return None if found is None else one_line(found)


def _stage_progress(folder: Path, expert: str, stage: str, now: float) -> StageProgress:
    place = folder / _folder_of(stage)
    alive = is_locked(place / "checkpoints")
    state_path = place / "state.json"
    state = read_state(state_path) or {}
    metrics = read_metrics(place / "metrics.jsonl")
    error = _failure(state, state_path, folder / "logs" / f"train_{stage}.log", alive=alive)
    if error is not None and error.startswith(_CTRL_C):  # Ctrl-C came before the trainer handled signals
        error, state = None, {**state, "state": "interrupted", "error": None}
    name = _state_name(state, alive=alive, failed=error is not None, finished=_is_finished(place))
    if name == "waiting":
        return StageProgress(expert=expert, stage=stage)
    steps = [line for line in metrics if "loss" in line]
    newest = steps[-1] if steps else {}
    step, max_steps = _newest_step(state, newest), state.get("max_steps", newest.get("max_steps"))
    ended_early = name == "done" and step is not None and max_steps is not None and step < max_steps
    return StageProgress(
        expert=expert,
        stage=stage,
        state=name,
        step=step,
        max_steps=max_steps,
        # A null value, such as the loss of an empty batch, is skipped.
        figures={head: _last_value(metrics, name) for head, (name, _) in watched(stage).items()},
        # A trainer that resumed after its last step logged no step, so its state has no ε.
        epsilon=_last_value(metrics, "epsilon") if state.get("epsilon") is None else state["epsilon"],
        target_epsilon=state.get("target_epsilon"),
        tokens_per_second=newest.get("tokens_per_second"),
        seconds_left=_seconds_left(state, steps, now) if name in ("running", "resumed") else None,
        resumed_from=state.get("resumed_from"),
        error=error if name == "failed" else None,
        note=_why_cut_short(place, stage) if ended_early else _where_stopped(state) if name == "interrupted" else None,
    )


def watched(stage: str) -> Mapping[str, tuple[str, str]]:
    """Return the figures to show for a stage: {head of the column: (name in metrics.jsonl, name in words)}."""
    return STAGES.get(stage, Stage).watched


def _folder_of(stage: str) -> str:
    return STAGES[stage].folder() if stage in STAGES else stage


def cut_short(metrics: Mapping[str, Any]) -> str | None:
    """Return why a stage ended before its last step, given the content of its metrics file; None if it did not."""
    return _CUT_SHORT.get(str(metrics.get("stopped_reason")))


def _why_cut_short(place: Path, stage: str) -> str | None:
    return cut_short(read_state(place / STAGES[stage].metrics_file) or {}) if stage in STAGES else None


def _where_stopped(state: Mapping[str, Any]) -> str | None:
    return one_line(state["error"]) if state.get("state") == "interrupted" and state.get("error") else None


def _state_name(state: Mapping[str, Any], *, alive: bool, failed: bool, finished: bool) -> str:
    if alive:
        return "running" if state.get("resumed_from") is None else "resumed"
    if failed:
        return "failed"
    if finished and state.get("state", "done") == "done":
        return "done"
    # A finished stage whose adapter was deleted is waiting: it will be trained again.
    return "interrupted" if state.get("state") in ("running", "interrupted") else "waiting"


def _failure(state: Mapping[str, Any], state_path: Path, log: Path, *, alive: bool) -> str | None:
    """Return why the stage failed: the trainer's own error, or the error at the end of a later attempt's log."""
    if alive:
        return None
    if state.get("state") == "failed":
        return one_line(state.get("error") or last_error(log) or f"no reason given, see {log}")
    if state.get("state") in ("done", "interrupted") and not _is_newer(log, state_path):
        return None
    return last_error(log)


def _is_newer(path: Path, other: Path) -> bool:
    try:
        return path.stat().st_mtime_ns > other.stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_stage_folder(folder: Path) -> bool:
    traces = ("state.json", "metrics.jsonl", "checkpoints")
    return any((folder / name).exists() for name in traces) or _is_finished(folder)


def _is_finished(folder: Path) -> bool:
    return any(folder.glob("adapter*_final.pt"))


def _newest_step(state: Mapping[str, Any], newest: Mapping[str, Any]) -> int | None:
    steps = [source["step"] for source in (state, newest) if source.get("step") is not None]
    return max(steps, default=None)


def _last_value(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((line[name] for line in reversed(metrics) if line.get(name) is not None), None)


def _seconds_left(state: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], now: float) -> float | None:
    """Estimate the time left from the speed of the latest logged steps, minus the time since the last update."""
    timed = [line for line in steps if line.get("seconds") is not None][-_PACE_LINES:]
    max_steps = state.get("max_steps")
    if not timed or max_steps is None:
        return None
    first = timed[0] if len(timed) > 1 else {"step": 0, "seconds": 0.0}
    made = timed[-1]["step"] - first["step"]
    if made <= 0:
        return None
    left = (max_steps - timed[-1]["step"]) * (timed[-1]["seconds"] - first["seconds"]) / made
    return max(0.0, left - max(0.0, now - state.get("updated", now)))


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # incomplete: its writer is still writing, or was killed
        return None
    return value if isinstance(value, dict) else None
