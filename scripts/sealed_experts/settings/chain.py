"""What each rule gets of the configuration, as canonical JSON, and how its script reads it back.

The text of what decides a result is the only thing that makes the result stale, so it holds all of that and nothing
else: two spellings of the same settings give the same text. What only says how a stage is run stands in a text of its
own. Every text holds a small number (`recipe`, `revision`) that is raised when the same settings come to mean something
else.
"""

import dataclasses
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.settings.bases import DEMO, base_key
from sealed_experts.settings.fields import plain
from sealed_experts.settings.layers import PRODUCT
from sealed_experts.settings.parsing import parse_group, parse_object
from sealed_experts.settings.types import (
    DATASET_SOURCES,
    STAGES,
    AdapterSettings,
    BaseSettings,
    DatasetSettings,
    ExpertSettings,
    GatelinkSettings,
    HeSettings,
    MoeSettings,
    PackageSettings,
    PrivacySettings,
    RoutingSettings,
    Settings,
    StageSettings,
)

# Says what may be published about a dataset, not what its records are: it belongs to the package.
_PUBLISHING = "public_evaluation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """What a training script needs of the configuration."""

    expert: str
    stage: str
    seed: int
    template: str
    device: str
    adapter: AdapterSettings
    training: StageSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetRun:
    """What the preparation of a dataset needs of the configuration."""

    name: str
    seed: int
    dataset: DatasetSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseRun:
    """What making or fetching the base needs of the configuration."""

    key: str
    seed: int
    device: str
    base: BaseSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackageRun:
    """What sealing an expert needs of the configuration. `dataset` is the data's name, None where it is private."""

    name: str
    version: str
    description: str
    template: str
    stages: tuple[str, ...]
    public_evaluation: bool
    adapter: AdapterSettings
    routing: RoutingSettings
    dataset: str | None = None
    package: PackageSettings = dataclasses.field(default_factory=PackageSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeMember:
    """One expert of the mixture."""

    name: str
    dataset: str
    routing: RoutingSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeRun:
    """What the assembly needs of the configuration; the order of experts decides the router's ties.

    `max_epsilon` limits the mixture's joint ε; None does not.
    """

    base: str
    revision: str | None
    experts: tuple[MoeMember, ...]
    he_config: HeSettings
    gatelink_config: GatelinkSettings
    max_epsilon: float | None = None


def stage_settings(settings: Settings, expert_name: str, stage: str) -> str:
    """Return what decides the numbers of one stage of one expert, as canonical JSON."""
    expert = _expert(settings, expert_name)
    training = _stage(expert, stage)
    return canonical_json(
        {
            "expert": expert.name,  # so that no two experts ever share noise
            "stage": stage,
            "revision": training.revision,
            "seed": settings.seed,
            "template": expert.template,
            "adapter": plain(expert.adapter),
            "training": _numbers(training),
        }
    )


def stage_operation(settings: Settings, expert_name: str, stage: str) -> str:
    """Return how one stage of one expert is run, as canonical JSON; none of it makes the stage stale."""
    training = _stage(_expert(settings, expert_name), stage)
    return canonical_json({"device": settings.device, "training": training.part(operation=True)})


def dataset_settings(settings: Settings, name: str) -> str:
    """Return what decides a dataset's records, as canonical JSON."""
    dataset = settings.datasets[name]
    left_out = {_PUBLISHING, *dataset.unused}
    own = {key: value for key, value in dataset.part(operation=False).items() if key not in left_out}
    return canonical_json({"name": name, "recipe": dataset.recipe, "seed": settings.seed, "dataset": own})


def base_settings(settings: Settings) -> str:
    """Return what decides the base's files, as canonical JSON."""
    base = settings.base
    own = {key: value for key, value in base.part(operation=False).items() if key not in ("demo", "key")}
    text: dict[str, Any] = {"key": base_key(base), "base": own}
    if base.name == DEMO:
        own["demo"] = base.demo.part(operation=False)
        text |= {"recipe": base.recipe, "seed": settings.seed}
    return canonical_json(text)


def base_operation(settings: Settings) -> str:
    """Return how the demo base is pretrained, as canonical JSON."""
    return canonical_json({"device": settings.device, "demo": settings.base.demo.part(operation=True)})


def package_settings(settings: Settings, expert_name: str) -> str:
    """Return what decides an expert's package besides its weights and receipt, as canonical JSON."""
    expert = _expert(settings, expert_name)
    own = {key: plain(getattr(expert, key)) for key in _PACKAGED} | {"package": expert.package.part(operation=False)}
    public = settings.datasets[expert.dataset].public_evaluation
    data = {_PUBLISHING: public, "dataset": expert.dataset if public else None}
    return canonical_json(own | data | {"recipe": expert.package_revision})


_PACKAGED = ("name", "version", "description", "template", "stages", "adapter", "routing", "package")


def moe_settings(settings: Settings) -> str:
    """Return what decides the assembled mixture besides its packages, as canonical JSON; experts in routing order."""
    experts = [
        {"name": expert.name, "dataset": expert.dataset, "routing": plain(expert.routing)}
        for expert in settings.experts
    ]
    base = {"base": settings.base.name, "revision": settings.base.revision}
    return canonical_json(base | {"recipe": MoeSettings.revision, "experts": experts} | plain(settings.moe))


def stage_from_json(settings: str, operation: str) -> StageRun:
    """Read back the texts of `stage_settings` and `stage_operation`.

    Raises:
        UserError: a text is not what these functions write.
    """
    numbers, how = _object(settings, _STAGE_KEYS), _object(operation, {"device", "training"})
    group = STAGES.get(numbers["stage"])
    if group is None:
        raise UserError(f"these settings are of an unknown stage {numbers['stage']!r}; known: {', '.join(STAGES)}")
    return StageRun(
        expert=numbers["expert"],
        stage=numbers["stage"],
        seed=numbers["seed"],
        template=numbers["template"],
        device=how["device"],
        adapter=parse_group(AdapterSettings, numbers["adapter"]),
        training=parse_group(group, numbers["training"] | how["training"]),
    )


def dataset_from_json(settings: str) -> DatasetRun:
    """Read back the text of `dataset_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = _object(settings, {"name", "recipe", "seed", "dataset"})
    group = DATASET_SOURCES.get(text["dataset"].get("source", ""))
    if group is None:
        raise UserError(f"these settings are of an unknown source; known: {', '.join(DATASET_SOURCES)}")
    return DatasetRun(name=text["name"], seed=text["seed"], dataset=parse_group(group, text["dataset"]))


def base_from_json(settings: str, operation: str | None = None) -> BaseRun:
    """Read back the text of `base_settings`, and of `base_operation` where the base is made here.

    Raises:
        UserError: a text is not what these functions write.
    """
    text = {"recipe": None, "seed": 0} | parse_object(settings)
    _check_keys(text, {"key", "base", "recipe", "seed"})
    how: dict[str, Any] = (
        {"device": "auto", "demo": {}} if operation is None else _object(operation, {"device", "demo"})
    )
    base = dict(text["base"])
    base["demo"] = base.get("demo", {}) | how["demo"]
    return BaseRun(key=text["key"], seed=text["seed"], device=how["device"], base=parse_group(BaseSettings, base))


def package_from_json(settings: str) -> PackageRun:
    """Read back the text of `package_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = _object(settings, {*_PACKAGED, "recipe", _PUBLISHING, "dataset"})
    del text["recipe"]
    groups = {"adapter": AdapterSettings, "routing": RoutingSettings, "package": PackageSettings}
    parsed: dict[str, Any] = {key: parse_group(group, text[key]) for key, group in groups.items()}
    return PackageRun(**text | parsed | {"stages": tuple(text["stages"])})


def moe_from_json(settings: str) -> MoeRun:
    """Read back the text of `moe_settings`.

    Raises:
        UserError: the text is not what that function writes.
    """
    text = _object(settings, {"base", "revision", "recipe", "experts", "he_config", "gatelink_config", "max_epsilon"})
    members = tuple(
        MoeMember(
            name=expert["name"], dataset=expert["dataset"], routing=parse_group(RoutingSettings, expert["routing"])
        )
        for expert in text["experts"]
    )
    return MoeRun(
        base=text["base"],
        revision=text["revision"],
        experts=members,
        he_config=parse_group(HeSettings, text["he_config"]),
        gatelink_config=parse_group(GatelinkSettings, text["gatelink_config"]),
        max_epsilon=text["max_epsilon"],
    )


_STAGE_KEYS = {"expert", "stage", "revision", "seed", "template", "adapter", "training"}


def _numbers(training: StageSettings) -> dict[str, Any]:
    """Return what decides numbers of a stage, in one spelling: one logical batch, privacy only where it is on."""
    numbers = {key: value for key, value in training.part(operation=False).items() if key not in PRODUCT}
    if "batch_size" in numbers:
        numbers["batch_size"] = training.logical_batch
    if not training.privacy.enabled:
        numbers["privacy"] = plain(PrivacySettings(enabled=False))
    return numbers


def _expert(settings: Settings, name: str) -> ExpertSettings:
    if name not in settings.by_name:
        raise UserError(f"no expert is called {name!r}; the configuration has {', '.join(settings.by_name)}")
    return settings.by_name[name]


def _stage(expert: ExpertSettings, stage: str) -> StageSettings:
    if stage not in expert.stages:
        raise UserError(f"expert {expert.name} has no stage {stage!r}; its stages are {', '.join(expert.stages)}")
    return expert.stage(stage)


def _object(text: str, keys: set[str]) -> dict[str, Any]:
    data = parse_object(text)
    _check_keys(data, keys)
    return data


def _check_keys(data: dict[str, Any], keys: set[str]) -> None:
    if data.keys() != keys:
        raise UserError(f"these settings should hold {', '.join(sorted(keys))}; they hold {', '.join(sorted(data))}")
