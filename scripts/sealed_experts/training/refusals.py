"""Checks and messages for what stops a stage, before or during training, and what to do about it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.privacy.engines import RECOMPUTING
from sealed_experts.settings.fields import plain
from sealed_experts.training.job import StageJob
from sealed_experts.training.objectives import MOST_STEPS, Stage

_SUBJECT = {
    "adapter_name": "the expert",
    "stage": "the stage",
    "base_digest": "the base of digest",
    "adapter": "the adapter settings",
    "template": "the template",
}


def check_context(stage: Stage, *, context: int | None) -> None:
    """Check that the longest example fits the base's context, in tokens; None if the base declares none.

    Raises:
        UserError: it does not fit.
    """
    longest = stage.max_seq_len
    if context is not None and longest > context:
        raise UserError(
            f"{stage.feature}.max_seq_len: {longest} is more than the base's context of {context} tokens: lower it"
        )


def check_length(stage: Stage, *, units: int) -> None:
    """Check the number of steps of a training whose length is given in epochs.

    Args:
        units: units of privacy to train on.

    Raises:
        UserError: there are too many steps to account for, or the warmup is longer than the training.
    """
    name, steps = stage.feature, stage.steps(units=units)
    length = f"{stage.epochs:g} epochs of {units} units are {steps} steps" if stage.epochs else f"{steps} steps"
    if steps > MOST_STEPS:
        raise UserError(f"{name}.epochs: {length}, more than {MOST_STEPS:,}: lower it, or raise the batch")
    if stage.warmup_steps > steps:
        raise UserError(f"{name}.warmup_steps: {stage.warmup_steps} is above the whole training: {length}; lower it")


def check_recomputation(job: StageJob, *, engine: str | None) -> None:
    """If the settings ask to recompute activations, check that the gradient engine can do it.

    Raises:
        UserError: the engine cannot.
    """
    if job.settings.gradient_checkpointing == "on" and not can_recompute(engine):
        raise UserError(
            f"{job.stage}.gradient_checkpointing: a `{job.adapter.kind}` adapter's per-example gradients cannot be "
            "computed on this base while activations are recomputed: write `off` or `auto`, and lower "
            f"{job.stage}.token_budget if memory is short"
        )


def can_recompute(engine: str | None) -> bool:
    """Return whether activations can be recomputed. Without privacy there is no engine, and they always can."""
    return engine is None or engine in RECOMPUTING


def check_processes(job: StageJob, *, count: int) -> None:
    """If the settings name a number of processes, check that the job was started with that number.

    Raises:
        UserError: the number differs.
    """
    wanted = job.settings.processes_per_job
    if wanted is not None and wanted != count:
        raise UserError(
            f"{job.stage}.processes_per_job is {wanted}, but this job was started as {count}: start it with "
            f"`python scripts/sealed_experts/training/launcher.py --processes {wanted} -- python scripts/"
            "train_stage.py …`, as the workflow does"
        )


def check_start(job: StageJob, start: Mapping[str, Any], *, base_digest: str) -> None:
    """Check that this stage can start from an adapter file with the content `start`.

    Raises:
        UserError: the file was made with something else.
    """
    assert job.start is not None, "the stage starts from an adapter"
    check_made_with(
        job.start,
        start,
        needed=f"stage {job.stage} needs {{}}",
        remedy="run the stage before it again",
        adapter_name=job.expert,
        base_digest=base_digest,
        adapter=plain(job.adapter),
        template=job.template,
    )


def check_made_with(path: Path, state: Mapping[str, Any], *, needed: str, remedy: str, **expected: Any) -> None:
    """Check that an adapter file was made with the expected base, stage or settings.

    Args:
        path: the file.
        state: its content.
        needed: the message's text about the expected value, which replaces `{}`.
        remedy: the message's advice.
        expected: values of the run's subject: `adapter_name`, `stage`, `base_digest`, `adapter` or `template`.

    Raises:
        UserError: it was made with something else; the message names the first difference.
    """
    made = state.get("subject", {})
    for name, value in expected.items():
        if made.get(name) != value:
            wanted = needed.replace("{}", str(value))
            raise UserError(f"{path} was made with {_SUBJECT[name]} {made.get(name)}, but {wanted}: {remedy}")


def not_finite(what: str, *, step: int, stage: str, learning_rate: float) -> UserError:
    """Return the error, with advice, for a step whose `what` is not finite."""
    return UserError(
        f"step {step}: the {what} became infinite or NaN; the last checkpoint is kept. Lower {stage}.learning_rate "
        f"(now {learning_rate:g}), or add {stage}.warmup_steps; that starts this stage again. Unchanged, the same "
        "command comes to the same step and stops there"
    )


def out_of_memory(job: StageJob, *, engine: str | None = None) -> UserError:
    """Return the error, with advice, for a device without free memory."""
    recompute = f", or set {job.stage}.gradient_checkpointing: on" if can_recompute(engine) else ""
    return UserError(
        "the device or the machine ran out of memory; the log above says what is saved. With more free memory the "
        "same command goes on from there (with retries, each attempt asks for more). To need less, lower "
        f"{job.stage}.token_budget (now `{job.settings.token_budget}`) or {job.stage}.max_seq_len{recompute}; that"
        " starts this stage again, because it changes the numbers"
    )
