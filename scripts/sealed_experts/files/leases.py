"""A GPU for each job of one machine: file locks that the operating system releases when their holder dies."""

import contextlib
import fcntl
import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_error
from sealed_experts.files.locks import kept_from_children
from sealed_experts.machine import visible_devices

FOLDER = "SEALED_EXPERTS_LEASES"  # variable that names another folder for the locks
_LEASED = "SEALED_EXPERTS_LEASED"  # set for the processes that a holder starts: they are on its devices already
_POLL_SECONDS = 0.5


@contextlib.contextmanager
def device_lease(
    device: str, *, count: int = 1, while_waiting: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, ...]]:
    """Let CUDA see `count` GPUs while the block runs that no other holder of a lease uses; yield their names.

    It chooses among those of CUDA_VISIBLE_DEVICES, or all if that is not set, and narrows that variable to its choice:
    torch must not have asked for a GPU before. It waits for as long as too few are free, calling `while_waiting`, which
    may raise. Without a GPU, with `device` cpu and below another lease, nothing is leased.

    Raises:
        UserError: there are fewer than `count` GPUs, or the folder of locks cannot be used.
    """
    devices = visible_devices()
    if device == "cpu" or not devices or _LEASED in os.environ:
        yield ()
        return
    if count > len(devices):
        raise UserError(
            f"this job needs {count} GPUs and sees {len(devices)} ({', '.join(devices)}): give it more, in "
            "CUDA_VISIBLE_DEVICES or as `gpu` of its SLURM job, or configure fewer"
        )
    with contextlib.ExitStack() as held:
        chosen = _wait_for(devices, count, held, while_waiting)
        print(f"using GPU {', '.join(chosen)}", flush=True)
        with _environment(CUDA_VISIBLE_DEVICES=",".join(chosen), **{_LEASED: str(os.getpid())}):
            yield tuple(chosen)


def _wait_for(
    devices: Sequence[str], count: int, held: contextlib.ExitStack, while_waiting: Callable[[], None]
) -> list[str]:
    folder = _folder()
    paths = {name: folder / _file_name(name) for name in devices}
    told = False
    while True:
        with contextlib.ExitStack() as attempt:
            free: list[str] = []
            for name, path in paths.items():
                if len(free) < count and attempt.enter_context(_lock(path)):
                    free.append(name)
            if len(free) == count:
                held.enter_context(attempt.pop_all())
                return free
        # All or nothing: two jobs that wait for each other's second GPU would wait for ever.
        if not told:
            users = "; ".join(f"GPU {name} by {_holder(path)}" for name, path in paths.items())
            print(f"waiting for {count} free of {len(devices)} GPUs: in use {users}", flush=True)
            told = True
        while_waiting()
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold the lock at `path` if it is free, and yield whether it was."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise write_error(path, error) from error
    with kept_from_children(descriptor):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        yield True


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _folder() -> Path:
    """Return the folder of locks: of this machine, and of this user alone."""
    # Not the temporary folder that variables name: it differs from one job to the next, and the GPUs do not.
    given = os.environ.get(FOLDER)
    folder = Path(given) if given else Path(f"/tmp/sealed-experts-gpus-{os.getuid()}")  # noqa: S108 (checked below)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise write_error(folder, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{folder} is not a folder of yours: name another one in {FOLDER}")
    return folder


def _file_name(device: str) -> str:
    """Return a lock's name. Each SLURM job may number its GPUs from 0: they are others than those of another job."""
    job = os.environ.get("SLURM_JOB_ID")
    return re.sub(r"[^\w-]", "_", f"slurm-{job}-{device}" if job else device) + ".lock"


@contextlib.contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
