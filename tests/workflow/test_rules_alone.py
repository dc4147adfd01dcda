"""Every rule alone: its recorded command, in a folder with only the program and the rule's declared inputs.

A file that a rule reads without declaring it is missing there, so a rule that would miss an edit fails. The output is
compared with the output in the whole run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sealed_experts.training.objectives import STAGES
from tests.measured import without_times
from tests.workflow.conftest import ROOT, TREE
from tests.workflow.world import recorded_jobs

CONFIGURED = ("sft", "reinforce")
pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

# What no job of the two runs below makes: targets, and what another test runs.
ELSEWHERE = {"all", "data", *STAGES, "packages", "moe", "report_inputs"}
ELSEWHERE |= {"fetch_base_model"}  # test_own_data.py: a base in a folder, and a hub without network
# The same rules serve every stage, and these runs show two of them.
ELSEWHERE |= {f"{verb}_{stage}" for verb in ("train", "summarize") for stage in STAGES if stage not in CONFIGURED}
WRITTEN = {
    name
    for path in [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
    for name in re.findall(r"^rule (\w+):", path.read_text(), re.MULTILINE)
}
MADE = {*STAGES, *(f"{verb}_{stage}" for verb in ("train", "summarize") for stage in STAGES)}
MADE |= {"evaluate_expert", "evaluate_expert_sft"}  # a rule for each chain of stages
RULES = sorted(WRITTEN | MADE)
COLD = {"export_peft", "check_composition"}  # no other test starts their scripts in a process of their own
IN_THE_WORLD = {"seal_expert", "plot_training", "plot_rewards", "tabulate_metrics", "tabulate_evaluations"}


def test_every_rule_is_run_by_a_test(finished, world):
    ran = {job["rule"] for project in (finished, world) for job in recorded_jobs(project)}
    assert ran.isdisjoint(ELSEWHERE)
    assert ran | ELSEWHERE == set(RULES) == set(finished.snakemake(flags=("--list-rules",)).stdout.split())


@pytest.mark.parametrize("rule", sorted(set(RULES) - ELSEWHERE))
def test_a_rule_needs_only_what_it_declares(finished, world, tmp_path, rule):
    project = world if rule in IN_THE_WORLD else finished
    job = next(job for job in recorded_jobs(project) if job["rule"] == rule)
    alone = tmp_path / "alone"
    provide(job, source=project.folder, folder=alone)
    path = os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", job["shellcmd"]],
        cwd=alone,
        env=project.environment(PATH=path, **({} if rule in COLD else project.warm)),
        capture_output=True,
        text=True,
        check=False,
    )
    log = (alone / job["log"][0]).read_text()
    assert done.returncode == 0, done.stderr + log
    for output in job["output"]:
        assert content(alone / output, project, tmp_path) == content(project.folder / output, project, tmp_path), output


def provide(job, *, source, folder):
    """Copy the program and the job's declared inputs, and make the folders of its outputs, as Snakemake does."""
    for name in TREE:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore=shutil.ignore_patterns("__pycache__", "demo", "test.yaml"))
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy2(path, folder / name)
    for name in job["input"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/base.json"):  # it represents its folder: it lists the folder's files with digests
            shutil.copytree((source / name).parent, (folder / name).parent, dirs_exist_ok=True)
        else:
            shutil.copy2(source / name, folder / name)
    for name in [*job["output"], *job["log"]]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)


def content(path, project, tmp_path):
    """Return what must be equal in two outputs of the same job: everything but measured times and random signatures."""
    from sealed_experts.training.checkpoints import load_state, tensors_digest

    if path.suffix == ".pt":
        state = load_state(path)
        return tensors_digest(state.pop("model_state_dict")), state["step"], state["privacy"], state["settings"]
    if path.suffix in (".tgsp", ".expert"):
        unpacked = tmp_path / f"{path.parent.parent.parent.name} {path.name}"
        project.tool("unpack", str(path), str(unpacked))
        return {member.name: member.read_bytes() for member in unpacked.iterdir() if "signature" not in member.name}
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    return path.read_bytes()
