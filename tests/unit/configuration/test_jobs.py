"""The canonical texts that rules get: equal for equal settings, different where a result would differ."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sealed_experts.configuration import jobs
from sealed_experts.configuration.document import Settings
from sealed_experts.configuration.resolution import resolve
from sealed_experts.data.job import dataset_from_json
from sealed_experts.data.sources.files import Files
from sealed_experts.data.sources.hub import Hub
from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.models.job import base_from_json
from sealed_experts.moe.job import moe_from_json
from sealed_experts.packages.job import package_from_json
from sealed_experts.settings.merging import merge
from sealed_experts.training.job import stage_from_json
from sealed_experts.training.objectives.sft import Sft

COMMIT = "8faed761d45a263340a0528343f099c05c9a4323"
DOCUMENT: dict[str, Any] = {
    "seed": 1,
    "device": "cpu",
    "datasets": {
        "a": {"source": "demo", "domain": "banking"},
        "b": {"source": "demo", "domain": "investment"},
        "ab": {"source": "combined", "of": ["a", "b"]},
    },
    "defaults": {"sft": {"batch_size": 8, "max_steps": 10}, "privacy": {"max_grad_norm": 0.5}},
    "experts": {
        "one": {"dataset": "a", "routing": {"keywords": ["x", "y"]}},
        "two": {"dataset": "ab", "routing": {"keywords": ["z"]}},
    },
}


def settings_of(**changes: Any) -> Settings:
    return resolve(merge(copy.deepcopy(DOCUMENT), changes), root=Path("/nonexistent"))


def texts(settings: Settings) -> dict[str, str]:
    """Return every text that makes something stale."""
    found = {"base": jobs.base_settings(settings), "moe": jobs.moe_settings(settings)}
    for name in settings.datasets:
        found[f"data {name}"] = jobs.dataset_settings(settings, name)
    for name in settings.by_name:
        found[f"sft {name}"] = jobs.stage_settings(settings, name, "sft")
        found[f"package {name}"] = jobs.package_settings(settings, name)
    return found


def stale(**changes: Any) -> set[str]:
    before, after = texts(settings_of()), texts(settings_of(**changes))
    return {name for name in before if before[name] != after[name]}


CHAIN_OF_BOTH = {"sft one", "sft two"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"experts": {"one": {"sft": {"learning_rate": 0.5}}}}, {"sft one"}),
        ({"experts": {"one": {"sft": {"privacy": {"noise_multiplier": 2}}}}}, {"sft one"}),
        ({"experts": {"one": {"adapter": {"rank": 2}}}}, {"sft one", "package one"}),
        ({"experts": {"one": {"template": "chatml"}}}, {"sft one", "package one"}),
        ({"experts": {"one": {"routing": {"keywords": ["new"]}}}}, {"package one", "moe"}),
        ({"experts": {"one": {"routing": {"match": "substring"}}}}, {"package one", "moe"}),
        ({"experts": {"one": {"version": "2.0.0"}}}, {"package one"}),
        ({"experts": {"one": {"description": "new"}}}, {"package one"}),
        ({"moe": {"he_config": {"scale_bits": 39}}}, {"moe"}),
        ({"moe": {"gatelink_config": {"max_epsilon": 11}}}, {"moe"}),
        ({"defaults": {"sft": {"weight_decay": 0}}}, CHAIN_OF_BOTH),
        ({"defaults": {"sft": {"eval_steps": 3}}}, CHAIN_OF_BOTH),
        ({"datasets": {"a": {"records": 60}}}, {"data a"}),
        ({"datasets": {"a": {"public_evaluation": False}}}, {"package one"}),
        ({"base": {"demo": {"layers": 3}}}, {"base"}),
        ({"base": {"dtype": "float32"}}, {"base"}),
        ({"seed": 2}, {"base", "data a", "data b", "data ab", *CHAIN_OF_BOTH}),
        # How a stage is run makes nothing stale.
        ({"device": "auto"}, set()),
        ({"base": {"demo": {"threads": 1}}}, set()),
        *(
            ({"defaults": {"sft": {name: value}}}, set())
            for name, value in {
                "log_steps": 1, "checkpoint_steps": 3, "checkpoint_minutes": 1, "keep_checkpoints": 5,
                "token_budget": 99, "gradient_checkpointing": "on", "threads": 1,
            }.items()
        ),
    ],
)  # fmt: skip
def test_an_edit_makes_stale_what_it_changes_and_nothing_else(changes: dict[str, Any], expected: set[str]) -> None:
    assert stale(**changes) == expected


def test_the_order_of_experts_concerns_the_mixture_alone() -> None:
    swapped = copy.deepcopy(DOCUMENT)
    swapped["experts"] = dict(reversed(swapped["experts"].items()))
    before, after = texts(settings_of()), texts(resolve(swapped, root=Path()))
    assert {name for name in before if before[name] != after[name]} == {"moe"}
    assert [expert["name"] for expert in json.loads(after["moe"])["experts"]] == ["two", "one"]


def reordered(value: Any, path: str = "") -> Any:
    """Return the document with every mapping's keys reversed but for the experts, whose order has a meaning."""
    if not isinstance(value, dict):
        return value
    items = value.items() if path == ".experts" else reversed(value.items())
    return {key: reordered(item, f"{path}.{key}") for key, item in items}


def test_the_order_of_keys_changes_nothing() -> None:
    assert texts(resolve(reordered(DOCUMENT), root=Path())) == texts(settings_of())


@pytest.mark.parametrize(
    "same",
    [
        {"defaults": {"sft": {"batch_size": None, "micro_batch_size": 1, "gradient_accumulation": 8}}},
        {"defaults": {"sft": {"batch_size": None, "micro_batch_size": 4, "gradient_accumulation": 2}}},
        {"defaults": {"sft": {"batch_size": None}}},  # 8 is built in
        {"defaults": {"sft": {"batch_size": 8.0, "max_steps": 10.0}}},
        {"defaults": {"privacy": {"noise_multiplier": 1}}},
        {"defaults": {"adapter": {"alpha": 16.0, "rank": 8.0}}},
        {"experts": {"one": {"sft": {"max_steps": 10}, "privacy": {"max_grad_norm": 0.5}}}},
        {"experts": {"one": {"sft": {"privacy": {"max_grad_norm": 0.5}}}}},
        {"base": {"name": "demo"}},
    ],
)
def test_another_spelling_of_the_same_settings_changes_nothing(same: dict[str, Any]) -> None:
    assert stale(**same) == set()


def test_privacy_that_is_off_has_one_spelling() -> None:
    off = settings_of(defaults={"privacy": {"enabled": False}})
    other = settings_of(defaults={"privacy": {"enabled": False, "noise_multiplier": 3, "target_epsilon": 1}})
    assert texts(off) == texts(other)
    assert texts(off)["sft one"] != texts(settings_of())["sft one"]


def test_the_texts_are_canonical_json() -> None:
    for text in texts(settings_of()).values():
        assert canonical_json(json.loads(text)) == text


def test_two_experts_with_the_same_settings_have_different_texts() -> None:
    settings = settings_of(experts={"two": {"dataset": "a"}})
    assert jobs.stage_settings(settings, "one", "sft") != jobs.stage_settings(settings, "two", "sft")


def test_a_stage_is_read_back_as_it_was() -> None:
    settings = settings_of(defaults={"sft": {"micro_batch_size": 2, "gradient_accumulation": 4, "batch_size": None}})
    numbers, how = jobs.stage_settings(settings, "one", "sft"), jobs.stage_operation(settings, "one", "sft")
    files = dict.fromkeys(("base", "train", "val", "stats", "start", "checkpoints", "output"), Path("x"))
    run = stage_from_json(numbers, how, **files)
    expert = settings.by_name["one"]
    assert (run.expert, run.stage, run.seed, run.device, run.template) == ("one", "sft", 1, "cpu", "alpaca")
    assert run.adapter == expert.adapter
    assert run.settings.logical_batch == expert.stage("sft").logical_batch == 8
    assert run.settings.part(operation=True) == expert.stage("sft").part(operation=True)
    assert run.settings.privacy == expert.stage("sft").privacy
    assert isinstance(run.settings, Sft)


def test_datasets_are_read_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("instruction,answer,customer\n")
    datasets = {
        "a": {"source": "files", "paths": ["x.csv"], "fields": {"output": "answer"}, "unit": "customer"},
        "b": {"source": "hub", "path": "org/data", "revision": COMMIT, "name": "en", "unit": "customer"},
    }
    settings = resolve(merge(DOCUMENT, {"datasets": datasets}), root=tmp_path)
    for name, kind in {"a": Files, "b": Hub}.items():
        run = dataset_from_json(jobs.dataset_settings(settings, name))
        assert isinstance(run.dataset, kind)
        assert (run.name, run.seed, run.dataset) == (name, 1, settings.datasets[name])
    combined = dataset_from_json(jobs.dataset_settings(settings, "ab"))
    assert combined.dataset == settings.datasets["ab"]


def test_the_base_is_read_back_as_it_was() -> None:
    settings = settings_of(base={"demo": {"layers": 2, "threads": 1}})
    run = base_from_json(jobs.base_settings(settings), jobs.base_operation(settings))
    assert (run.key, run.seed, run.device, run.base) == ("demo", 1, "cpu", settings.base)
    hub = settings_of(base={"name": "org/Some-Model", "revision": COMMIT, "model_type": "qwen2"})
    run = base_from_json(jobs.base_settings(hub))
    assert (run.key, run.base) == ("some-model", hub.base)


def test_the_seed_belongs_to_the_demo_base_alone() -> None:
    base = {"name": "org/model", "revision": COMMIT}
    assert jobs.base_settings(settings_of(base=base)) == jobs.base_settings(settings_of(base=base, seed=2))


def test_package_and_mixture_are_read_back_as_they_were() -> None:
    settings = settings_of(experts={"one": {"description": "d", "version": "1.2.3"}})
    run = package_from_json(jobs.package_settings(settings, "one"))
    expert = settings.by_name["one"]
    assert (run.name, run.version, run.description, run.stages) == ("one", "1.2.3", "d", ("sft",))
    assert (run.adapter, run.routing, run.public_evaluation) == (expert.adapter, expert.routing, True)
    mixture = moe_from_json(jobs.moe_settings(settings))
    assert [member.name for member in mixture.experts] == ["one", "two"]
    assert [member.dataset for member in mixture.experts] == ["a", "ab"]
    assert [member.routing for member in mixture.experts] == [expert.routing for expert in settings.experts]
    assert (mixture.base, mixture.revision) == ("demo", None)
    assert mixture.he_config == settings.moe.he_config
    assert mixture.gatelink_config == settings.moe.gatelink_config


def test_texts_of_something_else_are_refused() -> None:
    settings = settings_of()
    with pytest.raises(UserError, match="these settings should hold"):
        stage_from_json(jobs.package_settings(settings, "one"), jobs.stage_operation(settings, "one", "sft"))
    with pytest.raises(UserError, match="not JSON"):
        dataset_from_json("{")
    with pytest.raises(UserError, match="no expert is called 'three'"):
        jobs.stage_settings(settings, "three", "sft")
    with pytest.raises(UserError, match="expert one has no stage 'rl'"):
        jobs.stage_settings(settings, "one", "rl")
