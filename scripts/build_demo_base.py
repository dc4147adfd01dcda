"""Pretrain the demo's small base model on its general text, and write its base.json."""

import argparse
import sys
from pathlib import Path

from sealed_experts.training.interruption import Interrupted, Interruption, end_at_signals, report_interrupted

if __name__ == "__main__":
    end_at_signals()  # before torch is loaded, which takes seconds

from sealed_experts.data.demo_general import general_text
from sealed_experts.errors import reports_user_errors
from sealed_experts.files.planned_digests import unchanged
from sealed_experts.models.demo_base import build_demo_base
from sealed_experts.models.job import base_from_json


@reports_user_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="the base's settings, as JSON")
    parser.add_argument("--operation", required=True, help="settings that only say how to run, as JSON")
    parser.add_argument("--digests", default="{}", help="digests of the user's files that it reads, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="base.json to write; the model goes into its folder")
    args = parser.parse_args()
    job = base_from_json(args.settings, args.operation)
    with unchanged(args.digests):
        documents = general_text()
    try:
        with Interruption() as asked:
            build_demo_base(
                job.base.demo,
                seed=job.seed,
                folder=args.output.parent,
                key=job.key,
                dtype=job.base.dtype,
                documents=documents,
                check=asked.check,
            )
    except Interrupted as interruption:
        return report_interrupted(interruption, then="makes the base from the start")
    return 0


if __name__ == "__main__":
    sys.exit(main())
