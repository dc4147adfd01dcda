"""The linter: what an adapter may consist of. It runs when a package is sealed, and when one is opened.

The adapter's kind defines which settings adapter_config.json holds and which tensors there are. The rules here are the
same for all kinds.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sealed_experts.files.canonical import strict_json
from sealed_experts.files.safetensors_header import Tensor
from sealed_experts.models.adapters import KINDS, AdapterKind, kind_of
from sealed_experts.models.classes import BY_TASK, ModelClass
from sealed_experts.packages.content.tensors import read_tensors
from sealed_experts.packages.errors import PackageError
from sealed_experts.settings.checking import mistakes_in, parse_group
from sealed_experts.settings.messages import dotted
from sealed_experts.text import one_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The content of adapter_config.json: the adapter, and the base that it was trained on."""

    adapter: AdapterKind
    model_class: ModelClass
    base_name: str | None
    base_revision: str | None


@dataclass(frozen=True, kw_only=True)
class AdapterFacts(AdapterConfig):
    """The facts in the adapter's files: also the number of its parameters, and their size in bytes."""

    parameters: int
    tensor_bytes: int


def lint_adapter(members: Mapping[str, bytes], *, kind: type[AdapterKind] | None = None) -> AdapterFacts:
    """Check adapter_config.json and adapter_model.safetensors, and that they belong together.

    Raises:
        PackageError: a key, a value, a tensor or a shape is not what it must be.
    """
    return adapter_facts(members[CONFIG], read_tensors(members[WEIGHTS], member=WEIGHTS), kind=kind)


def adapter_facts(
    config_content: bytes, tensors: Mapping[str, Tensor], *, kind: type[AdapterKind] | None = None
) -> AdapterFacts:
    """Check adapter_config.json, and that the tensors are those of the adapter that it describes.

    Args:
        config_content: the bytes of adapter_config.json.
        tensors: the tensors in the file of weights, by name.
        kind: the adapter's kind; by default, the one that adapter_config.json names.

    Raises:
        PackageError: a key, a value, a tensor or a shape is not what it must be.
    """
    config = read_adapter_config(config_content, kind=kind)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for mistake in config.adapter.tensor_mistakes(shapes):
        raise PackageError(f"{WEIGHTS}: {mistake}")
    return AdapterFacts(
        **vars(config),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        tensor_bytes=max((tensor.end for tensor in tensors.values()), default=0),
    )


def read_adapter_config(content: bytes, *, kind: type[AdapterKind] | None = None) -> AdapterConfig:
    """Parse PEFT's adapter_config.json by an allow-list of keys and values.

    Some keys make PEFT load code or change the model (`auto_mapping`, `megatron_core`, `modules_to_save`, …). So each
    known key may have only the values of a plain adapter of its kind.

    Raises:
        PackageError: an unknown key, a missing one, or a value that is not allowed.
    """
    try:
        config = strict_json(content.decode("utf-8"))  # given bytes, json would also accept UTF-16 and UTF-32
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{CONFIG}: it is not strict JSON: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise PackageError(f"{CONFIG}: it must be a JSON object")
    try:
        return _checked(config, kind or _kind_of(config))
    except RecursionError as error:
        raise PackageError(f"{CONFIG}: it is nested too deeply") from error


def _checked(config: Mapping[str, Any], kind: type[AdapterKind]) -> AdapterConfig:
    rules = _COMMON | _rules_of(kind)
    settings = {key: name for name, key in kind.config_keys.items()}
    required = _REQUIRED | settings.keys() | {key for key, value in kind.marks.items() if value is not False}
    unknown, missing = sorted(config.keys() - rules.keys() - settings.keys()), sorted(required - config.keys())
    if unknown:
        raise PackageError(f"{CONFIG}: {unknown[0][:100]!a} is not a key that an adapter may have; remove it")
    if missing:
        raise PackageError(f"{CONFIG}: the key {missing[0]} is missing")
    for key, value in config.items():
        allowed, expected = rules.get(key, _ANYTHING)
        if not allowed(value):
            raise PackageError(f"{CONFIG}: {key} is {ascii(value)[:100]}; it must be {expected}")
    return AdapterConfig(
        adapter=_adapter(kind, config),
        model_class=BY_TASK[config["task_type"]],
        base_name=config.get("base_model_name_or_path"),
        base_revision=config.get("revision"),
    )


def _kind_of(config: Mapping[str, Any]) -> type[AdapterKind]:
    """Return the kind of a configuration. If no kind fits, return the nearest one: its rules then refuse it."""
    found = kind_of(config) or kind_of({"peft_type": config.get("peft_type")})
    if found is None and "peft_type" in config:
        known = " or ".join(dict.fromkeys(repr(kind.marks["peft_type"]) for kind in KINDS.values()))
        raise PackageError(f"{CONFIG}: peft_type is {ascii(config['peft_type'])[:100]}; it must be {known}")
    return found or next(iter(KINDS.values()))


def _adapter(kind: type[AdapterKind], config: Mapping[str, Any]) -> AdapterKind:
    """Return the adapter that a configuration's settings describe."""
    given = {name: config[key] for name, key in kind.config_keys.items()}
    for mistake in mistakes_in(kind, given):
        name, *rest = mistake.path
        place = dotted((kind.config_keys[str(name)], *rest))
        raise PackageError(f"{CONFIG}: {one_line(f'{place}: {mistake.text}')}")
    adapter = parse_group(kind, given)
    for name, key in kind.config_keys.items():
        # Settings accept 2.0 as a whole number, but PEFT would fail with such a rank.
        if isinstance(getattr(adapter, name), int) and type(config[key]) is not type(getattr(adapter, name)):
            raise PackageError(f"{CONFIG}: {key} is {ascii(config[key])[:100]}; it must be {getattr(adapter, name)}")
    return adapter


_Rule = tuple[Callable[[Any], bool], str]


def _rules_of(kind: type[AdapterKind]) -> dict[str, _Rule]:
    return {key: _exactly(value) for key, value in kind.marks.items()} | {
        key: _exactly(*values) for key, values in kind.config_values.items()
    }


def _exactly(*values: Any) -> _Rule:
    """Allow only these values, with their types: in Python, 0 == False."""

    def allowed(value: Any) -> bool:
        return any(type(value) is type(item) and value == item for item in values)

    return allowed, " or ".join(map(repr, values))


def _is_short_text_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 1000)


_ANYTHING: _Rule = (lambda value: True, "")  # a setting: the kind checks it later
_REQUIRED = {"peft_type", "task_type"}
_COMMON: dict[str, _Rule] = {
    "task_type": _exactly(*BY_TASK),
    "base_model_name_or_path": (_is_short_text_or_null, "a text or null"),
    "revision": (_is_short_text_or_null, "a text or null"),
    "peft_version": (
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,40}", value)),
        "a version",
    ),
    "inference_mode": _exactly(True, False),
}
