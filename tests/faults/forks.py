"""Forks of one process that has loaded torch already: to start a trainer, and to kill it, costs little."""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.points import Operation, Points, Visitor

LIMIT = 120.0  # seconds after which a child is taken to hang


@dataclass(frozen=True, kw_only=True)
class End:
    """How a child ended: its exit code, or the signal that killed it; `seconds` since the signal that was sent."""

    code: int | None
    signal: int | None
    seconds: float


def run_forked(
    work: Callable[[], int],
    *,
    folder: Path,
    log: Path,
    visit: Visitor | None = None,
    watched: Path | None = None,
    send: tuple[float, int] | None = None,
) -> End:
    """Run `work` in a fork whose working directory is `folder`, and wait for its end.

    Args:
        log: what it prints is appended there.
        visit: sees every failure point of the child, in the child.
        watched: the folder whose failure points those are, if not `folder`.
        send: a signal, sent to the child after so many seconds.

    Raises:
        TimeoutError: it does not end.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(work, folder=folder, log=log, points=Points(watched or folder, visit) if visit else None)
    begun = time.monotonic()
    sent = None
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic()
        if pid:
            break
        if send is not None and sent is None and now - begun >= send[0]:
            os.kill(child, send[1])
            sent = now
        if now - begun > LIMIT:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"the child did not end within {LIMIT:.0f} s; see {log}")
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    return End(code=code if code >= 0 else None, signal=-code if code < 0 else None, seconds=now - (sent or begun))


def _become(work: Callable[[], int], *, folder: Path, log: Path, points: Points | None) -> None:
    """Be the child; never return."""
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(folder)
        from sealed_experts.training import interruption

        interruption.STARTED_BY = os.getppid()  # it was taken in the parent
        if points is not None:
            points.install()
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class PointLog:
    """A visitor that notes each failure point in a file outside of the watched folder."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._write = os.write

    def __call__(self, when: str, operation: Operation) -> None:
        self._write(self._descriptor, json.dumps([when, operation.name]).encode() + b"\n")


def noted_points(path: Path) -> list[tuple[str, str]]:
    """Return the failure points of a PointLog's file, as (when, name)."""
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A signal to the child itself at one of its failure points."""

    number: int
    when: str
    name: str
    signal: int

    def visitor(self) -> Visitor:
        """Return what counts the points up to this one."""
        seen = 0

        def visit(when: str, operation: Operation) -> None:
            nonlocal seen
            if seen == self.number:
                # Under another run's counts the same number could be another place.
                os.kill(os.getpid(), self.signal)
            seen += 1

        return visit


def choose_faults(
    points: list[tuple[str, str]], *, count: int, signals: list[int], random_: random.Random
) -> list[Fault]:
    """Choose failure points, each name at least once before any is chosen again.

    Args:
        points: (when, name) of each, in the order of an uninterrupted run.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for number, point in enumerate(points):
        places.setdefault(point, []).append(number)
    chosen: list[Fault] = []
    while len(chosen) < count:
        round_ = sorted(places)
        random_.shuffle(round_)
        for when, name in round_[: count - len(chosen)]:
            number = random_.choice(places[when, name])
            chosen.append(Fault(number=number, when=when, name=name, signal=random_.choice(signals)))
    return chosen
