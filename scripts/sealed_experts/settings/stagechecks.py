"""Checks of an expert's chain of stages, and of which of them is shipped."""

import itertools
from collections.abc import Iterator, Mapping

from sealed_experts.settings.layers import PRODUCT, Layers
from sealed_experts.settings.messages import Mistake, shown
from sealed_experts.settings.rewardchecks import reward_mistakes
from sealed_experts.settings.sources import DatasetSettings
from sealed_experts.settings.types import ExpertSettings, ReinforceSettings, StageSettings


def chain_mistakes(
    expert: ExpertSettings, layers: Layers, *, datasets: Mapping[str, DatasetSettings]
) -> Iterator[Mistake]:
    """Yield what is wrong with an expert's stages, each by itself and all of them together."""
    for name in expert.stages:
        stage = expert.stage(name)
        yield from _batch_mistakes(name, stage, layers)
        yield from _warmup_mistakes(name, stage, layers)
        yield from _process_mistakes(name, stage, layers)
        if isinstance(stage, ReinforceSettings):
            yield from _rollout_mistakes(name, stage, layers)
            yield from reward_mistakes(stage, layers, name)
    yield from _start_mistakes(expert)
    yield from _budget_mistakes(expert, layers)
    if expert.select == "best":
        yield from _selection_mistakes(expert, layers, datasets)


def _batch_mistakes(name: str, stage: StageSettings, layers: Layers) -> Iterator[Mistake]:
    doubled = layers.doubled(name)
    for prefix in doubled:
        yield Mistake(
            (*prefix, name, "batch_size"),
            f"the logical batch is given twice; keep batch_size, or {' and '.join(PRODUCT)}, whose product it is",
        )
    values = {key: getattr(stage, key, None) for key in PRODUCT}
    missing = [key for key, value in values.items() if value is None]
    if len(missing) == 1 and not doubled:
        other = next(key for key in PRODUCT if key not in missing)
        yield Mistake(
            (*layers.locate(name, other)[:-1], missing[0]),
            f"it is missing beside {other}; the logical batch is the product of the two",
            involves=(layers.locate(name, other),),
        )


def _warmup_mistakes(name: str, stage: StageSettings, layers: Layers) -> Iterator[Mistake]:
    steps = "total_steps" if isinstance(stage, ReinforceSettings) else "max_steps"
    if stage.warmup_steps > stage.steps:
        yield Mistake(
            layers.locate(name, "warmup_steps"),
            f"{stage.warmup_steps} is above {steps}, which is {stage.steps}; the warmup must end within the training",
            involves=(layers.locate(name, steps),),
        )


def _process_mistakes(name: str, stage: StageSettings, layers: Layers) -> Iterator[Mistake]:
    if stage.gpus and stage.processes_per_job and stage.gpus != stage.processes_per_job:
        yield Mistake(
            layers.locate(name, "processes_per_job"),
            f"{stage.processes_per_job} processes do not fit gpus, which is {stage.gpus}: each process has one GPU of"
            " its own; give one of the two",
            involves=(layers.locate(name, "gpus"),),
        )


def _rollout_mistakes(name: str, stage: ReinforceSettings, layers: Layers) -> Iterator[Mistake]:
    if stage.max_new_tokens >= stage.max_seq_len:
        yield Mistake(
            layers.locate(name, "max_new_tokens"),
            f"{stage.max_new_tokens} leaves no room for a prompt in the {stage.max_seq_len} tokens that max_seq_len"
            " allows for both; lower the one or raise the other",
            involves=(layers.locate(name, "max_seq_len"),),
        )


def _start_mistakes(expert: ExpertSettings) -> Iterator[Mistake]:
    first = expert.stages[0]
    if expert.stage(first).follows:
        yield Mistake(
            ("experts", expert.name, "stages"),
            f"`{first}` refines an adapter, and none is there yet: put `sft` before it",
        )


def _budget_mistakes(expert: ExpertSettings, layers: Layers) -> Iterator[Mistake]:
    """ε is joint over the chain and can only grow: a later stage with a lower target could not take a step."""
    private = [stage for stage in expert.stages if expert.stage(stage).privacy.enabled]
    for before, after in itertools.pairwise(private):
        earlier, later = (expert.stage(stage).privacy.target_epsilon for stage in (before, after))
        if later < earlier:
            yield Mistake(
                layers.locate(after, "privacy", "target_epsilon"),
                f"{later} is below the {earlier} of stage `{before}` before it; it caps the joint ε, which only grows",
                involves=(layers.locate(before, "privacy", "target_epsilon"),),
            )


def _selection_mistakes(
    expert: ExpertSettings, layers: Layers, datasets: Mapping[str, DatasetSettings]
) -> Iterator[Mistake]:
    """What `select: best` needs: numbers to compare, measured on records that are not private."""
    stages = [expert.stage(name) for name in expert.stages]
    if expert.select_metric == "reward" and not any(isinstance(stage, ReinforceSettings) for stage in stages):
        yield Mistake(
            layers.locate("select_metric"),
            '"reward" is measured only for an expert with the stage `reinforce`; write `loss`, or `select: last`',
            involves=(layers.locate("select"), ("experts", expert.name, "stages")),
        )
    dataset = datasets.get(expert.dataset)
    private = [name for name in expert.stages if expert.stage(name).privacy.enabled]
    if dataset is not None and not dataset.public_evaluation and private:
        yield Mistake(
            layers.locate("select"),
            f"{shown(expert.select)} would choose by held-out records of `{expert.dataset}`, which are private, and no"
            f" ε covers that; write `last`, or datasets.{expert.dataset}.public_evaluation: true if they are public",
            involves=(
                ("datasets", expert.dataset, "public_evaluation"),
                *(layers.locate(name, "privacy", "enabled") for name in private),
            ),
        )
