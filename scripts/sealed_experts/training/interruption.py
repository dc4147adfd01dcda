"""Notice in time that the run has to end: a signal, the death of the process that started it, SLURM's time limit."""

import os
import signal
import types

from sealed_experts.training.deadline import Deadline, job_deadline

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: run the same command again


# Taken when this module is loaded, before the seconds that torch takes: a parent that dies meanwhile is noticed.
STARTED_BY = os.getppid()


class Interrupted(Exception):
    """The run was asked to stop; its state was saved."""


class Interruption:
    """While active, turns SIGTERM, SIGINT and SIGUSR1 into a request that the loop reads at safe points."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self._reason: str | None = None
        self._previous: dict[int, object] = {}
        self._deadline: Deadline | None = None

    def __enter__(self) -> "Interruption":
        for number in self._SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        # Of a job of several processes: one that was sent while this program was still loading is let through now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._SIGNALS)
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
