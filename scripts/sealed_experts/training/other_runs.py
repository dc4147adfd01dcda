"""The other runs beside one: what they were, and why none of them goes on here. Nothing starts again silently."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json

# What people call that which a run is made of.
_CALLED = {
    "model": "base model",
    "base_digest": "base model",
    "adapter": "adapter settings",
    "dataset_size": "data",
    "data_digest": "data",
    "train_digest": "data",
    "val_digest": "data",
    "tokens_digest": "data",
    "start_digest": "adapter of the stage before",
    "plan": "noise or number of steps",
    "code": "reward code",
}


def read_run(path: Path) -> dict[str, Any]:
    """Return what a folder's run.json says that the run is.

    Raises:
        UserError: it is damaged, or not a file of this program.
    """
    run = read_json(path)
    if not isinstance(run, dict) or not all(isinstance(run.get(name), dict) for name in ("subject", "environment")):
        raise UserError(f"{path} does not say which run is in its folder: restore it, or delete that folder")
    return run


def tell_of_others(own: Path, *, subject: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    """Say that a stage starts at its first step although its other folders hold checkpoints, and why.

    With the same subject it is a warning: only the environment differs, and the same noise on other floats would be a
    second release. With another subject it is a line about the newest of them.

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
    """Return the step of a folder's newest checkpoint; 0 where there is none."""
    steps = (path.stem.rpartition("_")[2] for path in folder.glob("checkpoint_step_*.pt"))
    return max((int(step) for step in steps if step.isdecimal()), default=0)
