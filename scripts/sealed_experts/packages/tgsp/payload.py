"""A package's payload: its members one after another, plain, compressed, encrypted, or both."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sealed_experts.packages.content.linter import WEIGHTS
from sealed_experts.packages.content.manifest_schema import MEMBERS
from sealed_experts.packages.content.tensors import FiniteFloats, TensorCheck
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.recipients.encryption import (
    CHUNK,
    TAG,
    decrypt_chunks,
    encrypt_chunks,
)
from sealed_experts.packages.source import BLOCK, Buffer, Source, blocks, passing_blocks
from sealed_experts.packages.tgsp.compression import compress, decompress
from sealed_experts.packages.tgsp.container import Frame

# The weights come first, so everything after them is small.
_LARGEST_REST = sum(limit for name, limit in MEMBERS.items() if name != WEIGHTS)


class FirstReading:
    """One pass over a stored payload for its SHA-256. It also prepares the digest and the check of the first member.

    The manifest says where the first member ends, but it may not be read before the signature is checked. Everything
    after the first member is small. So copies of the hash's state are kept, from just before the earliest possible end.
    If the content need not be read again, each block also gets a note: are all its bytes finite as float32 values?
    """

    def __init__(self, source: Source, frame: Frame) -> None:
        """Prepare for the payload of a frame."""
        self._source, self._offset, self._size = source, frame.payload_offset, frame.payload_size
        self._states = [(0, hashlib.sha256())]
        self._notes = source.constant and not frame.recipients  # otherwise the content is read again
        self._finite: list[bool] = []

    def run(self) -> bytes:
        """Read the payload once and return its digest."""
        state, position, floats = hashlib.sha256(), 0, FiniteFloats()
        for block in passing_blocks(self._source, offset=self._offset, length=self._size):
            if position + len(block) > self._size - _LARGEST_REST:
                self._states.append((position, state.copy()))
            state.update(block)
            if self._notes:
                self._finite.append(floats.all(block))
            position += len(block)
        return state.digest()

    def hand_over(self, check: TensorCheck, *, size: int) -> None:
        """Pass the first `size` bytes to `check`, after `run`. Blocks known to be finite are not read again.

        Raises:
            PackageError: as for `TensorCheck`.
        """
        for index, start in enumerate(range(0, size, BLOCK)):
            length = min(BLOCK, size - start)
            if not (self._finite[index] and check.skip(length)):
                check.feed(self._source.read(self._offset + start, length))

    def first(self, size: int) -> str:
        """Return the SHA-256 of the first `size` bytes, after `run`. Only bytes after a kept state are read again."""
        position, kept = max((entry for entry in self._states if entry[0] <= size), key=lambda entry: entry[0])
        state = kept.copy()
        for block in passing_blocks(self._source, offset=self._offset + position, length=size - position):
            state.update(block)
        return state.hexdigest()


def check_storage(manifest: Mapping[str, Any], frame: Frame) -> None:
    """Compare the manifest's statements about the payload with the frame.

    Raises:
        PackageError: they contradict each other.
    """
    encrypted = manifest["payload"]["encryption"] != "none"
    if encrypted != bool(frame.recipients):
        stated = manifest["payload"]["encryption"]
        found = "has recipients" if frame.recipients else "has none"
        raise PackageError(f"manifest: payload.encryption is {stated}, but the package {found}")
    total = plain_size(manifest)
    if stored_plainly(manifest) and total != frame.payload_size:
        raise PackageError(f"the members' sizes sum to {total} bytes, but the payload has {frame.payload_size}")


def plain_size(manifest: Mapping[str, Any]) -> int:
    """Return the sum of the members' sizes."""
    return sum(entry["size"] for entry in manifest["members"])


def stored_plainly(manifest: Mapping[str, Any]) -> bool:
    """Say whether the payload is neither compressed nor encrypted."""
    return manifest["payload"]["encryption"] == "none" and manifest["payload"]["compression"] == "none"


def plain_blocks(
    source: Source, frame: Frame, manifest: Mapping[str, Any], content_key: bytes | None, *, skip: int = 0
) -> Iterator[Buffer]:
    """Yield the members' bytes: read, decrypted (if there is a content key) and decompressed.

    A block is valid only until the next is taken.

    Args:
        skip: how many bytes to skip at the beginning; only for a payload that is `stored_plainly`.

    Raises:
        PackageError: the payload does not match the manifest.
    """
    offset, length = frame.payload_offset + skip, frame.payload_size - skip
    stored: Iterator[Buffer] = passing_blocks(source, offset=offset, length=length)
    if content_key is not None:
        chunks = blocks(source, offset=offset, length=length, size=CHUNK + TAG)
        stored = decrypt_chunks(chunks, size=length, content_key=content_key, manifest=frame.manifest)
    if manifest["payload"]["compression"] == "zstd":
        stored = decompress(stored, size=plain_size(manifest))
    return stored


def stored_blocks(
    plain: Iterable[Buffer], manifest: Mapping[str, Any], manifest_content: bytes, content_key: bytes | None
) -> Iterable[Buffer]:
    """Return the payload as it is stored: the inverse of `plain_blocks`."""
    if manifest["payload"]["compression"] == "zstd":
        plain = compress(plain, size=plain_size(manifest))
    if content_key is not None:
        plain = encrypt_chunks(plain, content_key=content_key, manifest=manifest_content)
    return plain


class MemberStream:
    """Cuts a stream of blocks into members, in the manifest's order."""

    def __init__(self, stream: Iterator[Buffer], entries: Sequence[Mapping[str, Any]]) -> None:
        """Take the members' bytes and the manifest's list."""
        self._stream = stream
        self._sizes = {entry["path"]: entry["size"] for entry in entries}
        self._rest: Buffer = b""

    def read(self, path: str) -> Iterator[Buffer]:
        """Yield the next member, which must be `path`. A block is valid only until the next is taken.

        Raises:
            PackageError: the stream ends too early.
        """
        missing = self._sizes[path]
        while missing:
            if not len(self._rest):
                self._rest = next(self._stream, b"")
                if not len(self._rest):
                    raise PackageError(f"member {path}: the payload ends {missing} bytes too early")
            part = memoryview(self._rest)[:missing]
            self._rest = memoryview(self._rest)[missing:]
            missing -= len(part)
            yield part

    def finish(self) -> None:
        """Raise PackageError if the stream has bytes left."""
        if len(self._rest) or any(len(block) for block in self._stream):
            raise PackageError("the payload has bytes after its last member")
