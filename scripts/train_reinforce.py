"""REINFORCE on one expert from its adapter of the stage before, private or not, resumed from its newest checkpoint."""

import dataclasses
import sys

from sealed_experts.training.interruption import end_at_signals

if __name__ == "__main__":
    end_at_signals()  # before the seconds that torch takes

from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.rewards.making.maker import make_reward, reward_code
from sealed_experts.training.command import parse_job, run_job
from sealed_experts.training.objectives.reinforce import PolicyGradient
from sealed_experts.training.stages.reinforce import Reinforce


@reports_user_errors
def main() -> int:
    job, settings = parse_job(__doc__, kind=Reinforce)
    if job.start is None:
        raise UserError("reinforce refines an adapter: give --start, the adapter file of the stage before")
    reward = make_reward(settings.reward, settings.reward_options)
    code = reward_code(settings.reward, settings.reward_options)
    return run_job(
        dataclasses.replace(job, code=code),
        lambda materials: PolicyGradient(settings=settings, reward=reward, materials=materials),
    )


if __name__ == "__main__":
    sys.exit(main())
