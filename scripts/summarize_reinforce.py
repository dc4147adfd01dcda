"""Derive rl_metrics.json from an adapter file."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.canonical import write_json
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.summary import reward_metrics


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", required=True, type=Path, help="adapter_rl_final.pt")
    parser.add_argument("--output", required=True, type=Path, help="rl_metrics.json")
    args = parser.parse_args()
    metrics = reward_metrics(load_state(args.adapter))
    write_json(args.output, {"adapter_file": str(args.adapter), **metrics})


if __name__ == "__main__":
    sys.exit(main())
