"""Reading configuration files: strict YAML, and how several files become one document.

YAML is read as its version 1.2 means it, not as 1.1: only `true` and `false` are truth values (`on`, `no` and dates are
text), numbers have no sexagesimal or octal forms, and a key may stand only once. `1e-4` stays text, as in every YAML
reader that Snakemake's users meet; the check says to write `1.0e-4`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sealed_experts.errors import UserError
from sealed_experts.settings.merging import merge
from sealed_experts.settings.resolution import resolve
from sealed_experts.settings.types import Settings

_COMMAND_LINE_KEYS = ("seed", "device")


def load(paths: Sequence[str | os.PathLike[str]], *, root: Path, extra: Mapping[str, Any] | None = None) -> Settings:
    """Read, merge, check and resolve configuration files.

    Args:
        paths: the files, later ones over earlier ones.
        root: folder that relative paths inside the configuration start from.
        extra: top-level settings from the command line (`--config seed=7`), applied over all files.

    Raises:
        UserError: a file cannot be read, or the configuration has mistakes: all of them, one a line.
    """
    document: dict[str, Any] = {}
    for path in paths:
        document = merge(document, read_file(path))
    document.update(_command_line(extra or {}))
    return resolve(document, root=root, origin=", ".join(os.fspath(path) for path in paths))


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one YAML file strictly; an empty file is an empty mapping.

    Raises:
        UserError: the file is missing, is not strict YAML, or is no mapping. The message names file and line.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return read_text(text, origin=os.fspath(path))


def read_text(text: str, *, origin: str) -> dict[str, Any]:
    """Read one YAML document strictly; `origin` names it in messages.

    Raises:
        UserError: as `read_file`.
    """
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        _check_keys(node, origin)
        document = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{origin}{line}: this is not YAML we can read: {error.problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: this is not YAML we can read: {str(error).splitlines()[0]}") from error
    finally:
        loader.dispose()
    if not isinstance(document, dict):
        raise UserError(f"{origin}: a configuration is a mapping of settings (`seed: 42`), not {_kind(node)}")
    return document


def _command_line(extra: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in extra.items():
        if key not in _COMMAND_LINE_KEYS or isinstance(value, Mapping | list | tuple):
            raise UserError(
                f"--config {key}=…: only {' and '.join(_COMMAND_LINE_KEYS)} can be given this way; for every other"
                " setting write a second file and pass both: `--configfile config/config.yaml my.yaml --`"
            )
    return {key: _scalar(value) if isinstance(value, str) else value for key, value in extra.items()}


def _scalar(text: str) -> Any:
    return read_text(f"value: {text}", origin="--config")["value"]


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml is ten times faster
    """The safe loader with YAML 1.2's plain scalars."""


_INTEGER = r"[-+]?(?:0|[1-9][0-9_]*)"
_FLOAT = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?"
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})\Z"), list(_first))


def _check_keys(root: yaml.Node, origin: str) -> None:
    """Refuse duplicate keys, keys that are not text, and an alias that stands inside itself."""
    seen: set[int] = set()
    active: list[yaml.Node] = []

    def visit(node: yaml.Node) -> None:
        if any(node is parent for parent in active):
            raise UserError(f"{origin}, line {node.start_mark.line + 1}: this part contains itself through an alias")
        if id(node) in seen:
            return
        seen.add(id(node))
        active.append(node)
        for child in _children(node, origin):
            visit(child)
        active.pop()

    visit(root)


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
