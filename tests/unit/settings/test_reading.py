"""Strict YAML, and how several files become one document."""

import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealed_experts.configuration.resolution import load
from sealed_experts.settings.merging import merge
from sealed_experts.settings.reading import read_text

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"

# A key in capitals always holds a mapping, another one never does: where a later file turned the one into the other,
# what an earlier file said would be lost or kept depending on the grouping. No `source` and no `name`, likewise.
scalars = st.one_of(st.integers(), st.booleans(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
leaves = st.dictionaries(st.sampled_from(["a", "b"]), scalars, max_size=2)


def with_branches(inner: Any) -> Any:
    branches = st.dictionaries(st.sampled_from(["A", "B"]), inner, max_size=2)
    return st.builds(lambda leaf, branch: {**leaf, **branch}, leaves, branches)


documents = st.recursive(leaves, with_branches, max_leaves=6)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(item) for key, item in reversed(value.items())}
    return value


@hypothesis.settings(deadline=None)  # other work on the machine is no failure
@given(documents, documents, documents)
def test_merging_is_associative_where_a_mapping_stays_a_mapping(first: Any, second: Any, third: Any) -> None:
    assert merge(merge(first, second), third) == merge(first, merge(second, third))


@hypothesis.settings(deadline=None)  # other work on the machine is no failure
@given(documents, documents)
def test_merging_does_not_depend_on_the_order_of_keys(first: Any, second: Any) -> None:
    assert merge(reversed_keys(first), reversed_keys(second)) == merge(first, second)


@hypothesis.settings(deadline=None)  # other work on the machine is no failure
@given(documents, documents)
def test_merging_leaves_its_arguments_alone_and_later_values_win(first: Any, second: Any) -> None:
    before = json.dumps([first, second])
    merged = merge(first, second)
    assert json.dumps([first, second]) == before
    assert merged.keys() == first.keys() | second.keys()
    assert merge(merged, second) == merged


@pytest.mark.parametrize(
    ("first", "later", "merged"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}, "c": 2}, {"a": None}, {"c": 2}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({}, {"a": {"b": None, "c": {"d": None}}}, {"a": {"c": {}}}),
        ({"d": {"source": "files", "paths": ["x"]}}, {"d": {"source": "demo"}}, {"d": {"source": "demo"}}),
        ({"d": {"source": "demo", "records": 9}}, {"d": {"source": "demo"}}, {"d": {"source": "demo", "records": 9}}),
        ({"d": {"source": "demo"}}, {"d": {"records": 9}}, {"d": {"source": "demo", "records": 9}}),
        ({"base": {"name": "o/m", "revision": "r"}}, {"base": {"name": "demo"}}, {"base": {"name": "demo"}}),
        ({"base": {"revision": "r"}}, {"base": {"name": "demo"}}, {"base": {"revision": "r", "name": "demo"}}),
    ],
)
def test_merging_follows_its_rules(first: Any, later: Any, merged: Any) -> None:
    assert merge(first, later) == merged


def test_a_later_file_deletes_an_expert_with_null(tmp_path: Path) -> None:
    (tmp_path / "less.yaml").write_text("experts: {investment_expert: null}\n")
    settings = load([CONFIG / "config.yaml", tmp_path / "less.yaml"], root=ROOT)
    assert list(settings.by_name) == ["banking_expert", "shared_attention"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("True", True), ("false", False), ("on", "on"), ("no", "no"), ("y", "y"),
        ("7", 7), ("-7", -7), ("1_000", 1000), ("010", "010"), ("1:30", "1:30"), ("0x10", "0x10"),
        ("1.0e-4", 1e-4), ("1e-4", "1e-4"), ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), (".inf", ".inf"), (".nan", ".nan"),
        ("2024-01-31", "2024-01-31"), ("~", None), ("null", None), ("", None), ("'5'", "5"),
    ],
)  # fmt: skip
def test_plain_scalars_are_read_as_yaml_1_2_reads_them(text: str, value: Any) -> None:
    read = read_text(f"a: {text}\n", origin="x")["a"]
    assert read == value
    assert type(read) is type(value)


def test_anchors_and_merge_keys_work() -> None:
    text = "one: &one {a: 1, b: 2}\ntwo: &two {<<: *one, b: 3}\nthree: {<<: *two, a: 4}\n"
    assert read_text(text, origin="x")["three"] == {"a": 4, "b": 3}
