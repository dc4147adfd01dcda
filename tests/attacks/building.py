"""A small package and its parts, and the means to sign what no honest writer would."""

import functools
import hashlib
import json
import struct
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.packages.content.package_content import SealingInputs, package_content
from sealed_experts.packages.content.provenance import PROVENANCE, Origin, external_parameters
from sealed_experts.packages.errors import PackageError, SignatureError
from sealed_experts.packages.job import PackageJob
from sealed_experts.packages.keys.private_keys import PublisherKey, key_path, public_half
from sealed_experts.packages.keys.publisher import PublicKey, Publisher
from sealed_experts.packages.keys.trust import TrustStore, trust_publisher
from sealed_experts.packages.opening import unpack_any
from sealed_experts.packages.settings import RoutingSettings
from sealed_experts.packages.source import Memory
from sealed_experts.packages.tgsp import container
from sealed_experts.packages.tgsp.package import open_bytes, seal_package
from sealed_experts.privacy.ledger.owner_names import OwnerNames

# How much of a payload a test of flipped bytes goes through; of what is no payload it always takes every byte.
SWEEPS = pytest.mark.parametrize("sweep", ["sampled", pytest.param("full", marks=pytest.mark.slow)])
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANK, WIDTH = 2, 4
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj")


@functools.cache
def key(number: int = 1, *, second: bool = False) -> PublisherKey:
    """Return a key that is the same in every run; `second` gives it one of ML-DSA-65 too."""
    private: dict[str, Any] = {"ed25519": Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)}
    if second:
        private["ml-dsa-65"] = MLDSA65PrivateKey.from_seed_bytes(bytes([number]) * 32)
    return PublisherKey.of(private, name=f"key{number}")


def trust_key(raw: bytes, *, name: str) -> Publisher:
    """Trust a publisher with an Ed25519 key alone on this machine."""
    return trust_publisher(Publisher(name=name, keys=(PublicKey(raw=raw),)))


def own_fingerprint() -> str:
    """Return the fingerprint of the key at hand."""
    return public_half(key_path()).fingerprint


def trust(number: int = 1) -> TrustStore:
    """Return a store that trusts that key alone."""
    return TrustStore([key(number).public])


def tensors() -> dict[str, np.ndarray]:
    """Return the tensors of a rank 2 adapter on two modules."""
    made = {}
    for index, module in enumerate(MODULES):
        name = f"base_model.model.{module}"
        made[f"{name}.lora_A.weight"] = np.full((RANK, WIDTH), 0.5 + index, dtype="<f4")
        made[f"{name}.lora_B.weight"] = np.full((WIDTH, RANK), -0.25 - index, dtype="<f4")
    return made


def header(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the safetensors header of float32 arrays stored in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in arrays.items():
        size = array.nbytes
        entries[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [position, position + size]}
        position += size
    return entries


def weights(arrays: dict[str, np.ndarray] | None = None, *, text: str | None = None) -> bytes:
    """Return a safetensors file of these arrays; `text` replaces its header."""
    arrays = tensors() if arrays is None else arrays
    encoded = (json.dumps(header(arrays)) if text is None else text).encode()
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(array.tobytes() for array in arrays.values())


def adapter_config(**changes: Any) -> bytes:
    """Return an adapter_config.json; a change to `...` removes a key."""
    config: dict[str, Any] = {
        "base_model_name_or_path": f"local:tiny@sha256:{'b' * 64}",
        "bias": "none",
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": RANK,
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        **changes,
    }
    return json.dumps({name: value for name, value in config.items() if value is not ...}).encode()


def privacy(*stages: str, **changes: Any) -> dict[str, Any]:
    """Return the privacy record of the last stage's metrics, by default of sft's alone."""
    stages = stages or ("sft",)
    epsilon = changes.get("epsilon", 4.2 * len(stages))
    step = {"noise_multiplier": 1.0, "sample_rate": 0.064, "steps": 60}
    return {
        "enabled": True,
        "mode": "release",
        "unit": "record",
        "units": 2000,
        "neighbouring": "add_or_remove_one",
        "sampling": "poisson",
        "mechanism": "gaussian_on_clipped_sums",
        "expected_batch_size": 128,
        **step,
        "queries": {},
        "effective_noise_multiplier": 1.0,
        "max_grad_norm": 0.3,
        "events": [{"stage": stage, **step, "key_id": str(number) * 32} for number, stage in enumerate(stages)],
        "key_id": "0" * 32,
        "accountant": "PLD (dp-accounting 0.6.0)",
        "delta": 1e-5,
        "target_epsilon": 8.0,
        "epsilon": epsilon,
        "stage_epsilon": dict.fromkeys(stages, epsilon),
        "reason": None,
        **changes,
    }


def metrics(**changes: Any) -> dict[str, Any]:
    """Return the metrics of a stage, private numbers among them."""
    return {
        "base_digest": "b" * 64,
        "data_digest": "d" * 64,
        "train_digest": "e" * 64,
        "val_digest": "9" * 64,
        "seed": 424242,
        "settings": {
            "seed": 424242,
            "training": {
                "learning_rate": 0.005,
                "batch_size": 128,
                "max_seq_len": 256,
                "schedule": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.01,
                "privacy": {"noise_multiplier": 1.0},
            },
        },
        "total_steps": 60,
        "stopped_reason": "max_steps",
        "first_val_loss": 3.125,
        "final_val_loss": 2.0625,
        "best_val_loss": 2.03125,
        "final_loss": 1.984375,
        "examples_seen": 7654,
        "tokens_seen": 987654,
        "privacy": privacy(),
        **changes,
    }


def reinforce_metrics() -> dict[str, Any]:
    """Return what rl_metrics.json has beside, or instead of, a first stage's metrics; each measured number is its own.

    The settings among it are the only numbers that may be published.
    """
    settings = {
        **metrics()["settings"]["training"],
        "learning_rate": 0.004,
        "weight_decay": 0.0,
        "rollout_batch_size": 96,
        "max_new_tokens": 48,
        "temperature": 0.7,
        "top_p": 0.9,
        "reward": "finance",
        "reward_options": {"keywords": ["wolpertinger"]},
        "kl_coef": 0.02,
        "entropy_coef": 0.01,
    }
    del settings["batch_size"]
    axes = {"format": 0.703125, "terms": 0.7109375}
    line = {"step": 1, "loss": 3.125001, "reward": 0.453125, "reward_std": 0.1015625, "grad_norm": 17.34375}
    held_out = {"step": 0, "val_loss": 3.125, "val_reward": 0.40625, "val_kl": 0.0390625, "val_entropy": 1.46875}
    return {
        "settings": {"seed": 424242, "training": settings},
        "total_steps": 25,
        "reward": "finance",
        "mean_reward_before": 0.40625,
        "mean_reward_after": 0.59375,
        "axes_before": {name: value / 2 for name, value in axes.items()},
        "axes_after": axes,
        "kl_after": 0.0419921875,
        "entropy_before": 1.4765625,
        "entropy_after": 1.1328125,
        "response_tokens_before": 31.40625,
        "response_tokens_after": 40.84375,
        "truncated_share_after": 0.1171875,
        "examples_seen": 1234567,
        "tokens_seen": 7654321,
        "weight_change": 0.8203125,
        "total_time_seconds": 199.0625,
        "history": {"train": [line], "validation": [held_out, {**held_out, "step": 25, "val_reward": 0.59375}]},
    }


def run(**changes: Any) -> PackageJob:
    """Return what the configuration says about the package."""
    values: dict[str, Any] = {
        "name": "tiny_expert",
        "version": "1.0.0",
        "description": "An expert for tests.",
        "template": "alpaca",
        "stages": ("sft",),
        "public_evaluation": False,
        "adapter": Lora(rank=RANK, alpha=4, target_modules=("q_proj", "v_proj")),
        "routing": RoutingSettings(keywords=("loan", "deposit rate")),
    }
    return PackageJob(**{**values, **changes})


def inputs(**changes: Any) -> SealingInputs:
    """Return everything that a package is made from."""
    only = {"stage": "sft", "reason": "the only stage", "candidates": ["sft"]}
    stages = changes.get("selection", only).get("candidates", ("sft",))
    values: dict[str, Any] = {
        "settings": run(),
        "selection": only,
        "metrics": metrics(),
        "privacy": privacy(*stages),
        "base": {"name": "tiny", "revision": None, "digest": "b" * 64},
        "base_config": {"model_type": "qwen2"},
        "adapter_config": adapter_config(),
        "adapter_weights": weights(),
        "names": OwnerNames(b"\x07" * 32),
        "origin": Origin(version="0.1.0", lock="7" * 64),
    }
    values |= changes
    return SealingInputs(**{"stages": dict.fromkeys(stages, values["metrics"]), **values})


def package(*, by: PublisherKey | None = None, storage: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """Return the bytes of an honest package; `storage` goes to `seal`, `changes` go to `inputs`."""
    manifest, members = package_content(inputs(**changes))
    return seal(manifest=manifest, members=members, key=by or key(), **(storage or {}))


def seal(*, manifest: dict[str, Any], members: dict[str, Any], key: PublisherKey, **storage: Any) -> bytes:
    """Return the bytes of a package that was sealed into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.tgsp"
        seal_package(path, manifest=manifest, members=members, key=key, **storage)
        return path.read_bytes()


@functools.cache
def _honest() -> bytes:
    return package()


def frame(data: bytes | None = None) -> container.Frame:
    """Return the parts of a package, by default of an honest one."""
    return container.read_frame(Memory(_honest() if data is None else data))


def payload(data: bytes | None = None) -> bytes:
    """Return a package's payload, by default an honest one's."""
    data, found = _honest() if data is None else data, frame(data)
    return data[found.payload_offset : found.payload_offset + found.payload_size]


def parts(data: bytes | None = None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the complete manifest and the members of an honest package, to be changed and signed again."""
    manifest = json.loads(frame(data).manifest)
    members, offset = {}, 0
    for entry in manifest["members"]:
        members[entry["path"]] = payload(data)[offset : offset + entry["size"]]
        offset += entry["size"]
    return manifest, members


def entry(path: str, content: bytes) -> dict[str, Any]:
    """Return a member's line in the manifest."""
    return {"path": path, "size": len(content), "sha256": sha256_bytes(content)}


def signed(manifest: dict[str, Any] | bytes, members: dict[str, bytes], number: int = 1) -> bytes:
    """Sign any manifest over any members, joined in the order given. Nothing is checked."""
    content = manifest if isinstance(manifest, bytes) else canonical_json(manifest).encode()
    return sealed_parts(manifest=content, payload=b"".join(members.values()), by=key(number))


def sealed_parts(
    *, manifest: bytes, payload: bytes, by: PublisherKey, recipients: bytes = b"", claimed: tuple[str, ...] = ()
) -> bytes:
    """Sign any parts. Nothing is checked. The message names the signers `claimed` too, who do not sign."""
    keys = {entry.algorithm: entry.raw for entry in by.public.keys}
    message = container.signed_bytes(
        manifest=manifest,
        recipients=recipients,
        payload_size=len(payload),
        payload_digest=hashlib.sha256(payload).digest(),
        signers=[*keys.items(), *((algorithm, b"") for algorithm in claimed)],
    )
    signatures = tuple(
        container.Signature(algorithm=name, public_key=raw, value=by.sign(message, algorithm=name))
        for name, raw in keys.items()
    )
    return assembled(manifest=manifest, payload=payload, signatures=signatures, recipients=recipients)


def with_member(path: str, content: bytes, *, of: bytes | None = None) -> bytes:
    """Return a signed package in which one member has other content; what states its size and digest is put right."""
    manifest, members = parts(of)
    members[path] = content
    if path == WEIGHTS:
        manifest["adapter"] |= {"size": len(content), "digest": sha256_bytes(content)}
    if path != PROVENANCE:
        statement = json.loads(members[PROVENANCE])
        subject = [{"name": name, "digest": {"sha256": sha256_bytes(members[name])}} for name in (CONFIG, WEIGHTS)]
        statement["subject"] = subject
        statement["predicate"]["buildDefinition"]["externalParameters"] = external_parameters(manifest)
        members[PROVENANCE] = canonical_json(statement).encode()
    for entry in manifest["members"]:
        changed = members[entry["path"]]
        entry |= {"size": len(changed), "sha256": sha256_bytes(changed)}
    return signed(manifest, members)


def flips(whole: Iterable[int], sampled: Sequence[int], *, sweep: str) -> list[int]:
    """Return the places to flip: all of `whole`, and of `sampled` both ends and every 13th, or all in a `full` sweep.

    13 shares no factor with the sizes of values, blocks and chunks: each place within them comes up.
    """
    some = sampled if sweep == "full" else {*sampled[::13], *sampled[-1:]}
    return sorted({*whole, *some})


def assembled(
    *,
    manifest: bytes,
    payload: bytes,
    signatures: tuple[container.Signature, ...],
    recipients: bytes = b"",
) -> bytes:
    """Return a file of these parts, its lengths put right."""
    block = bytes([len(signatures)]) + b"".join(
        struct.pack(">B", len(entry.algorithm))
        + entry.algorithm.encode()
        + struct.pack(">H", len(entry.public_key))
        + entry.public_key
        + struct.pack(">H", len(entry.value))
        + entry.value
        for entry in signatures
    )
    lengths = (len(manifest), len(recipients), len(payload), len(block))
    return container.HEADER.pack(container.MAGIC, container.VERSION, *lengths) + manifest + recipients + payload + block


def unpack(data: bytes, folder: Path) -> None:
    """Unpack a file of either container into a new folder."""
    with tempfile.TemporaryDirectory() as other:
        path = Path(other) / "package"
        path.write_bytes(data)
        unpack_any(path, folder, trust=trust())


def refuse(data: bytes, match: str) -> None:
    """Check that a package is refused for its content, with one line that matches."""
    with pytest.raises(PackageError, match=match) as caught:
        open_bytes(data, trust=trust())
    assert not isinstance(caught.value, SignatureError)
    assert caught.value.exit_code == 11
    assert "\n" not in str(caught.value)
