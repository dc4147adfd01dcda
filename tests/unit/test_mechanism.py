"""The mechanism: clipping, exact sums, the noise's distribution, fixed denominators, non-finite examples."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from sealed_experts.privacy.mechanism import GradientMechanism, sum_by_unit
from sealed_experts.privacy.streams import Stream

SHAPES = [(3, 4), (5,)]


def mechanism(*, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=4, key=bytes(32), shapes=SHAPES):
    plan = SimpleNamespace(
        noise_multiplier=noise_multiplier, max_grad_norm=max_grad_norm, expected_batch_size=expected_batch_size
    )
    return GradientMechanism(plan=plan, parameters=[torch.zeros(shape) for shape in shapes], stream=Stream(key))


def rows(count, *, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn((count, *shape), generator=generator) for shape in SHAPES]


def flat(tensors):
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def test_without_noise_it_is_the_sum_of_clipped_gradients_over_the_expected_batch_size():
    gradients = rows(6)
    subject = mechanism(max_grad_norm=2.0)
    subject.add(gradients)
    vectors = [torch.cat([g[i].flatten() for g in gradients]).double() for i in range(6)]
    expected = sum(v * min(1.0, 2.0 / float(v.norm())) for v in vectors) / 4
    torch.testing.assert_close(flat(subject.release(step=1)), expected, rtol=1e-6, atol=1e-7)


def test_how_a_logical_batch_is_cut_does_not_matter():
    gradients = rows(7, scale=3.0)
    whole, pieces = mechanism(), mechanism()
    whole.add(gradients)
    for start, stop in ((0, 2), (2, 3), (3, 7)):
        pieces.add([g[start:stop] for g in gradients])
    torch.testing.assert_close(flat(whole.release(step=1)), flat(pieces.release(step=1)), rtol=1e-6, atol=1e-8)


def test_one_unit_moves_the_sum_by_at_most_the_clip():
    for scale in (1e-3, 1.0, 1e6, 1e18):
        subject = mechanism(max_grad_norm=0.5, expected_batch_size=1)
        subject.add(rows(1, scale=scale))
        assert float(flat(subject.release(step=1)).norm()) <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_example_counts_as_zeros_and_spoils_nobody(poison):
    gradients = rows(3)
    gradients[0][1, 0, 0] = poison
    subject, without = mechanism(), mechanism()
    norms = subject.add(gradients)
    without.add([g[[0, 2]] for g in gradients])
    assert torch.isfinite(norms).tolist() == [True, False, True]
    torch.testing.assert_close(flat(subject.release(step=1)), flat(without.release(step=1)))


def test_an_empty_draw_releases_the_noise_of_its_step():
    empty = mechanism(noise_multiplier=1.5, max_grad_norm=2.0)
    noise = Stream(bytes(32)).normals("noise", 9, 17)
    np.testing.assert_allclose(flat(empty.release(step=9)), 1.5 * 2.0 * noise / 4, rtol=1e-6)


def test_noise_is_gaussian_with_the_planned_deviation():
    subject = mechanism(noise_multiplier=0.7, max_grad_norm=0.3, expected_batch_size=10, shapes=[(400, 500)])
    values = subject.release(step=3)[0].double().flatten().numpy()
    assert stats.kstest(values / (0.7 * 0.3 / 10), "norm").pvalue > 1e-3


def test_noise_depends_on_key_and_step_alone():
    first = flat(mechanism(noise_multiplier=1.0).release(step=2))
    assert torch.equal(first, flat(mechanism(noise_multiplier=1.0).release(step=2)))
    assert not torch.equal(first, flat(mechanism(noise_multiplier=1.0).release(step=3)))
    assert not torch.equal(first, flat(mechanism(noise_multiplier=1.0, key=b"x" * 32).release(step=2)))


def test_a_release_starts_from_nothing():
    subject = mechanism()
    subject.add(rows(2))
    subject.release(step=1)
    assert float(flat(subject.release(step=2)).abs().max()) == 0.0


def test_a_unit_of_several_rows_is_clipped_once():
    """Clipped row by row, a unit of two rows could move the sum by twice the clip."""
    gradients = [10 * torch.ones((2, *shape)) for shape in SHAPES]
    summed = sum_by_unit(gradients, torch.tensor([0, 0]))
    assert [g.shape[0] for g in summed] == [1, 1]
    subject = mechanism(max_grad_norm=1.0, expected_batch_size=1)
    subject.add(summed)
    assert float(flat(subject.release(step=1)).norm()) == pytest.approx(1.0)


def test_rows_of_one_unit_each_pass_unchanged():
    gradients = rows(3)
    for got, right in zip(sum_by_unit(gradients, torch.arange(3)), gradients, strict=True):
        assert torch.equal(got, right)
