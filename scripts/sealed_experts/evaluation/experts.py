"""An expert's stages side by side, and the base they started from, on the same held-out records.

The result is a function of private records: it stays in results/, and no number of it enters a package.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sealed_experts.data.held_out import held_out_records
from sealed_experts.data.records import Record
from sealed_experts.errors import UserError, is_out_of_memory
from sealed_experts.evaluation.bootstrap import CONFIDENCE, Resampling
from sealed_experts.evaluation.gains import gain_checks, rewarded_gain
from sealed_experts.evaluation.job import EvaluationJob
from sealed_experts.evaluation.measuring import Measured, gain_figures, model_figures, record_losses
from sealed_experts.models.attachment import as_base, attach_adapter, load_adapter_state, trainable_parameters
from sealed_experts.models.loading import Base, load_base, resolve_device
from sealed_experts.rewards import Scoring
from sealed_experts.settings.fields import plain
from sealed_experts.training.batches import Example, physical_batches
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.dataset import UnitDataset
from sealed_experts.training.environment import make_deterministic
from sealed_experts.training.held_out import answer_held_out
from sealed_experts.training.policy import other_weights
from sealed_experts.training.refusals import check_made_with
from sealed_experts.training.scoring import Rollout, Scorer

BASE = "base"
SAMPLES = 3
Reference = Callable[[], contextlib.AbstractContextManager[object]]  # see `answer_held_out`
SAMPLE_RULE = "the first held-out prompts, in the file's order, that differ in their number of tokens"


def evaluate_expert(
    run: EvaluationJob, *, base: Path, val: Path, train: Path, adapters: Sequence[Path], reward: Scoring | None
) -> dict[str, Any]:
    """Return the content of evaluation.json.

    Losses are in nats per response token, KL and entropy in nats a token, lengths in tokens; every interval is one of
    95 %. With the token budget of the stage that has the reward and one answer a prompt, its held-out figures are
    these, to the last bit.

    Args:
        base: base.json.
        val: the held-out records.
        train: the records that the expert was trained on, none of which may be among them.
        adapters: each stage's adapter file, in the order of the stages.
        reward: what scores the answers; needed where `run.sampling` is given.

    Raises:
        UserError: a file is missing, damaged or of another expert, or the device runs out of memory.
    """
    make_deterministic(threads=run.threads)
    try:
        bench = _Bench(run, base=base, val=val, train=train, adapters=adapters, reward=reward)
        return bench.evaluation()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the device ran out of memory while it evaluated {run.expert}: lower token_budget (now "
            f"{run.token_budget}) of its {'`reinforce`' if run.sampling else 'last'} stage, or use `device: cpu`"
        ) from error


class _Bench:
    """One base in memory, which takes every stage's adapter in turn."""

    def __init__(
        self,
        run: EvaluationJob,
        *,
        base: Path,
        val: Path,
        train: Path,
        adapters: Sequence[Path],
        reward: Scoring | None,
    ) -> None:
        self.run, self.reward = run, reward
        self.device = resolve_device(run.device)
        self.base = load_base(base.parent, device=self.device)
        self.model = attach_adapter(self.base.model, run.adapter, seed=run.seed)
        states = {
            stage: _adapter(path, run=run, stage=stage, base=self.base)
            for stage, path in zip(run.stages, adapters, strict=True)
        }
        self.weights = {stage: state["model_state_dict"] for stage, state in states.items()}
        private = any(state["privacy"]["enabled"] for state in states.values())
        self.records, self.examples, self.units = self._held_out(held_out_records(val, train=train, private=private))
        self.scorer: Scorer | None = None
        if run.sampling is not None and reward is not None:
            self.scorer = Scorer(settings=run.sampling, reward=reward, tokenizer=self.base.tokenizer)
            self.scorer.check_room(self.examples, path=val)

    def evaluation(self) -> dict[str, Any]:
        run = self.run
        models = self._models()
        resampling = Resampling(self.units, seed=run.seed)
        figures = {name: model_figures(model, resampling) for name, model in models.items()}
        figures[BASE]["kl"] = None  # there is no model before it
        gains = self._gains(models, resampling)
        gain = rewarded_gain(gains)
        checks = gain_checks(gain, before=figures[gain["from"]], after=figures[gain["to"]]) if gain else {}
        return {
            "expert": run.expert,
            "dataset": run.dataset,
            "records": {
                "held_out": len(self.records),
                "prompts": len(self.records) if self.reward else 0,
                "units": len(set(self.units)),
            },
            "sampling": _sampling(run),
            "reward": {"name": self.reward.name, "weights": dict(self.reward.weights)} if self.reward else None,
            "intervals": {"confidence": CONFIDENCE, "method": "BCa bootstrap over units"},
            "models": figures,
            "gains": gains,
            "checks": checks,
            "sample_rule": SAMPLE_RULE,
            "samples": self._samples(models),
        }

    def _held_out(self, records: Sequence[Record]) -> tuple[list[Record], list[Example], list[int]]:
        """Return the first records, as the stages' validation takes them, their tokens, and whose they are."""
        dataset = UnitDataset.from_records(
            records,
            template=self.run.template,
            tokenizer=self.base.tokenizer,
            max_seq_len=self.run.max_seq_len,
        )
        order: dict[str, list[Record]] = {}
        for record in records:
            order.setdefault(record.unit, []).append(record)
        rows = [rows[0] for rows in dataset.records()[: self.run.eval_examples]]
        kept = [record for unit in order.values() for record in unit][: self.run.eval_examples]
        examples = [dataclasses.replace(row, unit=index) for index, row in enumerate(rows)]
        return kept, examples, [row.unit for row in rows]

    def _models(self) -> dict[str, Measured]:
        models: dict[str, Measured] = {}
        with as_base(self.model) as base:
            models[BASE] = _told(BASE, self._measured(base, contextlib.nullcontext))
        reference: Reference = functools.partial(as_base, self.model)
        for name, weights in self.weights.items():
            load_adapter_state(self.model, weights)
            models[name] = _told(name, self._measured(self.model, reference))
            parameters = trainable_parameters(self.model)
            own = [parameter.detach().clone() for parameter in parameters]
            reference = functools.partial(other_weights, parameters, own)
        return models

    def _measured(self, model: torch.nn.Module, reference: Reference) -> Measured:
        run, pad_id = self.run, self.base.tokenizer.pad_token_id
        batches = physical_batches(self.examples, token_budget=run.token_budget, pad_id=pad_id, device=self.device)
        losses = record_losses(model, batches, records=len(self.examples))
        if self.scorer is None:
            return Measured(losses, ())
        answers = tuple(
            answer_held_out(
                model,
                self.examples,
                scorer=self.scorer,
                seed=run.seed,
                reference=reference,
                token_budget=run.token_budget,
                pad_id=pad_id,
                number=number,
            )
            for number in range(run.eval_answers)
        )
        return Measured(losses, answers)

    def _gains(self, models: Mapping[str, Measured], resampling: Resampling) -> list[dict[str, Any]]:
        return [
            {"from": before, "to": after, **gain_figures(models[before], models[after], resampling)}
            for before, after in itertools.pairwise(models)
        ]

    def _samples(self, models: Mapping[str, Measured]) -> list[dict[str, Any]]:
        if self.reward is None:
            return []
        return [
            {
                "prompt": self.records[index].question,
                "reference": self._scored(self.records[index]),
                "answers": {name: _answer(model.answers[0].rollouts[index]) for name, model in models.items()},
            }
            for index in sample_indices([example.prompt_length for example in self.examples])
        ]

    def _scored(self, record: Record) -> dict[str, Any]:
        assert self.reward is not None
        score = self.reward.score(record.question, record.answer)
        return {"text": record.answer, "reward": score.value, "axes": dict(score.axes)}


def _told(name: str, model: Measured) -> Measured:
    """Print a model's figures, and return it."""
    rewards = model.rewards
    reward = f", reward {sum(rewards) / len(rewards)}" if rewards else ""
    print(f"{name}: loss {model.losses.mean}{reward}", flush=True)
    return model


def sample_indices(lengths: Sequence[int]) -> list[int]:
    """Return which prompts are shown, by SAMPLE_RULE: a rule that sees no answer, so that none is picked."""
    first: dict[int, int] = {}
    for index, length in enumerate(lengths):
        first.setdefault(length, index)
    return list(first.values())[:SAMPLES]


def _answer(rollout: Rollout) -> dict[str, Any]:
    score = rollout.score
    return {
        "text": rollout.response,
        "reward": score.value,
        "axes": dict(score.axes),
        "truncated": rollout.truncated,
    }


def _sampling(run: EvaluationJob) -> dict[str, Any] | None:
    if run.sampling is None:
        return None
    names = ("temperature", "top_p", "max_new_tokens")
    return {name: getattr(run.sampling, name) for name in names} | {"answers": run.eval_answers, "seed": run.seed}


def _adapter(path: Path, *, run: EvaluationJob, stage: str, base: Base) -> dict[str, Any]:
    state = load_state(path)
    check_made_with(
        path,
        state,
        needed="{} is to be evaluated",
        remedy=f"run stage {stage} again",
        adapter_name=run.expert,
        stage=stage,
        base_digest=base.manifest["digest"],
        adapter=plain(run.adapter),
        template=run.template,
    )
    return state
