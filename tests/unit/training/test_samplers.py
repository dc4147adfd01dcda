"""Samplers: pure functions of (key, step), with the distribution that the accountant assumes."""

import numpy as np
from scipy import stats

from sealed_experts.privacy.streams import Stream
from sealed_experts.training.samplers import PoissonSampler, ShuffledSampler

STREAM = Stream(b"k" * 32)


def test_poisson_draws_are_a_pure_function_of_the_step():
    one = PoissonSampler(units=500, rate=0.1, stream=STREAM)
    two = PoissonSampler(units=500, rate=0.1, stream=Stream(b"k" * 32))
    assert np.array_equal(one.draw(7), two.draw(7))
    assert not np.array_equal(one.draw(7), one.draw(8))


def test_poisson_batch_sizes_are_binomial():
    sampler = PoissonSampler(units=400, rate=0.05, stream=STREAM)
    sizes = [len(sampler.draw(step)) for step in range(1, 2001)]
    expected = stats.binom(400, 0.05)
    edges = [0, 15, 17, 19, 20, 21, 23, 25, 401]
    observed, _ = np.histogram(sizes, bins=edges)
    shares = np.diff(expected.cdf(np.array(edges) - 1))
    assert stats.chisquare(observed, shares / shares.sum() * len(sizes)).pvalue > 1e-3


def test_poisson_inclusions_are_independent_between_units():
    sampler = PoissonSampler(units=2, rate=0.5, stream=STREAM)
    pairs = [tuple(unit in sampler.draw(step) for unit in (0, 1)) for step in range(1, 2001)]
    table = np.array([[pairs.count((a, b)) for b in (False, True)] for a in (False, True)])
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_draw_may_be_empty():
    sampler = PoissonSampler(units=3, rate=1e-6, stream=STREAM)
    assert sampler.draw(1).size == 0


def test_an_epoch_shows_every_unit_once():
    sampler = ShuffledSampler(units=12, batch_size=4, stream=STREAM)
    epochs = [np.concatenate([sampler.draw(3 * epoch + i) for i in (1, 2, 3)]) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_larger_than_the_data_is_all_of_it():
    assert sorted(ShuffledSampler(units=3, batch_size=8, stream=STREAM).draw(5)) == [0, 1, 2]
