"""Trials of the whole workflow: the trainer, Snakemake or both are killed, and the documented command goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.trials import Failed, expect
from tests.measured import without_times
from tests.workflow.conftest import TINY, Project, new_project

TRAINER, SNAKEMAKE, BOTH = "the trainer", "Snakemake", "both"


@dataclass(frozen=True, kw_only=True)
class Death:
    """Who gets which signal, after what share of an uninterrupted run's time."""

    victim: str
    signal: int
    share: float

    def __str__(self) -> str:
        return f"{signal.Signals(self.signal).name} to {self.victim} at {self.share:.0%} of a run"


class WorkflowTrials:
    """Runs of three experts from SFT and REINFORCE to packages and mixture, on finished data and base."""

    def __init__(self, folder: Path) -> None:
        """Run it once without a fault."""
        self.finished = new_project(folder / "whole", folder / "home")
        self.finished.configure(configuration())
        data = [f"results/data/{name}/stats.json" for name in ("banking", "investment", "combined")]
        self.finished.snakemake("results/base/demo/base.json", *data)
        self._trial = folder / "trial"
        self._start = self.finished.copy(folder / "start")
        begun = time.monotonic()
        _run(self.finished)
        self._seconds = time.monotonic() - begun
        self._expected = outcome(self.finished)

    def deaths(self, *, count: int, random_: random.Random) -> Iterator[Death]:
        """Draw who is killed when, every victim and signal in turn."""
        kinds = [
            (victim, number)
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
            for victim in (SNAKEMAKE, TRAINER, BOTH)
        ]
        for index in range(count):
            victim, number = kinds[index % len(kinds)]
            yield Death(victim=victim, signal=number, share=random_.uniform(0.05, 0.95))

    def die(self, death: Death) -> None:
        """Kill, run the documented command, and compare every artifact."""
        shutil.rmtree(self._trial, ignore_errors=True)
        project = self._start.copy(self._trial)
        process = project.start()
        try:
            time.sleep(death.share * self._seconds)
            _kill(process, death)
            try:
                process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                raise Failed("Snakemake did not end within 90 s of the signal") from None
            _run(project)  # beside what the dead may have left running
        finally:
            for left in _processes_of(process.pid):
                os.kill(left, signal.SIGKILL)
        found = outcome(project)
        for name in sorted(self._expected.keys() | found.keys()):
            expect(found.get(name) == self._expected.get(name), f"{name} is not the uninterrupted run's")


def configuration() -> dict[str, Any]:
    """Return the tiny project's, whose packages are the same bytes each time."""
    tiny: dict[str, Any] = json.loads(json.dumps(TINY))
    tiny["defaults"]["package"] = {"signatures": ["ed25519"], "containers": ["tgsp", "expert"]}
    return tiny


def outcome(project: Project) -> dict[str, Any]:
    """Return every artifact without measured times: tensors by digest, packages and configuration by their bytes."""
    from sealed_experts.training.checkpoints import load_state, tensors_digest

    results = project.folder / "results"
    found: dict[str, Any] = {}
    for path in sorted(results.glob("experts/*/*/adapter*.pt")):
        found[str(path.relative_to(results))] = tensors_digest(load_state(path)["model_state_dict"])
    for pattern in (
        "experts/*/*/*_metrics.json",
        "experts/*/selection.json",
        "experts/*/evaluation.json",
        "moe/*.json",
    ):
        for path in sorted(results.glob(pattern)):
            found[str(path.relative_to(results))] = without_times(json.loads(path.read_text()))
    for pattern in ("experts/*/peft/*", "experts/*/predictions/*", "packages/*"):
        for path in sorted(results.glob(pattern)):
            found[str(path.relative_to(results))] = path.read_bytes()
    return found


def _run(project: Project) -> None:
    """Do what the documentation says, after a kill too."""
    command = [sys.executable, "-m", "sealed_experts.cli.main", "run", *project.command()[3:]]
    done = subprocess.run(
        command,
        cwd=project.folder,
        env=project.environment(PYTHONPATH=str(project.folder / "scripts")),
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    expect(done.returncode == 0, f"the documented command ended with {done.returncode}: {done.stderr[-600:]}")


def _kill(process: "subprocess.Popen[bytes]", death: Death) -> None:
    if death.victim == SNAKEMAKE:
        process.send_signal(death.signal)
    elif death.victim == BOTH:
        os.killpg(process.pid, death.signal)
    else:
        # Between two jobs there is nobody to kill: then the next one dies as it starts.
        while process.poll() is None and not (jobs := _processes_of(process.pid, running="scripts/")):
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(jobs[0], death.signal)


def _processes_of(session: int, *, running: str = "") -> list[int]:
    """Return the processes of a session; of those, with `running`, the ones that a word of their command starts so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            mine = os.getsid(int(folder.name)) == session
        except (OSError, ValueError):
            continue
        # A shell that starts the script holds its name too, within the one word after -c.
        if mine and any(word.startswith(running) for word in words) and not (running and "-c" in words):
            found.append(int(folder.name))
    return found
