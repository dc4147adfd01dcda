"""SHA-256 digests of bytes, files and named sets of files, always as lower-case hex."""

import hashlib
import os
from collections.abc import Mapping

from sealed_experts.files.canonical import canonical_json


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return sha256_bytes(canonical_json(value).encode())


def digest_of_files(files: Mapping[str, str]) -> str:
    """Return one digest for a set of files, given as {relative path: digest of the content}."""
    return digest_of(dict(files))
