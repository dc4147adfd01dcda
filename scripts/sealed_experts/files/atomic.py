"""Atomic, durable writes: a reader, or a crash, sees the old file or the new one, never a part."""

import contextlib
import errno
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from sealed_experts.errors import UserError


@contextlib.contextmanager
def atomic_writer(
    path: str | os.PathLike[str], *, mode: int = 0o644, check: Callable[[Path], None] = lambda written: None
) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` when the block ends without an exception.

    Temporary file in the same folder, fsync, rename, fsync of the folder. On an exception the temporary file is
    removed and `path` stays as it was. The user's umask applies to `mode`. `check` gets the complete temporary file
    before the rename, and may refuse it by raising.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        make_folder(target.parent)
        # The system applies the umask. Python cannot read it without changing it for all threads.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise write_error(target, error) from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        check(temporary)
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise write_error(target, error) from error
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
        raise write_error(Path(path), error) from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, durably: a file is lost if its folder's name is not on disk.

    Raises:
        OSError: a folder cannot be made.
    """
    missing = list(itertools.takewhile(lambda place: not place.is_dir(), (folder, *folder.parents)))
    if missing:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for made in reversed(missing):
        sync_folder(made.parent)


def write_error(path: Path, error: OSError) -> UserError | OSError:
    """Return a UserError if the user can correct why `path` cannot be written; otherwise return `error` itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left while writing {path}: free some disk space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path} ({error.strerror}): make its folder writable")
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return UserError(f"cannot write {path} ({error.strerror}): remove what is in its place, or choose another")
    if error.errno in (errno.ENOENT, errno.ESTALE) and not path.parent.is_dir():
        return UserError(f"cannot write {path} ({error.strerror}): its folder was removed during the write")
    if error.errno == errno.EIO:
        return UserError(f"cannot write {path} ({error.strerror}): its disk, or the way there, has failed")
    return error
