"""The demo's settings, one expert, under privacy: the reward rises significantly, and its cost is shown."""

import copy
import json
import math

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


def test_the_gain_in_reward_is_above_zero_and_the_model_stays_close(demo):
    evaluation = read(demo, "evaluation.json")
    (gain,) = (gain for gain in evaluation["gains"] if gain["to"] == "reinforce")
    assert gain["metrics"]["reward"]["low"] > 0, gain
    assert evaluation["models"]["reinforce"]["kl"] <= 0.5
    assert evaluation["checks"]["reward_gain_above_zero"]
    assert evaluation["checks"]["kl_at_most_0.5"]


def test_what_the_gain_cost_is_judged_by_the_figures_themselves(demo):
    """The noise costs some perplexity, so the demo's gain may not count. The checks must agree with the figures."""
    evaluation = read(demo, "evaluation.json")
    before, after = (evaluation["models"][name] for name in ("sft", "reinforce"))
    loss_before, loss_after = (model["metrics"]["loss"]["mean"] for model in (before, after))
    assert loss_after <= 1.1 * loss_before
    worse = math.exp(loss_after - loss_before)
    assert len(evaluation["checks"]) == 4
    assert evaluation["checks"]["perplexity_at_most_5_percent_worse"] == (worse <= 1.05)
    cut = after["truncated_share"] <= before["truncated_share"]
    assert evaluation["checks"]["cut_answers_not_more_frequent"] == cut


def test_both_stages_together_stay_within_the_budget(demo):
    privacy = read(demo, "rl/rl_metrics.json")["privacy"]
    assert 0 < read(demo, "sft/training_metrics.json")["privacy"]["epsilon"] < privacy["epsilon"] <= 8.0
    assert [event["stage"] for event in privacy["events"]] == ["sft", "reinforce"]


def test_compare_says_whether_it_counts_and_why_not(demo):
    printed = demo.tool("compare", EXPERT).stdout
    checks = read(demo, "evaluation.json")["checks"]
    assert ("counts" if all(checks.values()) else "does not count") in printed
    assert ("does not count" in printed) == (not all(checks.values()))
    assert ("share of cut answers rose" in printed) == (not checks["cut_answers_not_more_frequent"])
