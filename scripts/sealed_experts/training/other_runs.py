"""Other runs of the same stage: report what they were, and why they are not resumed. No stage restarts silently."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json

# Plain names for the parts of a run's subject.
_CALLED = {
    "model": "base model",
    "base_digest": "base model",
    "adapter": "adapter settings",
    "dataset_size": "data",
    "data_digest": "data",
    "train_digest": "data",
    "val_digest": "data",
    "tokens_digest": "data",
    "start_digest": "adapter of the previous stage",
    "plan": "noise or number of steps",
    "code": "reward code",
}


def read_run(path: Path) -> dict[str, Any]:
    """Return the content of a run.json.

    Raises:
        UserError: the file is damaged, or this program did not write it.
    """
    run = read_json(path)
    if not isinstance(run, dict) or not all(isinstance(run.get(name), dict) for name in ("subject", "environment")):
        raise UserError(f"{path} does not say which run is in its folder: restore it, or delete that folder")
    return run


def report_other_runs(own: Path, *, subject: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Report why a stage starts at its first step although other folders hold checkpoints of it.

    A run of the same subject gets a warning: only the environment differs, and the same noise on other floats would be
    a second release. Of the runs with another subject, only the newest gets a line.

    Args:
        own: run.json of the run that starts.
    """
    others = {path: read_run(path) for path in sorted(own.parent.parent.glob("*/run.json")) if path != own}
    begun = {path.parent: run for path, run in others.items() if _newest_step(path.parent)}
    for folder, run in begun.items():
        if run["subject"] == subject:
            names = _differences(environment, run["environment"])
            print(
                f"WARNING: {folder} holds checkpoints of the same training with another {', '.join(names)}; "
                "they cannot be resumed here, and this stage starts again",
                file=sys.stderr,
                flush=True,
            )
    elsewhere = [folder for folder, run in begun.items() if run["subject"] != subject]
    if elsewhere:
        newest = max(elsewhere, key=lambda folder: (folder / "run.json").stat().st_mtime)
        names = _differences(subject, begun[newest]["subject"])
        called = list(dict.fromkeys(_CALLED.get(name, name) for name in names))
        print(
            f"this stage starts at its first step: {newest} holds a run up to step {_newest_step(newest)}, but of "
            f"another {', '.join(called)}. It is kept: with what it was made from, the same command goes on with it",
            flush=True,
        )


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Sequence[str]:
    return [name for name in mine if mine[name] != theirs.get(name)]


def _newest_step(folder: Path) -> int:
    """Return the step of a folder's newest checkpoint; 0 if there is none."""
    steps = (path.stem.rpartition("_")[2] for path in folder.glob("checkpoint_step_*.pt"))
    return max((int(step) for step in steps if step.isdecimal()), default=0)
