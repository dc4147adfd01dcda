"""Choose the stage of an expert to export, seal and assemble: the last one, or the best on held-out records."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.evaluation.selection import selected_stage, selection_from_json
from sealed_experts.files.canonical import write_json


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="the expert's stages and how to choose, as JSON")
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help="metrics of all stages, in their order")
    parser.add_argument("--evaluation", nargs="?", type=Path, help="evaluation.json, required by `select: best`")
    parser.add_argument("--output", required=True, type=Path, help="selection.json to write")
    args = parser.parse_args()
    job = selection_from_json(args.settings)
    if len(args.metrics) != len(job.stages):
        raise UserError(f"--metrics must give one file for each of {', '.join(job.stages)}, in this order")
    write_json(args.output, selected_stage(job, metrics=args.metrics, evaluation=args.evaluation))


if __name__ == "__main__":
    sys.exit(main())
