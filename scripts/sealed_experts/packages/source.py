"""Sources of a package's bytes: a file that is opened once, or memory."""

import contextlib
import fcntl
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sealed_experts.errors import UserError
from sealed_experts.files.regular_file import open_regular
from sealed_experts.packages.errors import PackageError

Buffer = bytes | memoryview
BytesOrFile = bytes | Path  # content of a member to write: the bytes, or the file that holds them
BLOCK = 1 << 20  # bytes per read: few calls, and still in the processor's cache when they are hashed

_CUT = "the file was cut while it was read: get it again"


class Source(Protocol):
    """Bytes that several threads can read at any offset."""

    size: int

    @property
    def constant(self) -> bool:
        """Whether two reads of one place give the same bytes, unless `check_unchanged` raises."""

    def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes.

        Raises:
            PackageError: there are fewer.
        """

    def check_unchanged(self) -> None:
        """Raise PackageError if the bytes may have changed since the source was opened."""


class Memory:
    """Bytes that nobody else can change."""

    def __init__(self, data: bytes) -> None:
        self.size, self.constant = len(data), True
        self._view = memoryview(data)

    def read(self, offset: int, length: int) -> memoryview:
        """Return a view of `length` bytes."""
        if offset + length > self.size:
            raise PackageError(f"it is cut short: {self.size} bytes where {offset + length} are expected")
        return self._view[offset : offset + length]

    def check_unchanged(self) -> None:
        """Nothing to check."""


class OpenFile:
    """An open file, by its descriptor. Its path is not used again.

    If the system grants a lease (`constant`), nobody can start to write to the file while it is read. The file's times
    alone prove nothing: a program that mapped a page earlier can change it later without a new time.
    """

    def __init__(self, descriptor: int, status: os.stat_result) -> None:
        self.size, self.constant = status.st_size, take_lease(descriptor)
        self._descriptor, self._status = descriptor, status

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from the disk or its cache."""
        content = os.pread(self._descriptor, length, offset)
        while len(content) < length:
            more = os.pread(self._descriptor, length - len(content), offset + len(content))
            if not more:
                raise PackageError(_CUT)
            content += more
        return content

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from the disk or its cache."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if not count:
                raise PackageError(_CUT)
            done += count

    def check_unchanged(self) -> None:
        """Check that the file's status is the same as when it was opened, and that a lease is still held."""
        if self.constant and fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
            raise PackageError("another program began to write to the file while it was read: verify it again later")
        if _identity(os.fstat(self._descriptor)) != _identity(self._status):
            raise PackageError("the file was changed while it was read: verify it again when no program writes to it")


@contextlib.contextmanager
def open_source(path: str | os.PathLike[str], *, what: str = "the package") -> Iterator[OpenFile]:
    """Yield a file as a source; `what` names it in messages.

    Raises:
        UserError: the file is missing, is not a regular file, or cannot be read.
    """
    try:
        with open_regular(path) as (stream, status):
            yield OpenFile(stream.fileno(), status)
    except OSError as error:
        raise UserError(f"cannot read {what} {os.fspath(path)}: {error.strerror}") from error


def blocks(source: Source, *, offset: int, length: int, size: int = BLOCK) -> Iterator[Buffer]:
    """Yield `length` bytes from `offset` on, `size` at a time."""
    for start in range(0, length, size):
        yield source.read(offset + start, min(size, length - start))


def passing_blocks(source: Source, *, offset: int, length: int) -> Iterator[Buffer]:
    """Yield blocks as `blocks` does, but each is valid only until the next one: a file's blocks share one buffer.

    To allocate memory for each block would take as long as to read it.
    """
    if not isinstance(source, OpenFile):
        yield from blocks(source, offset=offset, length=length)
        return
    buffer = memoryview(bytearray(min(BLOCK, length)))
    for start in range(0, length, BLOCK):
        block = buffer[: min(BLOCK, length - start)]
        source.read_into(offset + start, block)
        yield block.toreadonly()


def content_blocks(content: BytesOrFile) -> Iterator[Buffer]:
    """Yield the content of a member to write, a block at a time.

    Raises:
        UserError: the member's file cannot be read.
    """
    if isinstance(content, bytes):
        yield from blocks(Memory(content), offset=0, length=len(content))
        return
    with open_source(content, what="the member") as source:
        yield from blocks(source, offset=0, length=source.size)


def measure(content: BytesOrFile) -> tuple[int, str]:
    """Return size and SHA-256 of a member to write.

    Raises:
        UserError: the member's file cannot be read.
    """
    size, state = 0, hashlib.sha256()
    for block in content_blocks(content):
        state.update(block)
        size += len(block)
    return size, state.hexdigest()


def take_lease(descriptor: int) -> bool:
    """Ask the system to keep writers away until the descriptor is closed. Return whether it agreed.

    Linux agrees for the file's owner if nobody has the file open for writing. A program that opens it to write waits.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        # The default signal for a waiting writer, SIGIO, would end the process. SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True


def _identity(status: os.stat_result) -> tuple[int, ...]:
    # Include the change time (ctime): unlike the modification time, nobody can set it.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
