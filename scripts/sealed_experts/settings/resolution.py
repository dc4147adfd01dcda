"""From one merged document to the settings of a run, or to the list of all its mistakes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.settings.checking import schema_mistakes, without
from sealed_experts.settings.crosschecks import cross_mistakes
from sealed_experts.settings.fields import declared, is_required
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.merging import merge
from sealed_experts.settings.messages import KeyPath, Mistake
from sealed_experts.settings.parsing import parse_group
from sealed_experts.settings.types import (
    DATASET_SOURCES,
    INHERITED,
    STAGES,
    AdapterSettings,
    BaseSettings,
    DatasetSettings,
    ExpertSettings,
    MoeSettings,
    PackageSettings,
    RoutingSettings,
    Settings,
)

_REPLACEABLE = ("base", "datasets")


def resolve(document: Mapping[str, Any], *, root: Path, origin: str = "the configuration") -> Settings:
    """Check a merged document and return its settings: overrides > expert > defaults > built-in.

    Args:
        document: as read from YAML; a None means that its key is absent.
        root: folder that relative paths start from.
        origin: what messages call the document.

    Raises:
        UserError: with one line a mistake, all of them.
    """
    document = _with_plain_keywords(merge({}, document))
    effective = _with_overridden_base_and_data(document)
    wrong = schema_mistakes(effective)
    settings = _build(effective, wrong)
    found = {mistake.path: mistake for mistake in reversed([_placed(mistake, document) for mistake in wrong])}
    mistakes = list(reversed(found.values()))
    names = effective["datasets"] if isinstance(effective.get("datasets"), Mapping) else {}
    for mistake in cross_mistakes(settings, effective, dataset_names=names, root=root):
        placed = _placed(mistake, document)
        # A value that is already reported was left out above, so what hangs on it cannot be judged yet.
        if not any(_same_branch(path, known) for path in (placed.path, *placed.involves) for known in found):
            mistakes.append(placed)
    if mistakes:
        raise UserError(_report(mistakes, origin))
    return settings


def _with_plain_keywords(document: dict[str, Any]) -> dict[str, Any]:
    """Make single spaces of the white space in keywords: a `|` text ends in a line break, which no package may hold.

    `document` is changed; what is no list of texts is left to the checks.
    """
    experts = document.get("experts")
    for expert in experts.values() if isinstance(experts, dict) else ():
        routing = expert.get("routing") if isinstance(expert, dict) else None
        for key in ("keywords", "exclude"):
            words = routing.get(key) if isinstance(routing, dict) else None
            if isinstance(routing, dict) and isinstance(words, list):
                routing[key] = [" ".join(item.split()) if isinstance(item, str) else item for item in words]
    return document


def _with_overridden_base_and_data(document: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `overrides.base` and `overrides.datasets` over theirs: what they replace is not even checked."""
    overrides = document.get("overrides")
    if not isinstance(overrides, Mapping):
        return dict(document)
    return merge(document, {key: overrides[key] for key in _REPLACEABLE if isinstance(overrides.get(key), Mapping)})


def _placed(mistake: Mistake, document: Mapping[str, Any]) -> Mistake:
    """Return the mistake at the place where its value was written, which may be `overrides`."""
    return dataclasses.replace(
        mistake,
        path=_written(mistake.path, document),
        involves=tuple(_written(path, document) for path in mistake.involves),
    )


def _written(path: KeyPath, document: Mapping[str, Any]) -> KeyPath:
    if len(path) > 1 and path[0] in _REPLACEABLE:
        overrides = document.get("overrides")
        for place in (path, path[:-1]):  # a missing key: where its group stands
            if _holds(overrides, place):
                return ("overrides", *path)
            if _holds(document, place):
                return path
    return path


def _holds(value: Any, path: KeyPath) -> bool:
    for key in path:
        if isinstance(key, int):
            found = isinstance(value, list) and key < len(value)
        else:
            found = isinstance(value, Mapping) and key in value
        if not found:
            return False
        value = value[key]
    return True


def _same_branch(first: KeyPath, second: KeyPath) -> bool:
    length = min(len(first), len(second))
    return first[:length] == second[:length]


def _report(mistakes: list[Mistake], origin: str) -> str:
    lines = dict.fromkeys(str(mistake) for mistake in mistakes)  # one mistake in `defaults` meets every expert
    count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return "\n  ".join([f"{count} in {origin}:", *lines])


def _build(document: Mapping[str, Any], mistakes: list[Mistake]) -> Settings:
    """Return the settings without whatever the mistakes touch."""
    sound = without(document, mistakes) if mistakes else dict(document)
    for expert in sound.setdefault("experts", {}).values():
        expert.setdefault("dataset", "")  # only where it was mistaken
    datasets = {name: _dataset(data) for name, data in sound.get("datasets", {}).items()}
    return Settings(
        **{key: sound[key] for key in ("seed", "device") if key in sound},
        base=parse_group(BaseSettings, sound.get("base", {})),
        datasets={name: dataset for name, dataset in datasets.items() if dataset is not None},
        experts=tuple(_expert(sound, name) for name in sound["experts"]),
        moe=parse_group(MoeSettings, sound.get("moe", {})),
    )


def _dataset(data: Mapping[str, Any]) -> DatasetSettings | None:
    """Return a dataset's settings; None when a mistake took something away that it cannot do without."""
    group = DATASET_SOURCES.get(data.get("source", ""))
    if group is None or any(is_required(field) and name not in data for name, (field, _) in declared(group).items()):
        return None
    return parse_group(group, data)


def _expert(document: Mapping[str, Any], name: str) -> ExpertSettings:
    layers = Layers.of(document, name)
    own = document["experts"][name]
    settings: dict[str, Any] = {key: own[key] for key in ("dataset", "version", "description") if key in own}
    if "stages" in own:
        settings["stages"] = tuple(own["stages"])
    for single in INHERITED:
        settings |= layers.value(single)
    settings |= {stage: parse_group(group, layers.stage(stage)) for stage, group in STAGES.items()}
    adapter = parse_group(AdapterSettings, layers.group("adapter"))
    routing = parse_group(RoutingSettings, own.get("routing", {}))
    package = parse_group(PackageSettings, layers.merged("package"))
    return ExpertSettings(name=name, adapter=adapter, routing=routing, package=package, **settings)
