"""Read configuration files: strict YAML.

The rules are those of YAML 1.2, not 1.1: only `true` and `false` are truth values (`on`, `no` and dates are text),
numbers have no sexagesimal or octal form, and a key may appear only once in a mapping. `1e-4` is text, as in the YAML
reader that Snakemake uses; the check then says to write `1.0e-4`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sealed_experts.errors import UserError

DEEPEST = 100  # levels of nesting
MOST_DIGITS = 100  # of a whole number: Python reads at most 4300

_SUFFIXES = (".yaml", ".yml", ".json")


def check_files(paths: Sequence[str | os.PathLike[str]]) -> None:
    """Check configuration files before Snakemake reads them: its own errors name neither file nor line.

    Raises:
        UserError: a file is missing, is not strict YAML, is not a mapping, or is empty.
    """
    for path in paths:
        # Without a `--`, Snakemake reads a target as one more file.
        hint = "" if Path(path).suffix in _SUFFIXES else "; a target comes after `--`"
        if _read(_text(path, hint=hint), origin=os.fspath(path)) is None:
            raise UserError(f"{os.fspath(path)} is empty: write a setting in it (`seed: 42`), or leave the file out")


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one YAML file strictly; an empty file is an empty mapping.

    Raises:
        UserError: the file is missing, is not strict YAML, or is not a mapping. The message names file and line.
    """
    return read_text(_text(path), origin=os.fspath(path))


def _text(path: str | os.PathLike[str], *, hint: str = "") -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def read_text(text: str, *, origin: str) -> dict[str, Any]:
    """Read one YAML document strictly; `origin` names it in messages.

    Raises:
        UserError: the text is not strict YAML, or is not a mapping. The message names the line.
    """
    document = _read(text, origin=origin)
    return {} if document is None else document


def _read(text: str, *, origin: str) -> dict[str, Any] | None:
    try:
        _check_depth(text, origin)
        loader = _StrictLoader(text)
    except yaml.YAMLError as error:
        raise _not_yaml(error, origin) from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node, origin)
        document = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _not_yaml(error, origin) from error
    finally:
        loader.dispose()
    if not isinstance(document, dict):
        raise UserError(f"{origin}: a configuration is a mapping of settings (`seed: 42`), not {_kind(node)}")
    return document


def _not_yaml(error: yaml.YAMLError, origin: str) -> UserError:
    if isinstance(error, yaml.MarkedYAMLError):
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        return UserError(f"{origin}{line}: this is not YAML we can read: {error.problem}")
    return UserError(f"{origin}: this is not YAML we can read: {str(error).splitlines()[0]}")


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is ten times faster
    """The safe loader, with the plain scalars of YAML 1.2."""


_INTEGER = r"[-+]?(?:0|[1-9][0-9_]*)"
_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
_StrictLoader.yaml_implicit_resolvers = {}
_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, re.Pattern[str]] = {_TAG + "str": re.compile(r"(?s:.*)")}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _SCALARS[_TAG + _tag] = re.compile(rf"^(?:{_pattern})\Z")
    _StrictLoader.add_implicit_resolver(_TAG + _tag, _SCALARS[_TAG + _tag], list(_first))


def _check_depth(text: str, origin: str) -> None:
    """Refuse very deep nesting: libyaml builds a document recursively, and would crash the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_StrictLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            line = f", line {event.start_mark.line + 1}" if event.start_mark else ""
            raise UserError(f"{origin}{line}: this is nested more than {DEEPEST} deep; no setting is")


def _check_nodes(root: yaml.Node, origin: str) -> None:
    """Refuse duplicate keys, keys that are not text, values that do not fit their tag, and an alias inside itself."""
    seen: set[int] = set()
    active: list[yaml.Node] = []

    def visit(node: yaml.Node) -> None:
        if any(node is parent for parent in active):
            raise UserError(f"{origin}, line {node.start_mark.line + 1}: this part contains itself through an alias")
        if id(node) in seen:
            return
        seen.add(id(node))
        active.append(node)
        _check_type(node, origin)
        for child in _children(node, origin):
            visit(child)
        active.pop()

    visit(root)


def _check_type(node: yaml.Node, origin: str) -> None:
    """Refuse a value that does not fit its tag. The file rarely writes tags: they follow from the value."""
    where = f"{origin}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode):
        if node.tag != _TAG + ("seq" if isinstance(node, yaml.SequenceNode) else "map"):
            raise UserError(f"{where}: this is not YAML we can read: no setting is of type `{node.tag}`; remove it")
        return
    if node.tag not in _SCALARS or not _SCALARS[node.tag].match(node.value):
        kind = node.tag.removeprefix(_TAG)
        raise UserError(
            f"{where}: this is not YAML we can read: `{node.value[:40]}` is no `{kind}`; remove the type, or correct it"
        )
    if node.tag == _TAG + "int" and len(node.value) > MOST_DIGITS:
        raise UserError(f"{where}: a whole number of {len(node.value)} digits is more than any setting holds")


def _children(node: yaml.Node, origin: str) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise UserError(f"{origin}, line {line}: the key {_shown(key)} is not text; put it in quotes")
            if key.value in lines:
                raise UserError(
                    f"{origin}, line {line}: the key `{key.value}` stands twice in this mapping"
                    f" (first on line {lines[key.value]}); keep one of them"
                )
            lines[key.value] = line
            yield value


def _shown(node: yaml.Node) -> str:
    return f"`{node.value}`" if isinstance(node, yaml.ScalarNode) else f"({_kind(node)})"


def _kind(node: yaml.Node) -> str:
    return {yaml.ScalarNode: "a single value", yaml.SequenceNode: "a list"}.get(type(node), "a mapping")
