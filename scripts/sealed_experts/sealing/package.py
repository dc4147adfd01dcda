"""The one door to a package: sealed here, and opened here after every check, from bytes read once."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import sync_folder, write_bytes
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.sealing import container
from sealed_experts.sealing.errors import PackageError
from sealed_experts.sealing.keys import PublisherKey
from sealed_experts.sealing.linter import AdapterFacts, lint_adapter
from sealed_experts.sealing.manifest import (
    canonical_object,
    check_member_names,
    manifest_bytes,
    member_entries,
    parse_manifest,
)
from sealed_experts.sealing.receipt import RECEIPT, privacy_summary
from sealed_experts.sealing.trust import PublicKey, TrustStore


@dataclass(frozen=True, kw_only=True)
class VerifiedPackage:
    """A package whose every byte a trusted publisher signed and every check passed.

    Attributes:
        manifest: what the package says about itself.
        members: content of each member, by name.
        publisher: fingerprint of the key that signed it.
        publisher_name: what the trust store calls that key.
        digest: SHA-256 of the whole file.
        size: bytes of the whole file.
    """

    manifest: dict[str, Any]
    members: dict[str, bytes]
    publisher: str
    publisher_name: str
    digest: str
    size: int


def open_package(path: str | os.PathLike[str], *, trust: TrustStore) -> VerifiedPackage:
    """Read a `.tgsp` file once, verify it, and return its content.

    Order: framing, signature, manifest, set of members, sizes, digests, receipt, linter.

    Raises:
        UserError: the file cannot be read.
        PackageError: a check failed. Its message names the file, what is wrong and what was expected.
    """
    try:
        return open_bytes(container.read_container(path), trust=trust)
    except PackageError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error


def open_bytes(data: bytes, *, trust: TrustStore) -> VerifiedPackage:
    """Verify a package that is already in memory. Raises as `open_package`."""
    frame = container.parse(data)
    key = container.verify(frame, trust)
    manifest, members = _content(frame)
    return _verified(data, manifest, members, key)


def seal(*, manifest: Mapping[str, Any], members: Mapping[str, bytes], key: PublisherKey) -> bytes:
    """Return the bytes of a package: the same content and key give the same bytes.

    What is returned has been opened as a reader would open it.

    Args:
        manifest: all of it but `payload` and `members`, which follow from the members.
        members: content of each member, by name.

    Raises:
        PackageError: the content is not what a package may hold.
    """
    complete = {
        **manifest,
        "payload": {"compression": "none", "encryption": "none"},
        "members": member_entries(members),
    }
    payload = b"".join(members[path] for path in sorted(members))
    data = container.pack(manifest=manifest_bytes(complete), payload=payload, key=key)
    open_bytes(data, trust=TrustStore([key.public]))
    return data


def unpack(package: VerifiedPackage, folder: Path) -> None:
    """Write a verified package's manifest and members into a new folder, which appears when it is complete.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    check_member_names(list(package.members))
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} exists: name a new folder to unpack into")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot make a folder beside {folder}: {error.strerror}") from error
    try:
        for name, content in {**package.members, "manifest.json": manifest_bytes(package.manifest)}.items():
            write_bytes(temporary / name, content)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _content(frame: container.Frame) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Take a frame whose signature is verified apart, checking everything."""
    if len(frame.recipients):
        raise PackageError("the package is encrypted for recipients, which this version cannot open")
    manifest = parse_manifest(bytes(frame.manifest))
    entries = manifest["members"]
    total = sum(entry["size"] for entry in entries)
    if total != len(frame.payload):
        raise PackageError(f"the members' sizes sum to {total} bytes, but the payload has {len(frame.payload)}")
    members, offset = {}, 0
    for entry in entries:
        content = bytes(frame.payload[offset : offset + entry["size"]])
        offset += entry["size"]
        if sha256_bytes(content) != entry["sha256"]:
            raise PackageError(
                f"member {entry['path']}: its SHA-256 is not {entry['sha256']}, which the manifest states"
            )
        members[entry["path"]] = content
    _check_receipt(manifest, members[RECEIPT])
    _check_readme(members["README.md"])
    _check_adapter(manifest, lint_adapter(members))
    return manifest, members


def _check_receipt(manifest: dict[str, Any], content: bytes) -> None:
    stated = privacy_summary(canonical_object(content, RECEIPT))
    for field in sorted(stated.keys() | manifest["privacy"].keys()):
        if stated.get(field) != manifest["privacy"].get(field):
            raise PackageError(
                f"{RECEIPT}: its {field} is {ascii(stated.get(field))[:100]}, but the manifest states"
                f" {ascii(manifest['privacy'].get(field))[:100]}"
            )


def _check_readme(content: bytes) -> None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(f"README.md: it is not UTF-8 text (byte {error.start})") from error


def _check_adapter(manifest: dict[str, Any], facts: AdapterFacts) -> None:
    """Hold what the manifest says about the adapter against what the adapter's own files say."""
    adapter, base = manifest["adapter"], manifest["base"]
    pairs = {
        "adapter.rank": (adapter["rank"], facts.rank),
        "adapter.alpha": (adapter["alpha"], facts.alpha),
        "adapter.target_modules": (sorted(adapter["target_modules"]), list(facts.target_modules)),
        "adapter.parameters": (adapter["parameters"], facts.parameters),
        "base.name": (base["name"], facts.base_name),
        "base.revision": (base["revision"], facts.base_revision),
    }
    for field, (stated, found) in pairs.items():
        if stated != found:
            raise PackageError(
                f"manifest: {field} is {ascii(stated)[:100]}, but the adapter's files say {ascii(found)[:100]}"
            )


def _verified(data: bytes, manifest: dict[str, Any], members: dict[str, bytes], key: PublicKey) -> VerifiedPackage:
    return VerifiedPackage(
        manifest=manifest,
        members=members,
        publisher=key.fingerprint,
        publisher_name=key.name,
        digest=sha256_bytes(data),
        size=len(data),
    )
