"""Nothing private is in a package. The test searches every byte of a small one, not only the likely fields."""

import base64
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from sealed_experts.data.records import read_records, records_digest, write_records
from sealed_experts.files.canonical import canonical_json, read_json, write_json
from sealed_experts.files.digests import sha256_bytes, sha256_file
from sealed_experts.files.home import home_folder
from sealed_experts.packages.keys import private_keys
from sealed_experts.packages.keys.trust import load_trust
from sealed_experts.packages.tgsp.package import open_package
from tests.attacks import building
from tests.scripts import run_script
from tests.tiny import build_tiny_dataset

MACHINE = "node-of-nowhere"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All inputs of the sealing script, made from real records; every number in them is unique."""
    folder = tmp_path_factory.mktemp("secret-folder")
    data = build_tiny_dataset(folder / "data")
    for split in ("train", "val"):
        _add_metadata(data / f"{split}.jsonl")
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_bytes(building.adapter_config())
    (folder / "peft" / "adapter_model.safetensors").write_bytes(building.weights())
    settings = building.reinforce_metrics()["settings"]["training"]
    metrics = building.metrics(
        **{
            **building.reinforce_metrics(),
            "settings": {"seed": 424242, "training": settings},
            "privacy": building.privacy("sft", "reinforce", journal=[31337], key_seed="5eed" * 16),
            # As a stage takes them: see tests/unit/training/test_records.py.
            "train_digest": records_digest(read_records(data / "train.jsonl")),
            "val_digest": records_digest(read_records(data / "val.jsonl")),
            "data_digest": sha256_bytes(b"both splits"),
            "tokens_digest": sha256_bytes(b"tokens"),
            "fingerprint": sha256_bytes(b"fingerprint"),
            "dataset_size": 271828,
            "environment": {"processor": MACHINE, "code": "5" * 64, "libraries": {"torch": "2.13.0"}, "threads": 77},
            "adapter_file": str(folder / "adapter.pt"),
        }
    )
    write_json(folder / "rl_metrics.json", metrics)
    write_json(folder / "config.json", {"_name_or_path": str(folder), "model_type": "qwen2"})
    write_json(folder / "base.json", {"name": "tiny", "revision": None, "digest": "b" * 64})
    selection = {"stage": "reinforce", "reason": "the last of the stages sft, reinforce", "values": {"sft": 0.8414709}}
    paths = dict.fromkeys(("metrics", "receipt"), str(folder / "rl_metrics.json"))
    write_json(folder / "selection.json", {**selection, **paths, "candidates": ["sft", "reinforce"]})
    return folder


def _add_metadata(path: Path) -> None:
    """Give every record columns that only its trainer may see."""
    records = read_records(path)
    write_records(
        path,
        [
            dataclasses.replace(record, metadata={"source": f"shelf-of-nowhere-{index}"})
            for index, record in enumerate(records)
        ],
    )


def seal(folder: Path) -> Path:
    settings = {
        **{"name": "tiny_expert", "version": "1.0.0", "description": "", "template": "alpaca"},
        **{"stages": ["sft", "reinforce"], "public_evaluation": False, "recipe": 1, "dataset": None},
        "adapter": {"kind": "lora", "rank": 2, "alpha": 4, "target_modules": ["v_proj", "q_proj"]},
        "routing": {"keywords": ["loan"]},
        "package": {},
    }
    output = folder / "out.tgsp"
    arguments = {
        **{"--peft": folder / "peft", "--selection": folder / "selection.json", "--base": folder / "base.json"},
        **{"--train": folder / "data" / "train.jsonl", "--settings": json.dumps(settings), "--output": output},
        "--publisher": private_keys.ensure_publisher_key(),
    }
    done = run_script(
        "seal_package",
        *(x for pair in arguments.items() for x in pair),
        *("--metrics", folder / "rl_metrics.json", folder / "rl_metrics.json"),
        **{"HOSTNAME": MACHINE, "USER": "user-of-nowhere"},
    )
    assert done.returncode == 0, done.stderr
    return output


def spellings(secret: str) -> list[bytes]:
    """Return the forms in which a file could contain a text, or the bytes that the text gives in hexadecimal."""
    forms = [secret.encode(), json.dumps(secret)[1:-1].encode(), base64.b64encode(secret.encode())[:-4]]
    if len(secret) == 64 and set(secret) <= set("0123456789abcdef"):
        raw = bytes.fromhex(secret)
        forms += [raw, secret.upper().encode(), base64.b64encode(raw)[:-4], secret[:32].encode()]
    return forms


def leaked(data: bytes, secrets: dict[str, str]) -> set[str]:
    return {name for name, secret in secrets.items() if any(form in data for form in spellings(secret))}


def test_the_search_finds_what_is_there():
    digest = sha256_bytes(b"x")
    for form in spellings(digest):
        assert leaked(b"..." + form + b"...", {"digest": digest}) == {"digest"}
    assert leaked(b"nothing", {"digest": digest}) == set()


def private_things(folder: Path) -> dict[str, str]:
    """Return everything that must not be in a package of private data, by description."""
    data, metrics = folder / "data", read_json(folder / "rl_metrics.json")
    secrets: dict[str, str] = {}
    for split in ("train", "val"):
        content = (data / f"{split}.jsonl").read_bytes()
        secrets[f"digest of {split}.jsonl"] = sha256_bytes(content)
        for index, record in enumerate(read_records(data / f"{split}.jsonl")):
            for field in ("instruction", "output", "unit", "id"):
                text = str(getattr(record, field))
                secrets[f"{split} {index} {field}"] = text
                secrets[f"digest of {split} {index} {field}"] = sha256_bytes(text.encode())
            for column, value in record.metadata.items():
                secrets[f"{split} {index} {column}"] = str(value)
        for index, line in enumerate(content.splitlines()):
            secrets[f"digest of {split} line {index}"] = sha256_bytes(line)
    for name in ("data_digest", "tokens_digest", "fingerprint", "train_digest", "val_digest"):
        secrets[name] = metrics[name]
        secrets[f"digest of {name}"] = sha256_bytes(metrics[name].encode())
    secrets["digest of the settings"] = sha256_bytes(canonical_json(metrics["settings"]).encode())
    secrets["digest of the metrics"] = sha256_file(folder / "rl_metrics.json")
    secrets["digest of the statistics"] = sha256_file(data / "stats.json")
    for number in ("424242", "1234567", "7654321", "271828", "31337", "0.8414709", "3.125", "2.0625", "199.0625"):
        secrets[f"number {number}"] = number
    for name, text in (("option", "wolpertinger"), ("key seed", "5eed5eed"), ("machine", MACHINE)):
        secrets[name] = text
    secrets |= {"user": "user-of-nowhere", "folder": folder.name, "home": str(home_folder())}
    secrets["owner's key"] = (home_folder() / "owner.key").read_text().strip()
    return secrets


def test_nothing_private_is_in_a_package_of_private_records(run):
    package = seal(run)
    secrets = private_things(run)
    assert len(secrets) > 100
    assert "train 0 source" in secrets
    assert leaked(package.read_bytes(), secrets) == set()
    members = open_package(package, trust=load_trust()).members
    for content in members.values():
        assert leaked(content, secrets) == set()
    # Also not the private key, in any of its parts.
    lines = [line for line in private_keys.key_path().read_text().splitlines() if not line.startswith("-----")]
    assert not any(line.encode() in package.read_bytes() for line in lines if len(line) > 20)


def test_the_owner_alone_finds_the_data_again(run):
    manifest = open_package(seal(run), trust=load_trust()).manifest
    (named,) = manifest["training"]["datasets"]
    digest = records_digest(read_records(run / "data" / "train.jsonl"))
    key = bytes.fromhex((home_folder() / "owner.key").read_text())
    parts = b"".join(len(part).to_bytes(8, "big") + part for part in (b"data", digest.encode()))
    outer = _outer(key, b"sealed-experts/private-name/v1" + parts)
    assert named == {"hmac_sha256": hashlib.sha256(outer).hexdigest()}


def _outer(key: bytes, message: bytes) -> bytes:
    """Return the input of RFC 2104's outer hash, so that the test needs no HMAC library."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
    return bytes(byte ^ 0x5C for byte in padded) + inner
