"""Plot the curves of one training stage: losses, and the spent ε with its budget."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.evaluation.drawing import save_figure
from sealed_experts.evaluation.plots import draw_curves
from sealed_experts.files.canonical import read_json


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, type=Path, help="the stage's training_metrics.json")
    parser.add_argument("--curves", required=True, type=Path, help="the figure to write, .svg or .png")
    args = parser.parse_args()
    save_figure(draw_curves(read_json(args.metrics)), args.curves)


if __name__ == "__main__":
    sys.exit(main())
