"""provenance.json, how private data are named, which revision is stated, and what a reader refuses."""

import hashlib
import hmac
import json
import stat
import subprocess

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.home import home_folder
from sealed_experts.packages.content.code_revision import code_revision
from sealed_experts.packages.content.provenance import Origin
from sealed_experts.packages.tgsp.package import open_bytes
from sealed_experts.privacy.ledger.owner_names import OwnerNames, owner_names
from tests.attacks import building

ENVIRONMENT = {
    "code": "5" * 64,
    "libraries": {"torch": "2.13.0", "numpy": "2.4.6"},
    "processor": "Machine of Nowhere",
    "threads": 77,
}


def statement(**changes) -> dict:
    package = open_bytes(building.package(**changes), trust=building.trust())
    return json.loads(package.members["provenance.json"])


def dependencies(found: dict) -> dict[str, dict]:
    return {each["name"]: each for each in found["predicate"]["buildDefinition"]["resolvedDependencies"]}


def test_it_is_an_in_toto_statement_with_slsas_predicate():
    """Fields that https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1 require."""
    found = statement()
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    subject = {each["name"]: each["digest"]["sha256"] for each in found["subject"]}
    assert subject == {
        "adapter_config.json": hashlib.sha256(building.adapter_config()).hexdigest(),
        "adapter_model.safetensors": hashlib.sha256(building.weights()).hexdigest(),
    }
    build, run = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert build["buildType"].startswith("urn:")
    assert build["externalParameters"]["name"] == "tiny_expert"
    assert run["builder"] == {"id": "urn:sealed-experts:pipeline:v1", "version": {"sealed-experts": "0.1.0"}}
    assert "metadata" not in run
    for each in dependencies(found).values():  # a ResourceDescriptor needs one of these
        assert {"uri", "digest", "content"} & each.keys()


def test_it_names_what_the_package_was_made_from():
    found = statement(
        metrics=building.metrics(environment=ENVIRONMENT),
        origin=Origin(version="0.1.0", revision="c" * 40, lock="7" * 64),
    )
    named = dependencies(found)
    assert named["base"]["digest"] == {"sha256": "b" * 64}
    assert named["training-code"]["digest"] == {"sha256": "5" * 64}
    assert named["source"]["digest"] == {"gitCommit": "c" * 40}
    assert named["requirements.txt"]["digest"] == {"sha256": "7" * 64}
    (stage,) = found["predicate"]["buildDefinition"]["internalParameters"]["stages"]
    assert (stage["stage"], stage["libraries"]) == ("sft", ENVIRONMENT["libraries"])
    assert "uri" not in named["base"]


def test_other_adapters_that_it_learned_from_are_named(tmp_path):
    found = statement(metrics=building.metrics(models={"sft.teacher": "6" * 64}))
    adapter = dependencies(found)["adapter"]
    assert adapter["digest"].keys() == {"hmacSha256"}
    assert adapter["digest"]["hmacSha256"] != "6" * 64
    assert adapter["annotations"]["stage"] == "sft"


def test_a_model_of_a_hub_is_named_by_its_package_url():
    base = {"name": "org/model", "revision": "8" * 40, "digest": "b" * 64}
    config = building.adapter_config(base_model_name_or_path="org/model", revision="8" * 40)
    found = statement(base=base, adapter_config=config)
    assert dependencies(found)["base"]["uri"] == f"pkg:huggingface/org/model@{'8' * 40}"


def own_name(key: bytes, *parts: str) -> str:
    """Compute a name again as docs/manifest.md describes it."""
    message = b"sealed-experts/private-name/v1"
    for part in parts:
        message += len(part.encode()).to_bytes(8, "big") + part.encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def test_private_data_and_settings_are_named_by_hmac_and_public_data_by_digest():
    key = b"\x07" * 32
    private = dependencies(statement())
    assert private["training-data"]["digest"] == {"hmacSha256": own_name(key, "data", "e" * 64)}
    assert private["held-out-data"]["digest"] == {"hmacSha256": own_name(key, "data", "9" * 64)}
    (stage,) = statement()["predicate"]["buildDefinition"]["internalParameters"]["stages"]
    settings = canonical_json(building.metrics()["settings"])
    assert stage["configuration"] == {"hmacSha256": own_name(key, "configuration", settings)}
    public = statement(settings=building.run(public_evaluation=True, dataset="questions"))
    assert dependencies(public)["training-data"]["digest"] == {"sha256": "e" * 64}
    assert dependencies(public)["held-out-data"]["digest"] == {"sha256": "9" * 64}
    # Public data may be validated on private ones, and private data on public ones.
    mixed = dependencies(statement(settings=building.run(public_evaluation=False, dataset="questions")))
    assert mixed["training-data"]["digest"] == {"sha256": "e" * 64}
    assert mixed["held-out-data"]["digest"] == {"hmacSha256": own_name(key, "data", "9" * 64)}
    mixed = dependencies(statement(settings=building.run(public_evaluation=True, dataset=None)))
    assert mixed["training-data"]["digest"] == {"hmacSha256": own_name(key, "data", "e" * 64)}
    manifest = open_bytes(
        building.package(settings=building.run(public_evaluation=True, dataset="questions")), trust=building.trust()
    ).manifest
    assert manifest["training"]["datasets"] == [{"name": "questions", "sha256": "e" * 64}]


def test_every_stage_of_a_chain_is_named():
    """Once only the shipped stage's settings, code and libraries were named, although it started from another stage."""
    sft = building.metrics(environment={**ENVIRONMENT, "code": "6" * 64, "libraries": {"torch": "2.12.0"}})
    reinforce = building.metrics(**building.reinforce_metrics(), environment=ENVIRONMENT)
    found = statement(
        settings=building.run(stages=("sft", "reinforce")),
        selection={"stage": "reinforce", "reason": "the last", "candidates": ["sft", "reinforce"]},
        metrics=reinforce,
        stages={"sft": sft, "reinforce": reinforce},
    )["predicate"]["buildDefinition"]
    names = building.inputs().names
    assert found["internalParameters"]["stages"] == [
        {
            "stage": stage,
            "configuration": {"hmacSha256": names.of_configuration(metrics["settings"])},
            "libraries": metrics["environment"]["libraries"],
        }
        for stage, metrics in (("sft", sft), ("reinforce", reinforce))
    ]
    code = [each for each in found["resolvedDependencies"] if each["name"] == "training-code"]
    assert [(each["annotations"]["stage"], each["digest"]["sha256"]) for each in code] == [
        ("sft", "6" * 64),
        ("reinforce", "5" * 64),
    ]


def test_nothing_of_the_machine_enters():
    data = building.package(metrics=building.metrics(environment=ENVIRONMENT))
    assert b"Nowhere" not in data
    assert b"processor" not in data
    assert b"threads" not in data


def test_another_owner_gives_another_name_and_no_name_shows_the_key():
    names = OwnerNames(b"\x07" * 32)
    assert names.of_data("e" * 64) != OwnerNames(b"\x08" * 32).of_data("e" * 64)
    assert names.of_data("x") != names.of_configuration({})
    assert "07" not in repr(names)
    assert "x07" not in repr(building.inputs())


def test_the_owners_key_is_made_once_with_mode_0600_and_refused_when_others_can_read_it():
    first = owner_names().of_data("x")
    path = home_folder() / "owner.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert owner_names().of_data("x") == first
    path.chmod(0o640)
    with pytest.raises(UserError, match="chmod 600"):
        owner_names()
    path.chmod(0o600)
    home_folder().chmod(0o777)
    with pytest.raises(UserError, match="other users can write"):
        owner_names()


def test_times_are_stated_only_where_the_manifest_states_them():
    found = statement(epoch=1_770_000_000)
    assert found["predicate"]["runDetails"]["metadata"] == {
        "startedOn": "2026-02-02T02:40:00Z",
        "finishedOn": "2026-02-02T02:40:00Z",
    }


# The revision


def git(folder, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "code.py").write_text("one\n")
    (tmp_path / "notes").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_revision_is_the_commit(repository):
    expected = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert code_revision(repository) == expected.stdout.strip()
    (repository / "notes").write_text("two\n")
    (repository / "scripts" / "untracked.txt").write_text("x")
    assert code_revision(repository) == expected.stdout.strip()


def test_changed_code_has_no_revision(repository):
    (repository / "scripts" / "code.py").write_text("two\n")
    assert code_revision(repository) is None


def test_another_repository_around_the_code_is_not_its_revision(repository, tmp_path_factory):
    assert code_revision(repository / "scripts") is None
    assert code_revision(tmp_path_factory.mktemp("none")) is None


def test_without_git_there_is_no_revision(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert code_revision(repository) is None


def test_a_hooks_environment_does_not_name_another_repository(repository, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert code_revision(repository) is not None


# What a reader refuses


def altered(change) -> bytes:
    _, members = building.parts()
    content = json.loads(members["provenance.json"])
    change(content)
    return building.with_member("provenance.json", canonical_json(content).encode())


def build(content: dict) -> dict:
    return content["predicate"]["buildDefinition"]


REFUSED = {
    "another subject": (lambda c: c["subject"][1]["digest"].update(sha256="0" * 64), "its subject is not"),
    "a subject more": (lambda c: c["subject"].append(c["subject"][0]), "its subject is not"),
    "no subject": (lambda c: c["subject"].clear(), "its subject is not"),
    "another name": (lambda c: build(c)["externalParameters"].update(name="other"), "what it says about 'name'"),
    "other training": (lambda c: build(c)["externalParameters"].pop("training"), "what it says about 'training'"),
    "an unknown parameter": (
        lambda c: build(c)["externalParameters"].update(path="/home/x"),
        "what it says about 'path'",
    ),
    "another statement": (lambda c: c.update(_type="https://in-toto.io/Statement/v0.1"), "_type"),
    "another predicate": (lambda c: c.update(predicateType="https://example.org"), "predicateType"),
    "an unknown field": (lambda c: c["predicate"].update(byproducts=[]), "predicate: .*byproducts"),
    "a host": (lambda c: c["predicate"]["runDetails"]["builder"].update(host="x"), "builder: .*host"),
    "a digest that is none": (
        lambda c: build(c)["resolvedDependencies"][0]["digest"].update(sha256="x"),
        "resolvedDependencies.0.digest.sha256",
    ),
    "a dependency of an unknown kind": (lambda c: build(c)["resolvedDependencies"][0].update(name="diary"), "name"),
    "no dependency": (lambda c: build(c)["resolvedDependencies"].clear(), "resolvedDependencies"),
    "no base": (lambda c: build(c)["resolvedDependencies"].pop(0), "resolvedDependencies: base is missing"),
    "another base": (
        lambda c: build(c)["resolvedDependencies"][0]["digest"].update(sha256="0" * 64),
        "resolvedDependencies: base .* is not the manifest's",
    ),
    "other data": (
        lambda c: build(c)["resolvedDependencies"][1]["digest"].update(hmacSha256="0" * 64),
        "resolvedDependencies: training-data .* is not the manifest's",
    ),
    "another stage": (
        lambda c: build(c)["internalParameters"]["stages"][0].update(stage="dpo"),
        "its stages are dpo",
    ),
    "no stage": (lambda c: build(c)["internalParameters"]["stages"].clear(), "internalParameters.stages"),
    "false for 0": (
        lambda c: build(c)["externalParameters"]["training"].update(warmup_steps=False),
        "what it says about 'training'",
    ),
    "an escape sequence": (
        lambda c: build(c)["internalParameters"]["stages"][0]["libraries"].update(torch="\x1b[2J"),
        "libraries.torch",
    ),
}


@pytest.mark.parametrize(("change", "match"), REFUSED.values(), ids=REFUSED)
def test_a_provenance_of_something_else_is_refused(change, match):
    building.refuse(altered(change), f"provenance.json: .*{match}" if not match.startswith("its") else match)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"{", b'{"_type":1,"_type":2}'])
def test_a_provenance_that_is_no_statement_is_refused(content):
    building.refuse(building.with_member("provenance.json", content), "provenance.json: ")
