"""The tables of docs/settings.md and docs/adapters.md, generated from the typed settings and the adapter kinds.

`python -m sealed_experts.configuration.reference docs/settings.md docs/adapters.md` rewrites the text between
the two markers `<!-- settings -->`, or `<!-- adapters -->`.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from sealed_experts.configuration.document import Inherited, Own, Top
from sealed_experts.data.records import RECORDS
from sealed_experts.data.sources import SOURCES
from sealed_experts.errors import UserError
from sealed_experts.evaluation.settings import EvaluationSettings
from sealed_experts.files.atomic import write_bytes
from sealed_experts.metrics import METRICS
from sealed_experts.models.adapters import ADAPTER, KINDS, PREFIX, AdapterKind
from sealed_experts.models.architectures import MODULES
from sealed_experts.models.settings import BaseSettings
from sealed_experts.moe.settings import MoeSettings
from sealed_experts.packages.settings import PackageSettings, RoutingSettings
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.rewards import REWARDS
from sealed_experts.settings.fields import Group, is_operational, plain
from sealed_experts.settings.messages import expected, listed
from sealed_experts.settings.schema import schema_at
from sealed_experts.training.objectives import STAGES

_MARKED = re.compile(r"(<!-- (?P<name>settings|adapters) -->\n).*?(<!-- /?(?P=name) -->)", re.DOTALL)
_HEAD = ("Setting", "Default", "Allowed", "Meaning", "Operational")
_ADAPTER_HEAD = ("Kind", "What it is", "At the start", "Gradient engine", "Tensors", "Can become", "Served by")
_EVERYWHERE = "Stands in `defaults`, in an expert, or in `overrides`"
_NEEDS = {"losses": "", "answers": "sampled answers", "reward": "sampled answers, a stage with a reward"}
_COLUMNS = {name: kind.columns for name, kind in RECORDS.items()}
_OWN_TABLES = (
    *(BaseSettings, EvaluationSettings, MoeSettings, PackageSettings, PrivacySettings, RoutingSettings),
    *_COLUMNS.values(),
)


def settings_tables() -> str:
    """Return every setting as Markdown: one table a group, with key, default, allowed values and meaning."""
    beside = "beside the stages, or in one of them (`sft.privacy`) for it alone, where it beats the one beside them"
    sections = [
        _section("Top level", "", [Top]),
        _section("Base model", "Also in `overrides.base`.", [BaseSettings], "base."),
        *(
            _section(f"Dataset of source `{name}`", _of_source(name), [source], chosen="source")
            for name, source in SOURCES.items()
        ),
        *(
            _section(f"Fields of records of kind `{kind}`", _of_kind(kind), [columns], "fields.")
            for kind, columns in _COLUMNS.items()
        ),
        _section(
            "Expert",
            f"In `experts.<name>`; {listed(Inherited.model_fields)} also in `defaults` and `overrides`.",
            [Own, Inherited],
        ),
        *(
            _section(f"Adapter of kind `{name}`", f"{_EVERYWHERE}.", [kind], "adapter.", chosen="kind")
            for name, kind in KINDS.items()
        ),
        *(_section(f"Stage `{name}`", f"{_EVERYWHERE}.", [stage], f"{name}.") for name, stage in STAGES.items()),
        *(
            _section(f"Reward `{name}`", f"With `reward: {name}`: {reward.about}.", [reward], "reward_options.")
            for name, reward in REWARDS.items()
        ),
        _section("Evaluation", f"{_EVERYWHERE}.", [EvaluationSettings], "evaluation."),
        *_metrics(),
        _section("Privacy", f"{_EVERYWHERE}; {beside}.", [PrivacySettings], "privacy."),
        _section("Routing", "In `experts.<name>`.", [RoutingSettings], "routing."),
        _section("Package", f"{_EVERYWHERE}.", [PackageSettings], "package."),
        _section("Mixture", "", [MoeSettings], "moe."),
    ]
    return "\n".join(sections)


def _metrics() -> list[str]:
    """Return the lines of a table of all metrics."""
    head = ("Metric", "What it is", "Unit", "Better", "It needs")
    rows = [
        (
            f"`{name}`",
            (metric.__doc__ or "").partition("\n")[0],
            metric.unit,
            "higher" if metric.higher_is_better else "lower",
            _NEEDS[metric.needs],
        )
        for name, metric in METRICS.items()
    ]
    return [_line(head), _line("---" for _ in head), *map(_line, rows), ""]


def adapter_table() -> str:
    """Return the facts about every adapter kind as one Markdown table."""
    return "\n".join([_line(_ADAPTER_HEAD), _line("---" for _ in _ADAPTER_HEAD), *map(_kind_row, KINDS.values()), ""])


def _kind_row(kind: type[AdapterKind]) -> str:
    adapter: AdapterKind = ADAPTER.parse({"kind": kind.feature})
    engines = adapter.engine({}), adapter.engine({"quantization_config": {"load_in_4bit": True}})
    tensors = adapter.tensors_on(dict.fromkeys(MODULES["llama"], (1, 1)))
    parts = dict.fromkeys(name.removeprefix(PREFIX).partition(".")[2] for name in tensors)
    forms = [*(["a part of the base's weights"] if kind.merges else []), *kind.converts_to]
    served = (f"{name} ({condition})" if condition else name for name, condition in kind.serving.items())
    return _line(
        (
            f"`{kind.feature}`",
            (kind.__doc__ or "").partition("\n")[0],
            "answers as the base" if kind.starts_as_base else "answers otherwise than the base",
            f"`{engines[0]}`" + (f"; quantised base: `{engines[1]}`" if engines[1] != engines[0] else ""),
            ", ".join(f"`{part}`" for part in parts),
            ", ".join(forms) or "–",
            ", ".join(served),
        )
    )


def with_tables(text: str) -> str:
    """Return a Markdown text with the tables between its two `<!-- settings -->` or `<!-- adapters -->` markers.

    Raises:
        UserError: the text has no such markers.
    """
    if not _MARKED.search(text):
        raise UserError(
            "the text has no two `<!-- settings -->` markers, each on a line of its own, to put the tables in"
        )
    tables = {"settings": settings_tables, "adapters": adapter_table}
    return _MARKED.sub(lambda found: f"{found[1]}\n{tables[found['name']]()}\n{found[3]}", text, count=1)


def _of_source(name: str) -> str:
    return f"In `datasets.<name>` with `source: {name}`; also in `overrides.datasets.<name>`."


def _of_kind(kind: str) -> str:
    return f"In a dataset with `kind: {kind}`, where its source reads rows of your own."


def _section(title: str, place: str, groups: Iterable[type[Group]], prefix: str = "", *, chosen: str = "") -> str:
    """Return one table; `chosen` is the key that chooses the group, and is required."""
    lines = [f"### {title}", ""] + ([place, ""] if place else [])
    rows = [row for group in groups for row in _rows(group, prefix, chosen)]
    lines += [_line(_HEAD), _line("---" for _ in _HEAD), *map(_line, rows), ""]
    return "\n".join(lines)


def _rows(group: type[Group], prefix: str, chosen: str) -> Iterator[tuple[str, ...]]:
    for name, field in group.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Group):
            if inner not in _OWN_TABLES:
                yield from _rows(inner, f"{prefix}{name}.", "")
            continue
        schema = schema_at(group, (name,))
        default = "required" if name == chosen or field.default is PydanticUndefined else _default(field.default)
        operational = "yes" if is_operational(field) else ""
        yield (f"`{prefix}{name}`", default, _allowed(schema), field.description or "", operational)


def _default(value: Any) -> str:
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, dict):
        return "`{}`"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`" if value != "" else "empty"


def _allowed(schema: dict[str, Any]) -> str:
    items = schema.get("items", {})
    if "enum" in items:
        return f"a list of {listed(items['enum'])}"
    if any(key in items for key in ("minimum", "maximum")):
        return f"{expected(schema)}, each {expected(items)}"
    return expected(schema)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write_bytes(name, with_tables(Path(name).read_text(encoding="utf-8")).encode())
