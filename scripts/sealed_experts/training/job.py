"""The job of one stage of one expert: what to train, and from which files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.models.adapters import ADAPTER, AdapterKind
from sealed_experts.settings.checking import parse_group
from sealed_experts.settings.job_text import read_text
from sealed_experts.settings.messages import listed
from sealed_experts.training.objectives import STAGES, Stage

STAGE_KEYS = {"expert", "stage", "revision", "seed", "template", "adapter", "training"}


@dataclass(frozen=True)
class LaterStage:
    """A stage that follows in the chain: its settings, as `stage_settings` writes them, and its records."""

    settings: str
    train: Path
    val: Path
    stats: Path


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """One stage of one expert, with its settings and its files."""

    stage: str
    expert: str
    seed: int
    device: str
    template: str
    adapter: AdapterKind
    settings: Stage
    computed: dict[str, Any]  # the settings that decide the numbers, as plain data
    base: Path  # base.json
    train: Path
    val: Path
    stats: Path
    start: Path | None  # adapter file of the previous stage
    checkpoints: Path
    output: Path
    digests: str = "{}"  # of the user's files that it reads, as JSON
    models: Mapping[str, Path] = field(default_factory=dict)  # adapter files of other models, by setting
    later: Sequence[LaterStage] = ()


def stage_from_json(
    settings: str, operation: str, *, models: Mapping[str, Path] | None = None, **files: Any
) -> StageJob:
    """Return the job that two JSON texts describe.

    `configuration.jobs` writes these texts: `stage_settings` and `stage_operation`.

    Args:
        settings: the settings that decide the numbers.
        operation: the settings that only say how to run.
        models: adapter files of the other models that the stage learns from, by the setting that names each.
        files: the paths of `StageJob`, from `base` to `output`, and `digests`.

    Raises:
        UserError: a text is not in that form, or a model in the settings has no file.
    """
    numbers, how = read_text(settings, STAGE_KEYS), read_text(operation, {"device", "training"})
    if numbers["stage"] not in STAGES:
        raise UserError(f"these settings are of an unknown stage {numbers['stage']!r}; known: {', '.join(STAGES)}")
    training = parse_group(STAGES[numbers["stage"]], numbers["training"] | how["training"])
    given, named = models or {}, training.models()
    if given.keys() != named.keys():
        raise UserError(
            f"stage {numbers['stage']} learns from these other models: {listed(named) or 'none'}; but --model names"
            f" {listed(given) or 'none'}: give the adapter file of each"
        )
    return StageJob(
        expert=numbers["expert"],
        stage=numbers["stage"],
        seed=numbers["seed"],
        template=numbers["template"],
        device=how["device"],
        adapter=ADAPTER.parse(numbers["adapter"]),
        settings=training,
        computed=numbers,
        models=given,
        **files,
    )
