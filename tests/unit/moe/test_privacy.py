"""The promise of an assembled mixture: its joint ε, for which records, and what else the file states."""

import dataclasses
import json
import shutil

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.home import home_folder
from sealed_experts.packages.keys.private_keys import create_key, key_path, load_key
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.releases import ReleaseLog
from tests.mixtures import DATASETS, DELTA, ROUTING, Workshop, private_receipt

EXPERTS = list(ROUTING)


@pytest.fixture
def workshop(tmp_path, tiny_base):
    made = Workshop(tmp_path / "results of mine", tiny_base)
    made.make_data()
    for name in EXPERTS:
        made.make_expert(name)
    return made


def event_of(name):
    return GaussianEvent.from_json(private_receipt(name)["events"][0])


def test_joint_epsilon_is_that_of_the_worst_record(workshop):
    """The datasets of banking and investment share no records; the combined one has both. No record is in three."""
    sealed_here(workshop)
    dp_accounting = pytest.importorskip("dp_accounting")
    privacy = workshop.assemble()["privacy"]
    single, pair, triple = (independent_epsilon(dp_accounting, copies) for copies in (1, 2, 3))
    assert privacy["delta"] == DELTA
    assert privacy["epsilon"] == pytest.approx(pair, rel=0.02)
    assert privacy["epsilon"] >= pair * 0.999
    assert single * 1.05 < privacy["epsilon"] < triple * 0.95
    assert {name: stated["epsilon"] for name, stated in privacy["experts"].items()} == {
        name: pytest.approx(single, rel=0.02) for name in EXPERTS
    }


def independent_epsilon(dp_accounting, copies):
    """ε of `copies` experts on one record, computed only with dp_accounting."""
    event = event_of(EXPERTS[0])
    accountant = dp_accounting.pld.PLDAccountant()
    step = dp_accounting.PoissonSampledDpEvent(event.sample_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier))
    accountant.compose(step, event.steps * copies)
    return accountant.get_epsilon(DELTA)


def test_without_common_records_epsilon_does_not_add_up(workshop):
    sealed_here(workshop)
    run = workshop.run(names=("banking_expert", "investment_expert"))
    privacy = workshop.assemble(run)["privacy"]
    assert privacy["epsilon"] == pytest.approx(privacy["experts"]["banking_expert"]["epsilon"])


def test_another_publishers_package_is_not_given_the_lineage_of_ones_own(workshop):
    """It learned from records that are unknown here, but once counted as trained on the present records."""
    sealed_here(workshop)
    names = ("banking_expert", "investment_expert")
    own = workshop.assemble(workshop.run(names=names))["privacy"]
    create_key(name="bob")
    bobs = private_receipt("bob's")
    workshop.make_expert("banking_expert", receipt=bobs, key=load_key(key_path("bob")))
    privacy = workshop.assemble(workshop.run(names=names))["privacy"]
    both = [GaussianEvent.from_json(bobs["events"][0]), event_of("investment_expert")]
    assert privacy["epsilon"] == epsilon(both, delta=DELTA) > 1.05 * own["epsilon"]
    assert privacy["over_releases"]["epsilon"] is None
    assert "does not know which records banking_expert learned from" in privacy["over_releases"]["reason"]


def test_lineage_is_what_was_sealed_and_not_what_lies_here_now(workshop):
    """After an expert was sealed, the data may be prepared again, or deleted."""
    sealed_here(workshop)
    before = workshop.assemble()["privacy"]
    shutil.rmtree(workshop.folder / "data")
    assert workshop.assemble()["privacy"] == before


def test_without_a_release_log_all_records_count_as_common(workshop, monkeypatch, tmp_path):
    sealed_here(workshop)
    monkeypatch.setattr("tests.mixtures.home_folder", lambda: tmp_path / "an empty home")
    privacy = workshop.assemble()["privacy"]
    assert privacy["epsilon"] == epsilon([event_of(name) for name in EXPERTS], delta=DELTA)


def test_each_experts_epsilon_stands_beside_its_own_delta(workshop):
    """It was once stated with the mixture's δ, for which it is not valid."""
    sealed_here(workshop)
    event = event_of("banking_expert")
    tight = {**private_receipt("banking_expert"), "delta": 1e-7, "epsilon": epsilon([event], delta=1e-7)}
    workshop.make_expert("banking_expert", receipt=tight)
    privacy = workshop.assemble()["privacy"]
    assert privacy["delta"] == 1e-7
    assert privacy["experts"]["banking_expert"] == {"epsilon": tight["epsilon"], "delta": 1e-7}
    assert privacy["experts"]["investment_expert"] == {
        "epsilon": private_receipt("investment_expert")["epsilon"],
        "delta": DELTA,
    }


def test_that_experts_have_records_in_common_is_declared_public(workshop):
    """The joint ε reveals it, because it differs if they share no records."""
    sealed_here(workshop)
    privacy = workshop.assemble()["privacy"]
    for statement in (privacy, privacy["over_releases"]):
        assert any("treated as public" in line for line in statement["public"])


def test_one_member_without_a_claim_leaves_the_mixture_without_one(workshop):
    receipt = {
        **private_receipt("banking_expert"),
        "mode": "reproducible",
        "epsilon": None,
        "stage_epsilon": {"sft": None},
        "reason": "the seed reveals",
    }
    workshop.make_expert("banking_expert", receipt=receipt)
    privacy = workshop.assemble()["privacy"]
    assert privacy["epsilon"] is None
    assert "banking_expert claims no privacy: the seed reveals" in privacy["reason"]
    assert privacy["experts"]["banking_expert"]["epsilon"] is None
    assert privacy["experts"]["investment_expert"]["epsilon"] > 0


def test_epsilon_over_releases_comes_from_the_log(workshop):
    assert "release log" in workshop.assemble()["privacy"]["over_releases"]["reason"]
    log = ReleaseLog(home_folder())
    for name in EXPERTS:
        lines = (workshop.data / DATASETS[name] / "train.jsonl").read_text().splitlines()
        units = {json.loads(line)["unit"] for line in lines}
        log.record(expert=name, receipt=private_receipt(name), units=units)
        if name == "banking_expert":  # an earlier version of it, under another key
            log.record(expert=name, receipt=private_receipt("an older version"), units=units)
    privacy = workshop.assemble()["privacy"]
    assert privacy["over_releases"]["reason"] is None
    assert privacy["over_releases"]["epsilon"] > privacy["epsilon"] * 1.05


def sealed_here(workshop, *versions):
    """Record each expert's package in the release log, as sealing it here does; and `versions` of banking."""
    log = ReleaseLog(home_folder())
    for name in EXPERTS:
        lines = (workshop.data / DATASETS[name] / "train.jsonl").read_text().splitlines()
        units = {json.loads(line)["unit"] for line in lines}
        for version in (name, *(versions if name == "banking_expert" else ())):
            log.record(expert=name, receipt=private_receipt(version), units=units)


def limited(workshop, limit):
    """Return a run of the whole mixture under `moe.max_epsilon`."""
    return dataclasses.replace(workshop.run(), max_epsilon=limit)


def test_a_mixture_within_its_limit_is_assembled_as_without_one(workshop):
    sealed_here(workshop)
    joint = workshop.assemble()["privacy"]["epsilon"]
    without = workshop.config.read_bytes()
    workshop.assemble(limited(workshop, joint))  # the limit itself is allowed
    assert workshop.config.read_bytes() == without


def test_joint_epsilon_above_the_limit_is_refused(workshop):
    """Each expert alone is within the limit, but the ε of the shared records is not."""
    sealed_here(workshop)
    privacy = workshop.assemble()["privacy"]
    workshop.config.unlink()
    limit = (max(stated["epsilon"] for stated in privacy["experts"].values()) + privacy["epsilon"]) / 2
    message = (
        rf"the joint ε of these experts is {privacy['epsilon']:.6g} at δ = 1e-05, above moe\.max_epsilon, which is"
    )
    with pytest.raises(UserError, match=rf"{message} {limit:g}: lower privacy\.target_epsilon .* or raise the limit"):
        workshop.assemble(limited(workshop, limit))
    assert not workshop.config.exists()


def test_epsilon_over_releases_above_the_limit_is_refused(workshop):
    """The present packages are within the limit, but an older version was published too."""
    sealed_here(workshop, "an older version")
    privacy = workshop.assemble()["privacy"]
    assert privacy["epsilon"] < privacy["over_releases"]["epsilon"]
    workshop.assemble(limited(workshop, privacy["over_releases"]["epsilon"]))
    limit = (privacy["epsilon"] + privacy["over_releases"]["epsilon"]) / 2
    with pytest.raises(
        UserError, match=r"over all versions ever sealed .* above moe\.max_epsilon.*cannot be taken back"
    ):
        workshop.assemble(limited(workshop, limit))


def test_a_limit_needs_an_epsilon(workshop):
    reason = {"mode": "reproducible", "epsilon": None, "stage_epsilon": {}, "reason": "the seed reveals the noise"}
    workshop.make_expert("banking_expert", receipt={**private_receipt("banking_expert"), **reason})
    with pytest.raises(
        UserError,
        match=r"the joint ε of these experts cannot be stated, but moe\.max_epsilon is 1000: banking_expert claims no "
        r"privacy: the seed reveals the noise; correct this",
    ):
        workshop.assemble(limited(workshop, 1000))


def test_a_limit_needs_to_know_what_was_released_before(workshop):
    """For packages that were sealed elsewhere, the other versions are unknown here."""
    with pytest.raises(UserError, match=r"over all versions .* cannot be stated.*the release log of this machine"):
        workshop.assemble(limited(workshop, 1000))
    assert not workshop.config.exists()


def test_neither_units_nor_counts_nor_members_enter_the_file(workshop):
    workshop.assemble()
    text = workshop.config.read_text()
    for dataset in ("banking", "investment"):
        for line in (workshop.data / dataset / "train.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert record["unit"] not in text
            assert record["id"] not in text
    assert set(json.loads(text)["privacy"]) == {
        "epsilon",
        "delta",
        "reason",
        "meaning",
        "public",
        "experts",
        "over_releases",
    }
