"""Atomic, durable writes: a reader, or a crash, sees the old file or the new one, never a part."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sealed_experts.errors import UserError


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str], *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends without an exception.

    Temporary file in the same folder, fsync, rename, fsync of the folder. On an exception the temporary file is
    removed and `path` stays as it was.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise _write_error(target, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _write_error(target, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes, *, mode: int = 0o644) -> None:
    """Write `content` to `path` atomically and durably."""
    with atomic_writer(path, mode=mode) as stream:
        stream.write(content)


def write_text(path: str | os.PathLike[str], content: str, *, mode: int = 0o644) -> None:
    """Write `content` as UTF-8 to `path` atomically and durably."""
    write_bytes(path, content.encode(), mode=mode)


def append_text(path: str | os.PathLike[str], content: str) -> None:
    """Append `content` as UTF-8 to `path`, without waiting for the disk.

    Raises:
        UserError: the disk is full or the file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(content)
    except OSError as error:
        raise _write_error(Path(path), error) from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(path: Path, error: OSError) -> UserError | OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left while writing {path}: free some disk space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path} ({error.strerror}): make its folder writable")
    return error
