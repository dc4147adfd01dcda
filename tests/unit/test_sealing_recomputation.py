"""The second accountant against closed forms and other accountants, and the receipts that it refuses."""

import math

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from tests.attacks import building

from sealed_experts.privacy.ledger.receipt import stage_receipt, unprotected_receipt
from sealed_experts.privacy.plan import plan_stage
from sealed_experts.sealing.content.recomputation import recompute_privacy
from sealed_experts.sealing.content.second_accountant import epsilon_bounds, transform_error
from sealed_experts.sealing.errors import PackageError
from sealed_experts.settings.types import PrivacySettings

DELTA = 1e-5


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Balle and Wang (2018), theorem 8: the exact δ of one Gaussian release of sensitivity 1."""
    first = norm.cdf(0.5 / noise - epsilon * noise)
    return float(first - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise))


@pytest.mark.parametrize(("noise", "steps"), [(10.0, 20), (2.0, 1), (1.0, 3), (50.0, 4000), (0.7, 5)])
def test_without_sampling_the_closed_form_lies_between_the_bounds(noise, steps):
    bounds = epsilon_bounds({(1.0, noise): steps}, delta=DELTA, near=1.0)
    together = noise / math.sqrt(steps)
    assert gaussian_delta(bounds.low, together) >= DELTA >= gaussian_delta(bounds.high, together)
    assert bounds.high - bounds.low < 2e-3 * max(1.0, bounds.high)


def library(groups, *, delta, pessimistic, interval=1e-4):
    parts = [
        pld.from_gaussian_mechanism(
            standard_deviation=noise,
            sampling_prob=rate,
            value_discretization_interval=interval,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        ).self_compose(steps)
        for (rate, noise), steps in groups.items()
    ]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return whole.get_epsilon_for_delta(delta)


@pytest.mark.parametrize(
    "groups",
    [
        {(0.064, 1.0): 60},
        {(0.064, 1.0): 60, (0.16, 0.85): 12},
        {(0.01, 0.53): 234},
        {(0.005, 1.1): 1000},
        {(0.5, 0.8): 4},
        {(1.0, 10.0): 20, (0.05, 1.2): 100},
    ],
)
def test_with_sampling_the_bounds_meet_dp_accountings(groups):
    """dp_accounting's two estimates enclose the true ε, and so do ours: they must overlap, and ours be narrow."""
    above = library(groups, delta=DELTA, pessimistic=True)
    below = library(groups, delta=DELTA, pessimistic=False)
    bounds = epsilon_bounds(groups, delta=DELTA, near=above)
    assert bounds.low <= above
    assert below <= bounds.high
    assert above * 0.995 <= bounds.low <= bounds.high <= above * 1.005


def test_one_step_against_numerical_integration():
    """δ(ε) of one subsampled step is an integral over the outcomes; no grid, no transform, no composition."""
    import numpy as np

    rate, noise = 0.1, 0.9
    x = np.linspace(-15, 16, 2_000_001)
    without = norm.pdf(x, 0, noise)
    present = (1 - rate) * without + rate * norm.pdf(x, 1, noise)
    bounds = epsilon_bounds({(rate, noise): 1}, delta=DELTA, near=1.0)

    def delta(epsilon):
        pairs = ((present, without), (without, present))
        return max(np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x) for p, q in pairs)

    assert delta(bounds.low) >= DELTA * 0.999999
    assert delta(bounds.high) <= DELTA * 1.000001
    assert bounds.high - bounds.low < 1e-3


def test_opacus_prv_accountant_agrees():
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(1.0, 0.064, 60), (0.85, 0.16, 12)]
    theirs = accountant.get_epsilon(DELTA, eps_error=0.005)
    bounds = epsilon_bounds({(0.064, 1.0): 60, (0.16, 0.85): 12}, delta=DELTA, near=theirs)
    assert bounds.low == pytest.approx(theirs, abs=0.011)


@pytest.mark.parametrize(("cells", "steps", "share"), [(4096, 300, 0.01), (1 << 18, 3000, 0.3), (1 << 20, 10**6, 1e-4)])
def test_the_transforms_error_is_less_than_is_counted(cells, steps, share):
    """Steps of a loss of 1 with this probability, else 0, sum to a binomial distribution."""
    import numpy as np
    from scipy import fft
    from scipy.stats import binom

    one = np.zeros(cells)
    one[0], one[1] = 1 - share, share
    found = fft.irfft(fft.rfft(one) ** steps, cells)
    exact = binom.pmf(np.arange(cells), steps, share)
    tails = [np.cumsum(masses[::-1]) for masses in (found, exact)]
    assert 0 < np.abs(tails[0] - tails[1]).max() < transform_error(steps)


@settings(max_examples=6, deadline=None)
@given(st.floats(0.05, 1.0), st.floats(0.6, 4.0), st.integers(1, 40), st.integers(1, 40))
def test_more_steps_cost_more_and_less_noise_costs_more(rate, noise, steps, more):
    one = epsilon_bounds({(rate, noise): steps}, delta=DELTA, near=5.0)  # a coarse grid: it is quick
    longer = epsilon_bounds({(rate, noise): steps + more}, delta=DELTA, near=5.0)
    louder = epsilon_bounds({(rate, noise * 1.5): steps}, delta=DELTA, near=5.0)
    assert one.low <= longer.high
    assert louder.low <= one.high


# Receipts


def receipt(*, steps=60, prior=None, stage="sft", key="1" * 32, **privacy):
    values = {"noise_multiplier": 1.0, "target_epsilon": 50.0, "delta": DELTA, "max_grad_norm": 0.3}
    plan = plan_stage(
        PrivacySettings(**{**values, **privacy}),
        stage=stage,
        units=2000,
        unit="record",
        expected_batch_size=128,
        max_steps=100,
        queries={"baseline": 5.0} if stage == "reinforce" else None,
    )
    return stage_receipt(plan, steps=steps, key_id=key, prior=prior)


HONEST = receipt()
CHAIN = receipt(steps=12, prior=HONEST, stage="reinforce", key="2" * 32)


def test_the_ledgers_own_receipts_pass():
    recompute_privacy(HONEST)
    recompute_privacy(CHAIN)
    recompute_privacy(receipt(steps=1))
    recompute_privacy(receipt(steps=0))
    recompute_privacy(building.privacy())


@pytest.mark.parametrize("honest", [HONEST, CHAIN], ids=["one stage", "two stages"])
@pytest.mark.parametrize("share", [0.999, 0.99, 0.9, 0.5, 0.0])
def test_a_receipt_that_claims_less_than_its_events_cost_is_refused(honest, share):
    with pytest.raises(PackageError, match=r"epsilon is .* but its events cost at least") as caught:
        recompute_privacy({**honest, "epsilon": honest["epsilon"] * share})
    assert caught.value.exit_code == 11


def test_a_stage_that_claims_less_is_refused():
    false = {**CHAIN["stage_epsilon"], "sft": CHAIN["stage_epsilon"]["sft"] - 0.05}
    with pytest.raises(PackageError, match=r"stage_epsilon\.sft is .* cost at least"):
        recompute_privacy({**CHAIN, "stage_epsilon": false})


def altered(**changes):
    return {**CHAIN, "events": [CHAIN["events"][0], {**CHAIN["events"][1], **changes}]}


ALTERED = {
    "more steps": (altered(steps=40), "steps is 12, but its last event says 40"),
    "a smaller draw": (altered(sample_rate=0.01), "sample_rate is 0.064"),
    "more noise": (altered(noise_multiplier=2.0), "effective_noise_multiplier"),
    "another batch": ({**HONEST, "expected_batch_size": 640}, "expected_batch_size / units is 0.32"),
    "other queries": (
        {key: value for key, value in CHAIN.items() if key != "effective_noise_multiplier"} | {"queries": {"b": 1.0}},
        "effective_noise_multiplier",
    ),
    "a stage left out": ({**CHAIN, "events": CHAIN["events"][1:]}, "stage 'sft' has no event"),
    "no events": ({**HONEST, "events": []}, "lists no events"),
    "events of another kind": ({**HONEST, "events": [{"stage": "sft"}]}, "a privacy event has the fields"),
    "no list of events": ({**HONEST, "events": None}, "must be a list"),
    "a delta that allows everything": ({**HONEST, "delta": 0.01}, "not below 1/2000"),
    "no delta": ({**HONEST, "delta": None}, "delta must be a number"),
    "delta 1": ({**HONEST, "units": None, "delta": 1.0}, r"inside \(0, 1\)"),
    "replaced units": ({**HONEST, "neighbouring": "replace_one"}, "neighbouring is 'replace_one'"),
    "shuffled batches": ({**HONEST, "sampling": "shuffled"}, "sampling is 'shuffled'"),
    "another mechanism": ({**HONEST, "mechanism": "laplace"}, "mechanism is 'laplace'"),
    "a claim of a reproducible run": ({**HONEST, "mode": "reproducible"}, "mode is 'reproducible'"),
    "a claim without privacy": ({**HONEST, "enabled": False}, "enabled is False"),
    "a claim that is no number": ({**HONEST, "epsilon": "1.0"}, "epsilon must be a number"),
    "neither claim nor reason": ({**HONEST, "epsilon": None, "reason": None}, "neither an ε nor a reason"),
    "fewer over releases": (
        {**HONEST, "over_releases": {"epsilon": 1.0, "delta": DELTA, "reason": None}},
        "over_releases.epsilon is 1, but this version alone",
    ),
    "a delta beyond doubles": ({**HONEST, "delta": 1e-14, "epsilon": 99.0, "stage_epsilon": {}}, "beyond what can be"),
}


@pytest.mark.parametrize(("false", "match"), ALTERED.values(), ids=ALTERED)
def test_a_receipt_that_contradicts_itself_is_refused(false, match):
    with pytest.raises(PackageError, match=match) as caught:
        recompute_privacy(false)
    assert "\n" not in str(caught.value)


def test_events_of_one_key_are_one_release():
    twice = {**HONEST, "events": [{**HONEST["events"][0], "steps": 20}, HONEST["events"][0]]}
    recompute_privacy(twice)
    other = {**HONEST["events"][0], "key_id": "9" * 32}
    with pytest.raises(PackageError, match="cost at least"):
        recompute_privacy({**HONEST, "events": [other, HONEST["events"][0]]})


def test_a_receipt_that_claims_nothing_has_nothing_to_recompute():
    recompute_privacy(unprotected_receipt(stage="sft", unit="record"))
    recompute_privacy(receipt(mode="reproducible"))
