"""Adapters that stages learn from: which are found, in what circle they may not stand, and what is private of them."""

import json

import pytest

from sealed_experts.configuration.jobs import stage_settings
from sealed_experts.configuration.model_checks import datasets_behind, models_of
from sealed_experts.configuration.resolution import resolve
from sealed_experts.errors import UserError
from sealed_experts.settings.merging import merge

CHEAP = {"delta": 1e-3, "target_epsilon": 20}


def document(folder, **changes):
    """Three experts on preferences: the second learns from the first, the third from the second."""
    for name in ("one", "two", "three"):
        rows = [{"prompt": f"{name} {n}", "chosen": "yes", "rejected": "no"} for n in range(50)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    described = {
        "datasets": {name: {"source": "files", "paths": [f"{name}.jsonl"], "kind": "pair"} for name in ("one", "two")},
        "defaults": {"privacy": CHEAP, "dpo": {"batch_size": 4, "max_steps": 5}},
        "experts": {
            "a": {"dataset": "one", "stages": ["dpo"], "routing": {"keywords": ["x"]}},
            "b": {
                "dataset": "two",
                "stages": ["dpo"],
                "routing": {"keywords": ["y"]},
                "dpo": {"reference": {"expert": "a"}},
            },
            "c": {
                "dataset": "two",
                "stages": ["dpo"],
                "routing": {"keywords": ["z"]},
                "dpo": {"reference": {"expert": "b", "stage": "dpo"}},
            },
        },
    }
    return merge(described, changes)


def told(folder, **changes):
    with pytest.raises(UserError) as caught:
        resolve(document(folder, **changes), root=folder)
    return [line.strip() for line in str(caught.value).split("\n")[1:]]


def test_all_data_behind_an_adapter_are_found(tmp_path):
    settings = resolve(document(tmp_path), root=tmp_path)
    assert models_of(settings, ("b", "dpo")) == {"reference": ("a", "dpo")}
    assert datasets_behind(settings, "a") == ["one"]
    assert datasets_behind(settings, "c") == ["two", "one"]


def test_data_behind_what_is_declared_public_do_not_count(tmp_path):
    settings = resolve(document(tmp_path, experts={"b": {"dpo": {"reference": {"public": True}}}}), root=tmp_path)
    assert datasets_behind(settings, "b") == ["two"]
    assert datasets_behind(settings, "b", public=True) == ["two", "one"]


def test_the_last_stage_and_its_name_are_the_same_settings(tmp_path):
    texts = {
        stage_settings(resolve(document(tmp_path, experts=change), root=tmp_path), "b", "dpo")
        for change in ({}, {"b": {"dpo": {"reference": {"stage": "dpo"}}}})
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("experts", "line"),
    [
        (
            {"b": {"dpo": {"reference": {"expert": "aa"}}}},
            'experts.b.dpo.reference.expert: "aa" is not an expert; did you mean `a`?',
        ),
        (
            {"b": {"dpo": {"reference": {"stage": "sft"}}}},
            'experts.b.dpo.reference.stage: "sft" is not a stage of expert `a`, which has `dpo`',
        ),
        (
            {"b": {"dpo": {"reference": {"expert": "b"}}}},
            "experts.b.dpo.reference.expert: the adapter of b.dpo learns from this very stage: name one that is made"
            " before",
        ),
        (
            {"b": {"privacy": {"target_epsilon": 10}}},
            "experts.b.privacy.target_epsilon: 10.0 is below the 20.0 of a.dpo, from which `dpo` learns: its ε is a"
            " part of this one",
        ),
        (
            {"a": {"privacy": {"noise_multiplier": "auto"}}},
            "defaults.privacy.target_epsilon: 20.0 is only the 20.0 of a.dpo, from which `dpo` learns: with"
            " `noise_multiplier: auto` that stage spends all of it; raise it",
        ),
        (
            {"b": {"dpo": {"privacy": {"delta": 2e-3}}}},
            "experts.b.dpo.privacy.delta: 0.002 is above the 0.001 of a.dpo, from which `dpo` learns: δ must suit its"
            " data too",
        ),
        (
            {"c": {"dpo": {"reference": {"public": True}}}},
            "experts.c.dpo.reference.public: b.dpo learned from `two`, which `c` keeps private: remove `public`, so"
            " that its ε is counted",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, experts, line):
    assert line in told(tmp_path, experts=experts)


def test_public_is_refused_also_where_another_expert_comes_back_to_the_data(tmp_path):
    """a learns `one`; b takes a as public; c, on `one`, learns from b: what a spent would never count for c."""
    experts = {"b": {"dpo": {"reference": {"public": True}}}, "c": {"dataset": "one"}}
    line = "experts.b.dpo.reference.public: a.dpo learned from `one`, which `c` keeps private: remove `public`"
    assert any(found.startswith(line) for found in told(tmp_path, experts=experts))


def test_public_is_refused_where_two_datasets_read_one_file(tmp_path):
    datasets = {"again": {"source": "files", "paths": ["two.jsonl"], "kind": "pair"}}
    experts = {"a": {"dataset": "again"}, "b": {"dpo": {"reference": {"public": True}}}}
    (line,) = told(tmp_path, datasets=datasets, experts=experts)
    assert line.startswith("experts.b.dpo.reference.public: a.dpo learned from `two`, which `b` keeps private")


def test_other_units_are_refused_before_the_first_job(tmp_path):
    datasets = {"one": {"unit": "prompt"}}
    lines = told(tmp_path, datasets=datasets)
    assert any(line.startswith("experts.b.dpo.reference.expert: a.dpo protects units of `one`") for line in lines)


def test_a_reference_of_another_template_is_refused(tmp_path):
    (line,) = told(tmp_path, experts={"a": {"template": "chatml"}})
    assert line == (
        "experts.b.dpo.reference.expert: `a` learned with the template `chatml`, and `b` uses `alpaca`: give both the"
        " same `template`"
    )


def test_a_circle_of_experts_is_refused_at_each_of_its_stages(tmp_path):
    lines = told(tmp_path, experts={"a": {"dpo": {"reference": {"expert": "c"}}}})
    assert [line.partition(":")[0] for line in lines] == [f"experts.{name}.dpo.reference.expert" for name in "abc"]


@pytest.mark.parametrize("setting", ["patience", "keep"])
def test_private_validation_cannot_choose_the_weights(tmp_path, setting):
    value = {"patience": 3, "keep": "best"}[setting]
    experts = {"a": {"dpo": {setting: value, "eval_steps": 1}}}
    (line,) = told(tmp_path, experts=experts)
    assert line.startswith(f"experts.a.dpo.{setting}: ")
    assert "held-out records of `one`, which are private" in line
    for allowed in ({"datasets": {"one": {"public_evaluation": True}}}, {"defaults": {"privacy": {"enabled": False}}}):
        resolve(document(tmp_path, experts=experts, **allowed), root=tmp_path)


def test_a_patience_that_cannot_act_is_refused(tmp_path):
    (line,) = told(tmp_path, experts={"a": {"dpo": {"patience": 3}, "privacy": {"enabled": False}}})
    assert line == (
        "experts.a.dpo.patience: 3 validations, one every 100 steps, end no earlier than the 5 steps of the training:"
        " lower it or dpo.eval_steps, or remove it"
    )


def test_a_stage_takes_only_its_own_kind_of_records(tmp_path):
    (line,) = told(tmp_path, experts={"a": {"stages": ["sft"]}, "b": {"dpo": {"reference": None}}})
    assert "stage `sft` cannot learn from records of kind `pair`" in line
