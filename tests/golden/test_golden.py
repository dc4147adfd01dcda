"""Tiny runs give what was recorded, bit for bit; and the tool that compares sees what differs."""

import json

import pytest

from tests.golden.__main__ import GOLDEN
from tests.golden.differences import differences
from tests.golden.recording import made_with, record


@pytest.mark.slow
@pytest.mark.workflow
def test_the_results_are_those_recorded():
    golden = json.loads(GOLDEN.read_text())
    if golden["made with"] != made_with():
        pytest.skip(f"golden.json was made with {golden['made with']}; here is {made_with()}")
    assert differences(golden, record()) == []


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, []),
        ({"a": {"b": None}}, {"a": {}}, ["a: b: 1 difference", "  the whole of it: gone; it was null"]),
        ({"a": {}}, {"a": {"b": [1]}}, ["a: b: 1 difference", "  the whole of it: new: [1]"]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1.0}}}, ["a: b: 1 difference", "  c: was 1, is 1.0"]),
        ({"a": {"b": [1, 0.0]}}, {"a": {"b": [1, -0.0]}}, ["a: b: 1 difference", "  [1]: was 0.0, is -0.0"]),
        ({"a": {"b": [1]}}, {"a": {"b": [1, None]}}, ["a: b: 1 difference", "  [1]: new: null"]),
    ],
)
def test_what_differs_is_said_in_words(before, after, lines):
    assert differences(before, after) == lines


def test_long_lists_of_differences_are_cut():
    found = differences({"a": {"b": [0] * 9}}, {"a": {"b": [1] * 9}}, shown=2)
    assert found == ["a: b: 9 differences", "  [0]: was 0, is 1", "  [1]: was 0, is 1", "  … and 7 more"]
