"""From sealed packages to moe_config.json."""

import dataclasses
import json
import subprocess
import sys

import jsonschema
import pytest
from tests.conftest import ROOT
from tests.mixtures import DATASETS, DELTA, ROUTING, Workshop, private_receipt

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json, read_json, write_json
from sealed_experts.files.digests import sha256_file
from sealed_experts.moe.configuration import read_mixture
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.releases import ReleaseLog
from sealed_experts.sealing.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.sealing.home import home_folder
from sealed_experts.sealing.keys import load_key
from sealed_experts.sealing.trust import untrust_key
from sealed_experts.settings.fields import plain

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


def test_every_field_of_the_contract(workshop, tiny_base):
    content = workshop.assemble()
    jsonschema.validate(content, json.loads((ROOT / "config/schemas/moe_config.schema.json").read_text()))
    base = read_json(tiny_base)
    assert content["model"] == "tiny"
    assert content["base"]["digest"] == base["digest"]
    assert content["routing_order"] == EXPERTS
    assert content["he_config"]["coeff_modulus_bits"] == [60, 40, 40, 60]
    assert content["gatelink_config"] == {"dp_epsilon": 1.0, "max_epsilon": 10.0, "max_lora_rank": 32}
    banking = content["experts"]["banking_expert"]
    assert banking == {
        "tgsp_path": "../packages/banking_expert.tgsp",
        "checkpoint_path": "../experts/banking_expert/sft/adapter_final.pt",
        "gate_type": "step",
        "gate_keywords": ["bank", "deposit", "loan"],
        "always_active": False,
        "match": "word",
        "package_digest": sha256_file(workshop.sources.package("banking_expert")),
        "publisher": load_key().public.fingerprint,
        "stage": "sft",
        "stage_reason": "the only stage",
    }
    mixture = read_mixture(workshop.config)
    assert all(member.package.is_file() and member.checkpoint.is_file() for member in mixture.members)
    assert (mixture.base.folder / "base.json").samefile(tiny_base)


def test_same_input_gives_the_same_bytes(workshop):
    workshop.assemble()
    first = workshop.config.read_bytes()
    workshop.assemble()
    assert workshop.config.read_bytes() == first


def test_joint_epsilon_is_that_of_the_worst_record(workshop):
    """The datasets of banking and investment are apart; the combined one holds both: no record is in three."""
    dp_accounting = pytest.importorskip("dp_accounting")
    privacy = workshop.assemble()["privacy"]
    single, pair, triple = (independent_epsilon(dp_accounting, copies) for copies in (1, 2, 3))
    assert privacy["delta"] == DELTA
    assert privacy["epsilon"] == pytest.approx(pair, rel=0.02)
    assert privacy["epsilon"] >= pair * 0.999
    assert single * 1.05 < privacy["epsilon"] < triple * 0.95
    assert privacy["experts"] == {name: pytest.approx(single, rel=0.02) for name in EXPERTS}


def independent_epsilon(dp_accounting, copies):
    """ε of `copies` experts on one record, by dp_accounting alone."""
    event = event_of(EXPERTS[0])
    accountant = dp_accounting.pld.PLDAccountant()
    step = dp_accounting.PoissonSampledDpEvent(event.sample_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier))
    accountant.compose(step, event.steps * copies)
    return accountant.get_epsilon(DELTA)


def test_without_common_records_epsilon_does_not_add_up(workshop):
    run = workshop.run(names=("banking_expert", "investment_expert"))
    privacy = workshop.assemble(run)["privacy"]
    assert privacy["epsilon"] == pytest.approx(privacy["experts"]["banking_expert"])


def test_one_member_without_a_claim_leaves_the_mixture_without_one(workshop):
    receipt = {
        **private_receipt("banking_expert"),
        "mode": "reproducible",
        "epsilon": None,
        "reason": "the seed reveals",
    }
    workshop.make_expert("banking_expert", receipt=receipt)
    privacy = workshop.assemble()["privacy"]
    assert privacy["epsilon"] is None
    assert "banking_expert claims no privacy: the seed reveals" in privacy["reason"]
    assert privacy["experts"]["investment_expert"] > 0


def test_epsilon_over_releases_comes_from_the_log(workshop):
    assert "release log" in workshop.assemble()["privacy"]["over_releases"]["reason"]
    log = ReleaseLog(home_folder())
    for name in EXPERTS:
        lines = (workshop.sources.data / DATASETS[name] / "train.jsonl").read_text().splitlines()
        units = {json.loads(line)["unit"] for line in lines}
        log.record(expert=name, receipt=private_receipt(name), units=units)
        if name == "banking_expert":  # an earlier version of it, under another key
            log.record(expert=name, receipt=private_receipt("an older version"), units=units)
    privacy = workshop.assemble()["privacy"]
    assert privacy["over_releases"]["reason"] is None
    assert privacy["over_releases"]["epsilon"] > privacy["epsilon"] * 1.05


def sealed_here(workshop, *versions):
    """Enter each expert's package in the release log, as sealing it here would have; and `versions` of banking."""
    log = ReleaseLog(home_folder())
    for name in EXPERTS:
        lines = (workshop.sources.data / DATASETS[name] / "train.jsonl").read_text().splitlines()
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
    """Each expert alone is within the limit: it is the records they share that are not."""
    sealed_here(workshop)
    privacy = workshop.assemble()["privacy"]
    workshop.config.unlink()
    limit = (max(privacy["experts"].values()) + privacy["epsilon"]) / 2
    message = (
        rf"the joint ε of these experts is {privacy['epsilon']:.6g} at δ = 1e-05, above moe\.max_epsilon, which is"
    )
    with pytest.raises(UserError, match=rf"{message} {limit:g}: lower privacy\.target_epsilon .* or raise the limit"):
        workshop.assemble(limited(workshop, limit))
    assert not workshop.config.exists()


def test_epsilon_over_releases_above_the_limit_is_refused(workshop):
    """The present packages are within the limit, but an older version was given away too."""
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
    reason = {"mode": "reproducible", "epsilon": None, "reason": "the seed reveals the noise"}
    workshop.make_expert("banking_expert", receipt={**private_receipt("banking_expert"), **reason})
    with pytest.raises(
        UserError,
        match=r"the joint ε of these experts cannot be stated, but moe\.max_epsilon is 1000: banking_expert claims no "
        r"privacy: the seed reveals the noise; mend that",
    ):
        workshop.assemble(limited(workshop, 1000))


def test_a_limit_needs_to_know_what_was_released_before(workshop):
    """Packages that were sealed elsewhere: nobody here can say which other versions there are."""
    with pytest.raises(UserError, match=r"over all versions .* cannot be stated.*the release log of this machine"):
        workshop.assemble(limited(workshop, 1000))
    assert not workshop.config.exists()


def test_neither_units_nor_counts_nor_members_enter_the_file(workshop):
    workshop.assemble()
    text = workshop.config.read_text()
    for dataset in ("banking", "investment"):
        for line in (workshop.sources.data / dataset / "train.jsonl").read_text().splitlines():
            record = json.loads(line)
            assert record["unit"] not in text
            assert record["id"] not in text
    assert set(json.loads(text)["privacy"]) == {
        "epsilon",
        "delta",
        "reason",
        "meaning",
        "experts",
        "over_releases",
    }


def test_package_of_another_expert_is_refused(workshop):
    packages = workshop.sources
    packages.package("banking_expert").write_bytes(packages.package("investment_expert").read_bytes())
    with pytest.raises(IncompatibleError, match="holds the expert 'investment_expert', where 'banking_expert'"):
        workshop.assemble()
    assert not workshop.config.exists()


def test_package_for_another_base_is_refused(workshop):
    workshop.make_expert("banking_expert", base={"name": "tiny", "revision": None, "digest": "9" * 64})
    with pytest.raises(IncompatibleError, match="all experts must adapt the same base"):
        workshop.assemble()


def test_rank_above_the_limit_is_refused(workshop):
    with pytest.raises(IncompatibleError, match=r"rank 2, above gatelink_config\.max_lora_rank = 1"):
        workshop.assemble(workshop.run(rank_limit=1))


def test_altered_package_is_refused(workshop):
    path = workshop.sources.package("shared_attention")
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    with pytest.raises(PackageError, match=r"shared_attention\.tgsp"):
        workshop.assemble()


def test_untrusted_publisher_is_refused(workshop):
    untrust_key("publisher")
    with pytest.raises(SignatureError, match="not trusted"):
        workshop.assemble()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "reinforce"}, "selects stage reinforce of banking_expert, but the package holds stage sft"),
        ({"expert": "other"}, "selects stage sft of other"),
        ({"adapter": "nowhere.pt"}, r"nowhere\.pt, which .*selection\.json selects, does not exist"),
    ],
)
def test_selection_that_does_not_fit_is_refused(workshop, change, message):
    path = workshop.sources.experts / "banking_expert" / "selection.json"
    write_json(path, {**read_json(path), **change})
    with pytest.raises(UserError, match=message):
        workshop.assemble()


def test_missing_files_are_named(workshop):
    (workshop.sources.data / "combined" / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"combined/train\.jsonl does not exist"):
        workshop.assemble()
    workshop.sources.package("banking_expert").unlink()
    with pytest.raises(UserError, match=r"banking_expert\.tgsp"):
        workshop.assemble()


def test_script_reads_its_settings_from_standard_input(workshop):
    run = workshop.run()
    settings = {
        "base": "tiny",
        "revision": None,
        "recipe": 1,
        "experts": [
            {"name": member.name, "dataset": member.dataset, "routing": plain(member.routing)} for member in run.experts
        ],
        "he_config": plain(run.he_config),
        "gatelink_config": plain(run.gatelink_config),
        "max_epsilon": None,
    }
    sources = workshop.sources
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "scripts" / "assemble_moe.py"),
            *("--packages", sources.packages, "--experts", sources.experts, "--data", sources.data),
            *("--base", sources.base, "--output", workshop.config),
        ],
        input=canonical_json(settings) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    by_script = workshop.config.read_bytes()
    workshop.assemble(run)
    assert by_script == workshop.config.read_bytes()


def test_order_of_experts_is_kept(workshop):
    run = workshop.run()
    turned = dataclasses.replace(run, experts=run.experts[::-1])
    assert workshop.assemble(turned)["routing_order"] == EXPERTS[::-1]
