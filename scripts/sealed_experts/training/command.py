"""The command line of the training script, and its exit codes."""

import argparse
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.planned_digests import unchanged
from sealed_experts.training.interruption import Interrupted, report_interrupted
from sealed_experts.training.job import LaterStage, StageJob, stage_from_json
from sealed_experts.training.objective import Materials, Objective
from sealed_experts.training.stage import MakeObjective, train_stage


def parse_job(description: str | None) -> StageJob:
    """Return the job that the command line describes.

    Raises:
        UserError: the settings are not in the workflow's form, or the stage needs an earlier stage.
    """
    args = vars(_parser(description).parse_args())
    args["models"] = {name: Path(path) for name, path in args.pop("model")}
    args["later"] = [LaterStage(settings, *map(Path, files)) for settings, *files in args["later"]]
    job = stage_from_json(args.pop("settings"), args.pop("operation"), **args)
    if job.settings.follows and job.start is None:
        raise UserError(f"{job.stage} refines an adapter: give --start, the adapter file of the previous stage")
    return job


def train_job(job: StageJob, make_objective: MakeObjective) -> int:
    """Train, and return the exit code: 0, or 75 if the job was asked to stop and has saved everything."""

    def make_checked(materials: Materials) -> Objective:
        with unchanged(job.digests):
            return make_objective(materials)

    try:
        train_stage(job, make_checked)
    except Interrupted as interruption:
        return report_interrupted(interruption, then="goes on from here")
    return 0


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base", required=True, type=Path, help="base.json of the base model")
    parser.add_argument("--train", required=True, type=Path, help="training records")
    parser.add_argument("--val", required=True, type=Path, help="validation records")
    parser.add_argument("--stats", required=True, type=Path, help="stats.json of the dataset")
    parser.add_argument("--start", type=Path, help="adapter file of the previous stage, if any")
    parser.add_argument(
        "--model",
        nargs=2,
        action="append",
        default=[],
        metavar=("SETTING", "FILE"),
        help="the setting that names another model to learn from, and the adapter file of that model",
    )
    parser.add_argument(
        "--later",
        nargs=4,
        action="append",
        default=[],
        metavar=("SETTINGS", "TRAIN", "VAL", "STATS"),
        help="a later stage's settings and records: it must be able to use them too",
    )
    parser.add_argument("--settings", required=True, help="settings that decide the numbers, as JSON")
    parser.add_argument("--operation", required=True, help="settings that only say how to run, as JSON")
    parser.add_argument("--digests", default="{}", help="digests of the user's files that it reads, as JSON")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder of checkpoints")
    parser.add_argument("--output", required=True, type=Path, help="the adapter file to write")
    return parser
