"""Several processes of one job, forked from this one, so that they need not load torch."""

import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sealed_experts.errors import reports_user_errors
from sealed_experts.training import interruption
from sealed_experts.training.command import train_job
from sealed_experts.training.launcher import STORE


@dataclass(frozen=True)
class Ended:
    """How the processes ended: their exit codes (negative for a signal) and their output, by rank."""

    codes: list[int]
    said: list[str]


class Forked:
    """The running processes of one job."""

    def __init__(self, work: Callable[[int], int | None], *, count: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        store = tempfile.mktemp(dir=folder, prefix="store-")
        self._outputs = [folder / f"said-{time.monotonic_ns()}-{rank}" for rank in range(count)]
        self.pids = [self._fork(work, rank, count, store) for rank in range(count)]

    def wait(self, *, seconds: float = 60.0) -> Ended:
        """Wait until all have ended; none may hang."""
        deadline = time.monotonic() + seconds
        codes: dict[int, int] = {}
        while len(codes) < len(self.pids):
            for rank, pid in enumerate(self.pids):
                if rank not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(status[1])
            if time.monotonic() > deadline:
                for rank in set(range(len(self.pids))) - codes.keys():
                    os.kill(self.pids[rank], 9)
                said = [path.read_text() for path in self._outputs]
                raise AssertionError(f"hung: of {len(self.pids)} processes only {sorted(codes)} ended: {said}")
            time.sleep(0.01)
        return Ended([codes[rank] for rank in range(len(self.pids))], [path.read_text() for path in self._outputs])

    def _fork(self, work: Callable[[int], int | None], rank: int, count: int, store: str) -> int:
        if pid := os.fork():
            return pid
        code = 70
        try:
            output = os.open(self._outputs[rank], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.stdout = sys.stderr = open(output, "w", buffering=1)  # noqa: SIM115 (the process's own)
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), STORE: store}
            os.environ.update(place, GLOO_SOCKET_IFNAME="lo")
            interruption.STARTED_BY = os.getppid()
            code = work(rank) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(code)


def train_as(count, job, objective, *, folder, before=lambda rank: None, seconds=60.0) -> Ended:
    """Train `job` as `count` processes; `before(rank)` runs first in each and may change its behaviour."""

    def work(rank: int) -> int:
        before(rank)
        return reports_user_errors(train_job)(job, objective)

    return Forked(work, count=count, folder=folder).wait(seconds=seconds)
