"""Notice in time that training has to stop: on a signal, when the parent process dies, at SLURM's time limit."""

import contextlib
import os
import signal
import sys
import types

from sealed_experts.training.deadline import Deadline, job_deadline
from sealed_experts.training.launcher import EXIT_STOPPED, stopping_signals

EXIT_INTERRUPTED = EXIT_STOPPED  # EX_TEMPFAIL: run the same command again


# Read on import, before torch is loaded, which takes seconds: so a parent that dies in that time is noticed.
STARTED_BY = os.getppid()


class Interrupted(Exception):
    """Training was asked to stop; its state was saved."""


class Interruption:
    """While active, it turns `stopping_signals` into a request that the loop reads at safe points."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._previous: dict[int, object] = {}
        self._deadline: Deadline | None = None

    def __enter__(self) -> "Interruption":
        numbers = stopping_signals()
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note)
        # The launcher of several processes blocks these signals while this program loads. Deliver them now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        self._deadline = job_deadline()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def reason(self) -> str | None:
        """Why the run should stop; None if it should not."""
        if self._reason is None and os.getppid() != STARTED_BY:
            # Snakemake was killed: nobody waits for this run, and the next run needs its folder.
            self._reason = "the process that started this run is gone"
        if self._reason is None and self._deadline is not None and self._deadline.passed():
            self._reason = "the time of the SLURM job is nearly over"
        return self._reason

    def check(self) -> None:
        """Raise Interrupted if the run should stop."""
        if reason := self.reason:
            raise Interrupted(reason)

    def _note(self, number: int, _frame: types.FrameType | None) -> None:
        self._reason = f"received {signal.Signals(number).name}"


def report_interrupted(interruption: Interrupted, *, then: str) -> int:
    """Say why a job ended early and what the same command does `then`; return the exit code."""
    with contextlib.suppress(OSError):  # the disk may be full; the exit code is enough
        print(f"interrupted: {interruption}; the same command {then}", file=sys.stderr)
    return EXIT_INTERRUPTED


def end_at_signals() -> None:
    """Make stopping signals end this process at once with exit code 75, until an `Interruption` handles them.

    Use it while a script loads torch, which takes seconds: no work has begun that could be lost.
    """
    for number in stopping_signals():
        signal.signal(number, _end)


def _end(number: int, _frame: types.FrameType | None) -> None:
    text = f"interrupted: received {signal.Signals(number).name} outside training; the same command goes on from here\n"
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
    os._exit(EXIT_INTERRUPTED)  # a half-loaded module could catch and drop an exception
