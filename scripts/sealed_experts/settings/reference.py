"""The README's tables of every setting, generated from the typed settings.

`python -m sealed_experts.settings.reference README.md` rewrites what stands between the two `<!-- settings -->`
markers.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes
from sealed_experts.settings.fields import Group, as_group, declared, is_required, plain
from sealed_experts.settings.messages import expected, listed
from sealed_experts.settings.schema import group_schema
from sealed_experts.settings.types import (
    DATASET_SOURCES,
    STAGES,
    AdapterSettings,
    BaseSettings,
    DatasetSettings,
    ExpertSettings,
    MoeSettings,
    PackageSettings,
    PrivacySettings,
    RoutingSettings,
    Settings,
)

_MARKED = re.compile(r"(<!-- settings -->\n).*?(<!-- /?settings -->)", re.DOTALL)
_HEAD = ("Setting", "Default", "Allowed", "Meaning", "Operational")
_EVERYWHERE = "Stands in `defaults`, in an expert, or in `overrides`"


def settings_tables() -> str:
    """Return every setting as Markdown: one table a group, with key, default, allowed values and meaning."""
    sources = [
        _section(f"Dataset of source `{name}`", _of_source(name), group) for name, group in DATASET_SOURCES.items()
    ]
    stages = [_section(f"Stage `{name}`", f"{_EVERYWHERE}.", group, f"{name}.") for name, group in STAGES.items()]
    beside = "beside the stages, or in one of them (`sft.privacy`) for it alone, where it beats the one beside them"
    sections = [
        _section("Top level", "", Settings),
        _section("Base model", "Also in `overrides.base`.", BaseSettings, "base."),
        *sources,
        _section("Expert", "In `experts.<name>`; `template` also in `defaults` and `overrides`.", ExpertSettings),
        _section("Adapter", f"{_EVERYWHERE}.", AdapterSettings, "adapter."),
        *stages,
        _section("Privacy", f"{_EVERYWHERE}; {beside}.", PrivacySettings, "privacy."),
        _section("Routing", "In `experts.<name>`.", RoutingSettings, "routing."),
        _section("Package", f"{_EVERYWHERE}.", PackageSettings, "package."),
        _section("Mixture", "", MoeSettings, "moe."),
    ]
    return "\n".join(sections)


def with_tables(text: str) -> str:
    """Return a Markdown text with the tables between its two `<!-- settings -->` markers.

    Raises:
        UserError: the text has no such markers.
    """
    if not _MARKED.search(text):
        raise UserError(
            "the text has no two `<!-- settings -->` markers, each on a line of its own, to put the tables in"
        )
    return _MARKED.sub(lambda found: f"{found[1]}\n{settings_tables()}\n{found[2]}", text, count=1)


def _of_source(name: str) -> str:
    return f"In `datasets.<name>` with `source: {name}`; also in `overrides.datasets.<name>`."


def _section(title: str, place: str, group: type[Group], prefix: str = "") -> str:
    lines = [f"### {title}", ""] + ([place, ""] if place else [])
    lines += [_line(_HEAD), _line("---" for _ in _HEAD), *(_line(row) for row in _rows(group, prefix)), ""]
    return "\n".join(lines)


def _rows(group: type[Group], prefix: str) -> Iterator[tuple[str, ...]]:
    schemas = group_schema(group)["properties"]
    for name, (field, annotation) in declared(group).items():
        inner = as_group(annotation)
        if name not in schemas or _has_a_table(inner):
            continue
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        operational = "yes" if field.metadata["operation"] else ""
        yield (
            f"`{prefix}{name}`",
            _default(field, schemas[name]),
            _allowed(schemas[name]),
            field.metadata["description"],
            operational,
        )


def _has_a_table(group: type[Group] | None) -> bool:
    """Tell whether a group has a section of its own."""
    own: tuple[type[Group], ...] = (BaseSettings, DatasetSettings, AdapterSettings, PrivacySettings, RoutingSettings)
    own += (PackageSettings, MoeSettings)
    return group is not None and issubclass(group, (*own, *STAGES.values()))


def _default(field: dataclasses.Field[Any], schema: dict[str, Any]) -> str:
    if is_required(field) or "const" in schema:
        return "required"
    if field.default is None:
        return "–"
    value = plain(field.default)
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`" if value != "" else "empty"


def _allowed(schema: dict[str, Any]) -> str:
    items = schema.get("items", {})
    if "enum" in items:
        return f"a list of {listed(items['enum'])}"
    if any(key in items for key in ("minimum", "maximum")):
        return f"{expected(schema)}, each {expected(items)}"
    return expected(schema)


def _line(cells: Any) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_bytes(name, with_tables(Path(name).read_text(encoding="utf-8")).encode())
