"""The release log: it has every sealed version once, and reveals no data."""

import json
import stat
import subprocess
import sys

import pytest

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.owner_names import owner_key, private_name
from sealed_experts.privacy.ledger.releases import ReleaseLog

DELTA = 1e-5


def event(key, *, stage="sft", steps=60):
    return GaussianEvent(stage=stage, noise_multiplier=1.0, sample_rate=0.064, steps=steps, key_id=key)


def receipt(*events, **changes):
    values = {"epsilon": 3.6, "reason": None, "unit": "record", "events": [each.to_json() for each in events]}
    return {**values, **changes}


def over_time(log, **more):
    return log.epsilon_over_releases(delta=DELTA, **more)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def log(home):
    return ReleaseLog(home)


def test_an_empty_log_costs_nothing(log):
    assert over_time(log).epsilon == 0.0
    assert over_time(log, expert="banking").epsilon == 0.0


def test_the_same_version_counts_once(log, home):
    for _ in range(3):
        log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    assert over_time(log).epsilon == epsilon([event("k1")], delta=DELTA)
    assert len(list((home / "releases").rglob("*.json"))) == 1


def test_versions_from_common_units_compose(log):
    log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    log.record(expert="banking", receipt=receipt(event("k2")), units="bc")
    log.record(expert="banking", receipt=receipt(event("k3")), units="d")
    assert over_time(log).epsilon == epsilon([event("k1"), event("k2")], delta=DELTA)


def test_a_longer_run_of_one_key_replaces_the_shorter(log):
    for steps in (30, 60, 10):
        log.record(expert="banking", receipt=receipt(event("k1", steps=steps)), units="ab")
    assert over_time(log).epsilon == epsilon([event("k1", steps=60)], delta=DELTA)


def test_a_later_stage_counts_the_first_one_once(log):
    log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    log.record(expert="banking", receipt=receipt(event("k1"), event("k2", stage="rl")), units="ab")
    assert over_time(log).epsilon == epsilon([event("k1"), event("k2", stage="rl")], delta=DELTA)


def test_the_joint_epsilon_depends_on_no_order_of_releases(log, tmp_path):
    other = ReleaseLog(tmp_path / "other")
    versions = [("banking", "k1", "ab"), ("shared", "k2", "abc"), ("investment", "k3", "c")]
    for expert, key, units in versions:
        log.record(expert=expert, receipt=receipt(event(key)), units=units)
    for expert, key, units in reversed(versions):
        other.record(expert=expert, receipt=receipt(event(key)), units=units)
    assert over_time(log, expert="banking") == over_time(other, expert="banking")
    assert over_time(log, expert="banking").epsilon == epsilon([event("k1")], delta=DELTA)
    assert over_time(log).epsilon == over_time(other).epsilon == epsilon([event("k1"), event("k2")], delta=DELTA)


def test_releases_have_numbers_and_the_same_version_keeps_its_own(log):
    first = log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    second = log.record(expert="renamed", receipt=receipt(event("k2")), units="ab")
    assert log.record(expert="banking", receipt=receipt(event("k1")), units="ab") == first < second
    assert over_time(log, until=first).epsilon == epsilon([event("k1")], delta=DELTA)
    assert over_time(log, until=second).epsilon == epsilon([event("k1"), event("k2")], delta=DELTA)
    chain = receipt(event("k1"), event("k3", stage="rl"))
    assert log.record(expert="banking", receipt=chain, units="ab") > second


def test_a_longer_run_of_one_key_is_a_release_of_its_own(log):
    """Versions sealed between the shorter and the longer run come before the longer one."""
    short = log.record(expert="banking", receipt=receipt(event("k1", steps=30)), units="ab")
    between = log.record(expert="other", receipt=receipt(event("k2")), units="ab")
    longer = log.record(expert="banking", receipt=receipt(event("k1", steps=60)), units="ab")
    assert log.record(expert="banking", receipt=receipt(event("k1", steps=30)), units="ab") == short
    assert short < between < longer
    assert over_time(log, until=short).epsilon == epsilon([event("k1", steps=30)], delta=DELTA)
    assert over_time(log, until=between).epsilon == epsilon([event("k1", steps=30), event("k2")], delta=DELTA)
    assert over_time(log, until=longer).epsilon == epsilon([event("k1", steps=60), event("k2")], delta=DELTA)


def test_unknown_units_are_common_with_everyone(log):
    log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    log.record(expert="foreign", receipt=receipt(event("k2")), units=None)
    assert over_time(log).epsilon == epsilon([event("k1"), event("k2")], delta=DELTA)


def test_unknown_units_stay_unknown(log):
    """An unprotected version on unknown units was once forgotten after a version on known units."""
    unprotected = receipt(epsilon=None, reason="privacy is off")
    for first, second in ((None, "zz"), ("zz", None)):
        log.record(expert="other", receipt=receipt(event("k1")), units="ab")
        log.record(expert="banking", receipt=unprotected, units=first)
        log.record(expert="banking", receipt=unprotected, units=second)
        assert [member.units for member in log.releases(expert="banking")] == [None]
        of_other = log.lineages([receipt(event("k1"))])[0]
        assert over_time(log, among=of_other).epsilon is None


def test_a_key_on_unknown_units_has_no_lineage_again(log):
    for units in ("ab", None, "ab"):
        log.record(expert="banking", receipt=receipt(event("k1")), units=units)
    assert log.lineages([receipt(event("k1"))]) == [None]


def test_a_version_without_a_claim_is_not_forgotten(log):
    log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    open_version = receipt(epsilon=None, reason="privacy is off")
    log.record(expert="banking", receipt=open_version, units="bc")
    log.record(expert="banking", receipt=open_version, units="cd")
    log.record(expert="other", receipt=receipt(event("k2")), units="xy")
    result = over_time(log)
    assert result.epsilon is None
    assert "privacy is off" in result.reason
    of_other = log.lineages([receipt(event("k2"))])[0]
    assert over_time(log, among=of_other).epsilon == epsilon([event("k2")], delta=DELTA)
    assert over_time(log, expert="other").epsilon is not None


def test_lineage_is_found_by_the_noise_keys(log):
    log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    log.record(expert="shared", receipt=receipt(event("k2")), units="abc")
    log.record(expert="unknown", receipt=receipt(event("k3")), units=None)
    unkeyed = GaussianEvent(stage="sft", noise_multiplier=1.0, sample_rate=0.064, steps=60)
    first, second, *others = log.lineages(
        [receipt(event(key)) for key in ("k1", "k2", "k3", "elsewhere")] + [receipt(unkeyed), receipt()]
    )
    assert len(first) == 2
    assert first < second
    assert others == [None, None, None, None]
    assert log.lineages([receipt(event("k1"))], expert="banking") == [first]
    assert log.lineages([receipt(event("k1"))], expert="shared") == [None]


def test_the_log_is_private_and_names_no_data(log, home):
    log.record(expert="banking", receipt=receipt(event("k1")), units=["customer-17"])
    assert stat.S_IMODE((home / "releases").stat().st_mode) == 0o700
    files = list((home / "releases").rglob("*.json"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
    assert "customer-17" not in files[0].read_text()
    (name,) = json.loads(files[0].read_text())["units"]
    assert name == private_name(owner_key(home), "unit", "record", "customer-17")[:32]


def test_other_owners_and_other_kinds_of_units_get_other_names(home, tmp_path):
    mine, theirs = owner_key(home), owner_key(tmp_path / "theirs")
    names = {
        private_name(mine, "unit", "record", "a"),
        private_name(theirs, "unit", "record", "a"),
        private_name(mine, "unit", "recor", "da"),
        private_name(mine, "unit", "customer", "a"),
    }
    assert len(names) == 4


def test_the_owner_key_is_made_once_and_is_private(home):
    key = owner_key(home)
    assert len(key) == 32
    assert owner_key(home) == key
    assert stat.S_IMODE((home / "owner.key").stat().st_mode) == 0o600
    (home / "owner.key").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        owner_key(home)


def test_a_damaged_owner_key_is_refused(home):
    owner_key(home)
    (home / "owner.key").write_text("not a key")
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        owner_key(home)


def test_a_damaged_entry_is_refused(log, home):
    log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    (entry,) = (home / "releases").rglob("*.json")
    entry.write_text('{"format": "sealed-experts/release/v1"}')
    with pytest.raises(UserError, match="not an entry of the release log"):
        over_time(log)


@pytest.mark.parametrize("place", ["home", "home/releases", "home/releases/banking"])
def test_a_home_that_cannot_be_made_is_named(tmp_path, place):
    """A file in the place of a folder once caused a FileExistsError with a traceback."""
    target = tmp_path / place
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.write_text("a file stands here")
    with pytest.raises(UserError, match=r"cannot make the folder .*set SEALED_EXPERTS_HOME"):
        ReleaseLog(tmp_path / "home").record(expert="banking", receipt=receipt(event("k1")), units=None)


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden"])
def test_an_expert_name_cannot_leave_the_log(log, name):
    with pytest.raises(UserError, match="cannot name an expert"):
        log.record(expert=name, receipt=receipt(event("k1")), units="ab")


def test_a_folder_that_others_can_write_is_refused(log, home):
    log.record(expert="banking", receipt=receipt(event("k1")), units="ab")
    (home / "releases").chmod(0o777)
    with pytest.raises(UserError, match="other users can write"):
        log.record(expert="banking", receipt=receipt(event("k1")), units="ab")


def test_versions_sealed_side_by_side_are_all_kept(home):
    program = """
import sys
from pathlib import Path
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.releases import ReleaseLog
for index in range(10):
    for key, steps in ((f"{sys.argv[2]}-{index}", 60), ("common", 10 * index + int(sys.argv[2]))):
        event = GaussianEvent(stage="sft", noise_multiplier=1.0, sample_rate=0.064, steps=steps, key_id=key)
        receipt = {"epsilon": 1.0, "unit": "record", "events": [event.to_json()]}
        ReleaseLog(Path(sys.argv[1])).record(expert="banking", receipt=receipt, units=["a", sys.argv[2]])
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(home), str(number)]) for number in range(2)]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    found = {
        event.key_id: (event.steps, member.units) for member in ReleaseLog(home).releases() for event in member.events
    }
    assert len(found) == 21
    assert found["common"][0] == 91
    assert len(found["common"][1]) == 3
