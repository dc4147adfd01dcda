"""Write an `.expert` file from the manifest and members of a `.tgsp`, and verify it before it appears."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts.files.atomic import atomic_writer
from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.packages.expert.archive import write_archive
from sealed_experts.packages.expert.container import ARCHIVE_NAMES, examine_expert
from sealed_experts.packages.expert.integrity import (
    MANIFEST,
    SIGNATURE,
    SIGNATURES,
    Entry,
    files_field,
    signed_integrity,
    signed_message,
)
from sealed_experts.packages.keys.private_keys import PublisherKey
from sealed_experts.packages.keys.signing import ED25519
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.source import BytesOrFile, measure, open_source


def seal_expert(
    path: str | os.PathLike[str],
    *,
    manifest: Mapping[str, Any],
    members: Mapping[str, BytesOrFile],
    key: PublisherKey,
    publisher: str | None = None,
) -> str:
    """Write an `.expert` file, signed with every key of the publisher, and return its SHA-256.

    The same content and keys give the same bytes, except for ML-DSA's signature, which is randomised. The file appears
    at `path` only after it was verified in the same way as a reader does.

    Args:
        manifest: a package's whole manifest, with `payload` and `members`.
        members: content of each member, or its file, by its name in the manifest.
        publisher: the publisher's name; by default the fingerprint of the key.

    Raises:
        PackageError: a package may not hold this content.
        UserError: SOURCE_DATE_EPOCH is not a time, or a file cannot be read or written.
    """
    archived: dict[str, BytesOrFile] = {ARCHIVE_NAMES.get(name, name): content for name, content in members.items()}
    entries = {}
    for name, content in archived.items():
        size, digest = measure(content)
        entries[name] = Entry(size=size, sha256=digest)
    integrity = signed_integrity(keys=key.public.keys, publisher=publisher)
    stored = {**manifest, "payload": {"compression": "none", "encryption": "none"}, "integrity": integrity}
    own: dict[str, bytes] = {}
    message = signed_message(manifest=stored, entries=entries)
    for algorithm in integrity["further_keys"]:
        member = SIGNATURES[algorithm]
        own[member] = key.sign(message, algorithm=algorithm).hex().encode("ascii")
        entries[member] = Entry(size=len(own[member]), sha256=sha256_bytes(own[member]))
    signature = key.sign(signed_message(manifest=stored, entries=entries), algorithm=ED25519).hex()
    computed = {"files": files_field(entries), "signature": signature}
    own |= {
        MANIFEST: canonical_json({**stored, "integrity": {**integrity, **computed}}).encode(),
        SIGNATURE: signature.encode("ascii"),
    }
    sizes = {name: entry.size for name, entry in entries.items()} | {name: len(own[name]) for name in own}
    return _write_verified(Path(path), {**archived, **own}, sizes=sizes, trust=TrustStore([key.public]))


def _write_verified(
    target: Path, members: Mapping[str, BytesOrFile], *, sizes: Mapping[str, int], trust: TrustStore
) -> str:
    """Write an archive, verify it, rename it to `target`, and return its SHA-256."""
    digests: list[str | None] = []

    def check(written: Path) -> None:
        with open_source(written) as source:
            digests.append(examine_expert(source, trust=trust).digest)

    with atomic_writer(target, check=check) as stream:
        write_archive(stream, members, sizes=sizes)
    (digest,) = digests
    assert digest is not None, "it is always computed"
    return digest
