"""The linter: what an adapter may consist of. It runs when a package is sealed, and when one is opened."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sealed_experts.files.canonical import strict_json
from sealed_experts.files.safetensors_header import Tensor
from sealed_experts.packages.content.tensors import read_tensors
from sealed_experts.packages.errors import PackageError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 4096
_TENSOR = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight")
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What the adapter's files say about it."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base_name: str | None
    base_revision: str | None
    parameters: int
    dropout: float
    tensor_bytes: int


def lint_adapter(members: Mapping[str, bytes]) -> AdapterFacts:
    """Check adapter_config.json and adapter_model.safetensors, and that they belong together.

    Raises:
        PackageError: a key, a value, a tensor or a shape is not what it must be.
    """
    return adapter_facts(members[CONFIG], read_tensors(members[WEIGHTS], member=WEIGHTS))


def adapter_facts(config_content: bytes, tensors: Mapping[str, Tensor]) -> AdapterFacts:
    """Check adapter_config.json, and that the tensors are those that it describes.

    Raises:
        PackageError: a key, a value, a tensor or a shape is not what it must be.
    """
    config = read_adapter_config(config_content)
    _check_pairs(tensors, rank=config["r"], targets=config["target_modules"])
    return AdapterFacts(
        rank=config["r"],
        alpha=config["lora_alpha"],
        target_modules=tuple(sorted(config["target_modules"])),
        base_name=config.get("base_model_name_or_path"),
        base_revision=config.get("revision"),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        dropout=config.get("lora_dropout", 0.0),
        tensor_bytes=max((tensor.end for tensor in tensors.values()), default=0),
    )


def read_adapter_config(content: bytes) -> dict[str, Any]:
    """Parse PEFT's adapter_config.json by an allow-list of keys and values.

    Some keys make PEFT load code or change the model (`auto_mapping`, `megatron_core`, `modules_to_save`, …), so each
    known key may hold only what a plain LoRA adapter has there.

    Raises:
        PackageError: an unknown key, a missing one, or a value that is not allowed.
    """
    try:
        config = strict_json(content.decode("utf-8"))  # given bytes, json would also accept UTF-16 and UTF-32
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{CONFIG}: it is not strict JSON: {str(error)[:200]}") from error
    if not isinstance(config, dict):
        raise PackageError(f"{CONFIG}: it must be a JSON object")
    unknown, missing = sorted(config.keys() - _ALLOWED.keys()), sorted(_REQUIRED - config.keys())
    if unknown:
        raise PackageError(f"{CONFIG}: {unknown[0][:100]!a} is not a key that an adapter may have; remove it")
    if missing:
        raise PackageError(f"{CONFIG}: the key {missing[0]} is missing")
    for key, value in config.items():
        allowed, expected = _ALLOWED[key]
        if not allowed(value):
            raise PackageError(f"{CONFIG}: {key} is {ascii(value)[:100]}; it must be {expected}")
    return config


def _check_pairs(tensors: Mapping[str, Tensor], *, rank: int, targets: list[str]) -> None:
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if not match or not _is_target(match["module"], targets):
            raise PackageError(f"{WEIGHTS}: {name} belongs to no module that {CONFIG} targets")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        missing = {"A", "B"} - pair.keys()
        if missing:
            raise PackageError(f"{WEIGHTS}: {module} has no lora_{missing.pop()}")
        for side, axis in (("A", 0), ("B", 1)):
            shape = pair[side].shape
            if len(shape) != 2 or shape[axis] != rank:
                raise PackageError(
                    f"{WEIGHTS}: {module}.lora_{side} has the shape {list(shape)}; its axis {axis} of 2 must be the "
                    f"rank, {rank}"
                )
    for target in targets:
        if not any(_is_target(module, [target]) for module in sides):
            raise PackageError(f"{WEIGHTS}: no tensor belongs to {target}, which {CONFIG} targets")


def _is_target(module: str, targets: list[str]) -> bool:
    """Apply PEFT's rule for a list of targets: each is a module's name, or the end of one."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


_Rule = tuple[Callable[[Any], bool], str]


def _exactly(*values: Any) -> _Rule:
    """Allow only these values, and only of these types: in Python, 0 == False."""

    def allowed(value: Any) -> bool:
        return any(type(value) is type(item) and value == item for item in values)

    return allowed, " or ".join(map(repr, values))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_target_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= 100
        and all(isinstance(item, str) and _MODULE.fullmatch(item) for item in value)
        and len(set(value)) == len(value)
    )


def _is_short_text_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 1000)


_REQUIRED = {"peft_type", "task_type", "r", "lora_alpha", "target_modules"}
_NULL, _FALSE = _exactly(None), _exactly(False)
_ALLOWED: dict[str, _Rule] = {
    "peft_type": _exactly("LORA"),
    "task_type": _exactly("CAUSAL_LM"),
    "r": (lambda value: type(value) is int and 1 <= value <= MAX_RANK, f"a whole number from 1 to {MAX_RANK}"),
    "lora_alpha": (lambda value: _is_number(value) and 0 < value <= 1e6, "a number above 0, at most 1e6"),
    "lora_dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "target_modules": (_is_target_list, "a list of distinct module names"),
    "base_model_name_or_path": (_is_short_text_or_null, "a text or null"),
    "revision": (_is_short_text_or_null, "a text or null"),
    "peft_version": (
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,40}", value)),
        "a version",
    ),
    "inference_mode": _exactly(True, False),
    "init_lora_weights": _exactly(True),
    "bias": _exactly("none"),
    "megatron_core": _exactly("megatron.core"),
    "qalora_group_size": _exactly(16),
    "rank_pattern": _exactly({}),
    "alpha_pattern": _exactly({}),
    "loftq_config": _exactly({}, None),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "corda_config",
            "eva_config",
            "exclude_modules",
            "kasa_config",
            "layer_replication",
            "layers_pattern",
            "layers_to_transform",
            "lora_ga_config",
            "megatron_config",
            "modules_to_save",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "velora_config",
        ),
        _NULL,
    ),
    **dict.fromkeys(
        ("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora", "use_rslora"), _FALSE
    ),
}
