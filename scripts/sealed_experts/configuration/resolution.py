"""Turn configuration files into the settings of a run, or into a list of all mistakes."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.configuration.crosschecks import cross_mistakes
from sealed_experts.configuration.document import Document, ExpertSettings, Inherited, Own, Settings, Top
from sealed_experts.data.sources import DATASET
from sealed_experts.errors import UserError
from sealed_experts.evaluation.settings import EvaluationSettings
from sealed_experts.models.adapters import ADAPTER, DEFAULT_KIND, AdapterKind
from sealed_experts.packages.settings import PackageSettings
from sealed_experts.settings.checking import mistakes_in, parse_group, without
from sealed_experts.settings.fields import Frozen
from sealed_experts.settings.layers import OVERRIDES, Layers
from sealed_experts.settings.merging import merge
from sealed_experts.settings.messages import KeyPath, Mistake, listed
from sealed_experts.settings.reading import read_file, read_text
from sealed_experts.training.objectives import STAGES, Stage

_COMMAND_LINE_KEYS = ("seed", "device")
_REPLACEABLE = ("base", "datasets")


def load(paths: Sequence[str | os.PathLike[str]], *, root: Path, extra: Mapping[str, Any] | None = None) -> Settings:
    """Read, merge, check and resolve configuration files.

    Args:
        paths: the files, later ones over earlier ones.
        root: folder that relative paths inside the configuration start from.
        extra: top-level settings from the command line (`--config seed=7`), applied over all files.

    Raises:
        UserError: a file cannot be read, or the configuration has mistakes: all of them, one a line.
    """
    document: dict[str, Any] = {}
    for path in paths:
        document = merge(document, read_file(path))
    document.update(_command_line(extra or {}))
    return resolve(document, root=root, origin=", ".join(os.fspath(path) for path in paths))


def _command_line(extra: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: _scalar(value) if isinstance(value, str) else value for key, value in extra.items()}
    for key, value in values.items():
        if key not in _COMMAND_LINE_KEYS or isinstance(value, Mapping | list | tuple):
            raise UserError(
                f"--config {key}=…: only {' and '.join(_COMMAND_LINE_KEYS)} can be given this way; for every other"
                " setting write a second file and pass both: `--configfile config/config.yaml my.yaml --`"
            )
        if value is None:
            raise UserError(f"--config {key}=: no value is given; write one behind it, or leave the option out")
    return values


def _scalar(text: str) -> Any:
    return read_text(f"value: {text}", origin="--config")["value"]


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
    effective = _without_keys_of_other_stages(_with_overridden_base_and_data(document))
    wrong = _in_order([*mistakes_in(Document, effective), *_mistakes_of_choices(effective)], effective)
    settings = _build(effective, wrong)
    found: dict[KeyPath, Mistake] = {}
    for mistake in wrong:
        placed = _placed(mistake, document)
        found.setdefault(placed.path, placed)
    mistakes = list(found.values())
    names = effective["datasets"] if isinstance(effective.get("datasets"), Mapping) else {}
    for mistake in cross_mistakes(settings, effective, dataset_names=list(names), root=root):
        placed = _placed(mistake, document)
        # Values with mistakes were left out above. Checks that depend on them wait until these are corrected.
        if not any(_same_branch(path, known) for path in (placed.path, *placed.involves) for known in found):
            mistakes.append(placed)
    if mistakes:
        raise UserError(_report(mistakes, origin))
    return _settled(settings)


def _with_plain_keywords(document: dict[str, Any]) -> dict[str, Any]:
    """Replace white space in keywords by single spaces: a `|` text ends in a line break, which a package cannot hold.

    Changes `document`. Values that are no lists of texts stay: the checks report them.
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
    """Merge `overrides.base` and `overrides.datasets` into the document. Replaced values are not checked."""
    overrides = document.get(OVERRIDES)
    if not isinstance(overrides, Mapping):
        return dict(document)
    return merge(document, {key: overrides[key] for key in _REPLACEABLE if isinstance(overrides.get(key), Mapping)})


def _without_keys_of_other_stages(document: dict[str, Any]) -> dict[str, Any]:
    """Remove from `overrides` settings that only other stages have: an overlay fits any configuration."""
    overrides = document.get(OVERRIDES)
    if not isinstance(overrides, Mapping):
        return document
    known = {key for stage in STAGES.values() for key in stage.model_fields}
    kept = {
        name: {key: value for key, value in given.items() if key in STAGES[name].model_fields or key not in known}
        if name in STAGES and isinstance(given, Mapping)
        else given
        for name, given in overrides.items()
    }
    return {**document, OVERRIDES: kept}


def _mistakes_of_choices(document: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield mistakes in groups of settings that another setting chooses: datasets, adapters."""
    datasets = document.get("datasets")
    for name, data in datasets.items() if isinstance(datasets, Mapping) else ():
        if isinstance(data, Mapping):
            yield from DATASET.mistakes(data, at=("datasets", name))
    experts = document.get("experts")
    for name, expert in experts.items() if isinstance(experts, Mapping) else ():
        layers = [document.get("defaults", {}), expert, document.get(OVERRIDES, {})]
        if all(isinstance(layer, Mapping) and isinstance(layer.get("adapter", {}), Mapping) for layer in layers):
            yield from _adapter_mistakes(Layers.of({"defaults": {}, OVERRIDES: {}, **document}, name))


def _adapter_mistakes(layers: Layers) -> Iterator[Mistake]:
    kind, settings = _adapter(layers)
    for mistake in ADAPTER.mistakes(settings, at=()):
        key, *rest = mistake.path
        text, others = mistake.text, ADAPTER.others_that_know(str(key))
        if mistake.text.startswith("no such setting") and others:
            text = f"the adapter kind `{kind}` does not know this setting; it is for {listed(others)}: remove it"
        yield Mistake((*layers.locate("adapter", str(key)), *rest), text)


def _adapter(layers: Layers) -> tuple[str, dict[str, Any]]:
    """Return the kind and the settings of an expert's adapter.

    A key in `overrides` that only other kinds have is skipped: an overlay fits any configuration.
    """
    kind, settings = layers.chosen("adapter", key="kind", default=DEFAULT_KIND)
    if kind not in ADAPTER.features:
        return kind, settings
    own = ADAPTER.features[kind].model_fields
    skipped = {
        key for key in layers.layers[-1][1].get("adapter", {}) if key not in own and ADAPTER.others_that_know(key)
    }
    return kind, {key: value for key, value in settings.items() if key not in skipped}


def _in_order(mistakes: list[Mistake], document: Mapping[str, Any]) -> list[Mistake]:
    """Sort mistakes as the document has their keys; unknown keys of a mapping come before what is in the others."""

    def place(mistake: Mistake) -> list[tuple[int, int]]:
        places: list[tuple[int, int]] = []
        value: Any = document
        for depth, key in enumerate(mistake.path, 1):
            unknown = depth == len(mistake.path) and mistake.text.startswith("no such setting")
            if isinstance(value, Mapping) and key in value:
                places.append((0 if unknown else 1, list(value).index(key)))
                value = value[key]
            else:
                places.append((2, key if isinstance(key, int) else 0))
        return places

    return sorted(mistakes, key=place)


def _placed(mistake: Mistake, document: Mapping[str, Any]) -> Mistake:
    """Return the mistake at the place where its value was written, which may be `overrides`."""
    return dataclasses.replace(
        mistake,
        path=_written(mistake.path, document),
        involves=tuple(_written(path, document) for path in mistake.involves),
    )


def _written(path: KeyPath, document: Mapping[str, Any]) -> KeyPath:
    if len(path) > 1 and path[0] in _REPLACEABLE:
        overrides = document.get(OVERRIDES)
        for place in (path, path[:-1]):  # a missing key: the place of its group
            if _holds(overrides, place):
                return (OVERRIDES, *path)
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
    """Return the settings without the parts that have mistakes."""
    sound = without(document, mistakes) if mistakes else dict(document)
    for expert in sound.setdefault("experts", {}).values():
        expert.setdefault("dataset", "?")  # only if this is where the mistake is
    datasets = {
        name: DATASET.parse(data)
        for name, data in sound.get("datasets", {}).items()
        if not DATASET.mistakes(data, at=())  # it lacks something that a mistake removed
    }
    top = parse_group(Top, {key: sound[key] for key in Top.model_fields if key in sound})
    experts = tuple(_expert(sound, name) for name in sound["experts"])
    return Settings(**dict(top), datasets=Frozen(datasets), experts=experts)


def _expert(document: Mapping[str, Any], name: str) -> ExpertSettings:
    layers = Layers.of(document, name)
    given = document["experts"][name]
    own = parse_group(Own, {key: given[key] for key in Own.model_fields if key in given})
    inherited = parse_group(
        Inherited, {key: value for single in Inherited.model_fields for key, value in layers.value(single).items()}
    )
    names = [stage for stage in STAGES if stage in own.stages or any(stage in layer for _, layer in layers.layers)]
    configured = {stage: parse_group(STAGES[stage], layers.stage(stage)) for stage in names}
    adapter = _adapter(layers)[1]
    return ExpertSettings(
        **dict(own),
        **dict(inherited),
        name=name,
        # A dataset or adapter with a mistake cannot be checked further.
        adapter=AdapterKind(kind="?") if ADAPTER.mistakes(adapter, at=()) else ADAPTER.parse(adapter),
        training=Frozen({stage: configured[stage] for stage in own.stages}),
        configured=Frozen(configured),
        package=parse_group(PackageSettings, layers.merged("package")),
        evaluation=parse_group(EvaluationSettings, layers.merged("evaluation")),
    )


def _settled(settings: Settings) -> Settings:
    """Return the settings with what depends on others filled in: two spellings of the same are equal."""

    def settled(stage: Stage) -> Stage:
        named = {
            name: model.replace(stage=model.stage or settings.by_name[model.expert].stages[-1])
            for name, model in stage.models().items()
        }
        return stage.replace(**named).settled()

    experts = tuple(
        expert.model_copy(
            update={
                "training": Frozen({name: settled(stage) for name, stage in expert.training.items()}),
                "evaluation": expert.evaluation.settled(measured=expert.measured, rewarded=expert.rewarded),
            }
        )
        for expert in settings.experts
    )
    return settings.replace(experts=experts)
