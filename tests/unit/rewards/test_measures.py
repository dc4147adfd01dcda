"""Keywords, length, format, and rewards combined: against values worked out by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.errors import UserError
from sealed_experts.rewards import REWARDS
from sealed_experts.rewards.making.maker import make_reward, reward_source

KEYWORDS = ("fee", "interest rate", "401(k)", "C++")


def value(name, response, **options):
    score = make_reward(name, dict(**options)).score("a prompt", response)
    assert score.axes == {name: score.value}
    return score.value


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("", 0.0),
        ("the FEE", 0.25),
        ("fees", 0.0),  # as written: no plural
        ("coffee", 0.0),
        ("fee fee fee", 0.25),
        ("fee_2", 0.25),
        ("an interest\n rate and a fee", 0.5),
        ("interest-rate", 0.0),
        ("my 401(k)s", 0.25),
        ("a 1401(k)", 0.0),
        ("C++, 401(K), a fee: interest rate", 1.0),
        ("ｆｅｅ", 0.25),
    ],
)
def test_keyword_contains(response, share):
    assert value("keyword_contains", response, keywords=KEYWORDS) == share


def test_keywords_with_apostrophes_match_both_kinds():
    assert value("keyword_contains", "the bank’s", keywords=("bank's",)) == 1
    assert value("keyword_contains", "the bank's", keywords=("bank’s",)) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (0, 0.0),
        (1, 0.25),
        (2, 0.5),
        (3, 0.75),
        (4, 1.0),
        (10, 1.0),
        (11, 0.9),
        (15, 0.5),
        (19, 0.1),
        (20, 0.0),
        (99, 0.0),
    ],
)
def test_length_penalty(words, expected):
    assert value("length_penalty", " word\n" * words, min_words=4, max_words=10) == pytest.approx(expected)


def test_length_penalty_without_a_least_length():
    assert value("length_penalty", "", max_words=1) == 1
    assert value("length_penalty", "one", min_words=1, max_words=1) == 1
    assert value("length_penalty", "one two", min_words=1, max_words=1) == 0


@pytest.mark.parametrize(
    "response",
    [
        *("{}", "[]", ' {"a": [1, null]} \n', "[1,\n2]"),
        *('```json\n{"a": 1}\n```', "Here it is:\n```\n[1]\n```\nDone.", "  ```JSON\n{}\n  ```"),
    ],
)
def test_json(response):
    assert value("format_compliance", response) == 1


@pytest.mark.parametrize(
    "response",
    [
        *("", "1", '"text"', "null", "{", "{} {}", "{'a': 1}", '{"a": 1,}', '{"a": NaN}', '{"a": 1, "a": 2}', "See {}"),
        *("```\n{}\n```\n```\n{}\n```", "```\n{}", "```{}```", "```\n1\n```", "[" * 100_000, "```\n" * 100_000),
    ],
)
def test_no_json(response):
    assert value("format_compliance", response) == 0


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner)).map(lambda x: [x]))
def test_whatever_json_writes_is_json(content):
    assert value("format_compliance", json.dumps(content)) == 1
    assert value("format_compliance", json.dumps(content)[:-1]) == 0


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("", 0.0),
        ("1. a", 0.0),  # one item is no list
        ("1. a\n2. b", 1.0),
        ("1. a\n\n  2. b\n3.  c", 1.0),
        ("Steps:\n1. a\n2. b\n3. c", 0.75),
        ("1. a\n1. b\n2. c", 2 / 3),
        ("2. a\n3. b", 0.0),
        ("1. a\n3. b\n2. c", 2 / 3),
        ("1) a\n2) b", 0.0),
        ("1.a\n2.b", 0.0),
        ("1. \n2. ", 0.0),
        ("\n".join(f"{n}. x" for n in range(1, 13)), 1.0),
        ("9" * 10_000 + ". x\n1. a\n2. b", 2 / 3),
    ],
)
def test_numbered_list(response, share):
    assert value("format_compliance", response, format="numbered_list") == pytest.approx(share)


def test_composite_is_the_weighted_mean_with_every_axis():
    parts = (
        {"reward": "finance", "weight": 3.0},
        {"reward": "keyword_contains", "keywords": ("fee",), "weight": 0.5},
        {"reward": "keyword_contains", "keywords": ("tax", "fee"), "weight": 0.5},
    )
    reward = make_reward("composite", {"parts": parts})
    score = reward.score("Why?", "A fee.")
    finance = make_reward("finance", {}).score("Why?", "A fee.")
    assert score.value == pytest.approx(0.75 * finance.value + 0.125 * 1 + 0.125 * 0.5)
    assert score.axes == {
        **{f"finance.{axis}": number for axis, number in finance.axes.items()},
        "keyword_contains": 1.0,
        "keyword_contains#2": 0.5,
    }
    assert reward.weights == pytest.approx(
        {
            "finance.format": 0.3,
            "finance.terminology": 0.225,
            "finance.relevance": 0.15,
            "finance.safety": 0.075,
            "keyword_contains": 0.125,
            "keyword_contains#2": 0.125,
        }
    )


@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), response=st.text())
def test_a_composite_of_equal_parts_is_the_part(weights, response):
    parts = tuple({"reward": "finance", "weight": weight} for weight in weights)
    combined = make_reward("composite", {"parts": parts}).score("a prompt", response)
    assert combined.value == pytest.approx(make_reward("finance", {}).score("a prompt", response).value)
    assert len(combined.axes) == 4 * len(weights)


NAMED = {
    "finance": {},
    "keyword_contains": {"keywords": ("a", "the")},
    "length_penalty": {"min_words": 2, "max_words": 5},
    "format_compliance": {"format": "numbered_list"},
    "composite": {"parts": ({"reward": "finance"}, {"reward": "length_penalty"})},
}


@pytest.mark.parametrize("name", REWARDS)
@given(prompt=st.text(), response=st.text(), penalty=st.sampled_from([0.0, 0.3, 1.0]))
def test_every_reward_stays_in_its_range_and_is_the_sum_of_its_axes(name, prompt, response, penalty):
    options = NAMED[name]
    reward = make_reward(name, dict(**{**options, "repetition_penalty": penalty}))
    score = reward.score(prompt, response)
    assert reward.name == name
    assert sum(reward.weights.values()) == pytest.approx(1)
    assert set(reward.weights) == set(score.axes) - {"repetition"}
    assert all(0 <= number <= 1 for number in (score.value, *score.axes.values()))
    expected = sum(weight * score.axes[axis] for axis, weight in reward.weights.items())
    assert score.value == pytest.approx(expected * (1 - penalty * score.axes.get("repetition", 0)))
    assert ("repetition" in score.axes) == (penalty > 0)


def test_every_reward_is_described_and_reads_no_file():
    assert all(REWARDS[name].about for name in REWARDS)
    assert all(reward_source(name, NAMED[name]) == [] for name in REWARDS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fianance", {}, "did you mean `finance`?"),
        ("poetry", {}, "known here: `finance`"),
        ("my_rewards.score", {}, '"module:function"'),
        ("keyword_contains", {}, "keywords: none are given"),
        ("keyword_contains", {"keywords": (" ",)}, "keywords[0]"),
        ("finance", {"keywords": ("a",)}, "keywords: the reward `finance` does not know this setting"),
        ("length_penalty", {"min_words": 200}, "200 is above max_words, which is 100"),
        ("length_penalty", {"max_words": 0}, "max_words: 0 is not a whole number of at least 1"),
        ("format_compliance", {"format": "xml"}, 'format: "xml" is not one of `json`, `numbered_list`'),
        ("finance", {"repetition_penalty": 1.5}, "repetition_penalty: 1.5 is not a number from 0 to 1"),
        ("finance", {"repetition_penalty": float("nan")}, "repetition_penalty"),
        ("composite", {}, "parts: none are given"),
        ("composite", {"parts": ({"reward": "composite"},)}, "parts[0].reward: a composite holds no composite"),
        (
            "composite",
            {"parts": ({"reward": "finance", "weight": 0.0},)},
            "parts[0].weight: 0 is not a number above 0",
        ),
        ("composite", {"parts": ({"reward": "finance", "weight": float("inf")},)}, "parts[0].weight"),
        ("composite", {"parts": ({"reward": "finace"},)}, "parts[0].reward"),
        ("composite", {"parts": ({"reward": "keyword_contains"},)}, "parts[0].keywords: none are given"),
        ("nowhere_at_all:f", {}, "there is no module `nowhere_at_all`"),
    ],
)
def test_mistakes_say_what_would_be_right(name, options, message):
    with pytest.raises(UserError) as caught:
        make_reward(name, dict(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
