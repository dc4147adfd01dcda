"""The second accountant against closed forms and other accountants, and the receipts that it refuses."""

import json
import math
import time

import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from sealed_experts.privacy.ledger.published_receipt import receipt_bytes
from sealed_experts.privacy.ledger.receipt import stage_receipt, unprotected_receipt
from sealed_experts.privacy.ledger.receipt_rules import ReceiptError
from sealed_experts.privacy.ledger.recomputation import recompute_privacy
from sealed_experts.privacy.ledger.second_accountant import epsilon_bounds, transform_error
from sealed_experts.privacy.plan import plan_stage
from sealed_experts.privacy.settings import PrivacySettings
from tests.attacks import building

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
    """dp_accounting's two estimates enclose the true ε, and so do ours. They must overlap, and ours must be close."""
    above = library(groups, delta=DELTA, pessimistic=True)
    below = library(groups, delta=DELTA, pessimistic=False)
    bounds = epsilon_bounds(groups, delta=DELTA, near=above)
    assert bounds.low <= above
    assert below <= bounds.high
    assert above * 0.995 <= bounds.low <= bounds.high <= above * 1.005


def test_one_step_against_numerical_integration():
    """δ(ε) of one subsampled step is an integral over the outcomes: it needs no grid, transform or composition."""
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
    """Steps with a loss of 1 with this probability, otherwise 0, sum to a binomial distribution."""
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


def of_ledger(*, steps=60, prior=None, stage="sft", key="1" * 32, **privacy):
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


def member(privacy):
    """Return the receipt as a package holds it."""
    return json.loads(receipt_bytes(privacy))


HONEST = member(of_ledger())
CHAIN = member(of_ledger(steps=12, prior=of_ledger(), stage="reinforce", key="2" * 32))


def test_the_ledgers_own_receipts_pass():
    assert recompute_privacy(HONEST, stages=["sft"])
    assert recompute_privacy(CHAIN, stages=["sft", "reinforce"])
    assert recompute_privacy(member(of_ledger(steps=1)))
    assert recompute_privacy(member(of_ledger(steps=0)))
    assert recompute_privacy(member(building.privacy()))


@pytest.mark.parametrize("honest", [HONEST, CHAIN], ids=["one stage", "two stages"])
@pytest.mark.parametrize("share", [0.999, 0.99, 0.9, 0.5, 0.0])
def test_a_receipt_that_claims_less_than_its_events_cost_is_refused(honest, share):
    with pytest.raises(ReceiptError, match=r"epsilon is .* but its events cost at least"):
        recompute_privacy({**honest, "epsilon": honest["epsilon"] * share})


def test_a_stage_that_claims_less_is_refused():
    false = {**CHAIN["stage_epsilon"], "sft": CHAIN["stage_epsilon"]["sft"] - 0.05}
    with pytest.raises(ReceiptError, match=r"stage_epsilon\.sft is .* cost at least"):
        recompute_privacy({**CHAIN, "stage_epsilon": false})


def test_a_delta_beyond_doubles_is_beyond_what_can_be_recomputed():
    with pytest.raises(ReceiptError, match="cannot be recomputed"):
        recompute_privacy({**HONEST, "delta": 1e-12, "epsilon": 99.0})


def test_events_of_one_key_are_one_release():
    twice = {**HONEST, "events": [{**HONEST["events"][0], "steps": 20}, HONEST["events"][0]]}
    recompute_privacy(twice)
    other = {**HONEST["events"][0], "key_id": "9" * 32}
    with pytest.raises(ReceiptError, match="cost at least"):
        recompute_privacy({**HONEST, "events": [other, HONEST["events"][0]]})


OPEN = {
    "off": unprotected_receipt(stage="sft", unit="record"),
    "reproducible": of_ledger(mode="reproducible"),
    "private, then off": unprotected_receipt(stage="reinforce", unit="record", prior=of_ledger()),
    "off, then private": of_ledger(
        stage="reinforce", prior=unprotected_receipt(stage="sft", unit="record"), key="2" * 32
    ),
}


@pytest.mark.parametrize("privacy", OPEN.values(), ids=OPEN)
def test_a_receipt_that_claims_nothing_has_nothing_to_recompute(privacy):
    assert recompute_privacy(member(privacy), stages=["sft", "reinforce"]) is None


def test_the_longest_receipt_is_judged_in_bounded_time():
    """Each of 64 kinds of steps once had its own grid of full size, which took minutes."""
    events = [
        {**HONEST["events"][0], "steps": 10, "sample_rate": 0.01 + number * 1e-6, "key_id": f"{number:032}"}
        for number in range(63)
    ]
    false = {**HONEST, "events": [*events, HONEST["events"][0]], "epsilon": 50.0, "stage_epsilon": {"sft": 50.0}}
    started = time.process_time()
    recompute_privacy(false)
    assert time.process_time() - started < 60
