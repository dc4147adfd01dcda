"""Seal and verify from files: memory, remaining files, and the same results as from bytes in memory."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.digests import sha256_file
from sealed_experts.packages import opening, source
from sealed_experts.packages.content import new_folder
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.expert.writer import seal_expert
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.source import BLOCK
from sealed_experts.packages.tgsp import package
from sealed_experts.packages.tgsp.package import open_package, seal_package, verify_package
from tests.attacks import building, expert_building

ROOT = Path(__file__).resolve().parents[3]
PATH = os.pathsep.join([str(ROOT / "scripts"), str(ROOT), os.environ.get("PYTHONPATH", "")])
IDENTITY = Identity(bytes(range(96)))
STORAGES = {
    "plain": {},
    "compressed": {"compression": "zstd"},
    "encrypted": {"recipients": [IDENTITY.recipient]},
    "both": {"compression": "zstd", "recipients": [IDENTITY.recipient]},
}
MOST_GROWTH = 16  # MB: some blocks of a megabyte, and what the libraries for compression and encryption hold
# A separate process that imports the same as `sealed-experts verify` and prints its peak memory in MB.
SCRIPT = """
import json, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.keys.private_keys import PublisherKey
from sealed_experts.packages.tgsp.package import seal_package, verify_package
from sealed_experts.packages.keys.trust import TrustStore
from tests.unit.packages.peak_memory import peak_memory

folder, storage = Path(sys.argv[1]), json.loads(sys.argv[2])
identity = Identity(bytes(range(96)))
key = PublisherKey.of({"ed25519": Ed25519PrivateKey.from_private_bytes(bytes(32))}, name="k")
if sys.argv[3] == "seal":
    content = json.loads((folder / "content.json").read_text())
    members = {name: text.encode() for name, text in content["members"].items()}
    members["adapter_model.safetensors"] = folder / "adapter_model.safetensors"
    recipients = [identity.recipient] if storage.pop("encrypted", False) else []
    manifest = content["manifest"]
    seal_package(folder / "p.tgsp", manifest=manifest, members=members, key=key, recipients=recipients, **storage)
else:
    verify_package(folder / "p.tgsp", trust=TrustStore([key.public]), identity=identity, digest=True)
print(peak_memory())
"""


def large_adapter(path: Path, *, width: int) -> None:
    """Write an adapter of zeros: two tensors of 2 x `width` float32 for each of the two modules."""
    entries, position = {}, 0
    for name, array in building.tensors().items():
        shape = [building.RANK, width] if array.shape[0] == building.RANK else [width, building.RANK]
        size = building.RANK * width * 4
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # as safetensors does
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + position)


def peak_memory_of(script: str, *arguments: str) -> float:
    """Run a script that prints its peak memory in MB, and return that."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def content(weights: Path) -> tuple[dict, dict]:
    """Return manifest and members of a package with these weights, which are not read into memory."""
    return building.package_content(building.inputs(adapter_weights=weights))


@pytest.mark.parametrize(
    "storage", [{}, {"compression": "zstd"}, {"encrypted": True}], ids=["plain", "compressed", "encrypted"]
)
def test_memory_does_not_grow_with_the_adapter(storage, tmp_path):
    """64 MB of weights: sealed and verified in the memory that 64 kB of weights need, and a few blocks more."""
    peaks = {}
    for width in (1 << 11, 1 << 21):
        large_adapter(tmp_path / building.WEIGHTS, width=width)
        manifest, members = content(tmp_path / building.WEIGHTS)
        small = {name: member.decode() for name, member in members.items() if isinstance(member, bytes)}
        (tmp_path / "content.json").write_text(json.dumps({"manifest": manifest, "members": small}))
        for action in ("seal", "verify"):
            peaks[width, action] = peak_memory_of(SCRIPT, str(tmp_path), json.dumps(storage), action)
    assert (tmp_path / building.WEIGHTS).stat().st_size > 4 * MOST_GROWTH << 20
    for action in ("seal", "verify"):
        assert peaks[1 << 21, action] - peaks[1 << 11, action] < MOST_GROWTH, peaks


# The same for an existing package, by action and by storage.
USED = """
import sys
from pathlib import Path
from sealed_experts.packages import opening
from sealed_experts.packages.keys.pem import read_public_keys
from sealed_experts.packages.keys.publisher import Publisher
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.recipients.encryption import Identity
from sealed_experts.packages.registry import Registry
from tests.unit.packages.peak_memory import peak_memory

path, action = Path(sys.argv[1]), sys.argv[2]
trust = TrustStore([Publisher(name="k", keys=read_public_keys(path.parent / "k.pub"))])
identity = Identity(bytes(range(96)))
if action == "unpack":
    opening.unpack_any(path, path.parent / "out", trust=trust, identity=identity)
else:
    Registry(folder=path.parent / "registry", trust=trust, identity=identity).install(path)
print(peak_memory())
"""


@pytest.mark.parametrize("action", ["unpack", "install"])
@pytest.mark.parametrize("storage", ["expert", "plain", "both"])
def test_unpacking_and_installing_take_no_more_memory_than_verifying(storage, action, tmp_path):
    """For 64 MB of weights. `unpack` once held them in memory two or three times."""
    peaks = [_peak_of_using(tmp_path / str(width), storage, action, width=width) for width in (1 << 11, 1 << 21)]
    assert peaks[1] - peaks[0] < MOST_GROWTH


def _peak_of_using(tmp_path, storage, action, *, width):
    tmp_path.mkdir()
    large_adapter(tmp_path / building.WEIGHTS, width=width)
    manifest, members = content(tmp_path / building.WEIGHTS)
    path, key = tmp_path / ("p.expert" if storage == "expert" else "p.tgsp"), building.key()
    seal_package(tmp_path / "p.tgsp", manifest=manifest, members=members, key=key, **STORAGES.get(storage, {}))
    if storage == "expert":
        complete = verify_package(tmp_path / "p.tgsp", trust=building.trust()).manifest
        seal_expert(path, manifest=complete, members=members, key=key)
    (tmp_path / "k.pub").write_text(key.public.pem)
    peak = peak_memory_of(USED, str(path), action)
    if action == "unpack":
        unpacked = tmp_path / "out" / building.WEIGHTS
        assert sha256_file(unpacked) == sha256_file(tmp_path / building.WEIGHTS)
        assert sorted(os.listdir(tmp_path / "out")) == sorted([*members, "manifest.json"])
    return peak


@pytest.mark.parametrize("container", ["tgsp", "expert"])
def test_what_is_unpacked_is_hashed_as_it_is_written(container, tmp_path, monkeypatch):
    """The second reading gives other bytes than the first, and the file's times do not show it."""
    path = tmp_path / f"p.{container}"
    path.write_bytes(building.package() if container == "tgsp" else expert_building.honest())
    place = path.read_bytes().index(building.weights()[-64:])
    real = source.OpenFile.read
    seen = []

    def altered(self, offset, length):
        data = bytearray(real(self, offset, length))
        if offset <= place < offset + length:
            seen.append(offset)
            data[place - offset] ^= len(seen) > 1
        return bytes(data)

    def altered_into(self, offset, buffer):
        buffer[:] = altered(self, offset, len(buffer))

    monkeypatch.setattr(source.OpenFile, "read", altered)
    monkeypatch.setattr(source.OpenFile, "read_into", altered_into)
    with pytest.raises(PackageError, match="its SHA-256 is not"):
        opening.unpack_any(path, tmp_path / "out", trust=building.trust())
    assert sorted(os.listdir(tmp_path)) == [path.name]


@pytest.mark.parametrize("container", ["tgsp", "expert"])
def test_a_disk_that_is_full_while_a_package_is_unpacked_leaves_nothing(container, tmp_path, monkeypatch):
    path = tmp_path / f"p.{container}"
    path.write_bytes(building.package() if container == "tgsp" else expert_building.honest())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(new_folder.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left"):
        opening.unpack_any(path, tmp_path / "out", trust=building.trust())
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("width", [4, BLOCK // 8, BLOCK // 8 + 1, BLOCK])
def test_files_and_memory_agree(storage, width, tmp_path):
    """The weights end before, at and after the end of a block."""
    large_adapter(tmp_path / building.WEIGHTS, width=width)
    manifest, members = content(tmp_path / building.WEIGHTS)
    path = tmp_path / "p.tgsp"
    digest = seal_package(path, manifest=manifest, members=members, key=building.key(), **STORAGES[storage])
    opened = open_package(path, trust=building.trust(), identity=IDENTITY)
    report = verify_package(path, trust=building.trust(), identity=IDENTITY, digest=True)
    assert digest == opened.digest == report.digest
    assert opened.members[building.WEIGHTS] == (tmp_path / building.WEIGHTS).read_bytes()
    assert {**report.members, building.WEIGHTS: opened.members[building.WEIGHTS]} == opened.members
    if "recipients" not in STORAGES[storage]:
        inside = {**members, building.WEIGHTS: opened.members[building.WEIGHTS]}
        data = building.seal(manifest=manifest, members=inside, key=building.key(), **STORAGES[storage])
        assert data == path.read_bytes()


# Remaining files


def test_a_refused_package_leaves_nothing_and_what_was_there_stays(tmp_path):
    path = tmp_path / "p.tgsp"
    path.write_bytes(b"an older package")
    manifest, members = building.package_content(building.inputs())
    with pytest.raises(PackageError, match="README"):
        seal_package(path, manifest=manifest, members={**members, "README.md": b"\xff"}, key=building.key())
    with pytest.raises(UserError, match="cannot read the member"):
        seal_package(path, manifest=manifest, members={**members, "README.md": tmp_path / "none"}, key=building.key())
    assert path.read_bytes() == b"an older package"
    assert os.listdir(tmp_path) == ["p.tgsp"]
    seal_package(path, manifest=manifest, members=members, key=building.key())
    assert os.listdir(tmp_path) == ["p.tgsp"]
    assert path.read_bytes() == building.package()


def test_what_cannot_be_verified_never_appears(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PackageError("no")

    monkeypatch.setattr(package, "examine", refuse)
    manifest, members = building.package_content(building.inputs())
    with pytest.raises(PackageError, match="no"):
        seal_package(tmp_path / "p.tgsp", manifest=manifest, members=members, key=building.key())
    assert os.listdir(tmp_path) == []


def test_weights_that_change_while_they_are_sealed_are_refused(tmp_path, monkeypatch):
    weights = tmp_path / building.WEIGHTS
    weights.write_bytes(building.weights())
    manifest, members = content(weights)
    real = package.write_plan

    def then_write(stream, plan):
        changed = bytearray(building.weights())
        changed[-1] ^= 1
        weights.write_bytes(changed)
        real(stream, plan)

    monkeypatch.setattr(package, "write_plan", then_write)
    with pytest.raises(PackageError, match="its SHA-256 is not"):
        seal_package(tmp_path / "p.tgsp", manifest=manifest, members=members, key=building.key())
    assert os.listdir(tmp_path) == [building.WEIGHTS]


def test_a_full_disk_is_told_as_one(tmp_path, monkeypatch):
    def full(stream, plan):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package, "write_plan", full)
    manifest, members = building.package_content(building.inputs())
    with pytest.raises(UserError, match="no space left"):
        seal_package(tmp_path / "p.tgsp", manifest=manifest, members=members, key=building.key())
    assert os.listdir(tmp_path) == []


def test_two_builds_differ_in_the_second_signature_alone():
    key = building.key(second=True)
    first, second = building.package(by=key), building.package(by=key)
    assert len(first) == len(second)
    assert first[:-3309] == second[:-3309]
    assert first != second
    alone = {"signatures": ["ed25519"]}
    assert building.package(by=key, storage=alone) == building.package(by=key, storage=alone) == building.package()


def test_verifying_needs_neither_torch_nor_a_second():
    code = (
        "import sys, time; begun = time.perf_counter(); import sealed_experts.packages.tgsp.package; "
        "print(time.perf_counter() - begun, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": PATH}, capture_output=True, text=True, check=True
    )
    seconds, *loaded = done.stdout.split()
    assert loaded == ["False", "False"]
    assert float(seconds) < 2  # 0.2 on an idle machine
