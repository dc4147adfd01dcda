"""Unpack into a new folder. The folder appears only when it is complete."""

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
    """Yield a folder to write into. It becomes `folder` when the block ends, and is removed if the block raises.

    Raises:
        UserError: the name is taken, or the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists: give a new folder to unpack into")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unpack-", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot make a folder next to {folder}: {error.strerror}") from error
    try:
        yield temporary
        with _reported(folder):
            temporary.chmod(0o755)
            os.rename(temporary, folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def written(read: Read, folder: Path) -> Read:
    """Return a `read` that also writes each member into a folder, under its name.

    Each block is checked before it is written, so no more bytes are written than a member may have.
    """

    def reading(name: str) -> Iterator[Buffer]:
        path = folder / name
        with _reported(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            stream = os.fdopen(os.open(path, flags, 0o644), "wb")
        with contextlib.closing(stream):
            for block in read(name):
                yield block
                with _reported(path):
                    stream.write(block)
            with _reported(path):
                stream.flush()
                os.fsync(stream.fileno())

    return reading


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
