"""Measure an expert's base and stages on the same held-out records.

The result depends on private records. It stays in results/, and no number of it enters a package unless the dataset is
declared public.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sealed_experts.data.held_out import held_out_records
from sealed_experts.data.records import Record
from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.evaluation.bootstrap import CONFIDENCE, Resampling
from sealed_experts.evaluation.gains import gain_checks, rewarded_gain
from sealed_experts.evaluation.job import EvaluationJob
from sealed_experts.evaluation.measuring import Measured, record_losses
from sealed_experts.metrics import Case, Losses
from sealed_experts.models.attachment import as_base, attach_adapter, load_adapter_state, trainable_parameters
from sealed_experts.models.loading import Base, load_base, resolve_device
from sealed_experts.models.memory import resolve_token_budget
from sealed_experts.rewards import Scoring
from sealed_experts.settings.fields import plain
from sealed_experts.training.answers import Answer, Answering
from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.dataset import UnitDataset
from sealed_experts.training.environment import make_deterministic
from sealed_experts.training.held_out import HeldOutAnswers, Reference, answer_held_out
from sealed_experts.training.policy import other_weights
from sealed_experts.training.refusals import check_made_with

BASE = "base"
SAMPLES = 3
SAMPLE_RULE = "the first held-out prompts, in the file's order, that differ in their number of tokens"


class Evaluated(NamedTuple):
    """The content of evaluation.json, and each model's lines of predictions, by the model's name."""

    content: dict[str, Any]
    predictions: dict[str, list[dict[str, Any]]]


def evaluate_expert(
    job: EvaluationJob,
    *,
    base: Path,
    val: Path,
    train: Sequence[Path],
    adapters: Sequence[Path],
    reward: Scoring | None,
) -> Evaluated:
    """Measure the base and each stage on held-out records.

    Losses are in nats per response token, KL and entropy in nats per token, lengths in tokens; every interval covers
    95 %. With one answer a prompt, these figures equal the held-out figures of the stage with the reward, to the last
    bit, because token budget and sampling are the same.

    Args:
        base: base.json.
        val: the held-out records.
        train: all records that the expert learned from; none of them may be a held-out record.
        adapters: each stage's adapter file, in the order of the stages.
        reward: scores the answers; needed if `job.rewarded` is given.

    Raises:
        UserError: a file is missing, damaged or of another expert, or the device runs out of memory.
    """
    make_deterministic(threads=job.threads)
    try:
        bench = _Bench(job, base=base, val=val, train=train, adapters=adapters, reward=reward)
        return bench.evaluated()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        stage = f"`{job.rewarded.feature}`" if job.rewarded else "last"
        raise UserError(
            f"the device ran out of memory while it evaluated {job.expert}: lower token_budget (now "
            f"`{job.token_budget}`) of its {stage} stage, or use `device: cpu`"
        ) from error


class _Bench:
    """One base in memory, which loads the adapters of all stages one after another."""

    def __init__(
        self,
        job: EvaluationJob,
        *,
        base: Path,
        val: Path,
        train: Sequence[Path],
        adapters: Sequence[Path],
        reward: Scoring | None,
    ) -> None:
        self.job, self.reward = job, reward
        self.device = resolve_device(job.device)
        self.base = load_base(base.parent, device=self.device, model_class=job.model_class, options=job.model_options)
        self.token_budget = resolve_token_budget(
            job.token_budget, model=self.base.model, dtype=self.base.dtype, device=self.device
        )
        self.model = attach_adapter(self.base.model, job.adapter, seed=job.seed, model_class=job.model_class)
        states = {
            stage: _adapter(path, job=job, stage=stage, base=self.base)
            for stage, path in zip(job.stages, adapters, strict=True)
        }
        self.weights = {stage: state["model_state_dict"] for stage, state in states.items()}
        private = any(state["privacy"]["enabled"] for state in states.values())
        self.records, self.examples, self.units = self._held_out(held_out_records(val, train=train, private=private))
        self.answering: Answering | None = None
        self.prompts: list[Example] = []
        if job.sampling is not None:
            self.answering = Answering(
                settings=job.sampling, tokenizer=self.base.tokenizer, token_budget=self.token_budget
            )
            self.prompts = [example for example in self.examples if self.answering.has_room(example)]
        if self.answering and len(self.prompts) < len(self.examples):
            lost = len(self.examples) - len(self.prompts)
            print(f"WARNING: {lost} prompts of {val} leave no room for an answer and count as not answered", flush=True)

    def evaluated(self) -> Evaluated:
        models = self._models()
        content = self._content(models, Resampling(self.units, seed=self.job.seed))
        return Evaluated(content, {name: self._predictions(model) for name, model in models.items()})

    def _content(self, models: Mapping[str, Measured], resampling: Resampling) -> dict[str, Any]:
        job = self.job
        entries = {name: model.entry(resampling) for name, model in models.items()}
        entries[BASE]["kl"] = None  # there is no model before it
        content: dict[str, Any] = {
            "expert": job.expert,
            "dataset": job.dataset,
            "records": {
                "held_out": len(self.records),
                "prompts": len(self.prompts),
                "units": len(set(self.units)),
            },
            "sampling": _sampling(job),
            "reward": self._about_reward(),
            "intervals": {"confidence": CONFIDENCE, "method": "BCa bootstrap over units"},
            "metrics": models[BASE].described(self.reward),
            "models": entries,
            "gains": [
                {"from": before, "to": after, "metrics": models[after].gains(models[before], resampling)}
                for before, after in itertools.pairwise(models)
            ],
        }
        gain = rewarded_gain(content)
        checks = gain_checks(gain, before=entries[gain["from"]], after=entries[gain["to"]]) if gain else {}
        return {**content, "checks": checks, "sample_rule": SAMPLE_RULE, "samples": self._samples(models)}

    def _held_out(self, records: Sequence[Record]) -> tuple[list[Record], list[Example], list[int]]:
        """Return the first records, the same ones as in the stages' validation, their tokens, and their units."""
        dataset = UnitDataset.from_records(
            records,
            template=self.job.template,
            tokenizer=self.base.tokenizer,
            max_seq_len=self.job.max_seq_len,
        )
        order: dict[str, list[Record]] = {}
        for record in records:
            order.setdefault(record.unit, []).append(record)
        rows = [rows[0] for rows in dataset.records()[: self.job.eval_examples]]
        kept = [record for unit in order.values() for record in unit][: self.job.eval_examples]
        examples = [dataclasses.replace(row, unit=index) for index, row in enumerate(rows)]
        return kept, examples, [row.unit for row in rows]

    def _models(self) -> dict[str, Measured]:
        models: dict[str, Measured] = {}
        with as_base(self.model) as base:
            models[BASE] = self._measured(BASE, base, contextlib.nullcontext)
        reference: Reference = functools.partial(as_base, self.model)
        for name, weights in self.weights.items():
            load_adapter_state(self.model, weights)
            models[name] = self._measured(name, self.model, reference)
            parameters = trainable_parameters(self.model)
            own = [parameter.detach().clone() for parameter in parameters]
            reference = functools.partial(other_weights, parameters, own)
        return models

    def _measured(self, name: str, model: torch.nn.Module, reference: Reference) -> Measured:
        losses = self._losses(model)
        held_out = self._answers(model, reference)
        given = [{answer.unit: answer for answer in one.answers} for one in held_out] or [{}]
        cases = [[self._case(index, losses, one.get(index)) for one in given] for index in range(len(self.records))]
        measured = Measured(self.job.metrics, cases, losses, held_out)
        print(f"{name}: {measured.told()}", flush=True)
        return measured

    def _losses(self, model: torch.nn.Module) -> Losses:
        if not self.job.model_class.predicts_tokens:
            return Losses(None, [0.0] * len(self.examples), [0] * len(self.examples))
        pad_id = self.base.tokenizer.pad_token_id
        batches = physical_batches(self.examples, token_budget=self.token_budget, pad_id=pad_id, device=self.device)
        return record_losses(model, batches, records=len(self.examples))

    def _answers(self, model: torch.nn.Module, reference: Reference) -> list[HeldOutAnswers]:
        if self.answering is None or self.job.sampling is None:
            return []
        return [
            answer_held_out(
                model,
                self.prompts,
                answering=self.answering,
                seed=self.job.seed,
                reference=reference,
                token_budget=self.token_budget,
                pad_id=self.base.tokenizer.pad_token_id,
                number=number,
            )
            for number in range(self.job.sampling.answers)
        ]

    def _case(self, index: int, losses: Losses, answer: Answer | None) -> Case:
        record = self.records[index]
        return Case(
            question=record.question,
            gold=record.answer,
            loss=losses.sums[index],
            tokens=losses.tokens[index],
            prediction=answer.response if answer else None,
            score=self.reward.score(record.question, answer.response) if self.reward and answer else None,
        )

    def _about_reward(self) -> dict[str, Any] | None:
        if self.reward is None or self.job.rewarded is None:
            return None
        weights = dict(self.reward.weights)
        return {"name": self.reward.name, "stage": self.job.rewarded.feature, "weights": weights}

    def _predictions(self, model: Measured) -> list[dict[str, Any]]:
        return [
            {**dict(zip(("instruction", "input"), record.asked, strict=True)), "gold": record.answer, **answered}
            for index, record in enumerate(self.records)
            for answered in model.predictions(index)
        ]

    def _samples(self, models: Mapping[str, Measured]) -> list[dict[str, Any]]:
        chosen = sample_indices([prompt.prompt_length for prompt in self.prompts])
        return [self._sample(self.prompts[place].unit, place, models) for place in chosen]

    def _sample(self, index: int, place: int, models: Mapping[str, Measured]) -> dict[str, Any]:
        record = self.records[index]
        score = self.reward.score(record.question, record.answer) if self.reward else None
        reference = Case(question=record.question, gold=record.answer, prediction=record.answer, score=score)
        asked = [metric for metric in self.job.metrics if metric.needs != "losses"]
        scored = Measured(asked, [[reference]], Losses(None, [], [])).predictions(0)[0]["scores"]
        return {
            "prompt": record.question,
            "reference": {"text": record.answer, "scores": scored},
            "answers": {name: model.sample(index, place) for name, model in models.items()},
        }


def sample_indices(lengths: Sequence[int]) -> list[int]:
    """Return the prompts to show, by SAMPLE_RULE. It does not see the answers, so it cannot prefer good ones."""
    first: dict[int, int] = {}
    for index, length in enumerate(lengths):
        first.setdefault(length, index)
    return list(first.values())[:SAMPLES]


def _sampling(job: EvaluationJob) -> dict[str, Any] | None:
    if job.sampling is None:
        return None
    names = ("temperature", "top_p", "max_new_tokens", "answers")
    return {name: getattr(job.sampling, name) for name in names} | {"seed": job.seed}


def _adapter(path: Path, *, job: EvaluationJob, stage: str, base: Base) -> dict[str, Any]:
    state = load_state(path)
    check_made_with(
        path,
        state,
        needed="{} is to be evaluated",
        remedy=f"run stage {stage} again",
        adapter_name=job.expert,
        stage=stage,
        base_digest=base.manifest["digest"],
        adapter=plain(job.adapter),
        template=job.template,
    )
    return state
