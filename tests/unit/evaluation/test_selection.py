"""Which stage of an expert is shipped: the rule's settings, the choice, and what of it leaves the machine."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sealed_experts.configuration import jobs
from sealed_experts.configuration.document import Settings
from sealed_experts.configuration.jobs import selection_settings
from sealed_experts.configuration.resolution import resolve
from sealed_experts.errors import UserError
from sealed_experts.evaluation.selection import SelectionJob, selected_stage, selection_from_json
from sealed_experts.files.canonical import canonical_json, read_json, write_json
from sealed_experts.moe.job import moe_from_json
from sealed_experts.settings.merging import merge
from tests.attacks import building
from tests.conftest import ROOT

DOCUMENT: dict[str, Any] = {
    "datasets": {"a": {"source": "demo"}},
    "experts": {
        "one": {"dataset": "a", "stages": ["sft", "reinforce"], "routing": {"keywords": ["x"]}},
        "two": {"dataset": "a", "stages": ["sft", "reinforce"], "routing": {"keywords": ["y"]}},
    },
}


def measured(*, loss: Any, reward: Any) -> dict[str, Any]:
    return {"metrics": {"loss": {"mean": loss}, "reward": {"mean": reward, "low": 0.5, "high": 0.53}}}


MODELS: dict[str, Any] = {
    "base": measured(loss=0.5, reward=0.99),  # is no stage, and never chosen
    "sft": measured(loss=2.125, reward=0.515625),
    "reinforce": measured(loss=2.25, reward=0.640625),
}


def settings_of(**changes: Any) -> Settings:
    return resolve(merge(copy.deepcopy(DOCUMENT), changes), root=Path("/nonexistent"))


class Results:
    """The metrics and the evaluation of one expert."""

    def __init__(self, folder: Path) -> None:
        self.metrics = [folder / "sft" / "training_metrics.json", folder / "rl" / "rl_metrics.json"]
        self.adapters = [str(folder / "sft" / "adapter_final.pt"), str(folder / "rl" / "adapter_rl_final.pt")]
        self.evaluation = folder / "evaluation.json"
        for metrics, adapter in zip(self.metrics, self.adapters, strict=True):
            write_json(metrics, {"adapter_file": adapter})
        self.evaluate()

    def evaluate(self, expert: str = "one", **models: Any) -> None:
        write_json(self.evaluation, {"expert": expert, "models": {**MODELS, **models}, "samples": []})

    def select(
        self, select: str = "best", metric: str | None = "reward", stages=("sft", "reinforce")
    ) -> dict[str, Any]:
        run = SelectionJob(expert="one", stages=stages, select=select, metric=metric)
        return selected_stage(run, metrics=self.metrics[: len(stages)], evaluation=self.evaluation)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def test_the_last_stage_is_shipped_without_a_look_at_held_out_records(results: Results) -> None:
    run = SelectionJob(expert="one", stages=("sft", "reinforce"), select="last", metric=None)
    assert selected_stage(run, metrics=results.metrics, evaluation=None) == {
        "expert": "one",
        "stage": "reinforce",
        "adapter": results.adapters[1],
        "metrics": str(results.metrics[1]),
        "receipt": str(results.metrics[1]),
        "reason": "the last of the stages sft, reinforce",
        "candidates": ["sft", "reinforce"],
        "select": "last",
    }
    results.evaluate(sft=measured(loss=0.1, reward=1.0))
    assert results.select("last", None)["stage"] == "reinforce"


@pytest.mark.parametrize(
    ("metric", "chosen", "values"),
    [
        ("reward", "reinforce", {"sft": 0.515625, "reinforce": 0.640625}),
        ("loss", "sft", {"sft": 2.125, "reinforce": 2.25}),
    ],
)
def test_the_best_has_the_higher_reward_or_the_lower_loss(
    results: Results, metric: str, chosen: str, values: dict[str, float]
) -> None:
    selection = results.select(metric=metric)
    place = ["sft", "reinforce"].index(chosen)
    assert (selection["stage"], selection["adapter"]) == (chosen, results.adapters[place])
    assert selection["metrics"] == str(results.metrics[place])
    assert selection["reason"] == f"the best of sft, reinforce by {metric} on held-out records"
    assert (selection["select"], selection["metric"], selection["values"]) == ("best", metric, values)
    assert selection["candidates"] == ["sft", "reinforce"]


@pytest.mark.parametrize("metric", ["reward", "loss"])
def test_a_worse_stage_is_not_chosen_wherever_it_stands(results: Results, metric: str) -> None:
    for stage, other in (("sft", "reinforce"), ("reinforce", "sft")):
        results.evaluate(**{stage: measured(loss=9.0, reward=0.1)})
        assert results.select(metric=metric)["stage"] == other


def test_a_part_of_a_metric_decides_as_the_metric_does(results: Results) -> None:
    safe = {
        stage: {"metrics": {"reward.safety": {"mean": value}}} for stage, value in (("sft", 0.75), ("reinforce", 0.5))
    }
    results.evaluate(**safe)
    selection = results.select(metric="reward.safety")
    assert (selection["stage"], selection["metric"]) == ("sft", "reward.safety")


@pytest.mark.parametrize("metric", ["reward", "loss"])
def test_of_equals_the_later_stage_is_shipped(results: Results, metric: str) -> None:
    results.evaluate(reinforce=MODELS["sft"])
    assert results.select(metric=metric)["stage"] == "reinforce"


def test_an_earlier_stage_carries_the_receipt_of_the_whole_chain(results: Results) -> None:
    """That it was chosen over a later one says something about the later one's weights."""
    selection = results.select(metric="loss")
    assert selection["stage"] == "sft"
    assert selection["receipt"] == str(results.metrics[1])


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_chain_of_one_stage_has_no_choice(results: Results, select: str) -> None:
    selection = results.select(select, "loss" if select == "best" else None, stages=("sft",))
    assert (selection["stage"], selection["reason"]) == ("sft", "the only stage")
    assert selection["receipt"] == selection["metrics"]


@pytest.mark.parametrize(
    ("metric", "model", "message"),
    [
        ("reward", {"metrics": {"loss": {"mean": 1.0}}}, r"metrics\.reward\.mean must be a number, not None"),
        ("reward", measured(loss=1.0, reward=None), r"metrics\.reward\.mean must be a number, not None"),
        ("reward", measured(loss=1.0, reward=True), r"metrics\.reward\.mean must be a number, not True"),
        ("loss", measured(loss=None, reward=1.0), r"metrics\.loss\.mean must be a number, not None"),
        ("loss", measured(loss="2.1", reward=1.0), r"metrics\.loss\.mean must be a number, not '2\.1'"),
        ("loss", {}, r"metrics\.loss\.mean must be a number, not None"),
        ("loss", None, r"metrics\.loss\.mean must be a number, not None"),
    ],
)
def test_a_value_that_is_missing_is_named(results: Results, metric: str, model: Any, message: str) -> None:
    results.evaluate(sft=model)
    with pytest.raises(UserError, match=rf"evaluation\.json: models\.sft\.{message}"):
        results.select(metric=metric)


def test_the_evaluation_must_be_there_and_be_the_experts(results: Results) -> None:
    results.evaluate(expert="two")
    with pytest.raises(UserError, match=r"evaluation\.json is not the evaluation of one"):
        results.select()
    results.evaluation.unlink()
    with pytest.raises(UserError, match=r"evaluation\.json does not exist"):
        results.select()
    write_json(results.metrics[1], {})
    with pytest.raises(UserError, match=r"rl_metrics\.json names no adapter_file"):
        results.select("last", None)


def test_no_number_of_the_choice_enters_the_package(results: Results) -> None:
    selection = results.select()
    data = building.package(selection=selection, settings=building.run(stages=("sft", "reinforce")))
    assert b"the best of sft, reinforce by reward on held-out records" in data
    for value in selection["values"].values():
        assert str(value) in json.dumps(selection)
        assert str(value).encode() not in data


# The rule's settings


def test_the_settings_are_canonical_and_read_back() -> None:
    settings = settings_of(experts={"one": {"select": "best", "select_metric": "loss"}})
    text = selection_settings(settings, "one")
    assert canonical_json(json.loads(text)) == text
    assert selection_from_json(text) == SelectionJob(
        expert="one", stages=("sft", "reinforce"), select="best", metric="loss"
    )
    with pytest.raises(UserError, match="these settings should hold"):
        selection_from_json(jobs.package_settings(settings, "one"))


def test_how_to_choose_is_inherited() -> None:
    defaults = {"select": "best", "select_metric": "loss"}
    settings = settings_of(defaults=defaults, experts={"two": {"select": "last"}})
    assert selection_from_json(selection_settings(settings, "one")).metric == "loss"
    assert selection_from_json(selection_settings(settings, "two")).select == "last"
    settings = settings_of(defaults=defaults, overrides={"select_metric": "reward"})
    assert selection_from_json(selection_settings(settings, "two")).metric == "reward"


def texts(settings: Settings) -> dict[str, str]:
    found = {"moe": jobs.moe_settings(settings), "data": jobs.dataset_settings(settings, "a")}
    for name in settings.by_name:
        found[f"select {name}"] = selection_settings(settings, name)
        found[f"package {name}"] = jobs.package_settings(settings, name)
        for stage in ("sft", "reinforce"):
            found[f"{stage} {name}"] = jobs.stage_settings(settings, name, stage)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"experts": {"one": {"select": "best"}}}, {"select one"}),
        ({"experts": {"one": {"select": "best", "select_metric": "loss"}}}, {"select one"}),
        ({"defaults": {"select": "best"}}, {"select one", "select two"}),
        ({"experts": {"one": {"select_metric": "loss"}}}, set()),  # of no meaning to `last`
        ({"moe": {"max_epsilon": 6}}, {"moe"}),
    ],
)
def test_an_edit_makes_stale_what_it_changes_and_nothing_else(changes: dict[str, Any], expected: set[str]) -> None:
    before, after = texts(settings_of()), texts(settings_of(**changes))
    assert {name for name in before if before[name] != after[name]} == expected


def test_the_limit_of_the_mixture_is_read_back() -> None:
    for limit in (None, 6.5):
        settings = settings_of(moe={"max_epsilon": limit})
        assert moe_from_json(jobs.moe_settings(settings)).max_epsilon == limit


# The script


def chosen(results: Results, settings: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "select_stage.py"), "--settings", settings),
            *("--metrics", *map(str, results.metrics), *arguments),
            *("--output", str(results.evaluation.parent / "selection.json")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_script_chooses_as_its_settings_say(results: Results, tmp_path: Path) -> None:
    last = selection_settings(settings_of(), "one")
    best = selection_settings(settings_of(defaults={"select": "best", "select_metric": "loss"}), "one")
    # The rule leaves `--evaluation` without a value where it has none.
    for settings, evaluation, stage in ((last, [], "reinforce"), (best, [str(results.evaluation)], "sft")):
        done = chosen(results, settings, "--evaluation", *evaluation)
        assert done.returncode == 0, done.stderr
        assert read_json(tmp_path / "selection.json")["stage"] == stage


def test_the_script_tells_a_mistake_without_a_traceback_and_writes_nothing(results: Results, tmp_path: Path) -> None:
    best = selection_settings(settings_of(defaults={"select": "best"}), "one")
    done = chosen(results, best)
    assert done.returncode == 1
    assert done.stderr.startswith("error: `select: best` chooses among the stages of one by its evaluation.json")
    results.metrics.pop()
    assert "one file for each of sft, reinforce, in this order" in chosen(results, best).stderr
    assert not (tmp_path / "selection.json").exists()
