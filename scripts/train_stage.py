"""Train one stage of one expert, private or not, from its newest checkpoint if there is one."""

import sys

from sealed_experts.training.interruption import end_at_signals

if __name__ == "__main__":
    end_at_signals()  # before torch is loaded, which takes seconds

from sealed_experts.errors import reports_user_errors
from sealed_experts.training.command import parse_job, train_job


@reports_user_errors
def main() -> int:
    job = parse_job(__doc__)
    return train_job(job, job.settings.objective)


if __name__ == "__main__":
    sys.exit(main())
