"""Compare the base and the stages of an expert on held-out records: losses, rewards and sample answers."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.evaluation.experts import evaluate_expert
from sealed_experts.evaluation.gains import verdict
from sealed_experts.evaluation.job import evaluation_from_json
from sealed_experts.files.canonical import write_json
from sealed_experts.files.leases import device_lease
from sealed_experts.rewards.making.maker import make_reward


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, type=Path, help="base.json of the base model")
    parser.add_argument("--val", required=True, type=Path, help="held-out records")
    parser.add_argument("--train", required=True, type=Path, help="training records; they are not evaluated on")
    parser.add_argument(
        "--adapters", required=True, nargs="+", type=Path, help="adapter files of all stages, in their order"
    )
    parser.add_argument("--settings", required=True, help="settings that decide the numbers, as JSON")
    parser.add_argument("--operation", required=True, help="settings that only say how to run, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="evaluation.json to write")
    args = parser.parse_args()
    run = evaluation_from_json(args.settings, args.operation)
    if len(args.adapters) != len(run.stages):
        raise UserError(f"--adapters must give one file for each of {', '.join(run.stages)}, in this order")
    reward = make_reward(run.sampling.reward, run.sampling.reward_options) if run.sampling else None
    with device_lease(run.device):
        content = evaluate_expert(
            run, base=args.base, val=args.val, train=args.train, adapters=args.adapters, reward=reward
        )
    write_json(args.output, content)
    judged = verdict(content)
    print(f"evaluated {run.expert}: {args.output}" + (f"; the gain in reward {judged}" if judged else ""))


if __name__ == "__main__":
    sys.exit(main())
