"""Declare settings: type, default, meaning and bounds in one place.

The JSON Schema, the tables in docs/settings.md and the checks are all generated from these declarations.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined

Item = TypeVar("Item")


class Group(BaseModel):
    """A mapping of settings. Every class of settings is one; its fields are declared with `setting`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,  # text is not a number, and `yes` is not true
        allow_inf_nan=False,
        validate_default=True,
        arbitrary_types_allowed=True,
    )

    @classmethod
    def variant(cls, data: Mapping[str, Any]) -> type[Self]:
        """Return the group that checks these plain data. One setting can decide which others are allowed."""
        return cls

    def replace(self, **changes: Any) -> Self:
        """Return the same settings with other values.

        Raises:
            pydantic.ValidationError: a value is wrong.
        """
        return type(self)(**{**dict(self), **changes})

    def part(self, *, operation: bool) -> dict[str, Any]:
        """Return, as plain data, either the operational settings or those that change the results."""
        return {
            name: plain(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if is_operational(field) == operation
        }


def setting(
    description: str, *, default: Any = PydanticUndefined, operation: bool = False, public: bool = False, **bounds: Any
) -> Any:
    """Declare one setting; without a default it is required.

    Args:
        description: its meaning; the tables and the schema show it.
        operation: it changes how a stage runs, not what it computes: a change makes no finished artifact stale.
        public: a package's manifest may state it.
        bounds: pydantic's `ge`, `gt`, `le`, `lt`, `multiple_of`, `min_length`, `max_length`, `pattern`.
    """
    marks = {name: True for name, given in {"operation": operation, "public": public}.items() if given}
    # Only if there are marks: an empty mapping would hide the one from the type's own declaration.
    extra: dict[str, Any] = {"json_schema_extra": marks} if marks else {}
    return Field(default, description=description, **extra, **bounds)


def text(pattern: str, meaning: str, **bounds: Any) -> Any:
    """Return the annotation that limits a `str` to texts that match a pattern. Messages show `meaning`.

    The pattern must be valid for Rust's `regex` and for JSON Schema. `$` matches only at the very end.
    """
    return Field(pattern=pattern, json_schema_extra={"patternErrorMessage": meaning}, **bounds)


def is_operational(field: FieldInfo) -> bool:
    """Tell whether a setting is marked `operation`."""
    return _is_marked(field, "operation")


def is_public(field: FieldInfo) -> bool:
    """Tell whether a setting is marked `public`."""
    return _is_marked(field, "public")


def _is_marked(field: FieldInfo, mark: str) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get(mark))


def _distinct(items: tuple[Item, ...]) -> tuple[Item, ...]:
    for place, item in enumerate(items):
        if item in items[:place]:
            raise PydanticCustomError("repeated", "an item stands twice", {"item": item})
    return items


# A list in which no item appears twice.
Distinct = Annotated[tuple[Item, ...], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]


class Frozen(Mapping[str, Item], Generic[Item]):
    """A mapping that cannot be changed. Unlike `MappingProxyType` it can be copied."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> Item:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


# Settings whose names depend on another setting. Code that knows the other setting checks them.
Open = Annotated[Mapping[str, Any], AfterValidator(Frozen)]


def plain(value: Any) -> Any:
    """Return a setting's value as plain data that JSON can store."""
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value
