"""The words in which a mistake in the configuration is told: where it is, what stands there, what would be right."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sealed_experts.settings.fields import (
    BASE_KEY,
    CAPABILITY,
    COMMIT,
    KNOWN_ENDING,
    LICENCE,
    MODULE,
    TIME,
    VERSION,
    VERSION_PATTERN,
)
from sealed_experts.settings.schema import NAME
from sealed_experts.text import KEYWORD, LINES, PRINTABLE

KeyPath = tuple[str | int, ...]

_NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "a mapping of settings",
}
_PATTERNS = {
    COMMIT: "a commit of 40 hexadecimal digits",
    NAME: "a name of lower-case letters, digits, `_` and `-` that begins with a letter or digit",
    BASE_KEY: "lower-case letters, digits, `.`, `_` and `-`, beginning with a letter or digit",
    VERSION: 'a version such as "1.0.0"',
    KNOWN_ENDING: "a file that ends in .jsonl, .csv or .parquet",
    "^auto$": "`auto`",
    r"\S": "text that is not blank",
    KEYWORD: "visible text without control characters or signs that turn its direction",
    PRINTABLE: "text without control characters or signs that turn its direction",
    LINES: "text without control characters or signs that turn its direction",
    MODULE: "a module's name",
    VERSION_PATTERN: 'a version pattern such as "name@>=1.0.0", "name@^1.2" or "name@*"',
    LICENCE: 'an SPDX expression such as "Apache-2.0"',
    CAPABILITY: "a word of lower-case letters, digits, `.`, `_` and `-`",
    TIME: 'a time in UTC such as "2026-01-31T09:00:00Z"',
}
_MEANT = {"gpu": "cuda"}  # what is meant, where another name is nearer in spelling
_BOUNDS = {
    "minimum": "of at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "of at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
}


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One mistake: the path of its key, one line about it, and the other keys whose values made it a mistake."""

    path: KeyPath
    text: str
    involves: tuple[KeyPath, ...] = ()

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


def dotted(path: KeyPath) -> str:
    """Return a key path as it is written in messages: `experts.a.sft.max_steps`, `datasets.b.paths[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w-]+", part) else json.dumps(part, ensure_ascii=False)
            text += f".{name}" if text else name
    return text


def shown(value: Any) -> str:
    """Return a value as it would be written in the configuration, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        return "a number of too many digits"  # Python writes no more than some thousand
    return text if len(text) <= 80 else f"{text[:77]}…"


def listed(names: Iterable[str]) -> str:
    """Return names as a list for a message."""
    return ", ".join(f"`{name}`" for name in names)


def nearest(name: str, valid: Collection[str]) -> str | None:
    """Return the valid name that a typo most likely meant, or None."""
    if name.lower() in _MEANT:
        return _MEANT[name.lower()] if _MEANT[name.lower()] in valid else None
    found = difflib.get_close_matches(name.lower(), list(valid), n=1, cutoff=0.6)
    return found[0] if found else None


def suggestion(name: str, valid: Collection[str]) -> str:
    """Return `did you mean …?`, or the valid names when none is near."""
    near = nearest(name, valid)
    return f"did you mean `{near}`?" if near is not None else f"known here: {listed(valid) or 'none'}"


def expected(schema: Mapping[str, Any]) -> str:
    """Return what a setting's schema asks for, in words."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type", "object")
    if kinds == ["number", "string"]:
        return f"{expected({**schema, 'type': 'number'})} or {expected({**schema, 'type': 'string'})}"
    if kinds == "string":
        if schema.get("pattern"):
            return _PATTERNS.get(schema["pattern"], f"text that matches `{schema['pattern']}`")
        return "text that is not empty" if schema.get("minLength") else "text"
    if kinds == "array":
        return "a list of at least one item" if schema.get("minItems") else "a list"
    if "minimum" in schema and "maximum" in schema:
        return f"{_NOUNS[kinds]} from {schema['minimum']} to {schema['maximum']}"
    bounds = [phrase.format(schema[key]) for key, phrase in _BOUNDS.items() if key in schema]
    return " ".join([_NOUNS[kinds], " and ".join(bounds)]).rstrip()


def type_hint(value: Any, kinds: str | list[str]) -> str:
    """Return how to write a value so that YAML gives it the wanted type; empty when there is nothing to say."""
    wanted = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, str) and ("integer" in wanted or "number" in wanted):
        return _number_hint(value, whole="integer" in wanted)
    if isinstance(value, str) and "boolean" in wanted and value.lower() in ("yes", "on", "no", "off", "true", "false"):
        return f"write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}, without quotes"
    if wanted == ["string"] and isinstance(value, int | float):
        return f'YAML reads it as {"a truth value" if isinstance(value, bool) else "a number"}: write "{shown(value)}"'
    if "array" in wanted and not isinstance(value, Mapping | list):
        return f"write [{value}]"
    return ""


def _number_hint(text: str, *, whole: bool) -> str:
    try:
        number = float(text)
    except ValueError:
        return ""
    if not math.isfinite(number) or (whole and not number.is_integer()):
        return ""
    if whole:
        return f"it was read as text: write {int(number)}"
    if re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", text):
        mantissa, exponent = text.lower().split("e")
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        exponent = exponent if exponent[0] in "+-" else f"+{exponent}"
        return f"YAML reads {text} as text: write {mantissa}e{exponent}"
    return f"it was read as text: write {text}, without quotes"
