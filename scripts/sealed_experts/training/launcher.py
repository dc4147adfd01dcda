"""Run one command as several processes of one job, and return one exit code for all of them.

    python scripts/sealed_experts/training/launcher.py --processes 2 -- python scripts/train_stage.py …

It does three things that torchrun (PyTorch 2.13) does not do. It passes on exit code 75. It ends without a traceback
when it is asked to stop. It ends when its parent process is gone. It does not import torch, so it starts at once.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

EXIT_STOPPED = 75  # everything is saved: run the same command again
EXIT_PEER = 76  # this process is healthy, but another one failed, and its exit code says why
STORE = "SEALED_EXPERTS_STORE"  # path of the file through which the processes find each other; only its owner reads it

_POLL_SECONDS = 0.5
# After one process fails, the others get this time to end by themselves: they may be in the middle of a write.
GRACE_SECONDS = 10.0


def stopping_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask training to save and end.

    SIGHUP (the terminal or the connection is lost) is one of them, unless it is ignored, as `nohup` does.
    """
    always = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    return always if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*always, signal.SIGHUP)


def launch(
    command: Sequence[str],
    *,
    processes: int,
    grace_seconds: float = GRACE_SECONDS,
    hold: Callable[[Callable[[], None]], AbstractContextManager[object]] = lambda check: nullcontext(),
) -> int:
    """Run `command` as `processes` processes and return one exit code for all.

    The code is 0 if all end with 0, and 75 if all were asked to stop and saved. Otherwise it is the code of the first
    process that failed by itself; if a signal ended that process, it is 128 plus the signal's number, as in a shell.
    Stopping signals are passed on. When one process fails, the others are asked to stop, and are killed after
    `grace_seconds`.

    Args:
        hold: makes a context that is held while the processes run, such as a lease on GPUs. While it waits, it calls
            its argument, which raises if the job has to stop.
    """
    parent = os.getppid()
    # A blocked signal waits until `sigtimedwait` takes it. The processes inherit the mask, and unblock when they can
    # save.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*stopping_signals(), signal.SIGCHLD})
    folder = tempfile.mkdtemp(prefix="sealed-experts-")
    try:
        with hold(lambda: _check(parent)):
            return _Job(command, processes=processes, store=f"{folder}/store", grace_seconds=grace_seconds).wait(parent)
    except _Stopped:
        return EXIT_STOPPED
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Stopped(Exception):
    """The launcher was asked to stop before it started any process."""


def _check(parent: int) -> None:
    if signal.sigpending() & set(stopping_signals()) or os.getppid() != parent:
        raise _Stopped


class _Job:
    """The processes of one command."""

    def __init__(self, command: Sequence[str], *, processes: int, store: str, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._codes: dict[int, int] = {}  # by rank, in the order in which they ended
        self._asked = False
        self._deadline: float | None = None
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(processes):
            self._running[rank] = subprocess.Popen(
                command,
                env={**os.environ, **_environment(rank, processes, store)},
                # Print progress once; errors (stderr) come from every process.
                stdout=None if rank == 0 else subprocess.DEVNULL,
            )

    def wait(self, parent: int) -> int:
        """Wait until all processes have ended and return one exit code. If `parent` is gone, ask them to stop."""
        stopping = stopping_signals()
        while self._running:
            waited = signal.sigtimedwait({*stopping, signal.SIGCHLD}, _POLL_SECONDS)
            if waited is not None and waited.si_signo in stopping:
                self._ask_to_stop(signal.Signals(waited.si_signo))
            if os.getppid() != parent and not self._asked:
                self._ask_to_stop(signal.SIGTERM)
            self._reap()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._signal(signal.SIGKILL)
        return self._code()

    def _ask_to_stop(self, number: signal.Signals) -> None:
        self._asked = True
        self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            process.send_signal(number)

    def _reap(self) -> None:
        for rank, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[rank]
            self._codes[rank] = code
            if code < 0:
                name = signal.Signals(-code).name
                print(f"process {rank} of this job was ended by {name}", file=sys.stderr, flush=True)
            if code not in (0, EXIT_STOPPED) and self._deadline is None:
                self._deadline = time.monotonic() + self._grace_seconds
                self._signal(signal.SIGTERM)

    def _code(self) -> int:
        failed = [code for code in self._codes.values() if code not in (0, EXIT_STOPPED, EXIT_PEER)]
        if failed:
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if EXIT_PEER in self._codes.values():
            return 1
        return max(self._codes.values())


def _environment(rank: int, processes: int, store: str) -> dict[str, str]:
    """Return the variables that give a process its rank, under torchrun's names."""
    environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), STORE: store}
    # All processes are on this machine. Use the loopback interface: the host name may resolve to another address.
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback and "GLOO_SOCKET_IFNAME" not in os.environ:
        environment["GLOO_SOCKET_IFNAME"] = loopback[0]
    return environment


def main() -> int:
    parser = argparse.ArgumentParser(description=Path(__file__).stem)
    parser.add_argument("--processes", required=True, type=int, help="how many processes share the job")
    parser.add_argument("--device", default="cpu", help="lease GPUs for them: auto, cpu or cuda (default: cpu)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.processes < 1 or not command or shutil.which(command[0]) is None:
        parser.error("give --processes of at least 1, and after -- a command that exists")
    # Python has put only this file's own folder on the path.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from sealed_experts.errors import reports_user_errors
    from sealed_experts.files.leases import device_lease

    def lease(check: Callable[[], None]) -> AbstractContextManager[object]:
        return device_lease(args.device, count=args.processes, while_waiting=check)

    return reports_user_errors(launch)(command, processes=args.processes, hold=lease)


if __name__ == "__main__":
    sys.exit(main())
