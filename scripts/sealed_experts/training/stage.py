"""Set up one stage of one expert and train it: from its files to its adapter file."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel

from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.files.canonical import read_json
from sealed_experts.files.digests import digest_of
from sealed_experts.files.leases import device_lease
from sealed_experts.files.locks import folder_lock
from sealed_experts.models.attachment import adapter_state, attach_adapter, load_adapter_state, trainable_parameters
from sealed_experts.models.loading import clear_device_memory, context_length, load_base, resolve_device
from sealed_experts.models.memory import recompute_activations, resolve_token_budget
from sealed_experts.privacy.ledger.receipt import unprotected_receipt
from sealed_experts.privacy.plan import PrivacyPlan, plan_stage
from sealed_experts.settings.fields import plain
from sealed_experts.training.ancestors import Ancestors
from sealed_experts.training.batches import Batch, Example, UnitShapes, physical_batches, unit_batches
from sealed_experts.training.checkpoints import key_id, save_state, tensors_digest
from sealed_experts.training.environment import make_deterministic, numeric_environment
from sealed_experts.training.gradients import GradientSource, PlainGradients, PrivateGradients
from sealed_experts.training.interruption import Interrupted, Interruption
from sealed_experts.training.job import StageJob
from sealed_experts.training.loop import Surroundings, TrainingLoop
from sealed_experts.training.objective import Materials, Objective
from sealed_experts.training.processes import choose_device, joined
from sealed_experts.training.progress import NoProgressFiles, ProgressFiles
from sealed_experts.training.refusals import (
    can_recompute,
    check_context,
    check_length,
    check_processes,
    check_recomputation,
    out_of_memory,
)
from sealed_experts.training.row_check import check_positions, find_unit_shapes
from sealed_experts.training.run import Run, settle_run
from sealed_experts.training.samplers import Draws, PoissonSampler, Sampler, ShuffledSampler
from sealed_experts.training.self_check import check_gradients
from sealed_experts.training.stage_data import StageData, check_later_stage

MakeObjective = Callable[[Materials], Objective]


def train_stage(job: StageJob, make_objective: MakeObjective) -> None:
    """Train a stage, from its newest checkpoint if there is one, and write its adapter file.

    Raises:
        Interrupted: training was asked to stop; the same command continues it.
        UserError: a mistake in data or settings, a changed base, a wrong gradient, or a folder in use.
    """
    with (
        Interruption() as interruption,
        joined(timeout_minutes=job.settings.process_timeout_minutes) as processes,
        contextlib.ExitStack() as held,
    ):
        with processes.together():
            check_processes(job, count=processes.count)
            if processes.is_first:
                held.enter_context(folder_lock(job.checkpoints, while_waiting=interruption.check))
        if processes.count == 1:  # for several processes, the launcher holds the lease
            held.enter_context(device_lease(job.device, while_waiting=interruption.check))
        progress = (ProgressFiles if processes.is_first else NoProgressFiles)(
            job.output.parent,
            target_epsilon=job.settings.privacy.target_epsilon if job.settings.privacy.enabled else None,
        )
        around = Surroundings(progress=progress, interruption=interruption, processes=processes)
        try:
            with processes.together():
                stage = _Stage(job, make_objective, around)
            stage.open()
            stage.train()
        except Interrupted as error:
            progress.end("interrupted", error)
            raise
        except Exception as error:
            if is_out_of_memory(error):
                advice = out_of_memory(job, engine=engine_of(job))
                progress.end("failed", advice)
                raise advice from error
            progress.end("failed", error)
            raise
        progress.update("done")


def engine_of(job: StageJob) -> str | None:
    """Return the gradient engine that the adapter kind names for this base; None without privacy.

    Raises:
        UserError: the base's config.json cannot be read.
    """
    return job.adapter.engine(read_json(job.base.parent / "config.json")) if job.settings.privacy.enabled else None


class _Stage:
    """The parts of one training run, built in the order of their dependencies."""

    def __init__(self, job: StageJob, make_objective: MakeObjective, around: Surroundings) -> None:
        self.job, self.around, self.processes = job, around, around.processes
        self.device = choose_device(resolve_device(job.device), self.processes)
        make_deterministic(threads=job.settings.threads)
        self.ancestors = Ancestors.read(job)
        self.engine = engine_of(job)
        check_recomputation(job, engine=self.engine)
        self.base = load_base(
            job.base.parent,
            device=self.device,
            model_class=job.settings.model_class,
            options=job.settings.model_options(),
            check=around.interruption.check,
        )
        around.interruption.check()
        self.token_budget = resolve_token_budget(
            job.settings.token_budget, model=self.base.model, dtype=self.base.dtype, device=self.device
        )
        check_context(job.settings, context=context_length(job.base.parent))
        self.data = StageData.read(
            train=job.train,
            val=job.val,
            stats=job.stats,
            settings=job.settings,
            template=job.template,
            tokenizer=self.base.tokenizer,
        )
        self._check_records()
        self.ancestors.check(base_digest=self.base.manifest["digest"], unit=self.data.unit)
        self.steps = job.settings.steps(units=len(self.data.train))
        self.cut = functools.partial(
            physical_batches,
            token_budget=self.token_budget,
            pad_id=self.base.tokenizer.pad_token_id,
            device=self.device,
        )
        if job.settings.privacy.enabled:
            check_positions(self.base.model.config, longest=job.settings.max_seq_len, stage=job.stage)
        frozen = self.ancestors.frozen(self.base)
        self.model = self._model()
        self.objective = make_objective(self._materials(frozen))
        self.objective.check(self.data.train.rows(), path=job.train)
        self.plan = self._plan()
        self.initial = adapter_state(self.model)
        self.subject = self._subject()
        self.environment = self._environment()

    def _check_records(self) -> None:
        """Check the records of this stage and of the later ones, and report how many do not fit their lengths."""
        check_length(self.job.settings, units=len(self.data.train))
        if not self.processes.is_first:
            return
        for side, counts in self.data.lengths.items():
            if counts["cut"] or counts["dropped"]:
                print(f"{side}: {counts['cut']} records are cut and {counts['dropped']} dropped: too long", flush=True)
        for later in self.job.later:
            check_later_stage(later, base=self.job.base, tokenizer=self.base.tokenizer)

    def open(self) -> None:
        """Determine the run, with its folder and its key. The first process creates what is missing."""
        self.processes.agree("settings, data, libraries or hardware", digest_of([self.subject, self.environment]))
        with self.processes.together():
            if self.processes.is_first:
                self.run = self._settled()
        if not self.processes.is_first:
            self.run = self._settled()  # finds what the first process has created
        self.processes.agree("key or first weights", [key_id(self.run.key), tensors_digest(self.initial)])

    def train(self) -> None:
        accounts = self.run.accounts
        if self.plan is None or accounts is None:
            gradients: GradientSource = PlainGradients(
                model=self.model,
                objective=self.objective,
                parameters=trainable_parameters(self.model),
                processes=self.processes,
            )
            receipt = unprotected_receipt(stage=self.job.stage, unit=self.data.unit, prior=self.ancestors.receipt)
            self._finish(self._loop(gradients, cut=self.cut), privacy=receipt)
            return
        assert self.engine is not None, "a stage under privacy has an engine"
        with self.processes.together():
            check_gradients(
                model=self.model,
                objective=self.objective,
                dataset=self.data.train,
                stream=self.run.stream,
                dtype=self.base.dtype,
                pad_id=self.base.tokenizer.pad_token_id,
                engine=self.engine,
                token_budget=self.token_budget,
            )
            shapes = self._unit_shapes(self.engine)
        self.processes.agree("the shapes of batches", shapes.describe())
        cut = functools.partial(
            unit_batches, shapes=shapes, pad_id=self.base.tokenizer.pad_token_id, device=self.device
        )
        with self.run.journal(writes=self.processes.is_first) as journal:
            gradients = PrivateGradients(
                model=self.model,
                objective=self.objective,
                parameters=trainable_parameters(self.model),
                plan=self.plan,
                stream=self.run.stream,
                journal=journal,
                engine=self.engine,
                processes=self.processes,
            )
            loop = self._loop(gradients, cut=cut)
            receipt = accounts.receipt(
                journal=journal, step=loop.state.step, prior=self.ancestors.receipt, public=self.ancestors.public
            )
            self._finish(loop, privacy=receipt)

    def _unit_shapes(self, engine: str) -> UnitShapes:
        settings, processes = self.job.settings, self.processes.count
        return find_unit_shapes(
            model=self.model,
            objective=self.objective,
            engine=engine,
            stream=self.run.stream,
            longest=settings.max_seq_len,
            context=context_length(self.job.base.parent),
            token_budget=self.token_budget,
            most_units=-(-settings.logical_batch // processes),
            sizes={len(rows) for rows in self.data.train.records()},
            pad_id=self.base.tokenizer.pad_token_id,
            dtype=self.base.dtype,
            check=self.around.interruption.check,
        )

    def _loop(self, gradients: GradientSource, *, cut: Callable[[Sequence[Example]], list[Batch]]) -> TrainingLoop:
        loop = TrainingLoop(
            model=self.model,
            objective=self.objective,
            draws=Draws(dataset=self.data.train, sampler=self._sampler(), stream=self.run.stream),
            validation=self.cut(self.data.validated),
            cut=cut,
            gradients=gradients,
            settings=self.job.settings,
            run=self.run,
            around=self.around,
        )
        loop.train()
        return loop

    def _settled(self) -> Run:
        return settle_run(
            self.job,
            subject=self.subject,
            environment=self.environment,
            plan=self.plan,
            prior_events=self.ancestors.events,
            max_steps=self.steps,
            begins=self.processes.is_first,
        )

    def _plan(self) -> PrivacyPlan | None:
        settings = self.job.settings
        if not settings.privacy.enabled:
            return None
        return plan_stage(
            settings.privacy,
            stage=self.job.stage,
            units=len(self.data.train),
            unit=self.data.unit,
            expected_batch_size=settings.logical_batch,
            max_steps=self.steps,
            prior_events=self.ancestors.events,
            queries=settings.query_noise(),
        )

    def _model(self) -> PeftModel:
        model = attach_adapter(
            self.base.model, self.job.adapter, seed=self.job.seed, model_class=self.job.settings.model_class
        )
        if self.ancestors.start is not None:
            load_adapter_state(model, self.ancestors.start["model_state_dict"])
        return model

    def _materials(self, models: dict[str, torch.nn.Module]) -> Materials:
        return Materials(
            model=self.model,
            tokenizer=self.base.tokenizer,
            pad_id=self.base.tokenizer.pad_token_id,
            seed=self.job.seed,
            token_budget=self.token_budget,
            check=self.around.interruption.check,
            processes=self.processes.count,
            models=models,
        )

    def _subject(self) -> dict[str, Any]:
        """Return what this run computes and from what. It names the run in messages, and enters its fingerprint."""
        job, manifest = self.job, self.base.manifest
        return {
            "adapter_name": job.expert,
            "stage": job.stage,
            "model": manifest["name"],
            "adapter": plain(job.adapter),
            "template": job.template,
            "settings": job.computed,
            "code": job.settings.code(),
            "dataset_size": len(self.data.train),
            **self.data.digests,
            # The resulting noise and steps: with another accountant, `auto` may give other values.
            "plan": self.plan.describe() if self.plan else None,
            "base_digest": manifest["digest"],
            **self.ancestors.digests(),
            "seed": job.seed,
        }

    def _environment(self) -> dict[str, Any]:
        job, settings = self.job, self.job.settings
        recompute = recompute_activations(
            self.model,
            wish=settings.gradient_checkpointing,
            possible=can_recompute(self.engine),
            token_budget=self.token_budget,
            dtype=self.base.dtype,
            device=self.device,
        )
        return numeric_environment(
            device=self.device,
            dtype=self.base.dtype,
            token_budget=self.token_budget,
            threads=settings.threads,
            gradient_checkpointing=recompute,
            features=[*job.settings.chosen(), type(job.adapter), *self.data.kinds, *self.ancestors.kinds],
            engine=self.engine,
            processes=self.processes.count,
        )

    def _sampler(self) -> Sampler:
        if self.plan is None:
            return ShuffledSampler(
                units=len(self.data.train), batch_size=self.job.settings.logical_batch, stream=self.run.stream
            )
        return PoissonSampler(units=self.plan.units, rate=self.plan.sample_rate, stream=self.run.stream)

    def _finish(self, loop: TrainingLoop, *, privacy: dict[str, Any]) -> None:
        """Check that the adapter moved and write the adapter file."""
        result = loop.result()
        final = result["model_state_dict"]
        change = (
            sum(float((final[name].double() - self.initial[name].double()).square().sum()) for name in final) ** 0.5
        )
        if change == 0.0:
            raise UserError(
                f"the adapter's weights did not change in {result['step']} steps: check {self.job.stage}.learning_rate "
                f"({self.job.settings.learning_rate:g}) and that there is something to learn"
            )
        adapter = {
            **result,
            "subject": self.subject,
            "adapter": plain(self.job.adapter),
            "settings": self.job.computed,
            "environment": self.environment,
            "stopped_reason": "early_stopping" if result["step"] < self.run.total_steps else self.run.stopped_reason,
            "weight_change": change,
            "privacy": privacy,
            "records": self.data.lengths,
        }
        with self.processes.together():
            if self.processes.is_first:
                save_state(adapter, self.job.output, check=self.run.checkpoints.check_in_place)
        clear_device_memory(self.device)
