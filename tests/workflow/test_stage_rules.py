"""The rules of stages are made in a loop: each must get its own settings, files and resources, not the last stage's."""

import copy
import json
import re
import shlex

import pytest

from sealed_experts.training.objectives import STAGES
from tests.workflow.conftest import TINY

pytestmark = [pytest.mark.workflow, pytest.mark.xdist_group("workflow")]

PROCESSES = {"sft": 1, "reinforce": 2, "dpo": 3}


@pytest.fixture(scope="module")
def commands(finished, planner, tmp_path_factory):
    """{(stage, expert): the words of the command} of a dry-run that trains every stage."""
    project = finished.copy(tmp_path_factory.mktemp("stage_rules") / "project")
    rows = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(120)]
    (project.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    described = copy.deepcopy(TINY)
    described["datasets"]["pairs"] = {"source": "files", "kind": "pair", "paths": ["pairs.jsonl"]}
    common = {key: described["defaults"]["sft"][key] for key in ("max_seq_len", "eval_steps", "eval_examples")}
    described["defaults"]["dpo"] = common
    for stage, count in PROCESSES.items():
        described["defaults"][stage]["processes_per_job"] = count
        described["defaults"][stage]["log_steps"] = 10 + count
    described["experts"]["preferring"] = {
        "dataset": "pairs",
        "stages": ["dpo"],
        "dpo": {"reference": {"expert": "banking_expert", "stage": "sft"}},
        "routing": {"keywords": ["yes"]},
    }
    project.configure(described, "stages.yaml")
    _, printed = planner.plan(project, "all", config="stages.yaml", flags=("--forceall", "--printshellcmds"))
    found = {}
    for line in re.findall(r"^\s*(?:Shell command: )?(exec .*train_stage\.py.*)$", printed, re.MULTILINE):
        words = shlex.split(line)
        found[json.loads(words[words.index("--settings") + 1])["stage"], folder_of(words)] = words
    return found


def folder_of(words):
    return words[words.index("--output") + 1].split("/")[2]


def value_of(words, option):
    return words[words.index(option) + 1]


def test_every_stage_is_planned_for_its_experts(commands):
    assert PROCESSES.keys() == STAGES.keys(), "this test names every stage"
    assert commands.keys() == {
        ("sft", "banking_expert"),
        ("reinforce", "banking_expert"),
        ("sft", "investment_expert"),
        ("sft", "shared_attention"),
        ("dpo", "preferring"),
    }


def test_each_command_is_its_own_stages(commands):
    for (stage, expert), words in commands.items():
        settings, operation = (json.loads(value_of(words, option)) for option in ("--settings", "--operation"))
        assert settings["expert"] == expert
        assert ("rollout_batch_size" in settings["training"], "beta" in settings["training"]) == (
            stage == "reinforce",
            stage == "dpo",
        )
        assert operation["training"]["log_steps"] == 10 + PROCESSES[stage]
        folder = f"results/experts/{expert}/{STAGES[stage].folder()}"
        assert value_of(words, "--output") == f"{folder}/{STAGES[stage].adapter_file}"
        assert value_of(words, "--checkpoints") == f"{folder}/checkpoints"
        assert ("--processes" in words) == (PROCESSES[stage] > 1)
        if PROCESSES[stage] > 1:
            assert value_of(words, "--processes") == str(PROCESSES[stage])


def test_only_a_stage_that_follows_another_starts_from_it(commands):
    starts = {key: value_of(words, "--start") for key, words in commands.items() if "--start" in words}
    assert starts == {("reinforce", "banking_expert"): "results/experts/banking_expert/sft/adapter_final.pt"}
    models = {key: words[words.index("--model") + 1 :][:2] for key, words in commands.items() if "--model" in words}
    assert models == {("dpo", "preferring"): ["reference", "results/experts/banking_expert/sft/adapter_final.pt"]}
