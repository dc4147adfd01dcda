"""From plain data to typed settings."""

import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import strict_json
from sealed_experts.settings.fields import Group, as_group, declared, is_required

SomeGroup = TypeVar("SomeGroup", bound=Group)


def parse_group(cls: type[SomeGroup], data: Mapping[str, Any] | str) -> SomeGroup:
    """Return plain data, or its JSON text, as settings; defaults fill what is absent.

    Raises:
        UserError: an unknown or missing setting, or a value of another type. Ranges are the schema's business.
    """
    if isinstance(data, str):
        data = parse_object(data)
    key: Any = cls  # type checkers do not see that classes are hashable
    converters, required = _plan(key)
    values = {}
    for name, value in data.items():
        convert = converters.get(name)
        if convert is None:
            raise UserError(f"{cls.__name__}: `{name}` is not one of its settings ({', '.join(converters)})")
        try:
            values[name] = convert(value)
        except TypeError as error:
            raise UserError(f"{cls.__name__}: `{name}` cannot be {value!r}: {error}") from error
    missing = required - values.keys()
    if missing:
        raise UserError(f"{cls.__name__}: `{min(missing)}` is missing")
    return cls(**values)


def parse_object(text: str) -> dict[str, Any]:
    """Return the mapping that a JSON text holds.

    Raises:
        UserError: the text is not strict JSON, or holds no mapping.
    """
    try:
        data = strict_json(text)
    except ValueError as error:
        raise UserError(f"these settings are not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError("these settings are not a JSON object")
    return data


@functools.cache
def _plan(cls: Any) -> tuple[dict[str, Callable[[Any], Any]], frozenset[str]]:
    settings = declared(cls)
    converters = {name: _converter(annotation) for name, (_, annotation) in settings.items()}
    return converters, frozenset(name for name, (field, _) in settings.items() if is_required(field))


def _converter(annotation: Any) -> Callable[[Any], Any]:
    group = as_group(annotation)
    if group is not None:
        return functools.partial(_group, group)
    if typing.get_origin(annotation) is tuple:
        return functools.partial(_tuple, _converter(typing.get_args(annotation)[0]))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return functools.partial(_first_that_fits, [_converter(kind) for kind in typing.get_args(annotation)])
    return _SCALARS[annotation]


def _group(cls: type[Group], value: Any) -> Group:
    if not isinstance(value, Mapping):
        raise TypeError("a mapping is needed")
    return parse_group(cls, value)


def _tuple(convert: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError("a list is needed")
    return tuple(convert(item) for item in value)


def _first_that_fits(converters: list[Callable[[Any], Any]], value: Any) -> Any:
    for convert in converters[:-1]:
        try:
            return convert(value)
        except TypeError:
            continue
    return converters[-1](value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != math.floor(value):
        raise TypeError("a whole number is needed")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number is needed")
    return float(value)


def _exactly(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{kind.__name__} is needed")
    return value


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    str: functools.partial(_exactly, str),
    bool: functools.partial(_exactly, bool),
    type(None): functools.partial(_exactly, type(None)),
}
