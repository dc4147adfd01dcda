"""From cases to figures: means over records, several answers, empty answers, gains, and sums of any kind."""

import math
import statistics
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy.stats import bootstrap

from sealed_experts.evaluation.bootstrap import Resampling
from sealed_experts.evaluation.measuring import Measured
from sealed_experts.metrics import METRICS, Case, Losses, Metric
from sealed_experts.rewards import Score

UNIT = [1] * 12
LOSS, REWARD, EXACT = (METRICS[name]() for name in ("loss", "reward", "exact_match"))


def losses(sums: Sequence[float], tokens: Sequence[int]) -> Losses:
    return Losses(sum(sums) / sum(tokens) if sum(tokens) else None, sums, tokens)


def scored(*answers: Sequence[float], of: Losses) -> Measured:
    """A model with these rewards, one of each list for each record."""
    cases = [
        [
            Case(
                question="?",
                gold="!",
                loss=of.sums[index],
                tokens=of.tokens[index],
                prediction="x",
                score=Score(value, {"tone": 1 - value}),
            )
            for value in values
        ]
        for index, values in enumerate(zip(*answers, strict=True))
    ]
    return Measured([LOSS, REWARD], cases, of)


def test_several_answers_to_a_prompt_count_as_one_prompt() -> None:
    """Twelve prompts with three answers each are twelve values, not 36: their means, to the last bit."""
    prompts = [number / 16 for number in range(12)]
    units = [number // 2 if number < 4 else number for number in range(12)]
    of = losses([1.0] * 12, UNIT)
    # Sixteenths are exact, and so are their means.
    spread = [[value + step for value in prompts] for step in (-0.25, 0.0, 0.25)]
    before, three, one = (scored(*given, of=of) for given in ([[0.5] * 12] * 3, spread, [prompts]))
    resampling = Resampling(units, seed=3)
    entry = three.entry(resampling)
    assert entry == one.entry(resampling)
    reward = entry["metrics"]["reward"]
    assert reward["low"] < reward["mean"] < reward["high"]
    assert (reward["min"], reward["max"], reward["count"]) == (0.0, 0.6875, 12)
    assert three.gains(before, resampling) == one.gains(before, resampling)


def test_what_makes_a_record_hard_cancels_out_of_a_gain() -> None:
    """Records of every difficulty that all gain the same: the gain is known exactly, and the figures are not."""
    hard = [number / 16 for number in range(12)]
    before = scored(hard, of=losses(hard, UNIT))
    after = scored([value + 0.125 for value in hard], of=losses([value - 0.25 for value in hard], UNIT))
    resampling = Resampling(range(12), seed=3)
    gain = after.gains(before, resampling)
    assert gain["loss"] == {"mean": -0.25, "low": -0.25, "high": -0.25}
    assert gain["reward"] == {"mean": 0.125, "low": 0.125, "high": 0.125}
    assert gain["reward.tone"] == {"mean": -0.125, "low": -0.125, "high": -0.125}
    reward = after.entry(resampling)["metrics"]["reward"]
    assert reward["low"] < reward["mean"] < reward["high"]


def test_the_loss_is_a_mean_over_tokens_and_records_without_any_do_not_count() -> None:
    of = losses([2.0, 9.0, 0.0], [1, 9, 0])
    entry = scored([0.1, 0.2, 0.3], of=of).entry(Resampling(range(3), seed=1))["metrics"]["loss"]
    assert entry == {
        **{"mean": 1.1, "low": None, "high": None, "min": 1.0, "max": 2.0},
        **{"count": 2, "coverage": pytest.approx(2 / 3)},
    }


def test_an_empty_or_missing_answer_counts_as_the_worst_and_lowers_the_coverage() -> None:
    said = ["Right", "", None, " right\n"]
    cases = [[Case(question="?", gold="right", prediction=text)] for text in said]
    model = Measured([EXACT], cases, losses([], []))
    entry = model.entry(Resampling(range(4), seed=1))["metrics"]["exact_match"]
    assert entry == {"mean": 0.5, "low": None, "high": None, "min": 0.0, "max": 1.0, "count": 4, "coverage": 0.5}
    assert [line for index in range(4) for line in model.predictions(index)] == [
        {"prediction": text, "scores": {"exact_match": value}} for text, value in zip(said, (1, 0, 0, 1), strict=True)
    ]


def test_a_reward_says_itself_what_an_empty_answer_is_worth_and_a_missing_one_is_worth_nothing() -> None:
    axes = {"safety": 1.0}
    cases = [
        [Case(question="?", gold="!", prediction="", score=Score(0.25, axes))],
        [Case(question="?", gold="!", prediction="x", score=Score(0.5, axes))],
        [Case(question="?", gold="!")],
    ]
    metrics = Measured([REWARD], cases, losses([], [])).entry(Resampling(range(3), seed=1))["metrics"]
    assert metrics["reward"]["mean"] == 0.25
    assert metrics["reward.safety"]["mean"] == pytest.approx(2 / 3)
    assert {name: entry["coverage"] for name, entry in metrics.items()} == dict.fromkeys(metrics, pytest.approx(1 / 3))


def test_perplexity_is_e_to_the_power_of_the_loss_and_of_the_ends_of_its_interval() -> None:
    generator = np.random.default_rng(1)
    tokens = generator.integers(1, 9, size=40).tolist()
    of = losses([count * value for count, value in zip(tokens, generator.gamma(2.0, size=40), strict=True)], tokens)
    cases = [[Case(question="?", gold="!", loss=of.sums[i], tokens=tokens[i])] for i in range(40)]
    model = Measured([LOSS, METRICS["perplexity"]()], cases, of)
    metrics = model.entry(Resampling(range(40), seed=2))["metrics"]
    for name in ("mean", "low", "high", "min", "max"):
        assert metrics["perplexity"][name] == math.exp(metrics["loss"][name])
    assert model.gains(model, Resampling(range(40), seed=2)).keys() == {"loss"}
    huge = Measured([METRICS["perplexity"]()], [[Case(question="?", gold="!", loss=1e4, tokens=1)]], losses([1e4], [1]))
    assert huge.predictions(0)[0]["scores"] == {"perplexity": None}  # JSON has no infinity


class Corpus(Metric):
    """Letters of the answers that are vowels, of all letters: a ratio of sums, with a square root to be no mean."""

    title: ClassVar[str] = "Vowels"
    feature = "corpus"

    def measure(self, case: Case) -> float:
        return math.sqrt(_vowels(case.answer) / len(case.answer))

    def parts(self, case: Case, value: float) -> tuple[float, ...]:
        return (_vowels(case.answer), len(case.answer))

    def figure(self, *sums: Any) -> Any:
        return (sums[0] / sums[1]) ** 0.5


class Ratio(Corpus):
    """The same without the root: a mean whose weights differ from model to model."""

    feature = "corpus"
    figure = Metric.figure


def _vowels(text: str) -> int:
    return sum(letter in "aeiou" for letter in text)


@pytest.mark.parametrize("metric", [Corpus(), Ratio()], ids=lambda metric: type(metric).__name__)
def test_a_figure_of_sums_is_that_of_all_records_together(metric: Metric) -> None:
    """BLEU is one: against scipy's bootstrap of the sums, for the figure and for what it gains."""
    generator = np.random.default_rng(3)
    texts = [
        ["".join(generator.choice(list("abcde"), size=size)) for size in generator.integers(1, 9, 30)] for _ in "12"
    ]
    before, after = (
        Measured([metric], [[Case(question="?", gold="!", prediction=text)] for text in said], losses([], []))
        for said in texts
    )
    resampling = Resampling(range(30), seed=5, resamples=999)
    sums = [np.array([[_vowels(text), len(text)] for text in said]).T for said in texts]
    exponent = 0.5 if type(metric) is Corpus else 1.0

    def figure(vowels: Any, letters: Any, axis: int = -1) -> Any:
        return (vowels.sum(axis=axis) / letters.sum(axis=axis)) ** exponent

    def gain(*columns: Any, axis: int = -1) -> Any:
        return figure(*columns[:2], axis=axis) - figure(*columns[2:], axis=axis)

    entry = after.entry(resampling)["metrics"]["corpus"]
    gained = after.gains(before, resampling)["corpus"]
    for found, statistic, columns in ((entry, figure, sums[1]), (gained, gain, [*sums[1], *sums[0]])):
        assert found["mean"] == pytest.approx(statistic(*columns))
        ends = bootstrap(tuple(columns), statistic, paired=True, n_resamples=20_000, rng=1).confidence_interval
        width = ends.high - ends.low
        assert (found["low"], found["high"]) == pytest.approx((ends.low, ends.high), abs=0.2 * width)


def test_how_models_answered_is_a_mean_over_answers() -> None:
    said = [SimpleNamespace(response_tokens=size, truncated=size > 4) for size in (2, 4, 6, 8)]
    once = [SimpleNamespace(kl=kl, entropy=None, answers=said) for kl in (0.25, None, 0.75)]
    entry = Measured([], [], losses([], []), once).entry(Resampling([], seed=1))  # type: ignore[arg-type]
    assert entry == {"metrics": {}, "kl": 0.5, "entropy": None, "response_tokens": 5.0, "truncated_share": 0.5}
    assert statistics.fmean([0.25, 0.75]) == entry["kl"]
