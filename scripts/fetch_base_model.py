"""Fetch the base model from the hub, or link it from a folder, and write its base.json."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.planned_digests import unchanged
from sealed_experts.models.classes import BY_TASK
from sealed_experts.models.hub import fetch_base
from sealed_experts.models.job import base_from_json


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="the base's settings as JSON")
    parser.add_argument("--digests", default="{}", help="digests of the user's files that it reads, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="base.json to write; the model goes into its folder")
    parser.add_argument("--tasks", required=True, nargs="+", choices=BY_TASK, help="tasks that the stages train")
    parser.add_argument("--targets", nargs="*", default=[], help="modules of the base that adapters will change")
    args = parser.parse_args()
    job = base_from_json(args.settings)
    with unchanged(args.digests):
        fetch_base(
            job.base,
            key=job.key,
            folder=args.output.parent,
            classes=[BY_TASK[task] for task in args.tasks],
            targets=args.targets,
        )


if __name__ == "__main__":
    sys.exit(main())
