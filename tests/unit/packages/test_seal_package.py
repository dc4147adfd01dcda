"""scripts/seal_package.py: what it reads, what it refuses, and that its bytes depend on nothing else."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import write_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.files.home import home_folder
from sealed_experts.files.locks import folder_lock
from sealed_experts.packages.keys import private_keys
from sealed_experts.packages.keys.sealing_key import settle_publisher
from sealed_experts.packages.keys.trust import load_trust
from sealed_experts.packages.opening import open_any
from sealed_experts.packages.publishing import publish_expert
from sealed_experts.packages.recipients.encryption import generate_identity
from sealed_experts.packages.recipients.own_identity import check_readable, own_identity
from sealed_experts.packages.recipients.recipient_files import save_identity, save_recipient
from sealed_experts.packages.tgsp.package import open_package
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.releases import ReleaseLog
from tests.attacks import building
from tests.conftest import ROOT
from tests.scripts import run_script


def project(folder: Path, **package: object) -> list[str]:
    """Write all inputs of the script into `folder`. Return its arguments, except publisher and output."""
    (folder / "peft").mkdir(parents=True, exist_ok=True)
    (folder / "peft" / "adapter_config.json").write_bytes(building.adapter_config())
    (folder / "peft" / "adapter_model.safetensors").write_bytes(building.weights())
    metrics = folder / "training_metrics.json"
    write_json(metrics, building.metrics())
    selection = {"stage": "sft", "reason": "the only stage", "candidates": ["sft"], "metrics": str(metrics)}
    write_json(folder / "selection.json", {**selection, "receipt": str(metrics)})
    write_json(folder / "config.json", {"model_type": "qwen2"})
    write_json(folder / "base.json", {"name": "tiny", "revision": None, "digest": "b" * 64})
    settings = {
        "name": "tiny_expert",
        "version": "1.0.0",
        "description": "",
        "template": "alpaca",
        "stages": ["sft"],
        "public_evaluation": False,
        "recipe": 1,
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4, "target_modules": ["v_proj", "q_proj"]},
        "routing": {"gate": "step", "keywords": ["loan"], "always_active": False, "match": "word"},
        "dataset": None,
        "package": package,
    }
    return [
        *("--peft", str(folder / "peft"), "--selection", str(folder / "selection.json")),
        *("--base", str(folder / "base.json"), "--settings", json.dumps(settings)),
        *("--metrics", str(metrics)),
    ]


def sealed(
    folder: Path,
    *,
    publisher: str,
    selection: dict | None = None,
    package: dict | None = None,
    apart: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    arguments = project(folder, **(package or {}))
    if selection is not None:
        write_json(folder / "selection.json", selection)
        if selection.get("receipt", "") not in ("", arguments[-1]):
            arguments.append(selection["receipt"])
    return seal(arguments, folder=folder, publisher=publisher, apart=apart, **environment)


def seal(
    arguments: list[str], *, folder: Path, publisher: str, apart: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the script, in a process of its own where `apart`."""
    arguments = [*arguments, "--publisher", publisher, "--output", str(folder / "out.tgsp")]
    if not apart:
        return run_script("seal_package", *arguments, **environment)
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "seal_package.py"), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_script_seals_the_same_bytes_whatever_hash_seed_time_and_folder(tmp_path):
    publisher = private_keys.create_key(algorithms=["ed25519"]).fingerprint
    runs = [
        sealed(tmp_path / "a", publisher=publisher, apart=True, PYTHONHASHSEED="1"),
        sealed(tmp_path / "b c" / "d", publisher=publisher, apart=True, PYTHONHASHSEED="2", TZ="Asia/Tokyo"),
    ]
    assert [run.returncode for run in runs] == [0, 0], runs
    first, second = tmp_path / "a" / "out.tgsp", tmp_path / "b c" / "d" / "out.tgsp"
    assert first.read_bytes() == second.read_bytes()
    package = open_package(first, trust=load_trust())
    assert package.publisher == publisher
    receipt = json.loads(package.members["privacy_receipt.json"])
    assert 3.0 < receipt["over_releases"]["epsilon"] < 6.0
    for line in private_keys.key_path().read_text().splitlines()[1:-1]:
        assert line not in "".join(run.stdout + run.stderr for run in runs)


def test_a_package_of_an_earlier_stage_carries_the_privacy_of_the_whole_chain(tmp_path):
    """Its receipt once covered only the shipped stage, although the choice looked at the later stage's weights."""
    publisher = private_keys.ensure_publisher_key()
    folder = tmp_path / "a"
    project(folder)
    sft = building.privacy()
    later = {"stage": "reinforce", "noise_multiplier": 0.9, "sample_rate": 0.05, "steps": 25, "key_id": "1" * 32}
    chain = {
        **sft,
        "events": [*sft["events"], later],
        "epsilon": 6.5,
        "stage_epsilon": {"sft": 4.2, "reinforce": 6.5},
        **{"noise_multiplier": 0.9, "effective_noise_multiplier": 0.9, "steps": 25},
        **{"sample_rate": 0.05, "expected_batch_size": 100},
    }
    write_json(folder / "rl_metrics.json", building.metrics(**{**building.reinforce_metrics(), "privacy": chain}))
    selection = {
        "stage": "sft",
        "reason": "the best of sft, reinforce by loss on held-out records",
        "candidates": ["sft", "reinforce"],
        "metrics": str(folder / "training_metrics.json"),
        "receipt": str(folder / "rl_metrics.json"),
    }
    run = sealed(folder, publisher=publisher, selection=selection)
    assert run.returncode == 0, run.stderr
    package = open_package(folder / "out.tgsp", trust=load_trust())
    receipt = json.loads(package.members["privacy_receipt.json"])
    assert package.manifest["privacy"]["epsilon"] == receipt["epsilon"] == 6.5
    assert [event["stage"] for event in receipt["events"]] == ["sft", "reinforce"]
    assert "the package holds sft" in receipt["covers"]
    assert package.manifest["training"]["selected_stage"] == "sft"
    assert package.manifest["training"]["steps"] == 60
    both = [GaussianEvent.from_json(event) for event in chain["events"]]
    assert receipt["over_releases"]["epsilon"] == 6.5 > epsilon(both, delta=1e-5)
    assert ReleaseLog(home_folder()).lineages([{"events": [later]}], expert="tiny_expert") == [None]
    assert len(ReleaseLog(home_folder()).releases(expert="tiny_expert")) == 2


def test_the_script_refuses_metrics_that_are_not_the_selections(tmp_path):
    publisher = private_keys.ensure_publisher_key()
    arguments = project(tmp_path)
    write_json(tmp_path / "other.json", building.metrics())
    for metrics in ([str(tmp_path / "other.json")], [arguments[-1], arguments[-1]]):
        run = seal([*arguments[:-1], *metrics], folder=tmp_path, publisher=publisher)
        assert (run.returncode, "--metrics must give one file for each of sft" in run.stderr) == (1, True)


@pytest.mark.parametrize("field", ["receipt", "metrics", "stage", "candidates"])
def test_the_script_names_what_a_selection_lacks(tmp_path, field):
    publisher = private_keys.ensure_publisher_key()
    project(tmp_path)
    selection = json.loads((tmp_path / "selection.json").read_text())
    del selection[field]
    run = sealed(tmp_path, publisher=publisher, selection=selection)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "selection.json" in run.stderr
    assert field in run.stderr
    assert "delete it and run again" in run.stderr


def test_the_script_refuses_a_key_that_is_not_the_publishers(tmp_path):
    private_keys.ensure_publisher_key()
    run = sealed(tmp_path / "a", publisher="0" * 64)
    assert run.returncode == 1
    assert run.stderr.startswith("error: the signing key has the fingerprint")
    assert not (tmp_path / "a" / "out.tgsp").exists()


def test_two_builds_differ_in_nothing_but_the_ml_dsa_signature(tmp_path):
    """ML-DSA is randomised. All bytes before its block are the same."""
    publisher = private_keys.ensure_publisher_key()
    runs = [sealed(tmp_path / folder, publisher=publisher) for folder in "ab"]
    assert [run.returncode for run in runs] == [0, 0], runs
    first, second = ((tmp_path / folder / "out.tgsp").read_bytes() for folder in "ab")
    assert len(first) == len(second)
    differing = [place for place, (one, two) in enumerate(zip(first, second, strict=True)) if one != two]
    assert 0 < max(differing) - min(differing) < 3309  # the size of an ML-DSA-65 signature (FIPS 204, table 2)


@pytest.mark.parametrize(
    ("algorithms", "wanted", "match"),
    [
        (["ed25519"], ["ed25519", "ml-dsa-65"], "asks for ml-dsa-65, but the publisher's key has only ed25519"),
        (["ed25519", "ml-dsa-65"], ["ed25519"], "leaves out ml-dsa-65, which the publisher's key has"),
    ],
)
def test_signatures_that_are_not_the_keys_are_refused(tmp_path, algorithms, wanted, match):
    publisher = private_keys.create_key(algorithms=algorithms).fingerprint
    run = sealed(tmp_path, publisher=publisher, package={"signatures": wanted})
    assert run.returncode == 1
    assert match in run.stderr
    with pytest.raises(UserError, match=match):
        settle_publisher({"tiny_expert": wanted}, create=True)
    assert settle_publisher({"tiny_expert": (), "other": algorithms}, create=True) == publisher


def test_a_key_that_is_made_has_the_algorithms_that_all_experts_ask_for():
    settle_publisher({"one": ("ed25519",), "two": ("ed25519",)}, create=True)
    assert private_keys.public_half(private_keys.key_path()).algorithms == ("ed25519",)


def test_without_agreement_a_key_has_every_algorithm_and_a_dry_run_makes_none():
    assert settle_publisher({"one": ("ed25519",)}, create=False) == private_keys.NOT_MADE_YET
    settle_publisher({"one": (), "two": ("ed25519", "ml-dsa-65")}, create=True)
    assert set(private_keys.public_half(private_keys.key_path()).algorithms) == {"ed25519", "ml-dsa-65"}


def test_two_runs_that_start_at_once_make_one_key(monkeypatch, capsys):
    """Both runs see that there is no key before one of them makes it."""
    both_have_looked = threading.Barrier(2, timeout=20)

    def lock(folder):
        both_have_looked.wait()
        return folder_lock(folder)

    monkeypatch.setattr(private_keys, "folder_lock", lock)
    with ThreadPoolExecutor(max_workers=2) as runs:
        started = [runs.submit(settle_publisher, {"one": ("ed25519",)}, create=True) for _ in range(2)]
        found = {run.result() for run in started}
    assert found == {building.own_fingerprint()}
    assert capsys.readouterr().err.count("made a publisher key") == 1
    assert [entry.algorithms for entry in load_trust()] == [("ed25519",)]


def test_times_come_from_settings_or_source_date_epoch_and_never_from_the_clock(tmp_path):
    publisher = private_keys.ensure_publisher_key()
    stated = {"started": "2026-01-31T09:00:00Z"}
    for folder, package, environment, expected in (
        ("a", {}, {}, (None, None)),
        ("b", {}, {"SOURCE_DATE_EPOCH": "1770000000"}, ("2026-02-02T02:40:00Z",) * 2),
        ("c", stated, {}, ("2026-01-31T09:00:00Z", None)),
        ("d", stated, {"SOURCE_DATE_EPOCH": "1770000000"}, ("2026-01-31T09:00:00Z", "2026-02-02T02:40:00Z")),
    ):
        run = sealed(tmp_path / folder, publisher=publisher, package=package, **environment)
        assert run.returncode == 0, run.stderr
        training = open_package(tmp_path / folder / "out.tgsp", trust=load_trust()).manifest["training"]
        assert (training.get("started"), training.get("finished")) == expected


def as_expert(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_script("seal_expert", "--package", folder / "out.tgsp", "--output", folder / "out.expert")


def test_an_expert_file_has_the_packages_manifest_and_members(tmp_path):
    publisher = private_keys.create_key(algorithms=["ed25519"]).fingerprint  # an .expert carries no other signature
    run = sealed(tmp_path, publisher=publisher, package={"author": "Bank of Nowhere"})
    assert run.returncode == 0, run.stderr
    run = as_expert(tmp_path)
    assert run.returncode == 0, run.stderr
    ours, other = (open_any(tmp_path / f"out.{name}", trust=load_trust()) for name in ("tgsp", "expert"))
    assert (ours.members, ours.publisher) == (other.members, other.publisher)
    assert ours.manifest == other.manifest
    published, _ = publish_expert(tmp_path / "out.tgsp", output=tmp_path)
    assert published.read_bytes() == (tmp_path / "out.expert").read_bytes()


def test_an_expert_file_is_made_neither_of_another_publishers_package_nor_of_an_encrypted_one(tmp_path):
    publisher = private_keys.ensure_publisher_key()
    save_recipient(tmp_path / "reader.pub", generate_identity().recipient)
    run = sealed(tmp_path, publisher=publisher, package={"recipients": [str(tmp_path / "reader.pub")]})
    assert run.returncode == 0, run.stderr
    run = as_expert(tmp_path)
    assert (run.returncode, "is encrypted, but an .expert is never" in run.stderr) == (1, True)
    (tmp_path / "out.tgsp").write_bytes(building.package())
    run = as_expert(tmp_path)
    assert (run.returncode, "is not trusted here" in run.stderr) == (5, True)
    assert not (tmp_path / "out.expert").exists()


def test_no_plain_expert_file_of_an_earlier_package_stays_beside_an_encrypted_one(tmp_path):
    """`results/packages` is what people pass on."""
    publisher = private_keys.create_key(algorithms=["ed25519"]).fingerprint
    assert sealed(tmp_path / "a", publisher=publisher).returncode == 0
    assert as_expert(tmp_path / "a").returncode == 0
    save_recipient(tmp_path / "reader.pub", generate_identity().recipient)
    run = sealed(tmp_path / "a", publisher=publisher, package={"recipients": [str(tmp_path / "reader.pub")]})
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "a" / "out.expert").exists()
    assert "out.expert, which was made from the old package" in run.stdout


@pytest.mark.parametrize("epoch", ["-1", "1.5", "yesterday", "1" * 13, "١"])
def test_a_source_date_epoch_that_is_no_time_is_refused(tmp_path, epoch):
    run = sealed(tmp_path, publisher=private_keys.ensure_publisher_key(), SOURCE_DATE_EPOCH=epoch)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("error: SOURCE_DATE_EPOCH is")


def test_the_licence_file_becomes_the_member_and_its_path_stays_out(tmp_path):
    publisher = private_keys.ensure_publisher_key()
    text = tmp_path / "wolpertinger-licence.txt"
    text.write_text("Do as you like.\n")
    package = {"licence": "LicenseRef-Likeable", "licence_file": str(text), "author": "Bank of Nowhere"}
    run = sealed(tmp_path / "a", publisher=publisher, package=package)
    assert run.returncode == 0, run.stderr
    opened = open_package(tmp_path / "a" / "out.tgsp", trust=load_trust())
    assert opened.members["LICENSE"] == text.read_bytes()
    assert (opened.manifest["licence"], opened.manifest["author"]) == ("LicenseRef-Likeable", "Bank of Nowhere")
    assert b"wolpertinger" not in (tmp_path / "a" / "out.tgsp").read_bytes()


def test_the_tokenizer_of_the_base_is_sealed_where_the_settings_say_so(tmp_path):
    publisher = private_keys.ensure_publisher_key()
    arguments = project(tmp_path, tokenizer=True)
    files = {"tokenizer.json": b'{"model": {}}', "tokenizer_config.json": b"{}", "chat_template.jinja": b"{{ x }}"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    listed = {name: sha256_bytes(content) for name, content in files.items()}
    write_json(tmp_path / "base.json", {"name": "tiny", "revision": None, "digest": "b" * 64, "files": listed})
    run = seal(arguments, folder=tmp_path, publisher=publisher)
    assert run.returncode == 0, run.stderr
    members = open_package(tmp_path / "out.tgsp", trust=load_trust()).members
    assert {name: members[name] for name in files} == files
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    run = seal(arguments, folder=tmp_path, publisher=publisher)
    assert run.returncode == 1
    assert "tokenizer.json is not the file that base.json describes" in run.stderr.splitlines()[-1]


def test_a_run_that_could_not_read_its_own_packages_is_refused_before_it_starts(tmp_path, monkeypatch):
    own, other = generate_identity(), generate_identity()
    save_identity(tmp_path / "own.pem", own)
    save_recipient(tmp_path / "own.pub", own.recipient)
    save_recipient(tmp_path / "other.pub", other.recipient)
    check_readable({"one": (), "two": ()})
    with pytest.raises(UserError, match=r"experts\.one\.package\.recipients: .* set SEALED_EXPERTS_IDENTITY"):
        check_readable({"one": (str(tmp_path / "own.pub"),)})
    monkeypatch.setenv("SEALED_EXPERTS_IDENTITY", str(tmp_path / "own.pem"))
    check_readable({"one": (str(tmp_path / "other.pub"), str(tmp_path / "own.pub"))})
    assert own_identity().recipient.fingerprint == own.recipient.fingerprint
    with pytest.raises(UserError, match="list your own public key too"):
        check_readable({"one": (str(tmp_path / "other.pub"),)})
    with pytest.raises(UserError, match="private key"):
        check_readable({"one": (str(tmp_path / "own.pem"),)})


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_package_is_encrypted_and_compressed_where_the_settings_say_so(tmp_path, compression):
    if compression == "zstd":
        pytest.importorskip("backports.zstd")
    publisher = private_keys.ensure_publisher_key()
    identity = generate_identity()
    save_recipient(tmp_path / "reader.pub", identity.recipient)
    package = {"recipients": [str(tmp_path / "reader.pub")], "compression": compression}
    run = sealed(tmp_path / "a", publisher=publisher, package=package)
    assert run.returncode == 0, run.stderr
    with pytest.raises(UserError, match="encrypted"):
        open_package(tmp_path / "a" / "out.tgsp", trust=load_trust())
    opened = open_package(tmp_path / "a" / "out.tgsp", trust=load_trust(), identity=identity)
    assert opened.members["adapter_model.safetensors"] == building.weights()
