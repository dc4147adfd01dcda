"""Tiny runs give the recorded results bit for bit, and the tool that compares finds differences."""

import json

import pytest

from tests.golden.__main__ import GOLDEN
from tests.golden.comparable import made_with
from tests.golden.differences import differences
from tests.golden.recording import configuration_of, runs_of
from tests.golden.workplace import Workplace


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("golden") / "run")


@pytest.mark.workflow
def test_schemas_rules_and_messages_are_those_recorded(golden, workplace):
    found = configuration_of(workplace)
    assert differences({section: golden[section] for section in found}, found) == []


@pytest.mark.slow
@pytest.mark.workflow
def test_the_results_are_those_recorded(golden, workplace):
    here = made_with()
    if golden["made with"] != here:
        pytest.skip(f"golden.json was made with {golden['made with']}; here is {here}")
    found = runs_of(workplace)
    assert differences({section: golden[section] for section in found}, found) == []


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
