"""Compare the base and an expert's stages on held-out records: metrics, sample answers, and every prediction."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.evaluation.experts import evaluate_expert
from sealed_experts.evaluation.gains import verdict
from sealed_experts.evaluation.job import evaluation_from_json
from sealed_experts.evaluation.stored import write_predictions
from sealed_experts.files.canonical import write_json
from sealed_experts.files.leases import device_lease
from sealed_experts.files.planned_digests import unchanged


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, type=Path, help="base.json of the base model")
    parser.add_argument("--val", required=True, type=Path, help="held-out records")
    parser.add_argument(
        "--train",
        required=True,
        nargs="+",
        type=Path,
        help="all records that it learned from; they are not evaluated on",
    )
    parser.add_argument(
        "--adapters", required=True, nargs="+", type=Path, help="adapter files of all stages, in their order"
    )
    parser.add_argument("--settings", required=True, help="what decides the numbers, as JSON")
    parser.add_argument("--operation", required=True, help="how it is run, as JSON")
    parser.add_argument("--digests", default="{}", help="digests of the user's files that it reads, as JSON")
    parser.add_argument("--output", required=True, type=Path, help="evaluation.json")
    parser.add_argument(
        "--predictions", required=True, nargs="+", type=Path, help="a file for the base, and for each stage in order"
    )
    args = parser.parse_args()
    job = evaluation_from_json(args.settings, args.operation)
    if len(args.adapters) != len(job.stages):
        raise UserError(f"--adapters must give one file for each of {', '.join(job.stages)}, in this order")
    if len(args.predictions) != len(job.stages) + 1:
        raise UserError(f"--predictions must give one file for each of base, {', '.join(job.stages)}, in this order")
    with unchanged(args.digests):
        reward = job.rewarded.made_reward() if job.rewarded else None
    with device_lease(job.device):
        evaluated = evaluate_expert(
            job, base=args.base, val=args.val, train=args.train, adapters=args.adapters, reward=reward
        )
    for path, lines in zip(args.predictions, evaluated.predictions.values(), strict=True):
        write_predictions(path, lines)
    write_json(args.output, evaluated.content)
    judged = verdict(evaluated.content)
    print(f"evaluated {job.expert}: {args.output}" + (f"; the gain in reward {judged}" if judged else ""))


if __name__ == "__main__":
    sys.exit(main())
