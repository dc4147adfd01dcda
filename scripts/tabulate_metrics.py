"""Show the metrics of all experts and stages on one page."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.evaluation.tables import metrics_page
from sealed_experts.files.atomic import write_text
from sealed_experts.files.canonical import read_json


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--metrics",
        required=True,
        type=Path,
        nargs="+",
        help="metrics files of all stages, such as training_metrics.json",
    )
    parser.add_argument("--page", required=True, type=Path, help="the HTML page to write")
    args = parser.parse_args()
    write_text(args.page, metrics_page([read_json(path) for path in args.metrics]))


if __name__ == "__main__":
    sys.exit(main())
