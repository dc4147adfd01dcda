"""Sealing and verifying a large adapter, against hashing alone and against OpenSSF's model-signing.

Each contender is a process of its own: `python tests/benchmarks/sealing.py --contender verify --folder F`.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import measure

ROOT = Path(__file__).resolve().parents[2]
RANK, WIDTH = 64, 4096  # of one module: two tensors of 1 MiB
SIZES = {"60 MB": 29, "1 GB": 477}  # modules of a file
WEIGHTS = "adapter_model.safetensors"
CONTENDERS = {
    "hashlib": "SHA-256 of the file by hashlib",
    "verify": "this project, verify, finite check included",
    "seal": "this project, seal",
    "model-signing-verify": "model-signing, verify",
    "model-signing-sign": "model-signing, sign",
}


def make_adapter(path: Path, *, modules: int) -> None:
    """Write a LoRA adapter of random float32 weights."""
    import numpy as np

    names = [f"base_model.model.model.layers.{index}.self_attn.q_proj.lora_" for index in range(modules)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = RANK * WIDTH * 4
    for index, (name, side) in enumerate((name, side) for name in names for side in "AB"):
        shape = [RANK, WIDTH] if side == "A" else [WIDTH, RANK]
        header[f"{name}{side}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [index * size, (index + 1) * size],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _ in range(2 * modules):
            stream.write(random.standard_normal(RANK * WIDTH, dtype=np.float32).tobytes())


def seal(folder: Path) -> None:
    """Seal the folder's adapter."""
    sys.path[:0] = [str(ROOT / "scripts")]
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

    from sealed_experts.packages.keys.private_keys import PublisherKey
    from sealed_experts.packages.tgsp.package import seal_package

    seed = bytes(32)
    first, second = Ed25519PrivateKey.from_private_bytes(seed), MLDSA65PrivateKey.from_seed_bytes(seed)
    key = PublisherKey.of({"ed25519": first, "ml-dsa-65": second}, name="bench")
    (folder / "key.json").write_text(json.dumps([(each.algorithm, each.raw.hex()) for each in key.public.keys]))
    content = json.loads((folder / "content.json").read_text())
    members = {name: text.encode() for name, text in content["members"].items()} | {WEIGHTS: folder / WEIGHTS}
    _timed(lambda: seal_package(folder / "p.tgsp", manifest=content["manifest"], members=members, key=key))


def verify(folder: Path) -> None:
    """Verify the folder's package."""
    sys.path[:0] = [str(ROOT / "scripts")]
    from sealed_experts.packages.keys.publisher import PublicKey, Publisher
    from sealed_experts.packages.keys.trust import TrustStore
    from sealed_experts.packages.tgsp.package import verify_package

    with open(folder / "key.json") as stream:
        keys = tuple(PublicKey(algorithm=name, raw=bytes.fromhex(raw)) for name, raw in json.load(stream))
    trust = TrustStore([Publisher(name="bench", keys=keys)])
    _timed(lambda: verify_package(folder / "p.tgsp", trust=trust))


def hash_alone(folder: Path) -> None:
    """Hash the folder's package."""

    def digest() -> None:
        with open(folder / "p.tgsp", "rb") as stream:
            hashlib.file_digest(stream, "sha256").hexdigest()

    _timed(digest)


def model_signing(folder: Path, *, what: str) -> None:
    """Sign the folder's adapter, or verify that, with model-signing's own library and an ECDSA P-256 key."""
    from model_signing import signing, verifying

    model, signature = folder / "model", folder / "model.sig"
    if what == "sign":
        config = signing.Config().use_elliptic_key_signer(private_key=folder / "ec.pem")
        _timed(lambda: config.sign(model, signature))
    else:
        checks = verifying.Config().use_elliptic_key_verifier(public_key=folder / "ec.pub")
        _timed(lambda: checks.verify(model, signature))


def prepare(folder: Path, *, modules: int) -> None:
    """Write what the contenders read."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
    from tests.attacks import building

    make_adapter(folder / WEIGHTS, modules=modules)
    (folder / "model").mkdir()
    os.link(folder / WEIGHTS, folder / "model" / WEIGHTS)
    adapter = building.Lora(rank=RANK, alpha=4, target_modules=("q_proj",))
    manifest, members = building.package_content(
        building.inputs(
            settings=building.run(adapter=adapter),
            adapter_config=building.adapter_config(r=RANK, target_modules=["q_proj"]),
            adapter_weights=folder / WEIGHTS,
        )
    )
    small = {name: member.decode() for name, member in members.items() if isinstance(member, bytes)}
    (folder / "content.json").write_text(json.dumps({"manifest": manifest, "members": small}))
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "ec.pem").write_bytes(pem)
    (folder / "ec.pub").write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def sealing(count: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return for each size and contender `count` measurements: seconds and peak_mb.

    model-signing is left out where it is not installed.
    """
    order = ["seal", "hashlib", "verify"]
    if importlib.util.find_spec("model_signing"):
        order += ["model-signing-sign", "model-signing-verify"]
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for size, modules in SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), modules=modules)
            results[size] = {contender: [] for contender in order}
            for _ in range(count):
                for contender in order:
                    results[size][contender].append(measure("sealing.py", contender, extra=("--folder", name)))
                    print(f"{size}: {contender}: {results[size][contender][-1]}", file=sys.stderr, flush=True)
    return results


def _timed(work: Callable[[], object]) -> None:
    """Do it twice and print what the second time took: imports and the file's way into the cache do not count."""
    work()
    begun = time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    # Not getrusage: across exec it keeps the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_mb": peak / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contender", choices=list(CONTENDERS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    if args.contender == "seal":
        seal(args.folder)
    elif args.contender == "verify":
        verify(args.folder)
    elif args.contender == "hashlib":
        hash_alone(args.folder)
    else:
        model_signing(args.folder, what=args.contender.removeprefix("model-signing-"))


if __name__ == "__main__":
    main()
