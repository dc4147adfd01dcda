"""Each metric alone: what it gives a case, and what it says of itself."""

import math

import pytest

from sealed_experts.metrics import METRICS, Case, metric_of
from sealed_experts.rewards import REWARDS, Score


def case(prediction: str | None = None, gold: str = "gold", **changes) -> Case:
    return Case(question="What?", gold=gold, prediction=prediction, **changes)


@pytest.mark.parametrize(
    ("prediction", "gold", "value"),
    [
        ("A loan.", "A loan.", 1),
        ("  a\tLOAN.\n", "A loan.", 1),
        ("STRASSE", "Straße", 1),  # case folding, not lower case
        ("Zinsen fu\u0308r", "zinsen f\u00fcr", 1),  # composed and decomposed letters
        ("A loan", "A loan.", 0),  # punctuation is text
        ("Aloan.", "A loan.", 0),
        ("\ufb01nance", "finance", 1),  # a ligature folds into its letters
        ("²", "2", 0),  # NFC, not NFKC
    ],
)
def test_exact_match_forgives_case_and_white_space_alone(prediction, gold, value):
    assert METRICS["exact_match"]().values(case(prediction, gold)) == {"exact_match": value}


def test_what_has_no_answer_has_no_value():
    for prediction in ("", None):
        assert METRICS["exact_match"]().values(case(prediction)) == {}
    assert METRICS["reward"]().values(case("said")) == {}
    assert METRICS["loss"]().values(case("said")) == {}


def test_loss_is_the_mean_over_a_records_own_tokens_and_weighs_by_them():
    metric, one = METRICS["loss"](), case(loss=6.0, tokens=4)
    assert metric.values(one) == {"loss": 1.5}
    parts = [metric.parts(one, 1.5), metric.parts(case(loss=1.0, tokens=1), 1.0)]
    assert metric.figure(*map(sum, zip(*parts, strict=True))) == 7 / 5


def test_perplexity_is_e_to_the_power_of_the_loss():
    metric = METRICS["perplexity"]()
    assert metric.values(case(loss=6.0, tokens=4)) == {"perplexity": 1.5}
    assert metric.shown(1.5) == math.e**1.5
    assert metric.shown(1000.0) is None


def test_a_reward_comes_with_its_axes():
    reward = REWARDS["finance"]()
    scored = case("said", score=Score(0.75, {"safety": 1.0, "repetition": 0.25}))
    metric = METRICS["reward"]()
    assert metric.values(scored) == {"reward": 0.75, "reward.safety": 1.0, "reward.repetition": 0.25}
    assert metric.described("reward", reward) == {
        **{"metric": "reward", "title": "Reward", "unit": "mean, 0 to 1", "higher_is_better": True}
    }
    assert metric.described("reward.safety", reward)["unit"] == f"weight {reward.weights['safety']:g}"
    assert metric.described("reward.repetition", reward)["unit"] == "for information"
    assert metric_of("reward.part.safety") is METRICS["reward"]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_tables_need(name):
    metric = METRICS[name]
    assert metric.__doc__
    assert metric.title
    assert metric.worst is None or metric.needs != "losses"
    assert metric().described(name, None)["metric"] == name
