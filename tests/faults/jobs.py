"""Trials of jobs that make their file at one go, sealing and assembly: killed, or without power, and run once more."""

import io
import json
import os
import shlex
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from tests.faults.forks import Fault, PointLog, noted_points, run_forked
from tests.faults.points import Operation, Visitor
from tests.faults.powerloss import SHOWN, Recorder, after_loss, recorded
from tests.faults.trainer import main_of
from tests.faults.trials import expect
from tests.workflow.conftest import Project


class Job:
    """One job of a finished project, which is run in forks."""

    def __init__(self, project: Project, *, rule: str, output: str) -> None:
        """Ask Snakemake for its command line and standard input, and load its script."""
        self.project, self.name, self.output = project, rule, project.folder / output
        printed = project.snakemake(output, flags=("--dry-run", "--printshellcmds", "--forcerun", rule)).stdout
        script = f"scripts/{rule}.py"
        command, _, rest = printed[printed.index(f"exec python {script}") :].partition(" > results/")
        self._arguments = shlex.split(command)[2:]
        self._input = rest.partition("END_OF_SETTINGS'\n")[2].partition("\nEND_OF_SETTINGS")[0]
        self._main = main_of(project.folder / script)

    def work(self) -> int:
        """Do what the job does; to be called in a fork."""
        from sealed_experts.packages.keys.private_keys import key_path

        os.environ.update(self.project.environment())
        os.environ["SEALED_EXPERTS_KEY"] = str(key_path().absolute())  # as rules/common.smk does
        sys.argv, sys.stdin = self._arguments, io.StringIO(self._input)
        return self._main()


class JobTrials:
    """Trials of one job. What it can change is its output's folder and the owner's home, with the release log."""

    def __init__(self, job: Job, *, scratch: Path) -> None:
        """Run the job once without a fault, and note its failure points and its operations."""
        self.job, self._start = job, scratch / f"start {job.name}"
        self._root = job.project.folder.parent
        self._places = [os.path.relpath(path, self._root) for path in (job.output.parent, job.project.home)]
        record, self._log, self._left = scratch / "record", scratch / f"{job.name}.log", scratch / "left"
        job.output.unlink(missing_ok=True)
        shutil.rmtree(job.project.home / "releases", ignore_errors=True)
        for place in self._places:
            shutil.copytree(self._root / place, self._start / place)
        note, point = Recorder(record), PointLog(scratch / "points")

        def visit(when: str, operation: Operation) -> None:
            note(when, operation)
            point(when, operation)

        end = self._run(visit=visit)
        expect(end == 0, f"the job ended with {end}; see {self._log}")
        self.operations = [part for part in recorded(record) if any(part.is_in(place) for place in self._places)]
        self.points = noted_points(scratch / "points")
        self._expected = self._content()

    def at_point(self, fault: Fault) -> None:
        """Kill it at a failure point."""
        self._put(self._start)
        end = self._run(visit=fault.visitor())
        expect(end != 0, f"{signal.Signals(fault.signal).name} left it running to its end")
        self._finish(seen=self.job.output.exists())

    def after_power_loss(self, *, count: int, model: str) -> None:
        """Go on from what a loss of power leaves after the first `count` operations."""
        lose_power = partial(after_loss, self._start, self.operations, count=count, folder=self._left)
        lose_power(model=SHOWN)
        seen = (self._left / os.path.relpath(self.job.output, self._root)).exists()
        lose_power(model=model)
        self._put(self._left)
        self._finish(seen=seen)

    def _finish(self, *, seen: bool) -> None:
        """Run it again and compare. `seen`: somebody could have had its file, so the log must hold its release."""
        releases = {name: content for name, content in self._expected.items() if "/releases/" in f"/{name}"}
        left = self._content()
        missing = [name for name, content in releases.items() if left.get(name) != content]
        expect(not (seen and missing), f"its file could be seen, but the release log lacks {missing}")
        end = self._run()
        expect(end == 0, f"the same command ended with {end}; see {self._log}")
        expect(self._content() == self._expected, "what it left is not the uninterrupted job's")

    def _run(self, *, visit: Visitor | None = None) -> int | None:
        folder = self.job.project.folder
        return run_forked(self.job.work, folder=folder, watched=self._root, log=self._log, visit=visit).code

    def _put(self, source: Path) -> None:
        for place in self._places:
            shutil.rmtree(self._root / place)
            if (source / place).is_dir():
                shutil.copytree(source / place, self._root / place)

    def _content(self) -> dict[str, bytes]:
        """Return every file but those that a killed process did not finish, and locks, which name who held them."""
        return {
            os.path.relpath(path, self._root): _without_numbers(path)
            for place in self._places
            for path in (self._root / place).rglob("*")
            if path.is_file() and not path.name.endswith((".tmp", ".lock"))
        }


def _without_numbers(path: Path) -> bytes:
    """Return a file's content; of the release log, without the numbers that say what came before what.

    A job that was killed between the two events of one version numbers them apart: no version came between.
    """
    content = path.read_bytes()
    if path.parent.parent.name == "releases":
        content = json.dumps({**json.loads(content), "entered": None}).encode()
    return content
