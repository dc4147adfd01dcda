"""The messages if no noise keeps a stage within its target: they name the cause, and settings that the stage has."""

import pytest

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.calibration import calibrate_noise_multiplier
from sealed_experts.privacy.ledger.events import GaussianEvent

DELTA = 1e-5
BEFORE = GaussianEvent(stage="sft", noise_multiplier=1.0, sample_rate=0.064, steps=60)


def refusal(**changes):
    values = {"stage": "reinforce", "sample_rate": 0.064, "steps": 25, "delta": DELTA, "target_epsilon": 3.0}
    with pytest.raises(UserError) as caught:
        calibrate_noise_multiplier(**{**values, **changes})
    return str(caught.value)


@pytest.mark.parametrize("before", [[], [BEFORE]])
def test_dear_queries_are_told_by_their_setting_and_their_cost(before):
    told = refusal(queries={"mean_reward": 0.4}, prior_events=before, target_epsilon=5.0)
    alone = epsilon([*before, GaussianEvent(stage="q", noise_multiplier=0.4, sample_rate=0.064, steps=25)], delta=DELTA)
    assert f"its other queries alone would bring ε to {alone:.4g}" in told
    assert "baseline_noise_multiplier" in told
    assert (f"have spent {epsilon(before, delta=DELTA):.4g}" in told) == bool(before)


def test_stages_before_that_spent_it_all_are_told_and_no_query_is_blamed():
    told = refusal(prior_events=[BEFORE], queries={"mean_reward": 5.0})
    assert f"the stages before it have spent {epsilon([BEFORE], delta=DELTA):.4g}" in told
    assert "baseline_noise_multiplier" not in told


def test_too_many_steps_are_told_without_a_word_of_queries_or_stages_that_are_not_there():
    told = refusal(steps=10**5, sample_rate=0.5, target_epsilon=0.01)
    assert "no noise up to 10000 leaves room for its steps" in told
    assert "queries" not in told
    assert "before it" not in told


def test_no_refusal_names_settings_that_reinforce_lacks():
    tight = {"steps": 10**5, "sample_rate": 0.5, "target_epsilon": 0.01}
    for told in (refusal(queries={"mean_reward": 0.1}), refusal(prior_events=[BEFORE]), refusal(**tight)):
        assert "max_steps" not in told
        assert "batch_size" not in told
