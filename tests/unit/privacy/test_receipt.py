"""The receipt: what it claims, when it claims nothing, and that its ε can be computed again."""

import json

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import events_from_json
from sealed_experts.privacy.ledger.receipt import joined_receipts, stage_receipt, unprotected_receipt
from sealed_experts.privacy.plan import PrivacyPlan

# The fields that training_metrics.json must have.
CONTRACT = {
    "enabled", "mode", "unit", "neighbouring", "sampling", "sample_rate", "noise_multiplier", "max_grad_norm", "steps",
    "accountant", "delta", "target_epsilon", "epsilon", "events", "stage_epsilon", "key_id",
}  # fmt: skip


def plan(stage="sft", **changes):
    values = {
        "stage": stage,
        "unit": "record",
        "units": 2000,
        "expected_batch_size": 128,
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.3,
        "delta": 1e-5,
        "target_epsilon": 8.0,
        "mode": "release",
        "max_steps": 60,
        "steps_within_budget": 60,
    }
    return PrivacyPlan(**{**values, **changes})


def test_a_receipt_states_the_mechanism_and_its_epsilon():
    receipt = stage_receipt(plan(), steps=60, key_id="k1")
    assert set(receipt) >= CONTRACT
    assert receipt["epsilon"] == epsilon([plan().event(60)], delta=1e-5)
    assert receipt["stage_epsilon"] == {"sft": receipt["epsilon"]}
    assert receipt["accountant"].startswith("PLD (dp-accounting")
    assert (receipt["neighbouring"], receipt["sampling"]) == ("add_or_remove_one", "poisson")
    assert receipt["reason"] is None
    assert any("number of units" in line for line in receipt["public"])
    assert any("train.jsonl" in line for line in receipt["protects"])


def test_a_receipt_survives_canonical_json():
    receipt = stage_receipt(plan(queries={"mean_reward": 5.0}), steps=60, key_id="k1")
    again = json.loads(canonical_json(receipt))
    assert again == receipt
    assert epsilon(events_from_json(again["events"]), delta=again["delta"]) == receipt["epsilon"]


def test_stages_add_up_in_one_receipt():
    first = stage_receipt(plan(), steps=60, key_id="k1")
    second_plan = plan("reinforce", noise_multiplier=0.7, max_steps=25, steps_within_budget=25)
    second = stage_receipt(second_plan, steps=25, key_id="k2", prior=first)
    assert [(event["stage"], event["key_id"]) for event in second["events"]] == [("sft", "k1"), ("reinforce", "k2")]
    assert list(second["stage_epsilon"]) == ["sft", "reinforce"]
    assert second["stage_epsilon"]["sft"] == first["epsilon"] < second["epsilon"]
    assert second["epsilon"] == epsilon(events_from_json(second["events"]), delta=1e-5)


def test_another_query_is_in_the_event():
    receipt = stage_receipt(plan(queries={"mean_reward": 1.0}), steps=60, key_id="k1")
    assert receipt["events"][0]["noise_multiplier"] == pytest.approx(0.5**0.5)
    assert receipt["noise_multiplier"] == 1.0
    assert receipt["epsilon"] > stage_receipt(plan(), steps=60, key_id="k1")["epsilon"]


def test_reproducible_mode_claims_nothing_and_says_why():
    receipt = stage_receipt(plan(mode="reproducible"), steps=60, key_id="k1")
    assert receipt["epsilon"] is None
    assert receipt["stage_epsilon"] == {"sft": None}
    assert "no privacy against someone who knows it" in receipt["reason"]


@pytest.mark.parametrize(
    "first",
    [
        stage_receipt(plan(mode="reproducible"), steps=60, key_id="k1"),
        unprotected_receipt(stage="sft", unit="record"),
    ],
)
def test_a_private_stage_cannot_mend_an_unprotected_one(first):
    second = stage_receipt(plan("reinforce"), steps=60, key_id="k2", prior=first)
    assert second["epsilon"] is None
    assert second["reason"] == first["reason"]


def test_privacy_off_claims_nothing_and_keeps_the_ledger():
    first = stage_receipt(plan(), steps=60, key_id="k1")
    second = unprotected_receipt(stage="reinforce", unit="record", prior=first)
    assert set(second) >= CONTRACT
    assert second["epsilon"] is None
    assert "stage reinforce: privacy is off" in second["reason"]
    assert second["events"] == first["events"]
    assert second["stage_epsilon"] == {"sft": None, "reinforce": None}


def test_stages_with_other_units_do_not_compose():
    first = stage_receipt(plan(), steps=60, key_id="k1")
    with pytest.raises(UserError, match=r"units of 'customer'.*units of 'record'"):
        stage_receipt(plan("reinforce", unit="customer"), steps=60, key_id="k2", prior=first)


def test_a_prior_without_epsilon_and_reason_is_refused():
    with pytest.raises(UserError, match="neither an ε nor a reason"):
        stage_receipt(plan(), steps=60, key_id="k1", prior={"epsilon": None, "events": []})


def test_a_stage_that_learns_from_several_adapters_inherits_all_their_events():
    shared = stage_receipt(plan(), steps=60, key_id="k1")
    start = stage_receipt(plan("reinforce"), steps=20, key_id="k2", prior=shared)
    teacher = stage_receipt(plan(), steps=30, key_id="k3")
    receipt = stage_receipt(plan("distill"), steps=10, key_id="k4", prior=joined_receipts([start, teacher, shared]))
    assert [(event["stage"], event["key_id"], event["steps"]) for event in receipt["events"]] == [
        ("sft", "k1", 60),  # listed twice, counted once
        ("reinforce", "k2", 20),
        ("sft", "k3", 30),
        ("distill", "k4", 10),
    ]
    assert receipt["epsilon"] == epsilon(events_from_json(receipt["events"]), delta=1e-5) > start["epsilon"]
    assert joined_receipts([]) is None


@pytest.mark.parametrize("first", [True, False])
def test_one_silent_adapter_silences_what_learns_from_it(first):
    loud, quiet = stage_receipt(plan(), steps=60, key_id="k1"), unprotected_receipt(stage="sft", unit="record")
    seeded = stage_receipt(plan(mode="reproducible"), steps=60, key_id="k2")
    receipts = [quiet, loud, seeded] if first else [seeded, loud, quiet]
    receipt = stage_receipt(plan("distill"), steps=10, key_id="k4", prior=joined_receipts(receipts))
    assert receipt["epsilon"] is None
    assert receipt["reason"] == quiet["reason"]  # the data are exposed to more people than by a known seed
    assert [event["key_id"] for event in receipt["events"] if "key_id" in event][-1] == "k4"


def test_adapters_with_other_units_are_not_learned_from_together():
    one, two = (stage_receipt(plan(unit=unit), steps=60, key_id="k1") for unit in ("record", "customer"))
    with pytest.raises(UserError, match=r"units of 'customer' and of 'record'"):
        joined_receipts([one, two])


def test_what_else_is_public_is_stated():
    receipt = stage_receipt(plan(), steps=60, key_id="k1", public=["model teacher: the expert a is declared public"])
    assert receipt["public"][1:] == ["model teacher: the expert a is declared public"]
