"""Canonical JSON (RFC 8785), and a strict reader. It refuses what JSON parsers read differently."""

import json
import math
import os
from pathlib import Path
from typing import Any

import rfc8785

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_bytes


def canonical_json(value: Any) -> str:
    """Return the RFC 8785 text of `value`: sorted keys, no spaces, shortest numbers.

    Raises:
        UserError: `value` holds something that JSON cannot store exactly (NaN, an integer beyond 2^53, a key that is
            not text).
    """
    try:
        return rfc8785.dumps(value).decode()
    except rfc8785.CanonicalizationError as error:
        raise UserError(f"this value has no canonical JSON form: {error}") from error


def strict_json(text: str | bytes) -> Any:
    """Parse JSON without duplicate keys, NaN, infinities (also written as `1e999`) or too deep nesting.

    Raises:
        ValueError: the text is not JSON, or holds one of these.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file strictly.

    Raises:
        UserError: the file is missing, cannot be read or is not strict JSON.
    """
    try:
        return strict_json(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): make it a readable file") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` for people: sorted keys, two spaces, one final newline; atomic and durable."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key!r}")
        result[key] = value
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond what a number here can hold")
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


STRICT_DECODER = json.JSONDecoder(  # as `strict_json`, for one value of a longer text
    object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_refuse_constant
)
