"""A GPU for each job of a machine, by file locks. The operating system releases a lock when its process ends."""

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
_LEASED = "SEALED_EXPERTS_LEASED"  # set for child processes: they already run on their parent's devices
_POLL_SECONDS = 0.5


@contextlib.contextmanager
def device_lease(
    device: str, *, count: int = 1, while_waiting: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, ...]]:
    """Reserve `count` GPUs while the block runs, show only these to CUDA, and yield their names.

    It chooses from CUDA_VISIBLE_DEVICES, or from all if that is not set, and sets this variable to its choice, so torch
    must not have used a GPU before. While too few are free it waits and calls `while_waiting`, which may raise. Nothing
    is reserved on a machine without GPU, with `device` cpu, or in a child process of a job that has reserved.

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
    announced = False
    while True:
        with contextlib.ExitStack() as attempt:
            free: list[str] = []
            for name, path in paths.items():
                if len(free) < count and attempt.enter_context(file_lock(path)):
                    free.append(name)
            if len(free) == count:
                held.enter_context(attempt.pop_all())
                return free
        # All or nothing: two jobs that each hold one GPU and wait for a second would wait for ever.
        if not announced:
            users = "; ".join(f"GPU {name} by {_holder(path)}" for name, path in paths.items())
            print(f"waiting for {count} free of {len(devices)} GPUs: in use {users}", flush=True)
            announced = True
        while_waiting()
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
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
    """Return the folder of locks, one for each machine and user."""
    # Not the temporary folder from the environment: it may differ between jobs that share GPUs.
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
    """Return a lock's name. SLURM jobs may each number their GPUs from 0, so the name contains the job."""
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
