"""Supervised fine-tuning of one expert, private or not, resumed from its newest checkpoint."""

import argparse
import sys
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.settings.chain import sft_from_json, stage_from_json
from sealed_experts.settings.parsing import parse_object
from sealed_experts.training.interruption import EXIT_INTERRUPTED, Interrupted
from sealed_experts.training.job import StageJob
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.stage import train_stage


@reports_user_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, type=Path, help="the base's base.json")
    parser.add_argument("--train", required=True, type=Path, help="training records")
    parser.add_argument("--val", required=True, type=Path, help="validation records")
    parser.add_argument("--stats", required=True, type=Path, help="the dataset's stats.json")
    parser.add_argument("--start", type=Path, help="adapter file of the stage before, if any")
    parser.add_argument("--settings", required=True, help="what decides the numbers, as JSON")
    parser.add_argument("--operation", required=True, help="how it is run, as JSON")
    parser.add_argument("--checkpoints", required=True, type=Path, help="folder of checkpoints")
    parser.add_argument("--output", required=True, type=Path, help="adapter_final.pt")
    args = parser.parse_args()
    run = stage_from_json(args.settings, args.operation)
    job = StageJob(
        stage=run.stage,
        expert=run.expert,
        seed=run.seed,
        device=run.device,
        template=run.template,
        adapter=run.adapter,
        settings=sft_from_json(args.settings, args.operation),
        computed=parse_object(args.settings),
        base=args.base,
        train=args.train,
        val=args.val,
        stats=args.stats,
        start=args.start,
        checkpoints=args.checkpoints,
        output=args.output,
    )
    try:
        train_stage(job, SupervisedFineTuning())
    except Interrupted as interruption:
        print(f"interrupted: {interruption}; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
