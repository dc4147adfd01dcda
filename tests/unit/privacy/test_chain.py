"""A chain of stages; the second has two queries per draw. One ledger, one ε, and no claim if a stage is unprotected."""

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld

from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import events_from_json
from sealed_experts.privacy.ledger.published_receipt import receipt_bytes, released
from sealed_experts.privacy.ledger.receipt import stage_receipt, unprotected_receipt
from sealed_experts.privacy.ledger.releases import ReleaseLog
from sealed_experts.privacy.plan import PrivacyPlan

DELTA = 1e-5
UNITS = 2000


def plan(stage, **changes):
    values = {
        "stage": stage,
        "unit": "record",
        "units": UNITS,
        "expected_batch_size": 128,
        "noise_multiplier": 1.0,
        "max_grad_norm": 0.3,
        "delta": DELTA,
        "target_epsilon": 8.0,
        "mode": "release",
        "max_steps": 60,
        "steps_within_budget": 60,
    }
    return PrivacyPlan(**{**values, **changes})


def reinforce(**changes):
    own = {"expected_batch_size": 64, "noise_multiplier": 0.8, "queries": {"mean_reward": 2.0}, "max_steps": 25}
    return plan("reinforce", **{**own, "steps_within_budget": 25, **changes})


def chain():
    """Return the receipt of an expert after sft and reinforce."""
    first = stage_receipt(plan("sft"), steps=60, key_id="k1")
    return stage_receipt(reinforce(), steps=25, key_id="k2", prior=first)


def by_hand(*stages):
    """ε of (noise multiplier, sample rate, steps) composed by dp_accounting alone."""
    losses = [
        pld.from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=1e-4).self_compose(steps)
        for noise, rate, steps in stages
    ]
    joint = losses[0]
    for loss in losses[1:]:
        joint = joint.compose(loss)
    return joint.get_epsilon_for_delta(DELTA)


# 1/0.8² + 1/2² = 1.5625 + 0.25 = 1.8125
COMBINED = 1.8125**-0.5


def test_gradient_and_mean_reward_of_one_draw_are_one_gaussian():
    receipt = chain()
    assert receipt["noise_multiplier"] == 0.8
    assert receipt["queries"] == {"mean_reward": 2.0}
    assert receipt["effective_noise_multiplier"] == pytest.approx(COMBINED, rel=1e-12)
    assert receipt["events"][1]["noise_multiplier"] == pytest.approx(COMBINED, rel=1e-12)
    assert receipt["events"][1]["sample_rate"] == 0.032
    assert receipt["events"][0]["noise_multiplier"] == 1.0


def test_receipt_recomputation_and_release_log_agree_with_a_composition_by_hand(tmp_path):
    truth = by_hand((1.0, 0.064, 60), (COMBINED, 0.032, 25))
    without_the_query = by_hand((1.0, 0.064, 60), (0.8, 0.032, 25))
    assert truth > 1.02 * without_the_query  # otherwise a ledger that forgot the query would pass
    receipt = chain()
    sealed = released(receipt, expert="banking", units="ab", log=ReleaseLog(tmp_path / "home"))
    again = epsilon(events_from_json(receipt["events"]), delta=receipt["delta"])
    for stated in (receipt["epsilon"], again, sealed["over_releases"]["epsilon"]):
        assert stated == pytest.approx(truth, rel=3e-3)
    assert receipt["epsilon"] == again == sealed["over_releases"]["epsilon"]
    assert receipt["stage_epsilon"]["sft"] == pytest.approx(by_hand((1.0, 0.064, 60)), rel=3e-3)
    assert receipt["stage_epsilon"]["reinforce"] == receipt["epsilon"]


def test_two_versions_of_a_chain_compose_and_share_their_first_stage(tmp_path):
    """Both versions start from the same sft adapter, so the steps of sft were released only once."""
    log = ReleaseLog(tmp_path / "home")
    first = stage_receipt(plan("sft"), steps=60, key_id="k1")
    released(chain(), expert="banking", units="ab", log=log)
    again = stage_receipt(reinforce(), steps=25, key_id="k3", prior=first)
    sealed = released(again, expert="banking", units="ab", log=log)
    truth = by_hand((1.0, 0.064, 60), (COMBINED, 0.032, 50))
    assert sealed["over_releases"]["epsilon"] == pytest.approx(truth, rel=3e-3)
    assert sealed["epsilon"] < sealed["over_releases"]["epsilon"]


UNPROTECTED = unprotected_receipt(stage="sft", unit="record")
OPEN_CHAINS = {
    "private, then not": unprotected_receipt(stage="reinforce", unit="record", prior=chain()),
    "not, then private": stage_receipt(reinforce(), steps=25, key_id="k2", prior=UNPROTECTED),
    "reproducible": stage_receipt(plan("sft", mode="reproducible"), steps=60, key_id="k1"),
    "reproducible, then private": stage_receipt(
        reinforce(),
        steps=25,
        key_id="k2",
        prior=stage_receipt(plan("sft", mode="reproducible"), steps=60, key_id="k1"),
    ),
}


@pytest.mark.parametrize("receipt", OPEN_CHAINS.values(), ids=OPEN_CHAINS)
def test_a_chain_with_an_open_link_claims_nothing(receipt, tmp_path):
    """Such a receipt once stated no ε, but also that every unit is protected against anyone with the package."""
    sealed = released(receipt, expert="banking", units="ab", log=ReleaseLog(tmp_path / "home"))
    assert sealed["epsilon"] is sealed["over_releases"]["epsilon"] is None
    assert sealed["reason"]
    assert sealed["over_releases"]["reason"]
    assert set(sealed["stage_epsilon"].values()) == {None}
    assert sealed["protects"] == []
    assert any("training data" in line for line in sealed["does_not_protect"])
    assert b"against anyone" not in receipt_bytes(sealed)


def test_an_open_link_leaves_its_stage_in_the_receipt():
    """The unprotected stage has no event, and was once missing in the list of stages."""
    receipt = OPEN_CHAINS["not, then private"]
    assert receipt["stage_epsilon"] == {"sft": None, "reinforce": None}
    assert receipt["reason"].startswith("stage sft: privacy is off")
