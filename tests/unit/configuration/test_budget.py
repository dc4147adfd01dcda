"""What a private stage must cost at least, told before the first job: against the accountant and closed forms."""

import math
import os
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.configuration.budget_checks import check_dataset_sizes
from sealed_experts.configuration.resolution import resolve
from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.first_steps import least_epsilon
from sealed_experts.privacy.plan import plan_stage
from sealed_experts.privacy.settings import PrivacySettings
from tests.conftest import ROOT
from tests.unit.configuration.test_mistakes import changed


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.83, 0.999])
@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-2])
def test_the_least_epsilon_of_a_step_is_just_below_the_accountants(rate, noise, delta):
    exact = epsilon(
        [GaussianEvent(stage="sft", noise_multiplier=noise, sample_rate=rate, steps=1, key_id="k")], delta=delta
    )
    least = least_epsilon(((rate, noise),), delta=delta)
    assert least <= exact + 1e-9
    assert least >= 0.95 * exact - 0.01


def test_the_least_epsilon_of_a_whole_draw_is_the_gaussian_mechanisms_own():
    # Balle and Wang (2018), theorem 8, by bisection.
    def delta_at(value, noise):
        def cdf(x):
            return 0.5 * math.erfc(-x / math.sqrt(2))

        return cdf(0.5 / noise - value * noise) - math.exp(value) * cdf(-0.5 / noise - value * noise)

    low, high = 0.0, 50.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle, 0.7) > 1e-5 else (low, middle)
    assert least_epsilon(((1.0, 0.7),), delta=1e-5) == pytest.approx(low, rel=2e-3)


@pytest.mark.parametrize("steps", [((0.5, 1.0), (0.2, 0.7)), ((0.9, 2.0), (0.9, 2.0), (0.1, 0.5))])
def test_the_least_epsilon_of_several_stages_is_below_the_accountants_and_above_each_alone(steps):
    events = [
        GaussianEvent(stage="s", noise_multiplier=noise, sample_rate=rate, steps=1, key_id=str(place))
        for place, (rate, noise) in enumerate(steps)
    ]
    exact = epsilon(events, delta=1e-5)
    least = least_epsilon(steps, delta=1e-5)
    assert least <= exact + 1e-9
    assert least >= 0.9 * exact
    assert all(least >= least_epsilon((step,), delta=1e-5) - 1e-9 for step in steps)


def priced(tmp_path, target, *, noise=0.5, batch=500, **expert):
    return resolve(
        changed(
            {
                "defaults.sft.batch_size": batch,
                "defaults.privacy": {"target_epsilon": target, "noise_multiplier": noise, "delta": 1e-5},
                **expert,
            }
        ),
        root=tmp_path,
    )


def test_a_target_that_the_first_step_must_exceed_is_refused_at_parse(tmp_path):
    with pytest.raises(UserError) as caught:
        check_dataset_sizes(priced(tmp_path, 0.001), {"banking": 600}, exact=False)
    assert "experts.banker.sft: " in str(caught.value)
    assert "would bring ε to at least" in str(caught.value)
    assert "above target_epsilon 0.001" in str(caught.value)
    check_dataset_sizes(priced(tmp_path, 0.001, noise="auto"), {"banking": 600}, exact=False)
    check_dataset_sizes(priced(tmp_path, 0.001), {}, exact=False)


@hypothesis.settings(deadline=None, max_examples=40)
@given(
    target=st.floats(0.01, 20),
    noise=st.floats(0.3, 3),
    batch=st.integers(1, 400),
    units=st.integers(401, 600),
    bound=st.integers(600, 5000),
)
def test_nothing_is_refused_at_parse_that_the_plan_would_take(tmp_path_factory, target, noise, batch, units, bound):
    settings = priced(tmp_path_factory.getbasetemp(), target, noise=noise, batch=batch)
    try:
        check_dataset_sizes(settings, {"banking": bound}, exact=False)
    except UserError:
        privacy = PrivacySettings(target_epsilon=target, noise_multiplier=noise, delta=1e-5)
        with pytest.raises(UserError, match="the first step would bring ε"):
            plan_stage(privacy, stage="sft", units=units, unit="record", expected_batch_size=batch, max_steps=3)


def test_the_stages_before_count_with_a_step_each(tmp_path):
    # Each stage alone is within 8.3, both together are not: 7.9 and 7.9 compose to more.
    chain = {"stages": ["sft", "reinforce"], "reinforce": {"rollout_batch_size": 500}}
    noise = 0.62
    alone = least_epsilon(((500 / 600, noise),), delta=1e-5)
    both = least_epsilon(((500 / 600, noise),) * 2, delta=1e-5)
    assert both > alone + 1
    target = (alone + both) / 2
    settings = priced(
        tmp_path,
        target,
        noise=noise,
        **{"experts.banker": {**chain, "dataset": "banking", "routing": {"keywords": ["k"]}}},
    )
    with pytest.raises(UserError) as caught:
        check_dataset_sizes(settings, {"banking": 600}, exact=False)
    assert "experts.banker.reinforce: " in str(caught.value)
    assert "experts.banker.sft: " not in str(caught.value)
    settings = priced(
        tmp_path,
        target,
        noise=noise,
        **{
            "experts.banker": {
                **chain,
                "sft": {"privacy": {"enabled": False}},
                "dataset": "banking",
                "routing": {"keywords": ["k"]},
            }
        },
    )
    check_dataset_sizes(settings, {"banking": 600}, exact=False)


def reinforced(tmp_path, **reinforce):
    """An expert whose first stage is without privacy, and whose second draws 500 of at most 600."""
    return resolve(
        changed(
            {
                "experts.banker": {
                    "dataset": "banking",
                    "routing": {"keywords": ["k"]},
                    "stages": ["sft", "reinforce"],
                    "sft": {"privacy": {"enabled": False}},
                    "reinforce": {"rollout_batch_size": 500, **reinforce},
                },
                "defaults.privacy": {"target_epsilon": 8.0, "noise_multiplier": 1.0, "delta": 1e-5},
            }
        ),
        root=tmp_path,
    )


def test_the_noised_mean_reward_counts_with_the_gradient_at_parse(tmp_path):
    # σ = (1/1² + 1/0.9²)^(-1/2), by hand 0.66896: one Gaussian query on the draw.
    gradient, both = (least_epsilon(((500 / 600, noise),), delta=1e-5) for noise in (1.0, 0.66896))
    assert both > gradient + 1
    privacy = {"target_epsilon": (gradient + both) / 2}
    settings = reinforced(tmp_path, privacy=privacy, baseline_noise_multiplier=0.9)
    with pytest.raises(
        UserError, match=f"reinforce: the first step would bring ε to at least {both:.4g}, above"
    ) as told:
        check_dataset_sizes(settings, {"banking": 600}, exact=False)
    assert "raise target_epsilon or noise_multiplier" in str(told.value)
    sound = reinforced(tmp_path, privacy=privacy, baseline_noise_multiplier=50.0)
    check_dataset_sizes(sound, {"banking": 600}, exact=False)


@pytest.mark.parametrize("noise", ["auto", 1.0, 50.0])
def test_a_mean_reward_that_is_dear_by_itself_is_refused_at_parse_whatever_the_gradients_noise(tmp_path, noise):
    privacy = {"noise_multiplier": noise}
    with pytest.raises(UserError) as told:
        check_dataset_sizes(
            reinforced(tmp_path, privacy=privacy, baseline_noise_multiplier=0.3), {"banking": 600}, exact=False
        )
    assert "raise baseline_noise_multiplier or target_epsilon" in str(told.value)
    assert "noise_multiplier: auto" not in str(told.value)
    with pytest.raises(UserError, match=r"first step|auto cannot"):
        plan_stage(
            PrivacySettings(**privacy),
            stage="reinforce",
            units=600,
            unit="record",
            expected_batch_size=500,
            max_steps=1,
            queries={"mean_reward": 0.3},
        )
    check_dataset_sizes(reinforced(tmp_path, privacy=privacy), {"banking": 600}, exact=False)


@hypothesis.settings(deadline=None, max_examples=25)
@given(
    target=st.floats(0.5, 20),
    noise=st.floats(0.3, 3),
    baseline=st.floats(0.2, 5),
    units=st.integers(501, 600),
)
def test_nothing_is_refused_of_reinforce_that_the_plan_would_take(tmp_path_factory, target, noise, baseline, units):
    privacy = {"target_epsilon": target, "noise_multiplier": noise, "delta": 1e-5}
    settings = reinforced(tmp_path_factory.getbasetemp(), privacy=privacy, baseline_noise_multiplier=baseline)
    try:
        check_dataset_sizes(settings, {"banking": 600}, exact=False)
    except UserError:
        with pytest.raises(UserError, match="the first step would bring ε"):
            plan_stage(
                PrivacySettings(**privacy),
                stage="reinforce",
                units=units,
                unit="record",
                expected_batch_size=500,
                max_steps=3,
                queries={"mean_reward": baseline},
            )


@pytest.mark.parametrize("noise", [1e-300, 1e-20, 1e300])
def test_noise_of_any_size_has_a_least_epsilon(noise):
    least = least_epsilon(((0.5, noise), (0.5, 1e5)), delta=1e-5)
    assert math.isfinite(least)
    assert (least > 100) == (noise < 1)


def test_the_check_loads_neither_torch_nor_an_accountant(tmp_path):
    program = (
        "import sys; from sealed_experts.privacy.ledger.first_steps import least_epsilon;"
        "least_epsilon(((0.5, 1.0),), delta=1e-5);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'dp_accounting', 'scipy', 'numpy')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
