"""Direct preference optimization: its loss by definition, a whole stage, and its reference."""

import dataclasses
import json
import math

import pytest
import torch

from sealed_experts.data.records import write_records
from sealed_experts.data.records.pair import Pair
from sealed_experts.errors import UserError
from sealed_experts.models.attachment import trainable_parameters
from sealed_experts.training.checkpoints import load_state
from sealed_experts.training.frozen_model import FrozenModel
from sealed_experts.training.interruption import Interrupted
from sealed_experts.training.objective import Materials
from sealed_experts.training.objectives.dpo import Dpo
from sealed_experts.training.stage import train_stage
from sealed_experts.training.summary import stage_metrics
from tests.kinds import adapted
from tests.pairs import batch_of, units
from tests.tiny import QUESTIONS
from tests.unit.training.test_stage import PLAIN, PRIVATE, comparable, interrupt_after, make_job, share_key

BETA = 0.3


def pairs(folder, *, count=60):
    """Write pairs: the better answer repeats the end of its prompt, the worse one the end of another prompt."""
    folder.mkdir()
    made = []
    for index in range(count):
        good, bad = ("gain", "loss") if index % 2 else ("loss", "gain")
        prompt = f"{QUESTIONS[index % 7]} {index} {good}?"
        made.append(Pair.of(prompt=prompt, chosen=f"a {good}", rejected=f"a {bad}"))
    write_records(folder / "train.jsonl", made[:-20])
    write_records(folder / "val.jsonl", made[-20:])
    (folder / "stats.json").write_text(json.dumps({"unit": "record", "digest": "0" * 64}))
    return folder


def make_dpo_job(folder, base, *, privacy=PLAIN, models=None, **changes):
    data = folder / "pairs"
    if not data.exists():
        folder.mkdir(exist_ok=True)
        pairs(data)
    job = make_job(folder, base, data, privacy=privacy)
    settings = Dpo(
        **{
            **{name: getattr(job.settings, name) for name in ("max_seq_len", "eval_steps", "log_steps", "threads")},
            "checkpoint_steps": 2,
            "learning_rate": 5e-3,
            "batch_size": 8,
            "max_steps": 6,
            "token_budget": 400,
            "beta": BETA,
            "privacy": privacy.replace(delta=1e-2) if privacy.enabled else privacy,
            **changes,
        }
    )
    computed = {"training": settings.part(operation=False)}
    return dataclasses.replace(job, stage="dpo", settings=settings, computed=computed, models=models or {})


def train(job):
    train_stage(job, job.settings.objective)
    return load_state(job.output)


def rows_of_pairs():
    """Return the rows of four pairs: a better and a worse answer of different lengths to one prompt."""
    parts = ("chosen", "rejected")
    return [
        dataclasses.replace(row, part=parts[place % 2], prompt_length=3)
        for place, row in enumerate(units((2, 2, 2, 2)))
    ]


def objective_on(model, **settings):
    materials = Materials(model=model, tokenizer=None, pad_id=0, seed=0, token_budget=4096)
    return Dpo(beta=BETA, **settings).objective(materials)


def by_the_book(model, reference, rows):
    """-log sigmoid(β (log π(w) - log ref(w) - log π(l) + log ref(l))), from all logits in float64, row by row."""

    def log_likelihood(of, row):
        ids = torch.tensor([row.ids])
        log_probs = of(input_ids=ids).logits[0].double().log_softmax(-1)
        return sum(log_probs[place - 1, row.ids[place]] for place in range(row.prompt_length, len(row.ids)))

    gained = [log_likelihood(model, row) - log_likelihood(reference, row) for row in rows]
    return torch.stack(
        [-torch.sigmoid(BETA * (good - bad)).log() for good, bad in zip(gained[::2], gained[1::2], strict=True)]
    )


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prefix"])
def test_the_loss_and_its_gradient_are_those_of_the_paper(kind, padded):
    model, reference, rows = adapted(kind), adapted(kind), rows_of_pairs()
    objective = objective_on(model)
    for parameter in trainable_parameters(model):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    batch = batch_of(rows)
    ordered = [row for group in batch.units() for row in group.examples]  # longest first
    expected = by_the_book(model, reference, ordered)
    batch = batch.padded() if padded else batch
    losses, figures = objective.per_example_loss(model, batch, objective.constants(model, batch))
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.sigmoid(figures["margin"]).log(), -losses)
    truth = torch.autograd.grad(expected.sum(), trainable_parameters(model))
    found = torch.autograd.grad(losses.sum(), trainable_parameters(model))
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6)


def test_before_any_step_the_loss_is_ln_2_and_no_pair_is_ordered():
    model = adapted("lora")
    figures = objective_on(model).validate(model, [batch_of(rows_of_pairs())])
    assert figures == {"val_loss": pytest.approx(math.log(2), abs=1e-12), "val_accuracy": 0.5, "val_margin": 0.0}


def test_a_frozen_reference_takes_the_place_of_the_start():
    model, other = adapted("lora"), adapted("lora")
    for parameter in trainable_parameters(other):
        parameter.data.zero_()
    materials = Materials(model=model, tokenizer=None, pad_id=0, seed=0, token_budget=4096, models={"reference": other})
    batch = batch_of(rows_of_pairs())
    objective = Dpo(beta=BETA).objective(materials)
    losses, _ = objective.per_example_loss(model, batch, objective.constants(model, batch))
    ordered = [row for group in batch.units() for row in group.examples]
    torch.testing.assert_close(losses.double(), by_the_book(model, other, ordered), rtol=1e-4, atol=1e-6)


def test_it_learns_which_answer_is_better(tmp_path, tiny_base):
    metrics = stage_metrics(train(make_dpo_job(tmp_path, tiny_base, max_steps=150, eval_steps=50)))
    assert metrics["accuracy_before"] == 0.5
    assert metrics["first_val_loss"] == pytest.approx(math.log(2))
    assert metrics["accuracy_after"] > 0.9
    assert metrics["margin_after"] > 1
    assert metrics["final_val_loss"] < 0.4
    margins = [line["margin"] for line in metrics["history"]["train"]]
    assert margins[0] == 0.0
    assert margins[-1] > 1


def test_under_privacy_a_pair_is_one_unit_and_an_interrupted_run_ends_the_same(tmp_path, tiny_base, monkeypatch):
    job = make_dpo_job(tmp_path / "whole", tiny_base, privacy=PRIVATE)
    whole = train(job)
    assert whole["privacy"]["units"] == 40
    assert whole["privacy"]["epsilon"] > 0
    again = make_dpo_job(tmp_path / "again", tiny_base, privacy=PRIVATE)
    share_key(again, job)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 12)
        with pytest.raises(Interrupted):
            train(again)
    assert comparable(train(again)) == comparable(whole)


def test_a_reference_of_another_expert_is_counted(tmp_path, tiny_base):
    first = make_dpo_job(tmp_path / "first", tiny_base, privacy=PRIVATE, max_steps=3)
    spent = train(first)["privacy"]["events"]
    second = make_dpo_job(
        tmp_path / "second",
        tiny_base,
        privacy=PRIVATE,
        models={"reference": first.output},
        reference=FrozenModel(expert="tiny_expert", stage="dpo"),
    )
    state = train(dataclasses.replace(second, expert="another"))
    assert state["privacy"]["events"][:-1] == spent
    assert state["history"][0]["val_loss"] != pytest.approx(math.log(2), abs=1e-9)


def test_answers_that_are_equal_once_they_are_cut_are_refused(tmp_path, tiny_base):
    job = make_dpo_job(tmp_path, tiny_base, max_seq_len=96)
    long = "so " * 200
    records = [Pair.of(prompt=f"q {n}?", chosen=f"{long} yes", rejected=f"{long} no") for n in range(12)]
    write_records(job.train, records)
    with pytest.raises(
        UserError, match=r"12 of 12 records .* dpo\.max_seq_len 96\. .* answers are equal once they are cut"
    ):
        train(job)


def test_a_prompt_without_room_for_an_answer_is_refused(tmp_path, tiny_base):
    with pytest.raises(UserError, match=r"40 of 40 records .* dpo\.max_seq_len 16\. .* leaves no room for an answer"):
        train(make_dpo_job(tmp_path, tiny_base, max_seq_len=16))
