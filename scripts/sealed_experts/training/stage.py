"""Set up one stage of one expert and train it: from its files to its adapter file."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from peft import PeftModel

from sealed_experts.data.held_out import held_out_records
from sealed_experts.data.records import read_records, records_digest
from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.files.canonical import read_json
from sealed_experts.files.digests import digest_of
from sealed_experts.files.leases import device_lease
from sealed_experts.files.locks import folder_lock
from sealed_experts.models.attachment import adapter_state, attach_adapter, load_adapter_state, trainable_parameters
from sealed_experts.models.loading import clear_device_memory, context_length, load_base, resolve_device
from sealed_experts.models.memory import recompute_activations
from sealed_experts.privacy.ledger.events import GaussianEvent, events_from_json
from sealed_experts.privacy.ledger.receipt import unprotected_receipt
from sealed_experts.privacy.plan import PrivacyPlan, plan_stage
from sealed_experts.settings.fields import plain
from sealed_experts.training.batches import physical_batches
from sealed_experts.training.checkpoints import key_id, load_state, save_state, tensors_digest
from sealed_experts.training.dataset import UnitDataset, apart
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
    check_start,
    out_of_memory,
)
from sealed_experts.training.run import Run, settle_run
from sealed_experts.training.samplers import Draws, PoissonSampler, Sampler, ShuffledSampler
from sealed_experts.training.self_check import check_gradients

MakeObjective = Callable[[Materials], Objective]


def train_stage(job: StageJob, make_objective: MakeObjective) -> None:
    """Train a stage, from its newest checkpoint if there is one, and write its adapter file.

    Raises:
        Interrupted: asked to stop; the same command goes on from here.
        UserError: a mistake in data or settings, a changed base, an unsound gradient, or a folder in use.
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
        if processes.count == 1:  # the launcher leases for several
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
    """Return the gradient engine that the adapter's kind names for the base; None without privacy.

    Raises:
        UserError: the base's config.json cannot be read.
    """
    return job.adapter.engine(read_json(job.base.parent / "config.json")) if job.settings.privacy.enabled else None


class _Stage:
    """The parts of one training run, put together in the order in which they depend on each other."""

    def __init__(self, job: StageJob, make_objective: MakeObjective, around: Surroundings) -> None:
        self.job, self.around, self.processes = job, around, around.processes
        self.device = choose_device(resolve_device(job.device), self.processes)
        make_deterministic(threads=job.settings.threads)
        self.prior = load_state(job.start) if job.start else None
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
        check_context(job, context=context_length(job.base.parent))
        if self.prior is not None:
            check_start(job, self.prior, base_digest=self.base.manifest["digest"])
        self.unit = read_json(job.stats)["unit"]
        self.dataset, held_out = self._records()
        self.steps = job.settings.steps(units=len(self.dataset))
        check_length(job, steps=self.steps, units=len(self.dataset))
        self.cut = functools.partial(
            physical_batches,
            token_budget=job.settings.token_budget,
            pad_id=self.base.tokenizer.pad_token_id,
            device=self.device,
        )
        self.validation = self.cut(apart(held_out.records()[: job.settings.eval_examples]))
        self.model = self._model()
        self.objective = make_objective(self._materials())
        self.objective.check(self.dataset.rows(), path=job.train)
        self.validation = self.cut(apart(held_out.records()[: job.settings.eval_examples]))
        self.plan = self._plan()
        self.initial = adapter_state(self.model)
        self.subject = self._subject(held_out)
        self.environment = self._environment()

    def open(self) -> None:
        """Settle which run this is, with its folder and its key; the first process makes what is missing."""
        self.processes.agree("settings, data, libraries or hardware", digest_of([self.subject, self.environment]))
        with self.processes.together():
            if self.processes.is_first:
                self.run = self._settled()
        if not self.processes.is_first:
            self.run = self._settled()  # finds what the first has made
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
            self._finish(self._loop(gradients), privacy=self._unprotected())
            return
        assert self.engine is not None, "a stage under privacy has one"
        with self.processes.together():
            check_gradients(
                model=self.model,
                objective=self.objective,
                dataset=self.dataset,
                stream=self.run.stream,
                dtype=self.base.dtype,
                pad_id=self.base.tokenizer.pad_token_id,
                engine=self.engine,
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
            loop = self._loop(gradients)
            receipt = accounts.receipt(journal=journal, step=loop.state.step, prior=self._prior_receipt)
            self._finish(loop, privacy=receipt)

    def _loop(self, gradients: GradientSource) -> TrainingLoop:
        loop = TrainingLoop(
            model=self.model,
            objective=self.objective,
            draws=Draws(dataset=self.dataset, sampler=self._sampler(), stream=self.run.stream),
            validation=self.validation,
            cut=self.cut,
            gradients=gradients,
            settings=self.job.settings,
            run=self.run,
            around=self.around,
        )
        loop.run()
        return loop

    def _settled(self) -> Run:
        return settle_run(
            self.job,
            subject=self.subject,
            environment=self.environment,
            plan=self.plan,
            prior_events=self.prior_events,
            max_steps=self.steps,
            begins=self.processes.is_first,
        )

    def _records(self) -> tuple[UnitDataset, UnitDataset]:
        job = self.job
        train = read_records(job.train)
        held_out = held_out_records(job.val, train=job.train, private=job.settings.privacy.enabled)
        self.data = {"train_digest": records_digest(train), "val_digest": records_digest(held_out)}
        self.kinds = {type(record) for record in (*train, *held_out)}
        learned, validated = (
            UnitDataset.from_records(
                records,
                template=job.template,
                tokenizer=self.base.tokenizer,
                max_seq_len=job.settings.max_seq_len,
            )
            for records in (train, held_out)
        )
        return learned, validated

    def _plan(self) -> PrivacyPlan | None:
        settings = self.job.settings
        if not settings.privacy.enabled:
            return None
        return plan_stage(
            settings.privacy,
            stage=self.job.stage,
            units=len(self.dataset),
            unit=self.unit,
            expected_batch_size=settings.logical_batch,
            max_steps=self.steps,
            prior_events=self.prior_events,
            queries=settings.query_noise(),
        )

    @property
    def prior_events(self) -> tuple[GaussianEvent, ...]:
        """What earlier stages of this expert have already spent on these units."""
        return events_from_json(self.prior["privacy"]["events"]) if self.prior else ()

    def _model(self) -> PeftModel:
        model = attach_adapter(
            self.base.model, self.job.adapter, seed=self.job.seed, model_class=self.job.settings.model_class
        )
        if self.prior is not None:
            load_adapter_state(model, self.prior["model_state_dict"])
        return model

    def _materials(self) -> Materials:
        return Materials(
            model=self.model,
            tokenizer=self.base.tokenizer,
            pad_id=self.base.tokenizer.pad_token_id,
            seed=self.job.seed,
            check=self.around.interruption.check,
            processes=self.processes.count,
        )

    def _subject(self, held_out: UnitDataset) -> dict[str, Any]:
        """What this run computes, and from what: its name towards people, and its fingerprint."""
        job, manifest = self.job, self.base.manifest
        return {
            "adapter_name": job.expert,
            "stage": job.stage,
            "model": manifest["name"],
            "adapter": plain(job.adapter),
            "template": job.template,
            "settings": job.computed,
            "code": job.settings.code(),
            "dataset_size": len(self.dataset),
            "data_digest": read_json(job.stats)["digest"],
            **self.data,
            "tokens_digest": digest_of([self.dataset.digest(), held_out.digest()]),
            # Noise and steps as they were settled: `auto` may settle otherwise with another accountant.
            "plan": self.plan.describe() if self.plan else None,
            "base_digest": manifest["digest"],
            "start_digest": tensors_digest(self.prior["model_state_dict"]) if self.prior else None,
            "seed": job.seed,
        }

    def _environment(self) -> dict[str, Any]:
        job, settings = self.job, self.job.settings
        recompute = recompute_activations(
            self.model,
            wish=settings.gradient_checkpointing,
            possible=can_recompute(self.engine),
            token_budget=settings.token_budget,
            dtype=self.base.dtype,
            device=self.device,
        )
        return numeric_environment(
            device=self.device,
            dtype=self.base.dtype,
            token_budget=settings.token_budget,
            threads=settings.threads,
            gradient_checkpointing=recompute,
            features=[*job.settings.chosen(), type(job.adapter), *self.kinds],
            engine=self.engine,
            processes=self.processes.count,
        )

    def _sampler(self) -> Sampler:
        if self.plan is None:
            return ShuffledSampler(
                units=len(self.dataset), batch_size=self.job.settings.logical_batch, stream=self.run.stream
            )
        return PoissonSampler(units=self.plan.units, rate=self.plan.sample_rate, stream=self.run.stream)

    @property
    def _prior_receipt(self) -> dict[str, Any] | None:
        return self.prior["privacy"] if self.prior else None

    def _unprotected(self) -> dict[str, Any]:
        return unprotected_receipt(stage=self.job.stage, unit=self.unit, prior=self._prior_receipt)

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
        }
        with self.processes.together():
            if self.processes.is_first:
                save_state(adapter, self.job.output, check=self.run.checkpoints.check_in_place)
        clear_device_memory(self.device)
