"""From sealed packages to moe_config.json."""

import dataclasses
import json
import subprocess
import sys

import jsonschema
import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json, read_json, write_json
from sealed_experts.files.digests import sha256_file
from sealed_experts.moe.configuration import read_mixture
from sealed_experts.packages.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.packages.expert.writer import seal_expert
from sealed_experts.packages.keys.private_keys import load_key
from sealed_experts.packages.keys.trust import load_trust, trust_publisher, untrust_key
from sealed_experts.packages.tgsp.package import open_package
from sealed_experts.settings.fields import plain
from tests.attacks import building
from tests.conftest import ROOT
from tests.mixtures import ROUTING, Workshop

EXPERTS = list(ROUTING)


@pytest.fixture
def workshop(tmp_path, tiny_base):
    made = Workshop(tmp_path / "results of mine", tiny_base)
    made.make_data()
    for name in EXPERTS:
        made.make_expert(name)
    return made


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


def test_package_of_another_expert_is_refused(workshop):
    packages = workshop.sources
    packages.package("banking_expert").write_bytes(packages.package("investment_expert").read_bytes())
    with pytest.raises(IncompatibleError, match="holds the expert 'investment_expert', but 'banking_expert'"):
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
    (workshop.sources.experts / "shared_attention" / "selection.json").unlink()
    with pytest.raises(UserError, match=r"shared_attention/selection\.json does not exist"):
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
            *("--packages", sources.packages, "--experts", sources.experts),
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


def test_excluded_words_and_priorities_are_written_where_they_say_something_and_are_followed(workshop):
    run = workshop.run()
    banking, *others = run.experts
    routing = banking.routing.replace(exclude=("river",), priority=3)
    content = workshop.assemble(
        dataclasses.replace(run, experts=(dataclasses.replace(banking, routing=routing), *others))
    )
    jsonschema.validate(content, json.loads((ROOT / "config/schemas/moe_config.schema.json").read_text()))
    assert content["experts"]["banking_expert"]["gate_exclude"] == ["river"]
    assert content["experts"]["banking_expert"]["priority"] == 3
    assert "priority" not in content["experts"]["investment_expert"]
    router = read_mixture(workshop.config).router()
    assert router.decide("a bank").expert == "banking_expert"
    assert router.decide("the bank of a river").expert == "shared_attention"
    assert router.decide("a loan for a stock").expert == "banking_expert"


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({"requires": ["tokens@*"]}, r"banking_expert 1\.0\.0 requires tokens@\*, which is not in this mixture"),
        ({"requires": ["investment_expert@>=2.0.0"]}, r"requires investment_expert@>=2\.0\.0, which is not in this"),
        (
            {"incompatible_with": ["investment_expert@*"]},
            r"banking_expert 1\.0\.0 cannot be loaded together with investment_expert 1\.0\.0",
        ),
        ({"max_chain": 1}, r"banking_expert 1\.0\.0 allows at most 1 active adapters .* but 2 of these"),
    ],
)
def test_experts_whose_constraints_do_not_hold_together_are_not_assembled(workshop, constraints, message):
    """The constraints of packages were once checked only in the registry."""
    workshop.make_expert("banking_expert", constraints=constraints)
    with pytest.raises(IncompatibleError, match=message):
        workshop.assemble()
    assert not workshop.config.exists()


def test_experts_whose_constraints_hold_together_are_assembled(workshop):
    constraints = {"requires": ["investment_expert@^1.0"], "incompatible_with": ["tokens@*"], "max_chain": 2}
    workshop.make_expert("banking_expert", constraints=constraints)
    assert workshop.assemble()["routing_order"] == EXPERTS


def test_an_expert_archive_stands_in_for_a_package(workshop):
    path = workshop.sources.package("banking_expert")
    opened = open_package(path, trust=load_trust())
    key = building.key(3)  # only Ed25519
    digest = seal_expert(path.with_suffix(".expert"), manifest=opened.manifest, members=opened.members, key=key)
    path.unlink()
    trust_publisher(key.public)
    entry = workshop.assemble()["experts"]["banking_expert"]
    assert (entry["tgsp_path"], entry["package_digest"]) == ("../packages/banking_expert.expert", digest)
