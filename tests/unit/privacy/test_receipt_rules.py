"""Rules between the fields of a receipt, and between a receipt and the stages of its package."""

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from sealed_experts.privacy.ledger.receipt_rules import ReceiptError, check_receipt
from sealed_experts.privacy.ledger.receipt_schema import CLAIMED, RECEIPT_FIELDS, RECEIPT_SCHEMA
from tests.unit.privacy.test_recomputation import CHAIN, DELTA, HONEST

ROOT = Path(__file__).resolve().parents[3]


def altered(**changes):
    return {**CHAIN, "events": [CHAIN["events"][0], {**CHAIN["events"][1], **changes}]}


def without(field):
    return {name: value for name, value in CHAIN.items() if name != field}


OVER = {"delta": DELTA, "reason": None, "epsilon": CHAIN["epsilon"]}
ALTERED = {
    "more steps": (altered(steps=40), "steps: 12, but its last event says 40"),
    "a smaller draw": (altered(sample_rate=0.01), r"sample_rate: 0\.064"),
    "more noise": (altered(noise_multiplier=2.0), "effective_noise_multiplier: "),
    "another batch": ({**HONEST, "expected_batch_size": 640}, r"expected_batch_size / units: 0\.32"),
    "other queries": ({**CHAIN, "queries": {"b": 1.0}}, "noise_multiplier and queries together: "),
    "a stage without an event": ({**CHAIN, "events": CHAIN["events"][1:]}, "stage 'sft' has no event"),
    "no events": ({**HONEST, "events": []}, "events: "),
    "events of another kind": ({**HONEST, "events": [{"stage": "sft"}]}, r"events\.0: "),
    "no list of events": ({**HONEST, "events": None}, "events: "),
    "too many events": ({**HONEST, "events": HONEST["events"] * 65}, "events: "),
    "a delta that allows everything": ({**HONEST, "delta": 0.01}, "not below 1/2000"),
    "no delta": ({**HONEST, "delta": None}, "delta: "),
    "a delta of 1": ({**HONEST, "delta": 1.0}, "delta: "),
    "a delta beyond numbers": ({**HONEST, "delta": 5e-324}, "delta: "),
    "unknown units": ({**HONEST, "units": None}, "units: "),
    "units that are no whole number": ({**HONEST, "units": 2000.5}, "units: "),
    "units as text": ({**HONEST, "units": "2000"}, "units: "),
    "one unit": ({**HONEST, "units": 1, "delta": 0.9}, "units: "),
    "replaced units": ({**HONEST, "neighbouring": "replace_one"}, "neighbouring: "),
    "shuffled batches": ({**HONEST, "sampling": "shuffled"}, "sampling: "),
    "another mechanism": ({**HONEST, "mechanism": "laplace"}, "mechanism: "),
    "a claim of a reproducible run": ({**HONEST, "mode": "reproducible"}, "mode: "),
    "a claim without privacy": ({**HONEST, "enabled": False}, "enabled: "),
    "a claim that is no number": ({**HONEST, "epsilon": "1.0"}, "epsilon: "),
    "neither claim nor reason": (
        {**HONEST, "epsilon": None, "stage_epsilon": {"sft": None}, "reason": None},
        "reason: ",
    ),
    "no claim but a stage's": ({**HONEST, "epsilon": None, "reason": "x"}, r"stage_epsilon\.sft: "),
    "no claim but one over releases": (
        {**HONEST, "epsilon": None, "reason": "x", "stage_epsilon": {}, "over_releases": OVER},
        r"over_releases\.epsilon: ",
    ),
    "less over releases": ({**CHAIN, "over_releases": {**OVER, "epsilon": 1.0}}, r"over_releases\.epsilon is 1"),
    "another delta over releases": (
        {**CHAIN, "over_releases": {**OVER, "delta": 0.9}},
        r"over_releases\.delta must equal",
    ),
    "no delta over releases": ({**CHAIN, "over_releases": {"epsilon": 99.0}}, r"over_releases\.delta must equal"),
    "over releases as a list": ({**CHAIN, "over_releases": [1]}, "over_releases: "),
    "noise without end": (altered(noise_multiplier=1e200), r"events\.1\.noise_multiplier: "),
    "next to no noise": (altered(noise_multiplier=1e-200), r"events\.1\.noise_multiplier: "),
    "a rate beyond numbers": (altered(sample_rate=5e-324), r"events\.1\.sample_rate: "),
    "steps beyond numbers": (altered(steps=2**60), r"events\.1\.steps: "),
    "queries as a list": ({**CHAIN, "queries": [1]}, "queries: "),
    "stages as a list": ({**CHAIN, "stage_epsilon": ["sft"]}, "stage_epsilon: "),
    "a field more": ({**CHAIN, "key_id": "1" * 32}, "'key_id' was unexpected"),
    "a field more of an event": (altered(fingerprint="x"), "'fingerprint' was unexpected"),
    **{f"no {field}": (without(field), f"'{field}' is a required property") for field in sorted(CLAIMED)},
}


@pytest.mark.parametrize(("false", "match"), ALTERED.values(), ids=ALTERED)
def test_a_receipt_that_contradicts_itself_is_refused(false, match):
    with pytest.raises(ReceiptError, match=match) as caught:
        check_receipt(false)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"stage": "dpo"}, {"noise_multiplier": 2.0}, {"sample_rate": 0.5}])
def test_one_key_that_is_said_to_have_released_two_things_is_refused(change):
    """Two stages with one key once counted as one release, so all stages together cost only as much as the longest."""
    first = HONEST["events"][0]
    false = {**HONEST, "events": [{**first, **change}, first]}
    with pytest.raises(ReceiptError, match=r"events: .*two privacy events of key .* disagree"):
        check_receipt(false)


def test_every_stage_of_the_chain_has_an_event_and_a_claim():
    """A receipt of only the first stage was once accepted for two stages."""
    chain = ["sft", "reinforce"]
    with pytest.raises(ReceiptError, match="stage 'reinforce' has no event"):
        check_receipt(HONEST, stages=chain)
    with pytest.raises(ReceiptError, match="stage_epsilon: it lacks sft"):
        check_receipt({**CHAIN, "stage_epsilon": {"reinforce": CHAIN["epsilon"]}}, stages=chain)
    # The stages of an adapter that the first stage started from are counted too.
    check_receipt(CHAIN, stages=["reinforce"])


def test_the_schema_for_other_programs_is_the_codes():
    assert json.loads((ROOT / "config" / "schemas" / "receipt.schema.json").read_text()) == RECEIPT_SCHEMA
    Draft202012Validator.check_schema(RECEIPT_SCHEMA)


def test_the_document_lists_every_field_of_the_receipt():
    text = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")
    for field in RECEIPT_FIELDS:
        assert re.search(rf"^\| (`\w+`, )*`{field}`", text, re.MULTILINE), field
