"""Trials of one training stage: it is killed, or power is lost, and the same command must end as if nothing was."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

from tests.faults.forks import End, Fault, PointLog, noted_points, run_forked
from tests.faults.points import Operation
from tests.faults.powerloss import SHOWN, Recorder, after_loss, recorded
from tests.faults.trainer import Stage

EXIT_INTERRUPTED = 75
SLOWEST_STOP = 10.0  # seconds from a signal to the exit
POLITE = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Failed(Exception):
    """A trial whose end is not the uninterrupted run's."""


def expect(held: bool, problem: str) -> None:
    """Raise Failed unless it held."""
    if not held:
        raise Failed(problem)


class TrainerTrials:
    """Trials of one stage."""

    def __init__(self, stage: Stage, *, scratch: Path) -> None:
        """Run the stage once without a fault, and note its failure points."""
        self.stage, self._scratch = stage, scratch
        self._points = scratch / "points.jsonl"
        stage.clear(key=None)
        self._run()
        self.key = stage.key()
        self.expected = self._again(key=self.key)
        self.points = noted_points(self._points)

    def _again(self, *, key: bytes | None) -> Any:
        self.stage.clear(key=key)
        self._run(visit=PointLog(self._points))
        return self.stage.result()

    def _run(self, **how: Any) -> End:
        return run_forked(self.stage.work, folder=self.stage.project.folder, log=self.stage.log, **how)

    def at_point(self, fault: Fault, *, whole: bool) -> None:
        """Kill at a failure point. `whole`: the key is not there yet, and is drawn by the run that is killed."""
        self.stage.clear(key=None if whole else self.key)
        end = self._run(visit=fault.visitor())
        if fault.signal == signal.SIGKILL:
            expect(end.signal == signal.SIGKILL, f"it was not killed but ended with {end}")
        else:
            expect(end.code in (0, EXIT_INTERRUPTED), f"{signal.Signals(fault.signal).name} ended it with {end}")
        self._finish()

    def at_moment(self, *, seconds: float, number: int) -> None:
        """Send a signal at a moment."""
        self.stage.clear(key=self.key)
        end = self._run(send=(seconds, number))
        if number in POLITE:
            expect(end.code in (0, EXIT_INTERRUPTED) or end.signal == number, f"it ended with {end}")
            expect(end.seconds < SLOWEST_STOP, f"it took {end.seconds:.1f} s to stop")
        self._finish()

    def after_power_loss(self, *, count: int, model: str, start: Path, operations: list[Operation]) -> None:
        """Go on from what a loss of power leaves after the first `count` operations."""
        after_loss(start, operations, count=count, model=SHOWN, folder=self.stage.folder)
        seen = self.stage.visible_steps()
        after_loss(start, operations, count=count, model=model, folder=self.stage.folder)
        self._finish(seen=seen)

    def recording(self, *, whole: bool) -> tuple[Path, list[Operation]]:
        """Return a copy of the stage's folder before it runs, and what it then does. `whole`: as in `at_point`."""
        self.stage.clear(key=None if whole else self.key)
        self.stage.folder.mkdir(parents=True, exist_ok=True)
        start = self._scratch / f"start {self.stage.name} {whole}"
        shutil.rmtree(start, ignore_errors=True)
        shutil.copytree(self.stage.folder, start)
        record = self._scratch / "record"
        done = run_forked(
            self.stage.work, folder=self.stage.project.folder, log=self.stage.log, visit=_Within(self.stage, record)
        )
        expect(done.code == 0, f"the recorded run ended with {done}")
        return start, recorded(record)

    def _finish(self, *, seen: int | None = None) -> None:
        """Run the same command again, and compare. `seen`: the last step whose result somebody could have seen."""
        if self.key is not None:
            seen, counted = self.stage.visible_steps() if seen is None else seen, self.stage.recorded_steps()
            expect(counted >= seen, f"the results of {seen} steps could be seen, but {counted} are recorded")
        end = self._run()
        expect(end.code == 0, f"the same command ended with {end}")
        key = self.stage.key()
        expected = self.expected if key == self.key else None
        found = self.stage.result()
        if expected is None:  # it drew another key: compare with a run that was given that one
            expected = self._again(key=key)
        expect(found == expected, "its result is not the uninterrupted run's")


class _Within:
    """A recorder of what happens in a stage's folder, with paths relative to it."""

    def __init__(self, stage: Stage, record: Path) -> None:
        self._recorder, self._inside = Recorder(record), str(stage.folder.relative_to(stage.project.folder))

    def __call__(self, when: str, operation: Operation) -> None:
        if operation.is_in(self._inside):
            names = {
                name: os.path.relpath(getattr(operation, name), self._inside)
                for name in ("path", "target")
                if getattr(operation, name) is not None
            }
            self._recorder(when, Operation(**{**vars(operation), **names}))
