"""Notice in time that the run has to end: a signal, the death of the process that started it, SLURM's time limit."""

import contextlib
import os
import signal
import types

from sealed_experts.training.deadline import Deadline, job_deadline
from sealed_experts.training.launcher import EXIT_STOPPED, stopping_signals

EXIT_INTERRUPTED = EXIT_STOPPED  # EX_TEMPFAIL: run the same command again


# Taken when this module is loaded, before the seconds that torch takes: a parent that dies meanwhile is noticed.
STARTED_BY = os.getppid()


class Interrupted(Exception):
    """The run was asked to stop; its state was saved."""


class Interruption:
    """While active, turns `stopping_signals` into a request that the loop reads at safe points."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._previous: dict[int, object] = {}
        self._deadline: Deadline | None = None

    def __enter__(self) -> "Interruption":
        numbers = stopping_signals()
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note)
        # Of a job of several processes: one that was sent while this program was still loading is let through now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        self._deadline = job_deadline()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def reason(self) -> str | None:
        """Return why the run should stop, or None."""
        if self._reason is None and os.getppid() != STARTED_BY:
            # Snakemake was killed: nobody waits for this run, and the next one will want its folder.
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


def end_at_signals() -> None:
    """Until an `Interruption` takes over, end this process with 75 at once where it is asked to stop.

    For the seconds in which a script loads torch: nothing has begun that could be lost.
    """
    for number in stopping_signals():
        signal.signal(number, _end)


def _end(number: int, _frame: types.FrameType | None) -> None:
    said = f"interrupted: received {signal.Signals(number).name} outside training; the same command goes on from here\n"
    with contextlib.suppress(OSError):
        os.write(2, said.encode())
    os._exit(EXIT_INTERRUPTED)  # an exception could be lost in a half-loaded module
