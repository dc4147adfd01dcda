"""YAML that is no configuration: every scalar, tag and nesting ends in a message with its place."""

import pytest

from sealed_experts.configuration.resolution import load
from sealed_experts.errors import UserError
from sealed_experts.settings.merging import merge
from sealed_experts.settings.reading import read_file, read_text


@pytest.mark.parametrize(
    "text",
    [
        "seed: 1" + "0" * 400,
        "seed: 1" + "0" * 5000,
        "seed: !!int abc",
        "seed: !!float abc",
        "seed: !!bool abc",
        "seed: !!null abc",
        "seed: !!timestamp 2020-99-01",
        "seed: !!timestamp abc",
        "seed: !!binary ü",
        "seed: !!set {a: null}",
        "seed: !!int [1]",
        "seed: !!str {a: 1}",
        "seed: !!python/none 3",
        "seed: !own 3",
        "a: " + "[" * 3000 + "]" * 3000,
        "a: " + "{a: " * 50_000,
        "\n".join(" " * depth + "a:" for depth in range(400)),
    ],
    ids=lambda text: text[:24].replace("\n", " "),
)
def test_a_scalar_or_a_nesting_that_yaml_cannot_hold_is_told_with_its_line(text):
    with pytest.raises(UserError, match=r"my\.yaml, line \d+: "):
        read_text(text, origin="my.yaml")


def test_explicit_tags_that_fit_are_read():
    text = 'a: !!int 12\nb: !!float 1.5\nc: !!str 12\nd: !!bool true\ne: !!null ~\nf: !!int "7"\ng: !!seq [1]'
    assert read_text(text, origin="x") == {"a": 12, "b": 1.5, "c": "12", "d": True, "e": None, "f": 7, "g": [1]}
    nested = read_text("a: " + "[" * 60 + "]" * 60, origin="x")["a"]
    assert nested[0][0] is not None


BASE = "base: {name: demo}\ndatasets: {d: {source: demo}}\nexperts: {e: {dataset: d, routing: {keywords: [k]}}}\n"


def test_no_value_makes_the_check_fail_otherwise_than_by_a_message(tmp_path):
    for number, change in enumerate(
        [
            "seed: 1" + "0" * 99,
            "defaults: {sft: {learning_rate: 1.0e+999}}",
            "base: {name: ~nouser/x}",
            "base: {name: " + "x/" * 2500 + "x}",
            'base: {name: "a\\0b"}',
            "datasets: {f: {source: files, paths: [" + "x" * 5000 + ".jsonl]}}",
            'datasets: {f: {source: files, paths: ["a\\0b.jsonl"]}}',
        ]
    ):
        path = tmp_path / f"{number}.yaml"
        (tmp_path / "base.yaml").write_text(BASE)
        path.write_text(change)
        with pytest.raises(UserError, match=r"seed|learning_rate|base\.name|datasets\.f\.paths"):
            load([tmp_path / "base.yaml", path], root=tmp_path)


@pytest.mark.parametrize("value", ["", None, "null", "~"])
def test_a_setting_without_a_value_on_the_command_line_is_refused(tmp_path, value):
    (tmp_path / "base.yaml").write_text(BASE)
    with pytest.raises(UserError, match=r"--config seed=: no value"):
        load([tmp_path / "base.yaml"], root=tmp_path, extra={"seed": value})
    assert load([tmp_path / "base.yaml"], root=tmp_path, extra={"seed": "7"}).seed == 7


@pytest.mark.parametrize("name", ["name", "source"])
def test_an_expert_called_name_or_source_does_not_drop_the_others(name):
    first = {"experts": {name: {"sft": {"max_steps": 1}}, "other": {"dataset": "d"}}}
    later = {"experts": {name: {"sft": {"max_steps": 3}}}}
    assert merge(first, later) == {"experts": {name: {"sft": {"max_steps": 3}}, "other": {"dataset": "d"}}}


def test_another_source_or_name_still_replaces_the_whole_mapping():
    assert merge({"d": {"source": "a", "x": 1}}, {"d": {"source": "b"}}) == {"d": {"source": "b"}}
    assert merge({"b": {"name": "a", "x": 1}}, {"b": {"name": "a"}}) == {"b": {"name": "a", "x": 1}}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("seed: 7 é".encode("latin-1"), "is not UTF-8"),
        ("seed: 7".encode("utf-16"), "is not UTF-8"),
        (b"a: b: c", "line 1"),
    ],
    ids=["latin-1", "utf-16", "syntax"],
)
def test_a_file_in_another_encoding_or_syntax_is_named(tmp_path, content, told):
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(UserError, match=rf"my\.yaml.*{told}"):
        read_file(tmp_path / "my.yaml")
