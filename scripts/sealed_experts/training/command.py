"""The command line that every training script has, and how it ends."""

import argparse
import contextlib
import sys
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.training.interruption import EXIT_INTERRUPTED, Interrupted
from sealed_experts.training.job import StageJob, stage_from_json
from sealed_experts.training.stage import MakeObjective, train_stage


def parse_job(description: str | None) -> StageJob:
    """Return what the command line asks for.

    Raises:
        UserError: the settings are not what the workflow writes, or the stage needs one before it.
    """
    args = vars(_parser(description).parse_args())
    args["models"] = {name: Path(path) for name, path in args.pop("model")}
    job = stage_from_json(args.pop("settings"), args.pop("operation"), **args)
    if job.settings.follows and job.start is None:
        raise UserError(f"{job.stage} refines an adapter: give --start, the adapter file of the stage before")
    return job


def run_job(job: StageJob, make_objective: MakeObjective) -> int:
    """Train, and return the exit code: 0, or 75 when asked to stop with everything saved."""
    try:
        train_stage(job, make_objective)
    except Interrupted as interruption:
        with contextlib.suppress(OSError):  # a full disk: the exit code says it too
            print(f"interrupted: {interruption}; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base", required=True, type=Path, help="the base's base.json")
    parser.add_argument("--train", required=True, type=Path, help="training records")
    parser.add_argument("--val", required=True, type=Path, help="validation records")
    parser.add_argument("--stats", required=True, type=Path, help="the dataset's stats.json")
    parser.add_argument("--start", type=Path, help="adapter file of the stage before, if any")
    parser.add_argument(
        "--model",
        nargs=2,
        action="append",
        default=[],
        metavar=("SETTING", "FILE"),
        help="adapter file of another model that it learns from, and the setting that names it",
    )
    parser.add_argument("--settings", required=True, help="what decides the numbers, as JSON")
    parser.add_argument("--operation", required=True, help="how it is run, as JSON")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder of checkpoints")
    parser.add_argument("--output", required=True, type=Path, help="the adapter file to write")
    return parser
