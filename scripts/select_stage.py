"""Choose which stage of an expert is exported, sealed and assembled: the last one of its chain."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.files.canonical import read_json, write_json


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expert", required=True, help="the expert's name")
    parser.add_argument("--stages", required=True, nargs="+", help="its stages, in order")
    parser.add_argument("--metrics", required=True, nargs="+", type=Path, help="their metrics, in the same order")
    parser.add_argument("--output", required=True, type=Path, help="selection.json")
    args = parser.parse_args()
    chosen, metrics_path = args.stages[-1], args.metrics[-1]
    reason = "the only stage" if len(args.stages) == 1 else f"the last of the stages {', '.join(args.stages)}"
    selection = {
        "expert": args.expert,
        "stage": chosen,
        "adapter": read_json(metrics_path)["adapter_file"],
        "metrics": str(metrics_path),
        "reason": reason,
        "candidates": args.stages,
    }
    write_json(args.output, selection)


if __name__ == "__main__":
    sys.exit(main())
