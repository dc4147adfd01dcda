"""A stage on two processes, started by the rule: stopped, killed, and finished by one process with an equal result."""

import copy
import json
import os
import signal
from pathlib import Path

import pytest

from tests.waiting import wait_for
from tests.workflow.conftest import TINY, stop_group
from tests.workflow.test_interruption import EXPERT, TARGETS, alive, finish, log_of, start_and_reach, trainer_pid

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

STEPS = 24


def configured(project, *, processes):
    configuration = copy.deepcopy(TINY)
    configuration["defaults"]["sft"].update(max_steps=STEPS, eval_steps=12, processes_per_job=processes)
    project.configure(configuration)
    return project


def processes_of(project):
    """Return the ids of all training processes of the job, first the one of the first process."""
    first = trainer_pid(project)
    launcher = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(map(int, children), key=lambda pid: pid != first)


def trained(project):
    from sealed_experts.training.checkpoints import load_state

    return load_state(project.folder / "results" / "experts" / EXPERT / "sft" / "adapter_final.pt")


def test_two_processes_stopped_then_killed_then_one(prepared):
    project = configured(prepared, processes=2)

    snakemake = start_and_reach(project, 4)
    pids = processes_of(project)
    assert len(pids) == 2
    stop_group(snakemake, signal.SIGTERM)
    wait_for(lambda: not any(map(alive, pids)))
    state = json.loads((project.folder / f"results/experts/{EXPERT}/sft/state.json").read_text())
    assert (state["state"], "received SIGTERM" in state["error"]) == ("interrupted", True)

    project.snakemake(flags=("--unlock",))
    snakemake = start_and_reach(project, state["step"] + 4)
    assert f"resumed after step {state['step']} of {STEPS}" in log_of(project)
    pids = processes_of(project)
    os.kill(pids[1], signal.SIGKILL)
    assert snakemake.wait(timeout=60) != 0
    wait_for(lambda: not any(map(alive, pids)))
    assert "process 1 of this job was ended by SIGKILL" in log_of(project)

    finish(configured(project, processes=1))
    assert "of the run with processes: 2; now processes: 1" in log_of(project)
    state = trained(project)
    assert [line["step"] for line in state["history"] if "loss" in line] == list(range(1, STEPS + 1))
    assert (state["environment"]["processes"], state["privacy"]["steps"]) == (1, STEPS)
    # Another number of processes does not make a finished adapter stale.
    assert not {rule for rule in configured(project, processes=2).planned(*TARGETS) if rule.startswith("train")}
