"""Supervised fine-tuning of one expert, private or not, resumed from its newest checkpoint."""

import sys

from sealed_experts.training.interruption import end_at_signals

if __name__ == "__main__":
    end_at_signals()  # before the seconds that torch takes

from sealed_experts.errors import reports_user_errors
from sealed_experts.training.command import parse_job, run_job
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.stages.sft import Sft


@reports_user_errors
def main() -> int:
    job, settings = parse_job(__doc__, kind=Sft)
    return run_job(job, lambda materials: SupervisedFineTuning(max_seq_len=settings.max_seq_len))


if __name__ == "__main__":
    sys.exit(main())
