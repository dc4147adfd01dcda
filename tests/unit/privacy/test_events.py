"""Events: validation, their JSON, several queries on one draw, repetitions of one key."""

import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger.events import (
    GaussianEvent,
    combined_noise_multiplier,
    distinct_events,
    events_from_json,
)


def event(**changes):
    values = {"stage": "sft", "noise_multiplier": 1.0, "sample_rate": 0.064, "steps": 60}
    return GaussianEvent(**{**values, **changes})


@given(
    noise=st.floats(1e-3, 1e3),
    rate=st.floats(1e-9, 1.0),
    steps=st.integers(0, 10**9),
    key=st.none() | st.text(min_size=1),
)
def test_an_event_survives_json(noise, rate, steps, key):
    written = event(noise_multiplier=noise, sample_rate=rate, steps=steps, key_id=key)
    assert GaussianEvent.from_json(json.loads(json.dumps(written.to_json()))) == written


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"sample_rate": 0.0},
        {"sample_rate": 1.1},
        {"steps": -1},
        {"stage": ""},
    ],
)
def test_impossible_events_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        event(**changes)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {"stage": "sft"},
        {**event().to_json(), "extra": 1},
        {**event().to_json(), "steps": 1.5},
        {**event().to_json(), "steps": True},
        {**event().to_json(), "steps": math.inf},
        {**event().to_json(), "noise_multiplier": "1.0"},
        {**event().to_json(), "noise_multiplier": 0},
        {**event().to_json(), "stage": 3},
    ],
)
def test_malformed_json_is_a_user_error(data):
    with pytest.raises(UserError, match="event"):
        GaussianEvent.from_json(data)


def test_a_list_of_events_must_be_a_list():
    with pytest.raises(UserError, match="list"):
        events_from_json({"stage": "sft"})


def test_queries_on_one_draw_are_one_gaussian():
    assert combined_noise_multiplier([2.0]) == 2.0
    assert combined_noise_multiplier([1.0, 1.0]) == pytest.approx(math.sqrt(0.5))
    assert combined_noise_multiplier([1.0, 5.0]) == pytest.approx(1 / math.sqrt(1 + 1 / 25))


def test_one_key_counts_once_with_its_longest_run():
    short, long = event(steps=10, key_id="a"), event(steps=60, key_id="a")
    other, unkeyed = event(key_id="b"), event()
    assert distinct_events([short, other, unkeyed, long, unkeyed]) == (long, other, unkeyed, unkeyed)
    assert distinct_events([long, short]) == (long,)


def test_one_key_with_two_noises_is_refused():
    with pytest.raises(UserError, match="disagree"):
        distinct_events([event(key_id="a"), event(key_id="a", noise_multiplier=2.0)])


def test_planning_and_reading_events_imports_nothing_heavy():
    program = (
        "import sys; import sealed_experts.privacy.plan, sealed_experts.privacy.ledger.releases, "
        "sealed_experts.privacy.ledger.receipt, sealed_experts.privacy.ledger.journal; "
        "print([m for m in ('torch', 'transformers', 'dp_accounting', 'scipy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
