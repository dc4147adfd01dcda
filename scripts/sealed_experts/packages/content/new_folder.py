"""A folder that is written beside its place, and appears there when it is complete."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import sync_folder
from sealed_experts.packages.source import Buffer

Read = Callable[[str], Iterable[Buffer]]


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write into, which becomes `folder` when the block ends, and vanishes when it raises.

    Raises:
        UserError: the name is taken, or the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists: name a new folder to unpack into")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unpack-", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot make a folder beside {folder}: {error.strerror}") from error
    try:
        yield temporary
        with _told(folder):
            temporary.chmod(0o755)
            os.rename(temporary, folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def written(read: Read, folder: Path) -> Read:
    """Return a `read` that also writes each member, under its name, into a folder.

    A block is written after it was checked, so never more of them than a member may have.
    """

    def reading(name: str) -> Iterator[Buffer]:
        path = folder / name
        with _told(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            stream = os.fdopen(os.open(path, flags, 0o644), "wb")
        with contextlib.closing(stream):
            for block in read(name):
                yield block
                with _told(path):
                    stream.write(block)
            with _told(path):
                stream.flush()
                os.fsync(stream.fileno())

    return reading


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
