"""Joint privacy of several adapters: the worst unit decides."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.errors import UserError
from sealed_experts.privacy.ledger import mixture
from sealed_experts.privacy.ledger.accounting import epsilon
from sealed_experts.privacy.ledger.events import GaussianEvent
from sealed_experts.privacy.ledger.mixture import Member, mixture_privacy

DELTA = 1e-5


def member(name, units, *, noise=1.0, **more):
    event = GaussianEvent(stage="sft", noise_multiplier=noise, sample_rate=0.064, steps=60, key_id=name)
    return Member(name=name, events=(event,), units=None if units is None else frozenset(units), **more)


def joint(*members):
    return epsilon([event for each in members for event in each.events], delta=DELTA)


def test_disjoint_experts_cost_what_the_worst_one_costs():
    banking, investment = member("banking", "ab"), member("investment", "cd", noise=0.8)
    result = mixture_privacy([banking, investment], delta=DELTA)
    assert result.epsilon == joint(investment)
    assert result.members == ("investment",)
    assert (result.delta, result.reason) == (DELTA, None)


def test_common_records_bear_all_experts_that_hold_them():
    banking, investment, shared = member("banking", "ab"), member("investment", "cd"), member("shared", "abcd")
    result = mixture_privacy([banking, investment, shared], delta=DELTA)
    assert result.epsilon == joint(banking, shared) < joint(banking, investment, shared)
    assert result.members == ("banking", "shared")


def test_unknown_lineage_is_common_with_everyone():
    banking, investment, foreign = member("banking", "ab"), member("investment", "cd"), member("foreign", None)
    assert mixture_privacy([banking, investment, foreign], delta=DELTA).epsilon == joint(banking, foreign)
    other = member("other", None, noise=2.0)
    assert mixture_privacy([foreign, other], delta=DELTA).epsilon == joint(foreign, other)


def test_a_member_without_a_claim_leaves_none_for_the_mixture():
    open_member = member("open", "xy", reason="privacy is off")
    result = mixture_privacy([member("banking", "ab"), open_member], delta=DELTA)
    assert result.epsilon is None
    assert result.reason == "open claims no privacy: privacy is off"


def test_a_member_of_public_data_alone_harms_nobody():
    public = member("public", "", reason="privacy is off")
    banking = member("banking", "ab")
    assert mixture_privacy([banking, public], delta=DELTA).epsilon == joint(banking)


def test_different_kinds_of_units_do_not_compose():
    result = mixture_privacy([member("a", "ab"), member("b", "cd", unit="customer")], delta=DELTA)
    assert result.epsilon is None
    assert "customer, record" in result.reason


def test_an_empty_mixture_costs_nothing():
    assert mixture_privacy([], delta=DELTA).epsilon == 0.0


def test_only_the_units_in_question_count():
    past = member("past", "zz", reason="privacy is off")
    banking = member("banking", "ab")
    assert mixture_privacy([banking, past], delta=DELTA, among=frozenset("ab")).epsilon == joint(banking)
    assert mixture_privacy([banking, past], delta=DELTA, among=frozenset("az")).epsilon is None


def test_the_statement_holds_at_its_own_delta():
    banking = member("banking", "ab")
    looser = mixture_privacy([banking], delta=1e-4)
    assert looser.delta == 1e-4
    assert looser.epsilon < mixture_privacy([banking], delta=DELTA).epsilon


def test_a_thousand_disjoint_experts_are_quick():
    """The computation stops as soon as no other expert can have a larger ε."""
    members = [member(f"expert_{index}", [f"u{index}"], noise=1.0 + index % 7) for index in range(1000)]
    assert mixture_privacy(members, delta=DELTA).epsilon == joint(members[0])


def test_members_come_from_receipts():
    event = member("a", "ab").events[0]
    receipt = {"epsilon": 3.6, "events": [event.to_json()], "unit": "record", "reason": None}
    assert Member.from_receipt(receipt, name="a", units=frozenset("ab")) == member("a", "ab")
    silent = {"epsilon": None, "events": [], "unit": "record", "reason": None}
    with pytest.raises(UserError, match="a states neither an ε nor a reason"):
        Member.from_receipt(silent, name="a", units=None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.sets(st.sampled_from("abcdef")), min_size=1, max_size=6))
def test_the_worst_group_is_the_worst_unit(holdings):
    """Compare with the definition: for every unit, all members that have it."""
    members = [member(str(index), units) for index, units in enumerate(holdings)]
    groups = mixture.largest_groups(members, None)
    known = sorted(set().union(*(units for units in holdings if units)))
    truth = {frozenset(i for i, units in enumerate(holdings) if units is None or unit in units) for unit in known}
    truth = truth or {frozenset(i for i, units in enumerate(holdings) if units is None)} - {frozenset()}
    assert {group for group in truth if not any(group < other for other in truth)} == set(groups)
    assert not any(first < second for first, second in itertools.permutations(groups, 2))


def test_mixed_units_never_compare_as_equal():
    """Two combined datasets may both be `mixed`, and still give one record two different ids."""
    mixed = [member(name, units, unit="mixed") for name, units in (("a", "xy"), ("b", "zw"))]
    assert mixture_privacy(mixed, delta=DELTA).epsilon is None
    assert "different kinds of units" in str(mixture_privacy(mixed, delta=DELTA).reason)
