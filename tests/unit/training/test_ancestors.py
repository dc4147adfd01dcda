"""Adapters that a stage learns from without training them: the model, its privacy cost, and what is refused."""

import dataclasses

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.models.adapters.dora import Dora
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import attach_adapter, load_adapter_state
from sealed_experts.models.loading import load_base
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import events_from_json
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.fields import setting
from sealed_experts.training.ancestors import Ancestors
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.frozen_models import FrozenModel
from sealed_experts.training.job import stage_from_json
from sealed_experts.training.objectives.sft import Sft
from sealed_experts.training.stage import train_stage
from tests.unit.training.test_stage import PLAIN, PRIVATE, make_job, supervised, train

CPU = torch.device("cpu")


class Taught(Sft):
    """Fine-tuning with another adapter, which it only records."""

    teacher: FrozenModel | None = setting("A teacher.", default=None)

    def models(self):
        return {"teacher": self.teacher}


def pupil(folder, base, dataset, teacher, *, public=False, privacy=PRIVATE):
    """Return the job of a stage that learns from another job's adapter."""
    job = make_job(folder, base, dataset, privacy=privacy, max_steps=3)
    chosen = FrozenModel(expert=teacher.expert, stage=teacher.stage, public=public)
    settings = Taught(**{**dict(job.settings), "teacher": chosen})
    computed = {"training": settings.part(operation=False)}
    return dataclasses.replace(
        job, expert="pupil", settings=settings, computed=computed, models={"teacher": teacher.output}
    )


@pytest.fixture(scope="module", params=[PRIVATE, PLAIN], ids=["private", "plain"])
def teacher(request, tmp_path_factory, tiny_base, tiny_dataset):
    """A trained teacher; its adapter kind differs from that of its pupils."""
    folder = tmp_path_factory.mktemp("teacher")
    job = make_job(folder, tiny_base, tiny_dataset, privacy=request.param, max_steps=4)
    job = dataclasses.replace(job, adapter=Dora(rank=4, alpha=4))
    train(job)
    return job


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_a_stage_gets_the_frozen_model_beside_its_own_and_shares_the_base(teacher, tiny_base, tiny_dataset, tmp_path):
    job = pupil(tmp_path, tiny_base, tiny_dataset, teacher)
    ids = torch.arange(2, 18)[None]
    seen = {}

    def make_objective(materials):
        given = materials.models["teacher"]
        seen["given"], seen["own"] = logits(given, ids), logits(materials.model, ids)
        seen["trainable"] = [name for name, weight in given.named_parameters() if weight.requires_grad]
        base = {id(weight) for weight in materials.model.get_base_model().parameters() if not weight.requires_grad}
        seen["copied"] = sum(id(weight) not in base for weight in given.parameters())
        return supervised(materials)

    train_stage(job, make_objective)
    alone = attach_adapter(load_base(tiny_base.parent, device=CPU).model, teacher.adapter, seed=0)
    state = load_state(teacher.output)
    load_adapter_state(alone, state["model_state_dict"])
    fresh = attach_adapter(load_base(tiny_base.parent, device=CPU).model, Lora(rank=2, alpha=4), seed=3)
    assert torch.equal(seen["given"], logits(alone, ids))
    assert torch.equal(seen["own"], logits(fresh, ids))
    assert not torch.equal(seen["given"], seen["own"])
    assert not seen["trainable"]
    # Only the adapter's weights exist twice.
    adapted = sum("lora_" in name for name, _ in alone.named_parameters())
    assert seen["copied"] == adapted


def test_its_privacy_is_composed_with_that_of_the_stage(teacher, tiny_base, tiny_dataset, tmp_path):
    privacy = train_taught(pupil(tmp_path, tiny_base, tiny_dataset, teacher))["privacy"]
    theirs = load_state(teacher.output)["privacy"]
    if not theirs["enabled"]:
        assert privacy["epsilon"] is None
        assert privacy["reason"] == theirs["reason"]
        return
    events = events_from_json(privacy["events"])
    assert [event.to_json() for event in events[:-1]] == theirs["events"]
    assert events[-1].steps == 3
    assert privacy["epsilon"] == epsilon(events, delta=PRIVATE.delta) > epsilon(events[-1:], delta=PRIVATE.delta)


def test_what_is_declared_public_costs_nothing_and_the_receipt_says_so(teacher, tiny_base, tiny_dataset, tmp_path):
    privacy = train_taught(pupil(tmp_path, tiny_base, tiny_dataset, teacher, public=True))["privacy"]
    (event,) = events_from_json(privacy["events"])
    assert privacy["epsilon"] == epsilon([event], delta=PRIVATE.delta)
    (statement,) = [text for text in privacy["public"] if "tiny_expert.sft" in text]
    assert "declared public" in statement


def test_another_teacher_is_another_run(tiny_base, tiny_dataset, tmp_path):
    teachers = [make_job(tmp_path / str(seed), tiny_base, tiny_dataset, privacy=PLAIN, max_steps=1) for seed in (1, 2)]
    teachers[1] = dataclasses.replace(teachers[1], seed=4)
    for one in teachers:
        train(one)
        train_taught(pupil(tmp_path, tiny_base, tiny_dataset, one, privacy=PLAIN))
    assert len(list((tmp_path / "sft" / "checkpoints").glob("*/run.json"))) == 2


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"privacy": {"delta": 1e-4}}, "lower it to that"),
        ({"privacy": {"unit": "patient"}}, "units of 'patient'"),
        ({"subject": {"base_digest": "0" * 64}}, "the base of digest 0000"),
        ({"subject": {"adapter_name": "another"}}, "the expert another"),
        ({"subject": {"stage": "dpo"}}, "the stage dpo"),
    ],
)
def test_a_teacher_that_does_not_suit_is_refused(changed, told, tiny_base, tiny_dataset, tmp_path):
    teacher = make_job(tmp_path, tiny_base, tiny_dataset, max_steps=1)
    state = train(teacher)
    job = pupil(tmp_path, tiny_base, tiny_dataset, teacher)
    altered = {**state, **{part: {**state[part], **values} for part, values in changed.items()}}
    with pytest.raises(UserError, match=told):
        Ancestors(job, None, {"teacher": altered}).check(base_digest=state["subject"]["base_digest"], unit="record")


def test_delta_is_bound_by_every_model_behind_the_chain(tiny_base, tiny_dataset, tmp_path):
    teacher = make_job(tmp_path, tiny_base, tiny_dataset, max_steps=1)
    train(teacher)
    first = pupil(tmp_path / "pupil", tiny_base, tiny_dataset, teacher)
    start = train_taught(first)
    later = make_job(tmp_path / "pupil", tiny_base, tiny_dataset, privacy=PRIVATE.replace(delta=2e-3))
    later = dataclasses.replace(later, expert="pupil", start=first.output)
    with pytest.raises(UserError, match="lower it to that"):
        Ancestors(later, start, {}).check(base_digest=start["subject"]["base_digest"], unit="record")
    without = {**start, "subject": {**start["subject"], "models": {}}}
    Ancestors(later, without, {}).check(base_digest=start["subject"]["base_digest"], unit="record")


def test_a_model_without_its_file_is_refused(tmp_path):
    numbers = {
        "expert": "a",
        "stage": "sft",
        "revision": 1,
        "seed": 1,
        "template": "alpaca",
        "adapter": {"kind": "lora"},
        "training": {},
    }
    how = {"device": "cpu", "training": {}}
    with pytest.raises(UserError, match="--model names `teacher`"):
        stage_from_json(canonical_json(numbers), canonical_json(how), models={"teacher": tmp_path / "x.pt"})


def train_taught(job):
    train_stage(job, supervised)
    return load_state(job.output)


def test_privacy_of_a_stage_without_models_is_that_of_its_start(tiny_base, tiny_dataset, tmp_path):
    job = make_job(tmp_path, tiny_base, tiny_dataset, privacy=PrivacySettings(enabled=False))
    ancestors = Ancestors.read(job)
    assert (ancestors.receipt, ancestors.events, ancestors.public) == (None, (), [])
    assert ancestors.digests() == {"start_digest": None, "models": {}}
