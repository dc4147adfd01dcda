"""Plot the curves of a stage that learns from a reward: rewards, axes, KL, entropy, lengths, and ε of all stages."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.evaluation.drawing import save_figure
from sealed_experts.evaluation.reward_plots import draw_reward_curves
from sealed_experts.files.canonical import read_json


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, type=Path, help="the stage's rl_metrics.json")
    parser.add_argument("--earlier", nargs="*", default=[], type=Path, help="metrics of the earlier stages, in order")
    parser.add_argument("--curves", required=True, type=Path, help="the figure to write, .svg or .png")
    args = parser.parse_args()
    earlier = [read_json(path) for path in args.earlier]
    save_figure(draw_reward_curves(read_json(args.metrics), earlier=earlier), args.curves)


if __name__ == "__main__":
    sys.exit(main())
