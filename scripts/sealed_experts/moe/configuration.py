"""Read moe_config.json strictly. docs/moe_config.md describes the format."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.moe.router import MATCHES, Route, Router
from sealed_experts.packages.content.manifest_schema import EXPERT_NAME

FORMAT = "sealed-experts/moe/v1"
GATE_TYPES = ("step", "none")

_TOP = {
    "format": str,
    "model": str,
    "base": dict,
    "experts": dict,
    "routing_order": list,
    "he_config": dict,
    "gatelink_config": dict,
    "privacy": dict,
}
_BASE = {"name": str, "revision": (str, type(None)), "digest": str, "path": str}
_EXPERT = {
    "tgsp_path": str,
    "checkpoint_path": str,
    "gate_type": str,
    "gate_keywords": list,
    "always_active": bool,
    "gate_exclude": list,
    "priority": int,
    "match": str,
    "package_digest": str,
    "publisher": str,
    "stage": str,
    "stage_reason": str,
}
# Keys that may be missing, with their defaults.
_EXPERT_DEFAULTS: dict[str, Any] = {"gate_exclude": [], "priority": 0}
_HE = {
    "scheme": str,
    "poly_modulus_degree": int,
    "coeff_modulus_bits": list,
    "scale_bits": int,
    "use_column_packing": bool,
}
_GATELINK = {"dp_epsilon": (int, float), "max_epsilon": (int, float), "max_lora_rank": int}
_STATEMENT = {
    "epsilon": (int, float, type(None)),
    "delta": (int, float),
    "reason": (str, type(None)),
    "meaning": str,
    "public": list,
}
_PRIVACY = {**_STATEMENT, "experts": dict, "over_releases": dict}
_EXPERT_PRIVACY = {"epsilon": (int, float, type(None)), "delta": (int, float, type(None))}
_KINDS: dict[Any, str] = {
    str: "a text",
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a whole number",
    (int, float): "a number",
    (int, float, type(None)): "a number or null",
    (str, type(None)): "a text or null",
}
_DIGEST_LENGTH = 64  # hexadecimal digits of a SHA-256


@dataclass(frozen=True, kw_only=True)
class BaseReference:
    """The base model that every expert of the mixture adapts."""

    name: str
    revision: str | None
    digest: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Member:
    """One expert of the mixture. `package_digest` is the SHA-256 of the whole package file."""

    name: str
    package: Path
    checkpoint: Path
    gate_type: str
    keywords: tuple[str, ...]
    always_active: bool
    exclude: tuple[str, ...]
    priority: int
    match: str
    package_digest: str
    publisher: str
    stage: str
    stage_reason: str


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The content of a moe_config.json, with its experts in routing order and its paths resolved."""

    path: Path
    model: str
    base: BaseReference
    members: tuple[Member, ...]
    he_config: Mapping[str, Any]
    gatelink_config: Mapping[str, Any]
    privacy: Mapping[str, Any]

    def router(self) -> Router:
        """Return the router over the mixture's experts."""
        return Router(
            [
                Route(
                    expert=member.name,
                    keywords=member.keywords,
                    always_active=member.always_active,
                    match=member.match,
                    exclude=member.exclude,
                    priority=member.priority,
                )
                for member in self.members
            ]
        )


def read_mixture(path: str | os.PathLike[str]) -> Mixture:
    """Read a moe_config.json.

    Raises:
        UserError: it is missing, is not strict JSON, or does not follow the format; the message names the key.
    """
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: give the path of a moe_config.json")
    return parse_mixture(read_json(path), path=Path(path))


def parse_mixture(content: Any, *, path: Path) -> Mixture:
    """Check the content of a moe_config.json. Its paths are relative to the folder of `path`, which may not exist yet.

    Raises:
        UserError: the content does not follow the format; the message names the key.
    """
    where = str(path)
    if isinstance(content, dict) and content.get("format", FORMAT) != FORMAT:
        raise UserError(f"{where}: format is {content['format']!r}; this program reads {FORMAT!r}")
    top = _checked(content, _TOP, where)
    folder = path.parent
    base = _checked(top["base"], _BASE, f"{where}: base")
    members = {name: _member(name, value, folder, where) for name, value in top["experts"].items()}
    order = _texts(top["routing_order"], f"{where}: routing_order")
    if sorted(order) != sorted(members):
        raise UserError(
            f"{where}: routing_order must list each expert of `experts` once; it is {', '.join(map(repr, order))}"
        )
    return Mixture(
        path=path,
        model=top["model"],
        base=BaseReference(
            name=base["name"],
            revision=base["revision"],
            digest=_digest(base["digest"], f"{where}: base.digest"),
            folder=_resolved(base["path"], folder, f"{where}: base.path"),
        ),
        members=tuple(members[name] for name in order),
        he_config=_checked(top["he_config"], _HE, f"{where}: he_config"),
        gatelink_config=_checked(top["gatelink_config"], _GATELINK, f"{where}: gatelink_config"),
        privacy=_privacy(top["privacy"], f"{where}: privacy"),
    )


def _member(name: str, value: Any, folder: Path, where: str) -> Member:
    where = f"{where}: experts.{_expert_name(name, where)}"
    fields = _checked({**_EXPERT_DEFAULTS, **value} if isinstance(value, dict) else value, _EXPERT, where)
    for key, allowed in (("gate_type", GATE_TYPES), ("match", MATCHES)):
        if fields[key] not in allowed:
            raise UserError(f"{where}.{key} is {fields[key]!r}; it must be one of {', '.join(allowed)}")
    return Member(
        name=name,
        package=_resolved(fields["tgsp_path"], folder, f"{where}.tgsp_path"),
        checkpoint=_resolved(fields["checkpoint_path"], folder, f"{where}.checkpoint_path"),
        gate_type=fields["gate_type"],
        keywords=_texts(fields["gate_keywords"], f"{where}.gate_keywords"),
        always_active=fields["always_active"],
        exclude=_texts(fields["gate_exclude"], f"{where}.gate_exclude"),
        priority=fields["priority"],
        match=fields["match"],
        package_digest=_digest(fields["package_digest"], f"{where}.package_digest"),
        publisher=_digest(fields["publisher"], f"{where}.publisher"),
        stage=fields["stage"],
        stage_reason=fields["stage_reason"],
    )


def _privacy(value: Any, where: str) -> dict[str, Any]:
    statement = _checked(value, _PRIVACY, where)
    over_releases = _checked(statement["over_releases"], _STATEMENT, f"{where}.over_releases")
    for name, stated in statement["experts"].items():
        _checked(stated, _EXPERT_PRIVACY, f"{where}: experts.{_expert_name(name, where)}")
    _texts(statement["public"], f"{where}: public")
    _texts(over_releases["public"], f"{where}.over_releases: public")
    return statement


def _expert_name(name: str, where: str) -> str:
    """Return a name if a package can have it. The file is unsigned, but commands print its names to a terminal."""
    if not re.fullmatch(EXPERT_NAME, name):
        raise UserError(f"{where}: {name!r} is not an expert's name: it must match {EXPERT_NAME}")
    return name


def _checked(value: Any, keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, not {type(value).__name__}")
    missing, unknown = sorted(keys.keys() - value.keys()), sorted(value.keys() - keys.keys())
    if missing:
        raise UserError(f"{where} lacks the key {missing[0]!r}")
    if unknown:
        raise UserError(f"{where} has the unknown key {unknown[0]!r}; the format has {', '.join(sorted(keys))}")
    for key, kind in keys.items():
        # In Python a bool is an int; in JSON it is not a number.
        if not isinstance(value[key], kind) or (isinstance(value[key], bool) and kind is not bool):
            raise UserError(f"{where}: {key} must be {_KINDS[kind]}, not {value[key]!r}")
    return value


def _texts(values: list[Any], where: str) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where} must hold texts that are not empty, not {value!r}")
    return tuple(values)


def _digest(value: str, where: str) -> str:
    if len(value) != _DIGEST_LENGTH or not set(value) <= set("0123456789abcdef"):
        raise UserError(f"{where} must be a SHA-256 in 64 lower-case hexadecimal digits, not {value!r}")
    return value


def _resolved(value: str, folder: Path, where: str) -> Path:
    if not value or "\0" in value or PurePosixPath(value).is_absolute():
        raise UserError(f"{where} must be a path relative to this file's folder, not {value!r}")
    return Path(os.path.normpath(folder / value))
