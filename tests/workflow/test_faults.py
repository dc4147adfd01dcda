"""A sample of the fault sweep (`make faults` runs all of it)."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.faults.jobs import Job, JobTrials
from tests.faults.killed_workflow import configuration
from tests.faults.sweep import SEALING, sealing_trials
from tests.workflow.conftest import Project

pytestmark = pytest.mark.workflow


def test_a_sample_of_kills_and_losses_of_power_ends_exactly():
    counts = ["--trainer", "6", "--power", "4", "--sealing", "0", "--workflow", "0"]
    command = [sys.executable, "-m", "tests.faults.sweep", *counts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 10 | 0 |" in done.stdout


@pytest.mark.slow
@pytest.mark.xdist_group("workflow")
def test_a_sample_of_kills_in_sealing_and_assembly_ends_exactly(finished, tmp_path):
    # A new home: a key with deterministic signatures, and a release log, which must also be equal.
    project = Project(finished.copy(tmp_path / "top" / "whole").folder, tmp_path / "top" / "home")
    project.configure(configuration())
    project.snakemake()
    (tmp_path / "scratch").mkdir()
    for rule, output in SEALING:
        trials = JobTrials(Job(project, rule=rule, output=output), scratch=tmp_path / "scratch")
        for trial in sealing_trials(trials, count=8, seed=0):
            trial.run()
