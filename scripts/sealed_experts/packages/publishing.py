"""Publish a sealed package, or a folder of its files, as an `.expert` file with its long name."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.new_file import digest_at, discard, place
from sealed_experts.files.regular_file import open_regular
from sealed_experts.packages import opening
from sealed_experts.packages.content.manifest import canonical_object, check_manifest, long_name
from sealed_experts.packages.content.manifest_schema import MAX_MANIFEST
from sealed_experts.packages.errors import EncryptedError, PackageError, SignatureError, named
from sealed_experts.packages.expert.container import ARCHIVE_NAMES
from sealed_experts.packages.expert.integrity import MANIFEST, SIGNATURE_LENGTHS, signed_fields
from sealed_experts.packages.expert.writer import seal_expert
from sealed_experts.packages.keys.private_keys import PublisherKey, load_key
from sealed_experts.packages.keys.trust import TrustStore
from sealed_experts.packages.source import BytesOrFile


def publish_expert(path: Path, *, output: Path, publisher: str | None = None) -> tuple[Path, str]:
    """Write an `.expert` file, signed with the user's publisher key; return its path and SHA-256.

    Args:
        path: a `.tgsp` or `.expert` file that the same key signed, or a folder with manifest.json and the members.
        output: folder to write into.
        publisher: the publisher's name in the file; by default the manifest's author, or else the key's fingerprint.

    Raises:
        UserError: a file cannot be read or written, or this version was published with other content.
        PackageError: the package does not verify with this key, or a package may not hold these files.
    """
    key = load_key()
    manifest, members = _from_folder(path) if os.path.isdir(path) else _from_package(path, key)
    called = publisher or _author(manifest)
    target = output / f"{long_name(manifest)}.expert"
    draft = output / f".{secrets.token_hex(8)}.new"
    try:
        digest = seal_expert(draft, manifest=manifest, members=members, key=key, publisher=called)
        if place(draft, target):
            return target, digest
        there = digest_at(target)
        if there != digest and _signed_content(target, key) != _signed_content(draft, key):
            raise UserError(
                f"{target} exists with other content: a published version never changes, so raise the version, or"
                " remove that file if nobody has it yet"
            )
        return target, there
    finally:
        discard(draft)


def _signed_content(path: Path, key: PublisherKey) -> dict[str, Any] | None:
    """Return all that the key signed in an `.expert` file, but not its signatures: ML-DSA's is randomised.

    None if the key did not sign the file as it is.
    """
    try:
        report = opening.verify_any(path, trust=TrustStore([key.public]))
    except PackageError:
        return None
    assert report.integrity is not None, "a .tgsp has none"
    return {**report.manifest, "integrity": signed_fields(report.integrity)}


def seal_as_expert(path: Path, *, output: Path) -> str:
    """Write the content of a package to the `.expert` file `output`, as `publish_expert` does; return its SHA-256.

    Args:
        path: a `.tgsp` file that the user's publisher key signed.
        output: the file to write.

    Raises:
        UserError: a file cannot be read or written, or the package is encrypted.
        PackageError: the package does not verify with this key.
    """
    key = load_key()
    manifest, members = _from_package(path, key)
    return seal_expert(output, manifest=manifest, members=members, key=key, publisher=_author(manifest))


def _author(manifest: Mapping[str, Any]) -> str | None:
    return manifest.get("author") or None


def _from_package(path: Path, key: PublisherKey) -> tuple[dict[str, Any], Mapping[str, BytesOrFile]]:
    """Verify a package with the key that will sign it again, so that nobody signs another publisher's work."""
    try:
        package = opening.open_any(path, trust=TrustStore([key.public]))
    except EncryptedError as error:
        raise UserError(
            f"{path} is encrypted, but an .expert is never encrypted: everyone could open it; if this is intended,"
            " unpack the package and publish the folder"
        ) from error
    except SignatureError as error:
        raise SignatureError(
            f"{error} (`publish` signs only packages that your key, {key.public.fingerprint}, signed before; to publish"
            " another publisher's package, unpack it, look at it, and publish the folder)"
        ) from error
    return package.manifest, package.members


def _from_folder(folder: Path) -> tuple[dict[str, Any], Mapping[str, BytesOrFile]]:
    """Read the files of an expert, as `unpack` writes them, or as tar extracts them from an `.expert`."""
    try:
        with open_regular(folder / MANIFEST) as (stream, _):
            content = stream.read(2 * MAX_MANIFEST + 1)
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise UserError(
            f"cannot read {folder / MANIFEST}: {error.strerror}; give a folder that `unpack` wrote"
        ) from error
    with named(folder):
        manifest = canonical_object(content, MANIFEST)
        manifest.pop("integrity", None)
        check_manifest(manifest)
    archived = {name: member for member, name in ARCHIVE_NAMES.items()}
    members = {
        archived.get(name, name): folder / name for name in names if name != MANIFEST and name not in SIGNATURE_LENGTHS
    }
    listed = {entry["path"] for entry in manifest["members"]}
    for name in sorted(members.keys() ^ listed):
        problem = "is missing, which" if name in listed else "is foreign:"
        verb = "lists" if name in listed else "does not list it; remove it"
        raise PackageError(f"{folder}: member {name!a} {problem} {MANIFEST} {verb}")
    return manifest, members
