"""What stops a stage, before it trains or while it does, and what to do about it."""

from collections.abc import Mapping
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.settings.fields import plain
from sealed_experts.training.job import StageJob


def check_context(job: StageJob, *, context: int | None) -> None:
    """Check that the longest example fits the base's context, in tokens; None where the base declares none.

    Raises:
        UserError: it does not.
    """
    longest = job.settings.max_seq_len
    if context is not None and longest > context:
        raise UserError(
            f"{job.stage}.max_seq_len: {longest} is more than the base's context of {context} tokens: lower it"
        )


def check_processes(job: StageJob, *, count: int) -> None:
    """Check that the job was started as the processes that its settings name, if they do.

    Raises:
        UserError: it was not.
    """
    wanted = job.settings.processes_per_job
    if wanted is not None and wanted != count:
        raise UserError(
            f"{job.stage}.processes_per_job is {wanted}, but this job was started as {count}: start it with "
            f"`python scripts/sealed_experts/training/launcher.py --processes {wanted} -- python scripts/train_"
            f"{job.stage}.py …`, as the workflow does"
        )


def check_start(job: StageJob, start: Mapping[str, Any], *, base_digest: str) -> None:
    """Check that an adapter file is one that this stage can go on from.

    Raises:
        UserError: it was made on another base, with other adapter settings, or by another expert.
    """
    made = start.get("subject", {})
    for what, found, expected in (
        ("the base of digest", made.get("base_digest"), base_digest),
        ("the adapter settings", made.get("adapter"), plain(job.adapter)),
        ("the expert", made.get("adapter_name"), job.expert),
        ("the template", made.get("template"), job.template),
    ):
        if found != expected:
            raise UserError(
                f"{job.start} was made with {what} {found}, but stage {job.stage} is to go on with {expected}: run the "
                "stage before it again"
            )


def not_finite(what: str, *, step: int, stage: str, learning_rate: float) -> UserError:
    """Return what to say, and to advise, when the `what` of a step is not finite."""
    return UserError(
        f"step {step}: the {what} became infinite or NaN; the last checkpoint is kept. Lower {stage}.learning_rate "
        f"(now {learning_rate:g}), or add {stage}.warmup_steps; that starts this stage again. Unchanged, the same "
        "command comes to the same step and stops there"
    )


def out_of_memory(job: StageJob) -> UserError:
    """Return what to say, and to advise, when the device has no memory left."""
    return UserError(
        "the device or the machine ran out of memory; the log above says what is saved. With more free memory the "
        "same command goes on from there (of several attempts, each asks for more). To need less, lower "
        f"{job.stage}.token_budget (now {job.settings.token_budget}) or {job.stage}.max_seq_len, or set "
        f"{job.stage}.gradient_checkpointing: on; that starts this stage again, because it changes the numbers"
    )
