"""Give a finished file its name without overwriting anything."""

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import sync_folder, write_error
from sealed_experts.files.regular_file import open_regular

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def place(draft: Path, target: Path) -> bool:
    """Rename a draft to `target`. Never overwrites: if the name is taken, do nothing and return False.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        _link(draft, target)
    except FileExistsError:
        return False
    except OSError as error:
        raise write_error(target, error) from error
    discard(draft)
    sync_folder(target.parent)
    return True


def digest_at(path: Path) -> str:
    """Return the SHA-256 of the file that already has a name.

    Raises:
        UserError: it is not a regular file, or cannot be read.
    """
    try:
        with open_regular(path, follow=False) as (stream, _):
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} is in the way ({error.strerror}): remove it, or choose another folder") from error


def discard(draft: Path) -> None:
    """Remove a draft if it exists. Errors are ignored: the code that made the draft reports its own."""
    with contextlib.suppress(OSError):
        draft.unlink()


def _link(draft: Path, target: Path) -> None:
    try:
        os.link(draft, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without links, such as on a USB stick: an empty file takes the name first.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        os.replace(draft, target)
