"""scripts/seal_package.py: what it reads, what it refuses, and that its bytes depend on nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.attacks import building

from sealed_experts.files.canonical import write_json
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.releases import ReleaseLog
from sealed_experts.sealing import keys
from sealed_experts.sealing.home import home_folder
from sealed_experts.sealing.package import open_package
from sealed_experts.sealing.trust import load_trust

ROOT = Path(__file__).resolve().parents[2]


def project(folder: Path) -> list[str]:
    """Write everything the script reads into `folder`; return its arguments but for publisher and output."""
    (folder / "peft").mkdir(parents=True, exist_ok=True)
    (folder / "peft" / "adapter_config.json").write_bytes(building.adapter_config())
    (folder / "peft" / "adapter_model.safetensors").write_bytes(building.weights())
    metrics = folder / "training_metrics.json"
    write_json(metrics, building.metrics())
    selection = {"stage": "sft", "reason": "the only stage", "candidates": ["sft"], "metrics": str(metrics)}
    write_json(folder / "selection.json", {**selection, "receipt": str(metrics)})
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
    }
    return [
        *("--peft", str(folder / "peft"), "--selection", str(folder / "selection.json")),
        *("--base", str(folder / "base.json"), "--settings", json.dumps(settings)),
    ]


def sealed(
    folder: Path, *, publisher: str, seed: str = "0", selection: dict | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    arguments = project(folder)
    if selection is not None:
        write_json(folder / "selection.json", selection)
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "seal_package.py"), *arguments),
            *("--publisher", publisher, "--output", str(folder / "out.tgsp")),
        ],
        env={**os.environ, "PYTHONHASHSEED": seed, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_script_seals_the_same_bytes_whatever_hash_seed_time_and_folder(tmp_path):
    publisher = keys.ensure_publisher_key()
    runs = [
        sealed(tmp_path / "a", publisher=publisher, seed="1"),
        sealed(tmp_path / "b c" / "d", publisher=publisher, seed="2", TZ="Asia/Tokyo", SOURCE_DATE_EPOCH="1"),
    ]
    assert [run.returncode for run in runs] == [0, 0], runs
    first, second = tmp_path / "a" / "out.tgsp", tmp_path / "b c" / "d" / "out.tgsp"
    assert first.read_bytes() == second.read_bytes()
    package = open_package(first, trust=load_trust())
    assert package.publisher == publisher
    receipt = json.loads(package.members["privacy_receipt.json"])
    assert 3.0 < receipt["over_releases"]["epsilon"] < 6.0
    for line in keys.key_path().read_text().splitlines()[1:-1]:
        assert line not in "".join(run.stdout + run.stderr for run in runs)


def test_a_package_of_an_earlier_stage_carries_the_privacy_of_the_whole_chain(tmp_path):
    """Its receipt was once the shipped stage's own, though the choice had looked at the later stage's weights."""
    publisher = keys.ensure_publisher_key()
    folder = tmp_path / "a"
    project(folder)
    sft = building.privacy()
    later = {"stage": "reinforce", "noise_multiplier": 0.9, "sample_rate": 0.05, "steps": 25, "key_id": "1" * 32}
    chain = {**sft, "events": [*sft["events"], later], "epsilon": 6.5, "noise_multiplier": 0.9, "steps": 25}
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
    assert receipt["over_releases"]["epsilon"] == epsilon(both, delta=1e-5)
    assert ReleaseLog(home_folder()).lineages([{"events": [later]}], expert="tiny_expert") == [None]
    assert len(ReleaseLog(home_folder()).releases(expert="tiny_expert")) == 2


@pytest.mark.parametrize("field", ["receipt", "metrics", "stage", "candidates"])
def test_the_script_names_what_a_selection_lacks(tmp_path, field):
    publisher = keys.ensure_publisher_key()
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
    keys.ensure_publisher_key()
    run = sealed(tmp_path / "a", publisher="0" * 64)
    assert run.returncode == 1
    assert run.stderr.startswith("error: the key at hand has the fingerprint")
    assert not (tmp_path / "a" / "out.tgsp").exists()
