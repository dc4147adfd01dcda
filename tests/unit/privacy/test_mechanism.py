"""The mechanism: clipping, exact sums, the noise's distribution, fixed denominators, non-finite examples."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from sealed_experts.privacy.mechanism import GradientMechanism, sum_by_unit
from sealed_experts.privacy.streams import Stream

SHAPES = [(3, 4), (5,)]


def mechanism(
    *, noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=4, key=bytes(32), shapes=SHAPES, queries=None
):
    plan = SimpleNamespace(
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
        queries=queries or {},
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
    torch.testing.assert_close(flat(subject.release(step=1).gradients), expected, rtol=1e-6, atol=1e-7)


def test_how_a_logical_batch_is_cut_does_not_matter():
    gradients = rows(7, scale=3.0)
    whole, pieces = mechanism(), mechanism()
    whole.add(gradients)
    for start, stop in ((0, 2), (2, 3), (3, 7)):
        pieces.add([g[start:stop] for g in gradients])
    torch.testing.assert_close(
        flat(whole.release(step=1).gradients), flat(pieces.release(step=1).gradients), rtol=1e-6, atol=1e-8
    )


def test_one_unit_moves_the_sum_by_at_most_the_clip():
    for scale in (1e-3, 1.0, 1e6, 1e18):
        subject = mechanism(max_grad_norm=0.5, expected_batch_size=1)
        subject.add(rows(1, scale=scale))
        assert float(flat(subject.release(step=1).gradients).norm()) <= 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_example_counts_as_zeros_and_spoils_nobody(poison):
    gradients = rows(3)
    gradients[0][1, 0, 0] = poison
    subject, without = mechanism(), mechanism()
    norms = subject.add(gradients)
    without.add([g[[0, 2]] for g in gradients])
    assert torch.isfinite(norms).tolist() == [True, False, True]
    torch.testing.assert_close(flat(subject.release(step=1).gradients), flat(without.release(step=1).gradients))


def test_an_empty_draw_releases_the_noise_of_its_step():
    empty = mechanism(noise_multiplier=1.5, max_grad_norm=2.0)
    noise = Stream(bytes(32)).normals("noise", 9, 17)
    np.testing.assert_allclose(flat(empty.release(step=9).gradients), 1.5 * 2.0 * noise / 4, rtol=1e-6)


def test_noise_is_gaussian_with_the_planned_deviation():
    subject = mechanism(noise_multiplier=0.7, max_grad_norm=0.3, expected_batch_size=10, shapes=[(400, 500)])
    values = subject.release(step=3).gradients[0].double().flatten().numpy()
    assert stats.kstest(values / (0.7 * 0.3 / 10), "norm").pvalue > 1e-3


def test_noise_depends_on_key_and_step_alone():
    first = flat(mechanism(noise_multiplier=1.0).release(step=2).gradients)
    assert torch.equal(first, flat(mechanism(noise_multiplier=1.0).release(step=2).gradients))
    assert not torch.equal(first, flat(mechanism(noise_multiplier=1.0).release(step=3).gradients))
    assert not torch.equal(first, flat(mechanism(noise_multiplier=1.0, key=b"x" * 32).release(step=2).gradients))


def test_a_release_starts_from_nothing():
    subject = mechanism()
    subject.add(rows(2))
    subject.release(step=1)
    assert float(flat(subject.release(step=2).gradients).abs().max()) == 0.0


def test_a_unit_of_several_rows_is_clipped_once():
    """If each row were clipped alone, a unit of two rows could change the sum by twice the clipping norm."""
    gradients = [10 * torch.ones((2, *shape)) for shape in SHAPES]
    summed = sum_by_unit(gradients, torch.tensor([0, 0]))
    assert [g.shape[0] for g in summed] == [1, 1]
    subject = mechanism(max_grad_norm=1.0, expected_batch_size=1)
    subject.add(summed)
    assert float(flat(subject.release(step=1).gradients).norm()) == pytest.approx(1.0)


def test_rows_of_one_unit_each_pass_unchanged():
    gradients = rows(3)
    for got, right in zip(sum_by_unit(gradients, torch.arange(3)), gradients, strict=True):
        assert torch.equal(got, right)


def test_a_query_is_the_clipped_sum_with_its_own_noise_over_the_expected_batch_size():
    subject = mechanism(queries={"mean_reward": 3.0}, key=b"q" * 32)
    subject.ask({"mean_reward": torch.tensor([0.25, 0.5])})
    subject.ask({"mean_reward": torch.tensor([1.0])})
    noise = float(Stream(b"q" * 32).normals("query/mean_reward", 7, 1)[0])
    assert subject.release(step=7).queries["mean_reward"] == pytest.approx((1.75 + 3.0 * noise) / 4, rel=1e-12)


def test_one_unit_moves_a_query_by_at_most_one():
    """This holds for any value, because the noise is made for a sensitivity of one."""
    without = mechanism(queries={"mean_reward": 1.0}).release(step=1).queries["mean_reward"]
    for value in (1e9, float("inf"), float("nan"), -5.0, 1.0):
        subject = mechanism(queries={"mean_reward": 1.0})
        subject.ask({"mean_reward": torch.tensor([value])})
        assert 0.0 <= 4 * (subject.release(step=1).queries["mean_reward"] - without) <= 1.0 + 1e-9


def test_a_querys_noise_is_normal_and_not_the_gradients():
    subject = mechanism(noise_multiplier=1.0, expected_batch_size=1, queries={"a": 1.0, "b": 1.0}, shapes=[(2,)])
    released = [subject.release(step=step) for step in range(1, 2001)]
    a, b = (np.array([one.queries[name] for one in released]) for name in ("a", "b"))
    first = np.array([float(one.gradients[0][0]) for one in released])
    assert stats.kstest(a, "norm").pvalue > 1e-3
    assert abs(np.corrcoef([a, b, first]) - np.eye(3)).max() < 0.1


def test_a_query_starts_anew_after_each_release():
    subject = mechanism(queries={"a": 1.0})
    subject.ask({"a": torch.ones(3)})
    first = subject.release(step=1).queries["a"]
    again = mechanism(queries={"a": 1.0})
    assert first - again.release(step=1).queries["a"] == pytest.approx(3 / 4)
    assert subject.release(step=2).queries == again.release(step=2).queries


def test_a_query_that_nobody_pays_for_is_refused():
    with pytest.raises(ValueError, match="the plan has the queries"):
        mechanism().ask({"mean_reward": torch.ones(1)})
    with pytest.raises(ValueError, match="the plan has the queries"):
        mechanism(queries={"mean_reward": 5.0}).ask({})
