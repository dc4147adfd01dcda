"""ε against independent accountants, closed forms, published values, and general laws."""

import functools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from sealed_experts.privacy.ledger import bounds, distributions
from sealed_experts.privacy.ledger.accounting import account, describe_accountant, epsilon, joint_stage_epsilons, within
from sealed_experts.privacy.ledger.events import GaussianEvent

DELTA = 1e-5
# (sample rate, noise multiplier, steps): the demo, the full-size run, and the corners around them.
CASES = [(0.064, 1.0, 60), (8 / 5000, 1.0, 2000), (0.064, 0.5, 60), (0.064, 20.0, 60), (0.2, 2.0, 1)]
# Each example is a new, slow computation, so use only a few.
slow = settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def event(rate, noise, steps, **more):
    return GaussianEvent(stage="sft", noise_multiplier=noise, sample_rate=rate, steps=steps, **more)


def one(rate, noise, steps, delta=DELTA):
    return epsilon([event(rate, noise, steps)], delta=delta)


def solve(delta_of_epsilon, delta, high=100.0):
    return 0.0 if delta_of_epsilon(0.0) <= delta else optimize.brentq(lambda e: delta_of_epsilon(e) - delta, 0, high)


def one_step_delta(rate, noise, eps):
    """The exact δ(ε) of one step: the hockey-stick divergence of N(0, σ²) and its mixture with N(1, σ²), both ways."""
    sf, cdf, e = functools.partial(stats.norm.sf, scale=noise), functools.partial(stats.norm.cdf, scale=noise), math.exp
    threshold = noise**2 * math.log((e(eps) - 1 + rate) / rate) + 0.5
    remove = (1 - rate) * sf(threshold) + rate * sf(threshold - 1) - e(eps) * sf(threshold)
    if e(-eps) <= 1 - rate:
        return remove
    threshold = noise**2 * math.log((e(-eps) - 1 + rate) / rate) + 0.5
    add = cdf(threshold) - e(eps) * ((1 - rate) * cdf(threshold) + rate * cdf(threshold - 1))
    return max(remove, add)


@pytest.mark.parametrize(("rate", "noise"), [(0.064, 1.0), (0.5, 0.7), (0.01, 0.4), (0.9, 3.0)])
def test_one_step_is_the_exact_divergence(rate, noise):
    exact = solve(lambda eps: one_step_delta(rate, noise, eps), DELTA)
    assert exact <= one(rate, noise, 1) + 1e-9
    assert one(rate, noise, 1) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (20.0, 100), (0.5, 4), (300.0, 1)])
def test_without_sampling_it_is_the_analytic_gaussian(noise, steps):
    """Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy" (2018), theorem 8."""
    sigma = noise / math.sqrt(steps)

    def delta(eps):
        low, high = 1 / (2 * sigma) - eps * sigma, -1 / (2 * sigma) - eps * sigma
        return stats.norm.cdf(low) - math.exp(eps) * stats.norm.cdf(high)

    result = account([event(1.0, noise, steps)], delta=DELTA)
    assert result.epsilon == pytest.approx(solve(delta, DELTA), abs=1e-7)
    assert result.accountant == "analytic Gaussian"


def test_sampling_of_nearly_everyone_joins_the_analytic_gaussian():
    assert one(1 - 1e-12, 2.0, 3) == pytest.approx(one(1.0, 2.0, 3), rel=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_against_opacus(case):
    """ε is never below PRV's lower bound, at most PRV's error above its upper bound, and below RDP."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    rate, noise, steps = case
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(noise, rate, steps)]
    error = 0.01
    upper = prv.get_epsilon(DELTA, eps_error=error)
    ours = one(*case)
    assert upper - 3 * error <= ours <= upper + 1e-3
    assert ours <= rdp.get_epsilon(DELTA)


@pytest.mark.parametrize("case", CASES)
def test_never_below_the_truth(case):
    """ε is between an optimistic estimate (a lower bound) and dp_accounting's accountant with default options."""
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.pld import privacy_loss_distribution as pld

    rate, noise, steps = case
    optimistic = pld.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval={0.5: 1e-3, 20.0: 1e-5}.get(noise, 1e-4),
    ).self_compose(steps)
    accountant = PLDAccountant()
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise)), steps)
    ours = one(*case)
    assert optimistic.get_epsilon_for_delta(DELTA) <= ours + 1e-9
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), rel=2e-3)
    # Grids are nested: a grid coarser than the library's can only give a larger ε.
    if distributions.grid_interval([(rate, noise)]) >= 1e-4:
        assert ours >= accountant.get_epsilon(DELTA) - 1e-9


@pytest.mark.parametrize(("noise", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)])
def test_published_values_of_tensorflow_privacy(noise, epochs, published):
    """The table of tutorials/README.md of github.com/tensorflow/privacy: MNIST, batch 256 of 60,000, δ = 1e-5.

    Their accountant is RDP with the conversion of Mironov (2017), so it must bound ours from above. It is computed
    here once more from the formula (Mironov, Talwar and Zhang 2019, section 3.3), to show that the cases are the same.
    """
    rate = 256 / 60000
    steps = epochs * 60000 // 256

    def divergence(order):
        k = np.arange(order + 1)
        terms = special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
        terms = terms + k * math.log(rate) + (order - k) * math.log1p(-rate) + (k * k - k) / (2 * noise**2)
        return special.logsumexp(terms) / (order - 1)

    classic = min(steps * divergence(order) + math.log(1 / DELTA) / (order - 1) for order in range(2, 64))
    assert classic == pytest.approx(published, rel=0.02)
    groups = ((rate, noise, steps),)
    ours = one(rate, noise, steps)
    assert bounds.lower_bound(groups, DELTA) <= ours <= bounds.upper_bound(groups, DELTA) <= published * 1.02
    assert ours > 0.6 * published


def test_published_moments_accountant_of_gaussian_dp():
    """σ 1.3 gives (1.34, 1e-5) after 20 epochs: Harvard Data Science Review 2 (2020), 99608f92.cfc5dd25, figure 4."""
    assert 0.6 * 1.34 < one(256 / 60000, 1.3, 20 * 60000 // 256) < 1.34


def test_measured_values_of_opacus():
    """Opacus' PRV (which adds 0.01 for its own error) for 5,000 units, batch 64, 3 epochs.

    σ 1 gives 1.26, two such stages 1.68, and ε 8 takes σ 0.53.
    """
    stage = event(64 / 5000, 1.0, 235)
    assert 1.26 - 0.015 < epsilon([stage], delta=DELTA) < 1.265
    assert 1.68 - 0.015 < epsilon([stage, stage], delta=DELTA) < 1.685
    assert one(64 / 5000, 0.53, 235) == pytest.approx(8.0, rel=0.01)


def test_passes_over_one_draw_are_not_further_draws():
    """Four passes over each of 100 draws (q 0.02, σ 1): by RDP, ε is 11.6. Counted as 400 draws it would be 2.87."""
    from opacus.accountants import RDPAccountant

    for case, by_rdp in (((0.02, 1.0 / math.sqrt(4), 100), 11.6), ((0.02, 1.0, 400), 2.87)):
        rate, noise, steps = case
        accountant = RDPAccountant()
        accountant.history = [(noise, rate, steps)]
        assert accountant.get_epsilon(DELTA) == pytest.approx(by_rdp, rel=0.01)
        assert 0.8 * by_rdp < one(*case) < by_rdp


def test_nothing_released_costs_nothing():
    assert epsilon([], delta=DELTA) == 0.0
    assert one(0.1, 1.0, 0) == 0.0


def test_hardly_anything_released_costs_hardly_anything():
    assert one(1e-6, 10.0, 1) == 0.0
    assert 0.0 <= one(1e-4, 20.0, 2000) < 0.001
    assert 0.0 <= one(0.01, 500.0, 10) < 0.001


@slow
@given(rate=st.floats(0.01, 0.3), noise=st.floats(0.7, 10.0), steps=st.integers(1, 300))
def test_more_steps_more_sampling_less_noise_never_cost_less(rate, noise, steps):
    base = one(rate, noise, steps)
    tolerance = 2e-3 * base + 1e-6  # another rate or noise may use another grid
    assert one(rate, noise, steps + 50) >= base - 1e-9
    assert one(min(1.0, 1.3 * rate), noise, steps) >= base - tolerance
    assert one(rate, 1.3 * noise, steps) <= base + tolerance


@slow
@given(rate=st.floats(0.001, 0.3), noise=st.floats(0.4, 30.0), steps=st.integers(1, 1000))
def test_the_reported_value_lies_between_the_bounds(rate, noise, steps):
    groups = ((rate, noise, steps),)
    assert bounds.lower_bound(groups, DELTA) - 1e-9 <= one(rate, noise, steps) <= bounds.upper_bound(groups, DELTA)


def test_stages_compose_jointly_and_in_any_order():
    sft, rl, more = event(0.064, 1.0, 60), event(0.032, 0.7, 25), event(0.05, 2.0, 30)
    joint = epsilon([sft, rl, more], delta=DELTA)
    alone = [epsilon([stage], delta=DELTA) for stage in (sft, rl, more)]
    assert max(alone) < joint < sum(alone)
    assert epsilon([more, sft, rl], delta=DELTA) == joint


def test_each_stage_ends_at_the_joint_epsilon_so_far():
    sft = event(0.064, 1.0, 60)
    rl = GaussianEvent(stage="rl", noise_multiplier=0.7, sample_rate=0.032, steps=25)
    ends = joint_stage_epsilons([sft, rl], delta=DELTA)
    assert ends == {"sft": epsilon([sft], delta=DELTA), "rl": epsilon([sft, rl], delta=DELTA)}


def test_a_stage_cut_in_two_is_the_same_stage():
    halves = [event(0.064, 1.0, 20), event(0.064, 1.0, 40)]
    assert epsilon(halves, delta=DELTA) == one(0.064, 1.0, 60)


def test_heterogeneous_composition_against_opacus():
    from opacus.accountants import PRVAccountant

    prv = PRVAccountant()
    prv.history = [(1.0, 0.064, 60), (0.7, 0.032, 25)]
    ours = epsilon([event(0.064, 1.0, 60), event(0.032, 0.7, 25)], delta=DELTA)
    upper = prv.get_epsilon(DELTA, eps_error=0.01)
    assert upper - 0.03 <= ours <= upper + 1e-3


def test_a_full_batch_stage_composes_with_a_sampled_one():
    sampled, full = event(0.064, 1.0, 60), event(1.0, 30.0, 10)
    joint = epsilon([sampled, full], delta=DELTA)
    assert epsilon([sampled], delta=DELTA) < joint < epsilon([sampled], delta=DELTA) + epsilon([full], delta=DELTA)


def test_one_key_counts_once():
    run = event(0.064, 1.0, 60, key_id="k")
    assert epsilon([run, event(0.064, 1.0, 30, key_id="k"), run], delta=DELTA) == one(0.064, 1.0, 60)
    assert epsilon([run, event(0.064, 1.0, 60, key_id="other")], delta=DELTA) == one(0.064, 1.0, 120)


@pytest.mark.parametrize(("broken", "steps"), [(math.nan, 61), (math.inf, 62), (-0.3, 63), (0.01, 64)])
def test_a_numerical_failure_falls_back_on_renyi(monkeypatch, broken, steps):
    """A PLD of 0.01 is below the bound of a hypothesis test, so it cannot be the true ε."""
    monkeypatch.setattr(distributions, "pld_epsilon", lambda groups, delta: broken)
    result = account([event(0.0637, 1.0, steps)], delta=DELTA)
    assert result.accountant == "RDP"
    assert result.epsilon == bounds.upper_bound(((0.0637, 1.0, steps),), DELTA)


def test_a_refusal_of_the_library_falls_back_on_renyi(monkeypatch):
    def refuse(groups, delta):
        raise ValueError("deltas are not in non-increasing order")

    monkeypatch.setattr(distributions, "pld_epsilon", refuse)
    assert account([event(0.0637, 1.0, 65)], delta=DELTA).accountant == "RDP"


def test_a_delta_that_fourier_transforms_cannot_resolve_uses_renyi():
    assert account([event(0.064, 1.0, 60)], delta=1e-13).accountant == "RDP"
    assert one(0.064, 1.0, 60, delta=1e-13) > one(0.064, 1.0, 60, delta=1e-9) > one(0.064, 1.0, 60)


def test_a_void_guarantee_is_still_a_bound_and_quick():
    result = account([event(0.9, 0.05, 5)], delta=DELTA)
    assert result.accountant == "RDP"
    assert result.epsilon > 1000


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0])
def test_delta_must_be_a_probability(delta):
    with pytest.raises(ValueError, match="delta"):
        epsilon([event(0.064, 1.0, 60)], delta=delta)


def test_within_agrees_with_epsilon():
    stage = event(0.064, 1.0, 60)
    exact = epsilon([stage], delta=DELTA)
    for target in (0.1, 2.0, exact - 1e-6, exact, exact + 1e-6, 4.2, 50.0):
        assert within([stage], delta=DELTA, target=target) == (exact <= target)
    assert within([], delta=DELTA, target=0.0)


def test_the_accountant_is_named_with_its_version():
    assert describe_accountant("PLD").startswith("PLD (dp-accounting ")
