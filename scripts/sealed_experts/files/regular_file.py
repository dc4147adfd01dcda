"""Read a file whose path somebody else chose: only regular files, and without waiting."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader

from sealed_experts.errors import UserError


@contextlib.contextmanager
def open_regular(
    path: str | os.PathLike[str], *, follow: bool = True
) -> Iterator[tuple[BufferedReader, os.stat_result]]:
    """Yield a file opened for reading, and the status of the opened file.

    Args:
        follow: whether the path's last part may be a symbolic link.

    Raises:
        OSError: it cannot be opened, or is a folder, a FIFO, a socket or a device.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for a writer that may never come.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow and os.path.islink(path):
            raise OSError(errno.ELOOP, "it is a symbolic link", os.fspath(path)) from error
        if error.errno == errno.ENXIO:  # a socket
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path)) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    except BaseException:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as stream:
        yield stream, status


def read_regular(path: str | os.PathLike[str], *, what: str, limit: int) -> bytes:
    """Return the first `limit` bytes of a file; `what` names it in messages.

    Raises:
        UserError: it cannot be opened or read, or is not a regular file.
    """
    try:
        with open_regular(path) as (stream, _):
            return stream.read(limit)
    except OSError as error:
        raise UserError(f"cannot read {what} {os.fspath(path)}: {error.strerror}") from error
