"""Read, check and write the manifest: RFC 8785 JSON with an allow-list of fields."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json, strict_json
from sealed_experts.files.json_schema import JsonSchema
from sealed_experts.models.adapters import KINDS, AdapterKind
from sealed_experts.packages.content.linter import WEIGHTS
from sealed_experts.packages.content.manifest_schema import (
    MANIFEST_SCHEMA,
    MAX_MANIFEST,
    MEMBER_NAME,
    MEMBERS,
    REQUIRED_MEMBERS,
    TOKENIZER_MEMBERS,
)
from sealed_experts.packages.content.versions import VersionPattern
from sealed_experts.packages.errors import IncompatibleError, PackageError
from sealed_experts.settings.checking import mistakes_in, parse_group
from sealed_experts.text import FORGING, holds, one_line
from sealed_experts.training.objectives import STAGES

_MEMBER_NAME = re.compile(MEMBER_NAME)
LONGEST_NAME = 200  # ASCII characters: with a suffix, or as a hidden draft, this is a valid file name on every system
_LONGEST_BASE = 80
_UNUSUAL = re.compile(r"[^A-Za-z0-9._]+")
_SCHEMA = JsonSchema(MANIFEST_SCHEMA)


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Check a manifest and return its canonical bytes.

    Raises:
        PackageError: a field is missing, unknown or wrong.
    """
    check_manifest(manifest)
    content = canonical_json(dict(manifest)).encode()
    if len(content) > MAX_MANIFEST:
        raise PackageError(f"manifest: it has {len(content)} bytes; at most {MAX_MANIFEST} are allowed")
    return content


def parse_manifest(content: bytes) -> dict[str, Any]:
    """Parse a manifest strictly and check it.

    Raises:
        PackageError: it is not canonical JSON of the manifest's schema.
    """
    manifest = canonical_object(content, "manifest")
    check_manifest(manifest)
    return manifest


def canonical_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object whose bytes must be in RFC 8785 form; `name` names it in messages.

    Raises:
        PackageError: it is not a JSON object, or not in this form.
    """
    try:
        value = strict_json(content)
        canonical = canonical_json(value).encode()
    except (ValueError, RecursionError, UserError) as error:
        raise PackageError(f"{name}: it is not strict JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise PackageError(f"{name}: it must be a JSON object, not {type(value).__name__}")
    if canonical != content:
        raise PackageError(f"{name}: its bytes are not its canonical form (RFC 8785)")
    return value


def payload_order(paths: Iterable[str]) -> list[str]:
    """Return members' names in the payload's order: first the weights, then the others by name.

    The payload starts with the weights, so hashing the payload also gives the digest of the weights.
    """
    return sorted(paths, key=lambda path: (path != WEIGHTS, path))


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Check a manifest against its schema and the rules between its fields.

    Raises:
        PackageError: the first mistake, with its field.
    """
    if mistake := _SCHEMA.mistake_in(manifest):
        raise PackageError(f"manifest: {mistake}")
    _refuse_control_characters(manifest)
    _check_training(manifest["training"], manifest["privacy"])
    _check_constraints(manifest["constraints"], own=manifest["name"])
    _check_members(manifest["members"])
    _check_adapter(manifest)
    _check_long_name(manifest)


def long_name(manifest: Mapping[str, Any]) -> str:
    """Return `{name}-{base}.v{version}`, the package's file name without suffix. A long base name is shortened."""
    base = _UNUSUAL.sub("-", manifest["base"]["name"])[-_LONGEST_BASE:].strip("-.") or "base"
    return f"{manifest['name']}-{base}.v{manifest['version']}"


def _check_long_name(manifest: Mapping[str, Any]) -> None:
    found = long_name(manifest)
    if len(found) > LONGEST_NAME:
        raise PackageError(
            f"manifest: version: the long name {found[:40]}… ({{name}}-{{base}}.v{{version}}) has {len(found)} letters;"
            f" at most {LONGEST_NAME} are allowed: use a shorter version, or a shorter name"
        )


def _check_training(training: Mapping[str, Any], privacy: Mapping[str, Any]) -> None:
    if training["selected_stage"] not in training["stages"]:
        raise PackageError(
            f"manifest: training.selected_stage: {training['selected_stage']} is not one of training.stages"
        )
    _check_stage_settings(training["selected_stage"], training["settings"])
    if "seed" in training and privacy["mode"] != "reproducible":
        raise PackageError("manifest: training.seed: only a reproducible run may state it")
    if "started" in training and "finished" in training and training["started"] > training["finished"]:
        raise PackageError("manifest: training.finished: it is before training.started")
    if privacy["epsilon"] is None and "reason" not in privacy:
        raise PackageError("manifest: privacy.reason: it must say why epsilon is null")


def _check_stage_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that the stage does not publish. For a stage that this program does not have, accept any."""
    if name not in STAGES:
        return
    foreign = sorted(settings.keys() - STAGES[name].published(settings).keys())
    mistakes = mistakes_in(STAGES[name], dict(settings))
    if foreign:
        raise PackageError(
            f"manifest: training.settings: {foreign[0]} is not a setting that the stage {name} publishes"
        )
    if mistakes:
        raise PackageError(f"manifest: training.settings: {one_line(mistakes[0])}")


def _check_constraints(constraints: Mapping[str, Any], *, own: str) -> None:
    for field in ("requires", "incompatible_with"):
        for text in constraints[field]:
            if VersionPattern.parse(text).name == own:
                raise PackageError(f"manifest: constraints.{field}: {text} names the package itself")


def adapter_of(manifest: Mapping[str, Any]) -> AdapterKind:
    """Return the adapter that a manifest describes.

    Raises:
        IncompatibleError: this program does not have the adapter's kind.
        PackageError: a setting is missing, or does not belong to the kind.
    """
    name, settings = manifest["adapter"]["kind"], manifest["adapter"]["settings"]
    if name not in KINDS:
        raise IncompatibleError(
            f"manifest: adapter.kind: this program has no adapter kind {name!a}; it has {', '.join(KINDS)}: a newer"
            " version may read this package"
        )
    kind = KINDS[name]
    stated = kind.config_keys.keys()
    for field in sorted(stated - settings.keys()):
        raise PackageError(f"manifest: adapter.settings: {field} is missing; every `{name}` adapter states it")
    for mistake in mistakes_in(kind, {**settings, "kind": name}):
        raise PackageError(f"manifest: {one_line(f'adapter.settings.{mistake}')}")
    for field in sorted(settings.keys() - stated):
        raise PackageError(f"manifest: adapter.settings: {field} is not a setting of a `{name}` adapter")
    adapter: AdapterKind = parse_group(kind, {**settings, "kind": name})
    return adapter


def _check_adapter(manifest: Mapping[str, Any]) -> None:
    """Check that size and digest are those of the weights, and that the settings are written as the kind does."""
    adapter = manifest["adapter"]
    weights = next(entry for entry in manifest["members"] if entry["path"] == WEIGHTS)
    pairs = {
        "size": (adapter["size"], weights["size"]),
        "digest": (adapter["digest"], weights["sha256"]),
        "settings": (adapter["settings"], adapter_of(manifest).facts()),
    }
    for field, (stated, found) in pairs.items():
        if stated != found:
            raise PackageError(f"manifest: adapter.{field} is {one_line(stated)}, but it must be {one_line(found)}")


def _check_members(entries: list[dict[str, Any]]) -> None:
    paths = [entry["path"] for entry in entries]
    _check_member_names(paths)
    required = set(REQUIRED_MEMBERS)
    if TOKENIZER_MEMBERS.keys() & set(paths):
        required |= {"tokenizer.json", "tokenizer_config.json"}
    missing, foreign = sorted(required - set(paths)), sorted(set(paths) - MEMBERS.keys())
    if missing or foreign:
        problem = f"lacks {missing[0]}" if missing else f"has the foreign member {foreign[0]}"
        raise PackageError(
            f"manifest: members: the package {problem}; it must have exactly {', '.join(REQUIRED_MEMBERS)}, and of a"
            f" tokenizer {', '.join(TOKENIZER_MEMBERS)} (the first two, or none)"
        )
    if paths != payload_order(paths):
        raise PackageError(f"manifest: members: {WEIGHTS} must be first, and the others sorted by path")
    for entry in entries:
        if entry["size"] > MEMBERS[entry["path"]]:
            raise PackageError(
                f"member {entry['path']}: {entry['size']} bytes; at most {MEMBERS[entry['path']]} are allowed"
            )


def _check_member_names(paths: list[str]) -> None:
    """Refuse names that could mean another file, here or on another system.

    Raises:
        PackageError: a name is outside the allow-list, or two are the same after case folding and normalisation.
    """
    seen: dict[str, str] = {}
    for path in paths:
        if not _MEMBER_NAME.fullmatch(path):
            raise PackageError(f"member {path!a}: its name must match {MEMBER_NAME}")
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in seen:
            raise PackageError(f"member {path!a}: its name is the same as {seen[folded]!a} on some systems")
        seen[folded] = path


def _refuse_control_characters(value: Any, place: str = "") -> None:
    """Refuse fields with a line break or an escape sequence: they could fake what a terminal or a log shows."""
    if isinstance(value, str):
        if holds(value, FORGING):
            raise PackageError(f"manifest: {place}: it holds a control character: {one_line(value)!a}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_control_characters(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_control_characters(item, f"{place}[{index}]")
