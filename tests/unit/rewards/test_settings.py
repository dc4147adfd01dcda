"""Mistakes in a stage's reward, told with the configuration's other mistakes and without running any module."""

import pytest

from sealed_experts.rewards.making.checks import reward_mistakes
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.layers import Layers
from sealed_experts.training.objectives.reinforce import Reinforce


def told(own=None, *, defaults=None, overrides=None):
    document = {
        "defaults": {"reinforce": defaults or {}},
        "experts": {"a": {"reinforce": own or {}}},
        "overrides": {"reinforce": overrides or {}},
    }
    layers = Layers.of(document, "a")
    stage = parse_group(Reinforce, layers.stage("reinforce"))
    return [str(mistake) for mistake in reward_mistakes(stage.reward, stage.reward_options, layers, "reinforce")]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sound_module.py").write_text("raise RuntimeError('was run')\n")


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"reward": "finance", "reward_options": {"repetition_penalty": 0.5}},
        {"reward": "keyword_contains", "reward_options": {"keywords": ["fee"]}},
        {"reward": "length_penalty", "reward_options": {"min_words": 5, "max_words": 5}},
        {"reward": "format_compliance", "reward_options": {"format": "numbered_list"}},
        {"reward": "sound_module:f", "reward_options": {"repetition_penalty": 1}},
        {
            "reward": "composite",
            "reward_options": {"parts": [{"reward": "finance"}, {"reward": "sound_module:f", "weight": 2}]},
        },
    ],
)
def test_sound(own):
    assert told(own) == []


@pytest.mark.parametrize(
    ("own", "mistake"),
    [
        ({"reward": "finanse"}, 'experts.a.reinforce.reward: "finanse" is no reward; did you mean `finance`?'),
        (
            {"reward": "sound_module.f"},
            '"sound_module.f" is no reward; a function of your own is written "module:function"',
        ),
        ({"reward": "no_module_here:f"}, "experts.a.reinforce.reward: there is no module `no_module_here` in "),
        ({"reward": "sound_module.inner:f"}, "there is no module `sound_module.inner`"),
        (
            {"reward_options": {"keywords": ["fee"]}},
            "experts.a.reinforce.reward_options.keywords: the reward `finance` does not know this setting; it is for"
            " `keyword_contains`",
        ),
        (
            {"reward": "sound_module:f", "reward_options": {"parts": [{"reward": "finance"}]}},
            "experts.a.reinforce.reward_options.parts: the reward `sound_module:f` does not know",
        ),
        (
            {"reward": "keyword_contains"},
            "experts.a.reinforce.reward_options.keywords: none are given; list at least one",
        ),
        (
            {"reward": "length_penalty", "reward_options": {"min_words": 101}},
            "experts.a.reinforce.reward_options.min_words: 101 is above max_words, which is 100",
        ),
        ({"reward": "composite"}, "experts.a.reinforce.reward_options.parts: none are given"),
        (
            {"reward": "composite", "reward_options": {"parts": [{"reward": "finance"}, {"reward": "composite"}]}},
            "experts.a.reinforce.reward_options.parts[1].reward: a composite holds no composite",
        ),
        (
            {"reward": "composite", "reward_options": {"parts": [{"reward": "finance", "min_words": 3}]}},
            "experts.a.reinforce.reward_options.parts[0].min_words: the reward `finance` does not know this setting",
        ),
        (
            {"reward": "composite", "reward_options": {"parts": [{"reward": "finance"}], "format": "numbered_list"}},
            "experts.a.reinforce.reward_options.format: the reward `composite` does not know this setting",
        ),
    ],
)
def test_one_mistake(own, mistake):
    found = told(own)
    assert len(found) == 1
    assert mistake in found[0]


def test_mistakes_stand_where_they_were_written():
    options = {"reward_options": {"min_words": 7}}
    assert told(defaults={"reward": "nothing"})[0].startswith("defaults.reinforce.reward:")
    assert told({"reward": "finance"}, defaults=options)[0].startswith("defaults.reinforce.reward_options.min_words:")
    assert told({"reward": "finance"}, overrides=options)[0].startswith("overrides.reinforce.reward_options.min_words:")
    assert told(options, defaults=options)[0].startswith("experts.a.reinforce.reward_options.min_words:")


def test_options_of_an_inherited_reward_can_be_replaced():
    inherited = {"reward": "length_penalty", "reward_options": {"min_words": 7}}
    (mistake,) = told({"reward": "finance"}, defaults=inherited)
    assert mistake.endswith('remove it, or give `reward_options: {}` beside "experts.a.reinforce.reward"')
    assert told({"reward": "finance", "reward_options": {}}, defaults=inherited) == []


def test_every_mistake_of_a_composite_is_told():
    parts = [{"reward": "nothing"}, {"reward": "keyword_contains"}, {"reward": "no_module_here:f"}]
    found = told({"reward": "composite", "reward_options": {"parts": parts}})
    assert [line.split(": ")[0].rpartition("reward_options.")[2] for line in found] == [
        "parts[0].reward",
        "parts[1].keywords",
        "parts[2].reward",
    ]
