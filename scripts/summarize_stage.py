"""Write the metrics file of a stage, from its adapter file."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.canonical import write_json
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.summary import stage_metrics


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, type=Path, help="the stage's adapter file")
    parser.add_argument("--output", required=True, type=Path, help="the metrics file to write")
    args = parser.parse_args()
    write_json(args.output, {"adapter_file": str(args.adapter), **stage_metrics(load_state(args.adapter))})


if __name__ == "__main__":
    sys.exit(main())
