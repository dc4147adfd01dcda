"""A small `.expert` file, its parts, and the means to sign what no honest writer would."""

import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.expert.archive import ArchiveReader, write_archive
from sealed_experts.packages.expert.container import ARCHIVE_NAMES, open_expert_bytes
from sealed_experts.packages.expert.integrity import Entry, signed_message
from sealed_experts.packages.expert.plain_gzip import PlainGzipWriter
from sealed_experts.packages.expert.writer import seal_expert
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.source import Memory
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks import building


@functools.cache
def honest(number: int = 1) -> bytes:
    """Return the bytes of an honest file."""
    return sealed(building.package(by=building.key(number)), number=number)


def sealed(package: bytes, *, number: int = 1, second: bool = False) -> bytes:
    """Return the content of a verified `.tgsp` file as an honest `.expert` file; `second` signs with ML-DSA-65 too."""
    key = building.key(number, second=second)
    opened = open_bytes(package, trust=TrustStore([key.public]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.expert"
        seal_expert(path, manifest=opened.manifest, members=opened.members, key=key)
        return path.read_bytes()


def unpacked(data: bytes) -> dict[str, bytes]:
    """Return the archive's members, by their names there. Nothing is verified."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
    reader = ArchiveReader(Memory(data), limits=dict.fromkeys(names, 1 << 30))
    return {name: b"".join(content) for name, _, content in reader.members()}


def packed(members: Mapping[str, bytes]) -> bytes:
    """Return the archive of any members, in the one encoding."""
    stream = io.BytesIO()
    write_archive(stream, members, sizes={name: len(content) for name, content in members.items()})
    return stream.getvalue()


def zipped(content: bytes) -> bytes:
    """Return a sound gzip layer around any content."""
    stream = io.BytesIO()
    writer = PlainGzipWriter(stream, size=len(content))
    writer.write(content)
    writer.finish()
    return stream.getvalue()


def signed(members: Mapping[str, bytes], *, number: int = 1, **integrity: Any) -> bytes:
    """Return an archive of any members, signed again; `integrity` replaces fields before the signature is made."""
    contents = {name: content for name, content in members.items() if name not in ("manifest.json", "signature.sig")}
    entries = {name: Entry(size=len(content), sha256=sha256_bytes(content)) for name, content in contents.items()}
    manifest = json.loads(members["manifest.json"])
    key = building.key(number)
    manifest["integrity"] |= {
        "files": {name: entry.sha256 for name, entry in entries.items()},
        "pubkey": f"ed25519:{key.public.raw.hex()}",
        **integrity,
    }
    signature = key.sign(signed_message(manifest=manifest, entries=entries)).hex()
    manifest["integrity"]["signature"] = signature
    content = canonical_json(manifest).encode()
    return packed({**contents, "manifest.json": content, "signature.sig": signature.encode()})


def converted(package: bytes) -> bytes:
    """Return the content of a `.tgsp` file as a signed `.expert` file. Nothing is checked."""
    frame, payload = building.frame(package), building.payload(package)
    manifest = json.loads(frame.manifest)
    members, offset = {}, 0
    for entry in manifest["members"]:
        members[ARCHIVE_NAMES.get(entry["path"], entry["path"])] = payload[offset : offset + entry["size"]]
        offset += entry["size"]
    manifest["integrity"] = json.loads(unpacked(honest())["manifest.json"])["integrity"]
    return signed({**members, "manifest.json": canonical_json(manifest).encode()})


def refuse(data: bytes, match: str, kind: type[PackageError] = PackageError) -> None:
    """Check that a file is refused with one line that matches."""
    with pytest.raises(kind, match=match) as caught:
        open_expert_bytes(data, trust=building.trust())
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
