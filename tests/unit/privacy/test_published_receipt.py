"""A version's receipt over time, and the receipt of a package that ships an earlier stage."""

import json

import pytest

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.published_receipt import covering, receipt_bytes, released
from sealed_experts.privacy.ledger.releases import ReleaseLog
from tests.attacks import building

DELTA = 1e-5


def event(key, *, stage="sft"):
    return GaussianEvent(stage=stage, noise_multiplier=1.0, sample_rate=0.064, steps=60, key_id=key)


def receipt(*events, **changes):
    joint = epsilon(events, delta=DELTA)
    return building.privacy(events=[each.to_json() for each in events], epsilon=joint, delta=DELTA, **changes)


UNPROTECTED = building.privacy(enabled=False, events=[], epsilon=None, mode=None, reason="privacy is off")


@pytest.fixture
def log(tmp_path):
    return ReleaseLog(tmp_path / "home")


def test_versions_from_other_units_do_not_count_in_over_releases(log):
    """After one unprotected version on unrelated records, no later package had an ε over releases."""
    released(UNPROTECTED, expert="banking", units="xy", log=log)
    released(receipt(event("k1")), expert="banking", units="pq", log=log)
    sealed = released(receipt(event("k2")), expert="banking", units="ab", log=log)
    assert sealed["over_releases"]["epsilon"] == pytest.approx(sealed["epsilon"])
    joined = released(receipt(event("k3")), expert="banking", units="bp", log=log)
    assert joined["over_releases"]["epsilon"] == epsilon([event("k1"), event("k3")], delta=DELTA)


def test_an_unprotected_version_from_a_common_unit_leaves_no_epsilon_over_releases(log):
    released(UNPROTECTED, expert="banking", units="xya", log=log)
    sealed = released(receipt(event("k2")), expert="banking", units="ab", log=log)
    assert sealed["over_releases"]["epsilon"] is None
    assert "privacy is off" in sealed["over_releases"]["reason"]


def test_another_name_takes_nothing_back(log):
    """Versions with another name from the same units once did not count: a new name started at zero."""
    released(receipt(event("k1")), expert="banking", units="ab", log=log)
    sealed = released(receipt(event("k2")), expert="banking_b", units="ab", log=log)
    assert sealed["over_releases"]["epsilon"] == epsilon([event("k1"), event("k2")], delta=DELTA)
    assert "all versions of all experts" in sealed["over_releases"]["meaning"]


def test_a_version_that_is_sealed_again_has_the_same_receipt(log):
    """Otherwise its bytes would depend on what was sealed since."""
    first = released(receipt(event("k1")), expert="banking", units="ab", log=log)
    released(receipt(event("k2")), expert="shared", units="bc", log=log)
    assert released(receipt(event("k1")), expert="banking", units="ab", log=log) == first


def test_unknown_units_count_with_every_version(log):
    released(receipt(event("k1")), expert="banking", units="ab", log=log)
    sealed = released(receipt(event("k2")), expert="banking", units=None, log=log)
    assert sealed["over_releases"]["epsilon"] == epsilon([event("k1"), event("k2")], delta=DELTA)
    later = released(receipt(event("k3")), expert="banking", units="zz", log=log)
    assert later["over_releases"]["epsilon"] == epsilon([event("k2"), event("k3")], delta=DELTA)


def test_that_versions_have_units_in_common_is_declared_public(log):
    sealed = released(receipt(event("k1"), public=["units: N"]), expert="banking", units="ab", log=log)
    assert sealed["public"][0] == "units: N"
    assert any("over_releases" in line and "treated as public" in line for line in sealed["public"])
    assert any("names of private data" in line and "treated as public" in line for line in sealed["public"])
    assert json.loads(receipt_bytes(sealed))["public"] == sealed["public"]


# Packages that ship an earlier stage

SFT, CHAIN = receipt(event("k1")), receipt(event("k1"), event("k2", stage="reinforce"))
CANDIDATES = ["sft", "reinforce"]


def test_the_receipt_of_the_last_stage_speaks_of_itself():
    assert covering(CHAIN, shipped=CHAIN, selection={"stage": "reinforce", "candidates": CANDIDATES}) == CHAIN


def test_the_receipt_of_an_earlier_stage_is_the_whole_chains_and_says_so():
    covered = covering(CHAIN, shipped=SFT, selection={"stage": "sft", "candidates": CANDIDATES})
    assert covered["epsilon"] == CHAIN["epsilon"] > SFT["epsilon"]
    assert covered["covers"].startswith("all stages: sft, reinforce; the package holds sft")
    assert json.loads(receipt_bytes(covered))["covers"] == covered["covers"]


@pytest.mark.parametrize(
    ("stated", "shipped"),
    [
        (receipt(event("k2", stage="reinforce")), SFT),
        (receipt(GaussianEvent(stage="sft", noise_multiplier=1.0, sample_rate=0.064, steps=10, key_id="k1")), SFT),
        (CHAIN, UNPROTECTED),
    ],
    ids=["another run's", "of fewer steps", "a claim for weights without one"],
)
def test_a_receipt_that_does_not_cover_the_shipped_stage_is_refused(stated, shipped):
    with pytest.raises(UserError, match=r"receipt.*does not cover stage sft.*delete .*selection\.json"):
        covering(stated, shipped=shipped, selection={"stage": "sft", "candidates": CANDIDATES})
