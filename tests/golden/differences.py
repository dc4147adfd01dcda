"""Describe the differences between two recordings."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

_SHOWN = 12  # lines of one artifact
_WIDTH = 300  # characters of one value


def differences(before: dict[str, Any], after: dict[str, Any], *, shown: int = _SHOWN) -> list[str]:
    """Return lines that describe the differences, grouped by artifact; no line if there is no difference.

    Args:
        before: a recording.
        after: another one.
        shown: largest number of lines for one artifact.
    """
    lines = []
    for section, name in sorted({key for recording in (before, after) for key in _artifacts(recording)}):
        one, other = (recording.get(section, {}).get(name, _NOTHING) for recording in (before, after))
        found = list(_compared(one, other, ()))
        if found:
            count = f"{len(found)} differences" if len(found) > 1 else "1 difference"
            lines.append(f"{section}: {name}: {count}")
            lines += [f"  {line}" for line in found[:shown]]
            if len(found) > shown:
                lines.append(f"  … and {len(found) - shown} more")
    return lines


class _Nothing:
    """Marks a missing value; null is a value."""


_NOTHING = _Nothing()


def _artifacts(recording: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return ((section, name) for section, content in recording.items() for name in content)


def _compared(one: Any, other: Any, place: tuple[str, ...]) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _compared(one.get(key, _NOTHING), other.get(key, _NOTHING), (*place, key))
    elif isinstance(one, list) and isinstance(other, list):
        for index, (left, right) in enumerate(itertools.zip_longest(one, other, fillvalue=_NOTHING)):
            yield from _compared(left, right, (*place, f"[{index}]"))
    elif json.dumps(_known(one), sort_keys=True) != json.dumps(_known(other), sort_keys=True) or (
        isinstance(one, _Nothing) != isinstance(other, _Nothing)
    ):
        where = " / ".join(place) or "the whole of it"
        if isinstance(one, _Nothing):
            yield f"{where}: new: {_text(other)}"
        elif isinstance(other, _Nothing):
            yield f"{where}: gone; it was {_text(one)}"
        else:
            yield f"{where}: was {_text(one)}, is {_text(other)}"


def _known(value: Any) -> Any:
    return None if isinstance(value, _Nothing) else value


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]}…"
