"""gzip (RFC 1952) without compression: each content gives exactly one file, and the reader accepts no other.

The output of a compressor depends on its library and version, and many streams decode to the same content. Here the
file is a constant header and the content in stored blocks (RFC 1951, 3.2.4) of 65,535 bytes. The last one is shorter.
"""

import hashlib
import zlib
from typing import IO

from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.source import Source

# No flags, no time, no extra flags, unknown operating system.
HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
BLOCK = 65_535
_TRAILER = 8
_RESEAL = (
    "only the encoding that `sealed-experts publish` writes is accepted; unpack the file with tar, look at its content "
    "and run `sealed-experts publish` on the folder to seal it again"
)


def compressed_size(size: int) -> int:
    """Return the size in bytes of the file whose content has `size` bytes; `size` is at least 1."""
    return len(HEADER) + size + 5 * -(-size // BLOCK) + _TRAILER


def content_size(size: int) -> int | None:
    """Return the size in bytes of the content of a file of `size` bytes; None if no file has this size."""
    rest = size - len(HEADER) - _TRAILER
    content = rest - 5 * -(-rest // (BLOCK + 5))
    return content if content >= 1 and compressed_size(content) == size else None


class PlainGzipWriter:
    """Writes a content of known size, piece by piece."""

    def __init__(self, stream: IO[bytes], *, size: int) -> None:
        self._stream, self._size = stream, size
        self._position, self._crc = 0, 0
        stream.write(HEADER)

    def write(self, content: bytes | memoryview) -> None:
        """Write the next piece of the content."""
        view = memoryview(content)
        if self._position + len(view) > self._size:
            raise ValueError(f"the content is longer than the stated {self._size} bytes")
        self._crc = zlib.crc32(view, self._crc)
        while view:
            if self._position % BLOCK == 0:
                self._stream.write(_block_header(self._position, self._size))
            piece = view[: BLOCK - self._position % BLOCK]
            self._stream.write(piece)
            self._position += len(piece)
            view = view[len(piece) :]

    def finish(self) -> None:
        """Write the trailer."""
        if self._position != self._size:
            raise ValueError(f"the content has {self._position} bytes instead of the stated {self._size}")
        self._stream.write(_trailer(self._crc, self._size))


class PlainGzipReader:
    """Reads a file from its start. Every byte that is not content must be the one that our writer writes.

    Attributes:
        size: bytes of the content.
    """

    def __init__(self, source: Source, *, unit: int = 1) -> None:
        """Read the start of a file.

        Args:
            source: the file.
            unit: the content's size is a multiple of this.

        Raises:
            PackageError: the file has another encoding, or an impossible size.
        """
        self._source, self._offset = source, 0  # in the file
        self._position, self._crc = 0, 0  # of the content
        self._hash = hashlib.sha256()
        start = self._next(len(HEADER))
        if start[:2] != HEADER[:2]:
            raise PackageError("this is not an .expert package: its first bytes are not gzip's")
        if start != HEADER:
            raise PackageError(f"its gzip header is {start.hex()}, but must be {HEADER.hex()}: {_RESEAL}")
        first = self._next(1)
        if first and first[0] >> 1 != 0:
            raise PackageError(f"its gzip layer is compressed, or its first block is not a stored block: {_RESEAL}")
        size = content_size(source.size)
        if size is None or size % unit:
            raise PackageError(
                f"the file is cut short, or foreign bytes follow it: {source.size} bytes is an impossible size"
            )
        self.size = size
        self._expect(_block_header(0, size), start=first)

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes of the content, or fewer at its end.

        Raises:
            PackageError: a block's header is wrong.
        """
        pieces = []
        count = min(count, self.size - self._position)
        while count:
            within = self._position % BLOCK
            if within == 0 and self._position:
                self._expect(_block_header(self._position, self.size))
            piece = self._next(min(count, BLOCK - within))
            self._crc = zlib.crc32(piece, self._crc)
            self._position += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def finish(self) -> None:
        """Check the trailer. Call it after reading the whole content.

        Raises:
            PackageError: the trailer does not match the content.
        """
        if self._position != self.size:
            raise PackageError(f"the content was read up to byte {self._position} of {self.size}")
        self._expect(_trailer(self._crc, self.size))

    def digest(self) -> str:
        """Return the SHA-256 of the file. Call it after `finish`."""
        return self._hash.hexdigest()

    def _next(self, count: int) -> bytes:
        piece = bytes(self._source.read(self._offset, min(count, self._source.size - self._offset)))
        self._offset += len(piece)
        self._hash.update(piece)
        return piece

    def _expect(self, expected: bytes, start: bytes = b"") -> None:
        found = start + self._next(len(expected) - len(start))
        if found != expected:
            raise PackageError(
                f"its gzip layer has {found.hex()} after byte {self._position} of the content, but must have"
                f" {expected.hex()}: the file was altered, or another program wrote it; {_RESEAL}"
            )


class PlainGzipContent:
    """The content of a file that a `PlainGzipReader` has read to its end. Any part of it can be read again."""

    def __init__(self, source: Source, *, size: int) -> None:
        self.size, self.constant = size, source.constant
        self._source = source

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes.

        Raises:
            PackageError: there are fewer.
        """
        if offset + length > self.size:
            raise PackageError(f"it is cut short: {self.size} bytes where {offset + length} are expected")
        pieces = []
        while length:
            count = min(length, BLOCK - offset % BLOCK)
            pieces.append(self._source.read(len(HEADER) + 5 * (offset // BLOCK + 1) + offset, count))
            offset, length = offset + count, length - count
        return b"".join(pieces)

    def check_unchanged(self) -> None:
        """Raise PackageError if the file may have changed since it was opened."""
        self._source.check_unchanged()


def _block_header(position: int, size: int) -> bytes:
    """Return the five bytes before the block that starts at `position` in the content."""
    length = min(BLOCK, size - position)
    final = position + length == size
    return bytes([final]) + length.to_bytes(2, "little") + (length ^ 0xFFFF).to_bytes(2, "little")


def _trailer(crc: int, size: int) -> bytes:
    return crc.to_bytes(4, "little") + (size % (1 << 32)).to_bytes(4, "little")
