"""The demo's settings, one expert, under privacy: the reward on held-out prompts rises significantly."""

import copy
import json

import pytest
import yaml

from tests.workflow.conftest import ROOT, new_project

# A separate group: it takes minutes and shares nothing with the other workflow tests.
pytestmark = [pytest.mark.workflow, pytest.mark.slow, pytest.mark.xdist_group("reward_gain")]

EXPERT = "banking_expert"
FOLDER = f"results/experts/{EXPERT}"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's banking expert, fine-tuned and refined."""
    configuration = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    configuration["experts"] = {EXPERT: copy.deepcopy(configuration["experts"][EXPERT])}
    project = new_project(tmp_path_factory.mktemp("gain") / "demo", tmp_path_factory.mktemp("home"))
    project.configure(configuration)
    metrics = (f"{FOLDER}/sft/training_metrics.json", f"{FOLDER}/rl/rl_metrics.json")
    project.snakemake(f"{FOLDER}/evaluation.json", *metrics, seconds=2400)
    return project


def read(demo, name):
    return json.loads((demo.folder / FOLDER / name).read_text())


def test_the_gain_in_reward_is_above_zero_and_bought_with_nothing(demo):
    evaluation = read(demo, "evaluation.json")
    (gain,) = (gain for gain in evaluation["gains"] if gain["to"] == "reinforce")
    assert gain["metrics"]["reward"]["low"] > 0, gain
    models = evaluation["models"]
    assert models["reinforce"]["kl"] <= 0.5
    before, after = (models[name]["metrics"]["loss"]["mean"] for name in ("sft", "reinforce"))
    assert after <= 1.1 * before
    assert len(evaluation["checks"]) == 3
    assert all(evaluation["checks"].values())


def test_both_stages_together_stay_within_the_budget(demo):
    privacy = read(demo, "rl/rl_metrics.json")["privacy"]
    assert 0 < read(demo, "sft/training_metrics.json")["privacy"]["epsilon"] < privacy["epsilon"] <= 8.0
    assert [event["stage"] for event in privacy["events"]] == ["sft", "reinforce"]


def test_compare_says_that_it_counts(demo):
    printed = demo.tool("compare", EXPERT).stdout
    assert "counts" in printed
    assert "does not count" not in printed
