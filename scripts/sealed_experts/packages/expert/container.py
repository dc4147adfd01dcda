"""The `.expert` container: the content of a `.tgsp` as a tar.gz. Each byte is signed, or rebuilt and compared.

`docs/expert.md` specifies it. Its manifest is a package's manifest plus the field `integrity`. In its archive, the
member LICENSE is called `license.txt`.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.files.atomic import write_bytes
from sealed_experts.packages.content.checks import check_content
from sealed_experts.packages.content.manifest import canonical_object, check_manifest, manifest_bytes
from sealed_experts.packages.content.manifest_schema import MAX_MANIFEST, MEMBERS
from sealed_experts.packages.content.new_folder import new_folder, written
from sealed_experts.packages.errors import PackageError, SignatureError, named
from sealed_experts.packages.expert.archive import ArchiveReader, MemberSource
from sealed_experts.packages.expert.integrity import (
    MANIFEST,
    SIGNATURE,
    SIGNATURE_LENGTHS,
    SIGNATURES,
    Entry,
    check_integrity,
    claimed_keys,
    signature_value,
    signed_message,
)
from sealed_experts.packages.expert.plain_gzip import compressed_size
from sealed_experts.packages.expert.plain_tar import archive_size
from sealed_experts.packages.keys.policy import DEFAULT, Policy
from sealed_experts.packages.keys.publisher import PublicKey, Publisher
from sealed_experts.packages.keys.signing import ED25519, verify_signature
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.report import PackageReport, VerifiedPackage
from sealed_experts.packages.source import Buffer, Memory, Source, blocks, open_source

MAGIC = b"\x1f\x8b"
ARCHIVE_NAMES = {"LICENSE": "license.txt"}
_CONTENT_NAMES = {archived: name for name, archived in ARCHIVE_NAMES.items()}
_LIMITS = {
    **{ARCHIVE_NAMES.get(name, name): limit for name, limit in MEMBERS.items()},
    MANIFEST: 2 * MAX_MANIFEST,  # with `integrity`
    **SIGNATURE_LENGTHS,
}
LARGEST = compressed_size(archive_size(_LIMITS.values()))


def open_expert(path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy = DEFAULT) -> VerifiedPackage:
    """Read an `.expert` file once, into memory, verify it, and return its content.

    Args:
        path: the file.
        trust: the publishers that may have signed it.
        policy: what is required beyond a trusted publisher.

    Raises:
        UserError: the file cannot be read.
        PackageError: a check failed. Its message names the file, what is wrong and what was expected.
    """
    with named(path), open_source(path) as source:
        ArchiveReader(source, limits=_LIMITS)  # checks the start and the size before reading the rest
        if source.size > LARGEST:
            raise PackageError(f"the file has {source.size} bytes; at most {LARGEST} are allowed")
        data = source.read(0, source.size)
        source.check_unchanged()
        return open_expert_bytes(data, trust=trust, policy=policy)


def open_expert_bytes(data: bytes, *, trust: TrustStore, policy: Policy = DEFAULT) -> VerifiedPackage:
    """Verify an `.expert` file that is already in memory.

    Raises:
        UserError, PackageError: as for `open_expert`.
    """
    return VerifiedPackage(**vars(examine_expert(Memory(data), trust=trust, policy=policy, weights=True)))


def verify_expert(path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy = DEFAULT) -> PackageReport:
    """Make all checks of `open_expert`, in constant memory.

    The file is read twice through one descriptor: for its signature, and then for its content.

    Raises:
        UserError, PackageError: as for `open_expert`.
    """
    with named(path), open_source(path) as source:
        return examine_expert(source, trust=trust, policy=policy)


def unpack_expert(
    path: str | os.PathLike[str], folder: Path, *, trust: TrustStore, policy: Policy = DEFAULT
) -> PackageReport:
    """Verify a file, and write its manifest and members into a new folder, in constant memory.

    The manifest is written without `integrity`, and the members with their names in the manifest.

    Raises:
        UserError: the folder exists or cannot be written, or as for `open_expert`.
        PackageError: as for `open_expert`.
    """
    with named(path), open_source(path) as source, new_folder(folder) as temporary:
        report = examine_expert(source, trust=trust, policy=policy, unpack_to=temporary)
        write_bytes(temporary / MANIFEST, manifest_bytes(report.manifest))
        return report


def verify_expert_manifest(
    path: str | os.PathLike[str], *, trust: TrustStore, policy: Policy = DEFAULT
) -> PackageReport:
    """Check the signature and the manifest, but not the content of the members.

    Raises:
        UserError, PackageError: as for `open_expert`.
    """
    with named(path), open_source(path) as source:
        signed = _checked(source, trust=trust, policy=policy)
        source.check_unchanged()
        return _report(source, signed, members={})


def examine_expert(
    source: Source,
    *,
    trust: TrustStore,
    policy: Policy = DEFAULT,
    weights: bool = False,
    unpack_to: Path | None = None,
) -> PackageReport:
    """Check everything about an `.expert` file, from any source.

    The order is: signatures by trusted keys, container, manifest, missing and foreign members, sizes, digests, linter.

    Args:
        policy: what is required besides a trusted publisher.
        weights: whether the report also holds the weights.
        unpack_to: a new folder to write the members into. Its content is verified only when this function returns.

    Raises:
        UserError, PackageError: as for `open_expert`.
    """
    signed = _checked(source, trust=trust, policy=policy)

    def read(name: str) -> Iterator[Buffer]:
        return blocks(signed.members[name], offset=0, length=signed.members[name].size)

    # Hash the content again if it may have changed between the two readings, or if it is written.
    again = unpack_to is not None or not source.constant
    content = check_content(
        signed.manifest,
        read if unpack_to is None else written(read, unpack_to),
        known=None if again else {name: entry.sha256 for name, entry in signed.entries.items()},
        keep_weights=weights,
    )
    source.check_unchanged()
    return _report(source, signed, members=content.members, shapes=content.shapes)


def _checked(source: Source, *, trust: TrustStore, policy: Policy) -> "_Signed":
    """Check everything except the content of the members."""
    signed = _signed(source, trust=trust, policy=policy)
    check_manifest(signed.manifest)
    policy.check(signed.publisher, signed.signers, signed.manifest)
    _check_members(signed)
    return signed


def _report(
    source: Source,
    signed: "_Signed",
    *,
    members: dict[str, bytes],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> PackageReport:
    return PackageReport(
        manifest=signed.manifest,
        integrity=signed.integrity,
        members=members,
        publisher=signed.publisher.fingerprint,
        publisher_name=signed.publisher.name,
        digest=signed.digest,
        size=source.size,
        signatures=tuple(algorithm for algorithm, _ in signed.signers),
        shapes=shapes or {},
    )


@dataclass(frozen=True, kw_only=True)
class _Signed:
    """A file that a trusted publisher signed: every byte is signed, or follows from signed bytes.

    `members` and `entries` use the names in the manifest. They do not contain the manifest and the signatures.
    `signers` are the algorithm and the raw public key of each signature.
    """

    manifest: dict[str, Any]
    integrity: dict[str, Any]
    members: dict[str, MemberSource]
    entries: dict[str, Entry]
    publisher: Publisher
    signers: tuple[tuple[str, bytes], ...]
    digest: str


def keys_in_file(source: Source) -> tuple[PublicKey, ...]:
    """Return the keys that a file itself names. They prove nothing: anyone can name their own keys.

    Raises:
        PackageError: this is not an `.expert` file.
    """
    own, _ = _scan(ArchiveReader(source, limits=_LIMITS))
    return claimed_keys(_manifest(own))


def _signed(source: Source, *, trust: TrustStore, policy: Policy) -> _Signed:
    """Read a file from start to end and check its signatures.

    Before that check, the code does only what the signed messages need: it finds members by their headers, hashes their
    content, and parses the manifest as JSON.
    """
    reader = ArchiveReader(source, limits=_LIMITS)
    own, entries = _scan(reader)
    manifest = _manifest(own)
    signers = tuple((key.algorithm, key.raw) for key in claimed_keys(manifest))
    _check_all_signed(own, [algorithm for algorithm, _ in signers])
    publisher = trust.publisher_of(signers, required=policy.signatures)
    content = {name: entry for name, entry in entries.items() if name not in own}
    for algorithm, raw in signers:
        verify_signature(
            algorithm=algorithm,
            public_key=raw,
            value=signature_value(SIGNATURES[algorithm], own[SIGNATURES[algorithm]]),
            message=signed_message(manifest=manifest, entries=entries if algorithm == ED25519 else content),
        )
    check_integrity(manifest, signature=signature_value(SIGNATURE, own[SIGNATURE]), entries=entries)
    return _Signed(
        digest=reader.finish(),
        integrity=manifest.pop("integrity"),
        manifest=manifest,
        members={_CONTENT_NAMES.get(name, name): reader.member(name) for name in content},
        entries={_CONTENT_NAMES.get(name, name): entry for name, entry in content.items()},
        publisher=publisher,
        signers=signers,
    )


def _check_all_signed(own: Mapping[str, bytes], algorithms: Sequence[str]) -> None:
    """Compare the members that hold signatures with the keys that the signed manifest names."""
    needed = {SIGNATURES[algorithm] for algorithm in algorithms}
    for name in sorted(needed ^ (own.keys() & SIGNATURES.values())):
        if name in needed:
            raise SignatureError(f"member {name} is missing: the manifest names a key that must have signed it")
        raise PackageError(f"member {name} is foreign: the manifest names no key for it")


def _manifest(own: dict[str, bytes]) -> dict[str, Any]:
    for name in (MANIFEST, SIGNATURE):
        if name not in own:
            raise PackageError(f"member {name} is missing: the file was altered, or is not an .expert package")
    return canonical_object(own[MANIFEST], MANIFEST)


def _scan(reader: ArchiveReader) -> tuple[dict[str, bytes], dict[str, Entry]]:
    """Return the manifest and the signatures, and size and digest of every member that signature.sig covers."""
    own, entries = {}, {}
    for name, size, content in reader.members():
        if name == MANIFEST or name in SIGNATURE_LENGTHS:
            own[name] = b"".join(content)
            content = iter([own[name]])
        if name in (MANIFEST, SIGNATURE):
            continue
        digest = hashlib.sha256()
        for piece in content:
            digest.update(piece)
        entries[name] = Entry(size=size, sha256=digest.hexdigest())
    return own, entries


def _check_members(signed: _Signed) -> None:
    """Compare the archive's members with the manifest's list: names, sizes and digests."""
    listed = {entry["path"]: entry for entry in signed.manifest["members"]}
    for name in sorted(listed.keys() | signed.entries.keys()):
        if name not in signed.entries:
            raise PackageError(f"member {name} is missing, which the manifest lists")
        if name not in listed:
            raise PackageError(f"member {name} is foreign: the manifest does not list it")
        found = signed.entries[name]
        if (found.size, found.sha256) != (listed[name]["size"], listed[name]["sha256"]):
            raise PackageError(
                f"member {name}: it has {found.size} bytes of SHA-256 {found.sha256}, but the manifest states"
                f" {listed[name]['size']} of {listed[name]['sha256']}"
            )
