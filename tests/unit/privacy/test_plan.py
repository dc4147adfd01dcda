"""The plan: what it decides, what it refuses, and that mechanism and ledger read the same numbers."""

import dataclasses
import math

import pytest

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import BudgetCurve, epsilon
from sealed_experts.privacy.ledger.calibration import calibrate_noise_multiplier
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.plan import PrivacyPlan, plan_stage
from sealed_experts.privacy.settings import PrivacySettings

SFT = GaussianEvent(stage="sft", noise_multiplier=1.0, sample_rate=0.064, steps=60)


def plan(*, privacy=None, **changes):
    values = {"stage": "sft", "units": 2000, "unit": "record", "expected_batch_size": 128, "max_steps": 60}
    return plan_stage(PrivacySettings(**(privacy or {})), **{**values, **changes})


def test_a_given_noise_runs_to_the_end_where_the_budget_allows():
    made = plan()
    assert (made.noise_multiplier, made.steps_within_budget, made.stopped_reason) == (1.0, 60, "max_steps")
    assert (made.neighbouring, made.sampling) == ("add_or_remove_one", "poisson")
    assert made.sample_rate == 0.064
    assert made.event(7, key_id="k") == GaussianEvent(
        stage="sft", noise_multiplier=1.0, sample_rate=0.064, steps=7, key_id="k"
    )


def test_the_stage_ends_before_the_step_that_would_exceed_the_target():
    made = plan(privacy={"target_epsilon": 2.0})
    assert made.stopped_reason == "privacy_budget"
    assert epsilon([made.event(made.steps_within_budget)], delta=1e-5) <= 2.0
    assert epsilon([made.event(made.steps_within_budget + 1)], delta=1e-5) > 2.0


def test_the_budget_is_joint_with_earlier_stages():
    alone = plan(stage="rl", privacy={"target_epsilon": 5.0}, max_steps=200)
    after = plan(stage="rl", privacy={"target_epsilon": 5.0}, max_steps=200, prior_events=[SFT])
    assert 0 < after.steps_within_budget < alone.steps_within_budget
    joint = [epsilon([SFT, after.event(after.steps_within_budget + more)], delta=1e-5) for more in (0, 1)]
    assert joint[0] <= 5.0 < joint[1]


def test_the_curve_is_epsilon_to_the_last_bit():
    made = plan(stage="rl", max_steps=30)
    curve = BudgetCurve([SFT], made)
    assert curve.epsilon_at(0) == epsilon([SFT], delta=1e-5)
    assert curve.epsilon_at(9) == epsilon([made.event(9), SFT], delta=1e-5)
    assert curve.epsilon_at(9) < curve.epsilon_at(10)
    assert curve.steps_within(1.0) == 0
    assert curve.steps_within() == 30


@pytest.mark.parametrize(("changes", "target"), [({}, 8.0), ({}, 0.5), ({"prior_events": [SFT], "max_steps": 25}, 8.0)])
def test_auto_ends_at_the_target_and_not_above(changes, target):
    made = plan(privacy={"noise_multiplier": "auto", "target_epsilon": target}, **changes)
    prior = changes.get("prior_events", [])
    assert made.stopped_reason == "max_steps"
    assert made.noise_multiplier == round(made.noise_multiplier, 4)
    reached = epsilon([*prior, made.event(made.max_steps)], delta=1e-5)
    assert 0.999 * target <= reached <= target
    assert plan(privacy={"noise_multiplier": "auto", "target_epsilon": target}, **changes) == made


def test_auto_pays_for_the_other_queries_too():
    made = plan(privacy={"noise_multiplier": "auto", "target_epsilon": 4.0}, queries={"mean_reward": 5.0})
    without = plan(privacy={"noise_multiplier": "auto", "target_epsilon": 4.0})
    assert without.noise_multiplier < made.noise_multiplier < 1.05 * without.noise_multiplier
    assert made.effective_noise_multiplier == pytest.approx((made.noise_multiplier**-2 + 1 / 25) ** -0.5)
    assert epsilon([made.event(60)], delta=1e-5) <= 4.0


def test_the_noise_of_a_hopelessly_generous_target_stays_above_nothing():
    noise = calibrate_noise_multiplier(stage="s", sample_rate=0.01, steps=1, delta=1e-5, target_epsilon=1e4)
    assert noise == 0.1


def test_a_tiny_target_takes_much_noise():
    noise = calibrate_noise_multiplier(stage="s", sample_rate=0.01, steps=5, delta=1e-5, target_epsilon=0.001)
    reached = epsilon([GaussianEvent(stage="s", noise_multiplier=noise, sample_rate=0.01, steps=5)], delta=1e-5)
    assert 0.0005 < reached <= 0.001


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expected_batch_size": 2000}, "logical batch is 2000.*2000 units.*smaller than the data"),
        ({"units": 100, "expected_batch_size": 128}, "choose a batch below 100"),
        ({"privacy": {"delta": 1e-3}}, "delta is 0.001, not below 1/2000"),
        ({"privacy": {"target_epsilon": 0.5}}, "first step would bring ε to 1.248, above target_epsilon 0.5"),
        ({"prior_events": [SFT], "privacy": {"target_epsilon": 3.6}}, "stages before it have spent 3.616"),
        (
            {"prior_events": [SFT], "privacy": {"target_epsilon": 3.6, "noise_multiplier": "auto"}},
            "auto cannot bring stage sft within target_epsilon 3.6: .* spent 3.616",
        ),
        (
            {"queries": {"mean_reward": 0.2}, "privacy": {"target_epsilon": 3.6, "noise_multiplier": "auto"}},
            "other queries more noise",
        ),
    ],
)
def test_an_impossible_plan_is_refused_with_what_to_change(changes, message):
    with pytest.raises(UserError, match=message):
        plan(**changes)


def test_without_privacy_there_is_nothing_to_plan():
    with pytest.raises(ValueError, match="without privacy"):
        plan(privacy={"enabled": False})


def test_reproducible_mode_plans_the_same_steps():
    release = plan(privacy={"target_epsilon": 2.0})
    reproducible = plan(privacy={"target_epsilon": 2.0, "mode": "reproducible"})
    assert dataclasses.replace(reproducible, mode="release") == release


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"max_grad_norm": 0.0},
        {"delta": 0.0},
        {"target_epsilon": -1.0},
        {"expected_batch_size": 2000},
        {"expected_batch_size": 0},
        {"mode": "secret"},
        {"steps_within_budget": 61},
        {"queries": {"mean_reward": 0.0}},
        {"unit": ""},
    ],
)
def test_a_plan_that_makes_no_sense_cannot_exist(changes):
    made = plan()
    with pytest.raises(ValueError, match=r"must|needs"):
        dataclasses.replace(made, **changes)


def test_a_plan_cannot_be_changed():
    made = plan(queries={"mean_reward": 5.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.noise_multiplier = 2.0
    with pytest.raises(TypeError):
        made.queries["mean_reward"] = 50.0
    assert isinstance(made, PrivacyPlan)


def test_units_of_several_kinds_have_no_plan():
    with pytest.raises(UserError, match="different units of privacy"):
        plan(unit="mixed")
