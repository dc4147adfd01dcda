"""Bootstrap intervals: against closed forms, in a simulation, paired and by units."""

import numpy as np
import pytest

from sealed_experts.evaluation.bootstrap import Interval, Resampling

NORMAL = 1.959963984540054  # the 97.5 % point of the normal distribution
MANY = 99_999  # resamples: an end of the interval is then known to 0.4 % of its half width


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


def test_the_mean_of_a_normal_sample_gets_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.5, size=400)
    interval = Resampling(range(400), seed=3, resamples=MANY).interval(values)
    half = NORMAL * values.std() / 20
    assert interval is not None
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_a_ratio_gets_the_interval_of_the_delta_method() -> None:
    generator = np.random.default_rng(2)
    tokens = generator.integers(5, 40, size=500)
    sums = tokens * generator.normal(2.5, 0.3, size=500)
    interval = Resampling(range(500), seed=3, resamples=MANY).interval(sums, tokens)
    ratio = sums.sum() / tokens.sum()
    half = NORMAL * (sums - ratio * tokens).std() / tokens.mean() / np.sqrt(500)
    assert interval is not None
    assert interval.low == pytest.approx(ratio - half, abs=0.06 * half)
    assert interval.high == pytest.approx(ratio + half, abs=0.06 * half)


def test_any_figure_of_sums_gets_the_interval_of_the_delta_method() -> None:
    """F1 of counts, 2·hits / (said + wanted): three sums, as a metric of a whole corpus has them."""
    generator = np.random.default_rng(11)
    said, wanted = generator.integers(5, 20, size=(2, 600))
    hits = generator.binomial(np.minimum(said, wanted), 0.6)
    interval = Resampling(range(600), seed=3, resamples=MANY).interval(
        hits, said, wanted, figure=lambda hits, said, wanted: 2 * hits / (said + wanted)
    )
    f1 = 2 * hits.sum() / (said + wanted).sum()
    half = NORMAL * (2 * hits - f1 * (said + wanted)).std() / (said + wanted).mean() / np.sqrt(600)
    assert interval is not None
    assert interval.low == pytest.approx(f1 - half, abs=0.06 * half)
    assert interval.high == pytest.approx(f1 + half, abs=0.06 * half)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Skewed rewards, as they are, of 60 prompts: 1,200 samples, of which 95 % must hold the mean, 1/5."""
    generator = np.random.default_rng(4)
    held = 0
    for seed in range(1200):
        interval = Resampling(range(60), seed=seed, resamples=999).interval(generator.beta(0.5, 2.0, size=60))
        held += interval is not None and interval.low <= 0.2 <= interval.high
    # Five standard errors of a share of 0.95 in 1,200 are 0.031; so few prompts hold it 0.5 % less often.
    assert 0.917 <= held / 1200 <= 0.983


def test_a_skewed_mean_gets_a_skewed_interval() -> None:
    """To second order (Efron 1987, Hall 1988) the ends are mean + s/√n · (±z + γ/(6√n) · (2z² + 1)).

    The percentile interval has z² - 1 in the last place: a third of the shift.
    """
    values = np.random.default_rng(9).exponential(size=300)
    interval = Resampling(range(300), seed=1, resamples=MANY).interval(values)
    assert interval is not None
    error = values.std() / np.sqrt(300)
    skewness = ((values - values.mean()) ** 3).mean() / values.std() ** 3
    shift = error * skewness / (6 * np.sqrt(300)) * (2 * NORMAL**2 + 1)
    assert (interval.low + interval.high) / 2 - values.mean() == pytest.approx(shift, rel=0.3)


def test_a_paired_gain_is_known_better_than_the_difference_of_two_means() -> None:
    """What makes a prompt hard is common to both answers and cancels out: here 24 of 25 parts of the variance."""
    generator = np.random.default_rng(5)
    hard, noise = generator.normal(0.5, 0.12, size=2000), generator.normal(0, 0.025, size=(2, 2000))
    before, after = hard + noise[0], hard + noise[1] + 0.05
    resampling = Resampling(range(2000), seed=1)
    paired = width(resampling.interval(after - before))
    unpaired = np.hypot(width(resampling.interval(before)), width(resampling.interval(after)))
    assert paired == pytest.approx(unpaired / 5, rel=0.2)


def test_records_of_one_unit_are_drawn_together() -> None:
    """Ten times the same 40 values tell no more than 40 values: the interval must not shrink by √10."""
    values = np.random.default_rng(6).normal(size=40)
    alone = Resampling(range(40), seed=1).interval(values)
    together = Resampling(np.repeat(range(40), 10), seed=1).interval(np.repeat(values, 10))
    assert together == Interval(pytest.approx(alone.low), pytest.approx(alone.high))  # type: ignore[union-attr, arg-type]
    assert width(Resampling(range(400), seed=1).interval(np.repeat(values, 10))) < 0.4 * width(alone)


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    values = np.random.default_rng(7).normal(size=50)
    first = Resampling(range(50), seed=1).interval(values)
    assert Resampling(range(50), seed=1).interval(values) == first
    assert Resampling(range(50), seed=2).interval(values) != first


def test_equal_values_have_no_spread() -> None:
    assert Resampling(range(20), seed=1).interval([0.3] * 20) == Interval(0.3, 0.3)


def test_too_few_units_get_no_interval() -> None:
    assert Resampling(range(9), seed=1).interval(range(9)) is None
    assert Resampling(range(10), seed=1).interval(range(10)) is not None
    assert Resampling([0] * 50, seed=1).interval(range(50)) is None
    assert Resampling([], seed=1).interval([]) is None


def test_a_record_without_tokens_weighs_nothing() -> None:
    values = list(np.random.default_rng(8).normal(size=30))
    with_empty = Resampling(range(31), seed=1).interval([*values, 0.0], [1] * 30 + [0])
    assert with_empty == Resampling(range(30), seed=1).interval(values)


def test_equal_values_have_no_spread_where_rounding_says_otherwise() -> None:
    """Units of 1 to 6 records: 0.7 added up and divided again is not always 0.7."""
    generator = np.random.default_rng(0)
    for _ in range(150):
        units = np.repeat(range(int(generator.integers(10, 40))), 1)
        units = np.repeat(units, generator.integers(1, 7, size=len(units)))
        for value in (0.2, 0.7, 0.8):
            interval = Resampling(units, seed=1, resamples=99).interval([value] * len(units))
            assert interval == Interval(pytest.approx(value), pytest.approx(value))
            assert width(interval) == 0


def test_a_gain_of_rounding_alone_is_no_gain() -> None:
    gains = [0.0] * 10 + [0.1 + 0.2 - 0.3] * 10  # 5.6e-17
    assert width(Resampling(range(20), seed=1).interval(gains)) == 0


def test_a_small_spread_is_still_a_spread() -> None:
    values = np.random.default_rng(3).normal(0.5, 1e-9, size=50)
    assert width(Resampling(range(50), seed=1).interval(values)) == pytest.approx(
        2 * NORMAL * values.std() / np.sqrt(50), rel=0.1
    )


@pytest.mark.filterwarnings("ignore")  # scipy's, about what it cannot resample
@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_no_interval_has_an_end_that_is_no_number(odd: float) -> None:
    assert Resampling(range(20), seed=1).interval([0.1, 0.2] * 9 + [0.3, odd]) is None
