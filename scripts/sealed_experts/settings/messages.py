"""The messages about mistakes in the configuration: where it is, what is wrong, what would be right."""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

KeyPath = tuple[str | int, ...]

_NOUNS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "`true` or `false`",
    "array": "a list",
    "object": "a mapping of settings",
}
_MEANT = {"gpu": "cuda"}  # words that mean a name whose spelling is not the nearest
_BOUNDS = {
    "minimum": "of at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "of at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
}


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One mistake: the path of its key, one line about it, and the other keys that it conflicts with."""

    path: KeyPath
    text: str
    involves: tuple[KeyPath, ...] = ()

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


def dotted(path: KeyPath) -> str:
    """Return a key path as messages show it: `experts.a.sft.max_steps`, `datasets.b.paths[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if re.fullmatch(r"[\w-]+", part) else json.dumps(part, ensure_ascii=False)
            text += f".{name}" if text else name
    return text


def shown(value: Any) -> str:
    """Return a value as the configuration would write it, shortened."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        return "a number of too many digits"  # Python refuses to write more than 4300 digits
    return text if len(text) <= 80 else f"{text[:77]}…"


def listed(names: Iterable[str]) -> str:
    """Return names as a list in a message."""
    return ", ".join(f"`{name}`" for name in names)


def nearest(name: str, valid: Collection[str]) -> str | None:
    """Return the valid name that a misspelt name most likely means, or None."""
    if name.lower() in _MEANT:
        return _MEANT[name.lower()] if _MEANT[name.lower()] in valid else None
    found = difflib.get_close_matches(name.lower(), list(valid), n=1, cutoff=0.6)
    return found[0] if found else None


def suggestion(name: str, valid: Collection[str]) -> str:
    """Return `did you mean …?`, or all valid names if none is similar."""
    near = nearest(name, valid)
    return f"did you mean `{near}`?" if near is not None else f"known here: {listed(valid) or 'none'}"


def unknown_key(key: str, known: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return the message about a key that a group does not have: the likely name, or where the key belongs.

    Args:
        known: the group's schema.
        whole: the schema whose `$defs` hold the groups inside it.
    """
    properties = known.get("properties", {})
    for name, schema in properties.items():  # a group inside this one may have it
        group = whole.get("$defs", {}).get(schema.get("$ref", "").rpartition("/")[2], schema)
        if key in group.get("properties", {}):
            return f"no such setting; did you mean `{name}.{key}`?"
    return f"no such setting; {suggestion(key, properties)}"


def expected(schema: Mapping[str, Any]) -> str:
    """Return in words what a setting's schema allows."""
    if "anyOf" in schema:
        return " or ".join(map(expected, schema["anyOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "object")
    if kind == "string":
        if schema.get("pattern"):
            return str(schema.get("patternErrorMessage", f"text that matches `{schema['pattern']}`"))
        return "text that is not empty" if schema.get("minLength") else "text"
    if kind == "array":
        return "a list of at least one item" if schema.get("minItems") else "a list"
    if "minimum" in schema and "maximum" in schema:
        return f"{_NOUNS[kind]} from {schema['minimum']} to {schema['maximum']}"
    bounds = [phrase.format(schema[key]) for key, phrase in _BOUNDS.items() if key in schema]
    return " ".join([_NOUNS[kind], " and ".join(bounds)]).rstrip()


def type_hint(value: Any, schema: Mapping[str, Any]) -> str:
    """Return how to write a value so that YAML gives it the right type; empty if that would not help."""
    wanted = [choice.get("type", "object") for choice in schema.get("anyOf", [schema])]
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
