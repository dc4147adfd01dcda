"""Exclusive use of a folder by a lock of the operating system, which ends when its process is killed."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import make_folder, write_error

WAIT_SECONDS = 60.0


@contextlib.contextmanager
def folder_lock(
    folder: str | os.PathLike[str],
    *,
    wait_seconds: float = WAIT_SECONDS,
    while_waiting: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Reserve `folder` for this process while the block runs.

    If another process holds it, this one waits `wait_seconds`, then refuses. While it waits, it calls `while_waiting`,
    which may raise.

    Raises:
        UserError: another process still holds the folder; the message names its host, process and SLURM job. Or the
            folder cannot be written.
    """
    path = Path(folder) / ".lock"
    try:
        make_folder(path.parent)
        descriptor = _opened(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise write_error(path, error) from error
    with kept_from_children(descriptor):
        acquire(descriptor, path, wait_seconds, while_waiting)
        describe_holder(descriptor)
        try:
            yield
        finally:
            if descriptor in _kept:  # otherwise this is a child process: the lock belongs to its parent
                os.ftruncate(descriptor, 0)
                fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def kept_from_children(descriptor: int) -> Iterator[None]:
    """Close `descriptor` when the block ends, and immediately in every fork of this process.

    A lock lasts while any process has its file open: a worker would keep the lock of a killed parent.
    """
    _kept.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _kept:
            _kept.remove(descriptor)
            os.close(descriptor)


_kept: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _kept:
        os.close(descriptor)
    _kept.clear()


os.register_at_fork(after_in_child=_close_in_child)


def is_locked(folder: str | os.PathLike[str]) -> bool:
    """Say whether a running process holds `folder`.

    Raises:
        UserError: the lock's path holds something else.
    """
    path = Path(folder) / ".lock"
    try:
        descriptor = _opened(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise write_error(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def _opened(path: Path, flags: int) -> int:
    """Open a lock file, and nothing else that somebody put in its place: locks are truncated.

    Raises:
        UserError: it is a symlink, a FIFO, a socket or a device.
        OSError: it cannot be opened.
    """
    foreign = f"{path} is not a regular file, so it is not a lock of this program: remove it"
    try:
        # Not O_TRUNC: another process may hold it. Others may read it, as the umask allows, to see who holds it.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):
            raise UserError(foreign) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(foreign)
    return descriptor


def acquire(descriptor: int, path: Path, wait_seconds: float, while_waiting: Callable[[], None]) -> None:
    """Lock a descriptor's file. While another process holds it, call `while_waiting`, for at most `wait_seconds`.

    Raises:
        UserError: another process still holds it, or the file system has no locks.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{path.parent} is in use by {_holder(descriptor)}: wait for it to end, or stop it, and run again"
                ) from error
            while_waiting()
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise UserError(
                f"the file system of {path.parent} has no locks ({error.strerror}), so nothing would keep two runs "
                "apart: use a folder on another one, or have it mounted with locks"
            ) from error


def describe_holder(descriptor: int) -> None:
    """Write into a lock's file which process holds it, for the messages of others."""
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job": os.environ.get("SLURM_JOB_ID")}
    os.ftruncate(descriptor, 0)
    with contextlib.suppress(OSError):  # on a full disk the lock works too, only without the holder's name
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        job = f", SLURM job {holder['slurm_job']}" if holder["slurm_job"] else ""
        return f"process {holder['pid']} on {holder['host']}{job}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
