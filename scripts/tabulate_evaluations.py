"""Show the evaluations of all experts on one page: figures before and after, the reward's axes, sample answers."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.evaluation.evaluation_page import evaluation_page
from sealed_experts.evaluation.stored import read_evaluation
from sealed_experts.files.atomic import write_text


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", required=True, type=Path, nargs="+", help="the experts' evaluation.json")
    parser.add_argument("--page", required=True, type=Path, help="the HTML page to write")
    args = parser.parse_args()
    write_text(args.page, evaluation_page([read_evaluation(path) for path in args.evaluations]))


if __name__ == "__main__":
    sys.exit(main())
