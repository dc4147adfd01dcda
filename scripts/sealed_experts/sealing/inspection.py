"""What a package says about itself, for people, and whether any of it is verified."""

import os
from dataclasses import dataclass
from typing import Any

from sealed_experts.sealing import container
from sealed_experts.sealing.errors import PackageError, SignatureError
from sealed_experts.sealing.manifest import parse_manifest
from sealed_experts.sealing.package import open_bytes
from sealed_experts.sealing.printable import printable
from sealed_experts.sealing.trust import TrustStore


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Lines to print, and 0 when they are verified, else the exit code of what the package is refused for."""

    lines: list[str]
    exit_code: int


def inspect_package(path: str | os.PathLike[str], *, trust: TrustStore) -> Inspection:
    """Describe a package.

    The manifest of an untrusted publisher is shown when the file is whole by the key it carries itself, marked as
    not verified: one reads it to decide about trust. That of an altered file is not even parsed.

    Raises:
        UserError: the file cannot be read.
    """
    data = b""
    try:
        data = container.read_container(path)
        package = open_bytes(data, trust=trust)
    except PackageError as error:
        return Inspection(lines=_unverified(data, error), exit_code=error.exit_code)
    head = [f"VERIFIED: signed by {package.publisher_name} ({package.publisher})", f"digest: {package.digest}"]
    return Inspection(lines=[*head, *_described(package.manifest)], exit_code=0)


def _unverified(data: bytes, error: PackageError) -> list[str]:
    head = [f"NOT VERIFIED: {error}"]
    try:
        frame = container.parse(data)
        signer = container.verify_under_own_key(frame)
        manifest = parse_manifest(bytes(frame.manifest))
    except PackageError:
        return head
    if not isinstance(error, SignatureError):
        return head
    return [
        *head,
        f"The file is whole by the key that it carries itself ({signer}). Anyone can make such a file: nobody vouches "
        "for what follows.",
        *_described(manifest),
    ]


def _described(manifest: dict[str, Any]) -> list[str]:
    """Return the manifest as lines `field: value`, nested fields joined by dots."""
    members = [f"member: {entry['path']} ({entry['size']} bytes, {entry['sha256']})" for entry in manifest["members"]]
    fields = {key: value for key, value in manifest.items() if key != "members"}
    return [*_lines(fields, ""), *members]


def _lines(value: Any, place: str) -> list[str]:
    if isinstance(value, dict):
        return [line for key in sorted(value) for line in _lines(value[key], f"{place}.{key}" if place else key)]
    if isinstance(value, list):
        return [f"{place}: {', '.join(_shown(item) for item in value)}"]
    return [f"{place}: {_shown(value)}"]


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return printable(str(value))
