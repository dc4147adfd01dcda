"""Check an expert's chain of stages, and which of them is shipped."""

import itertools
from collections.abc import Iterator, Mapping

from sealed_experts.configuration.document import ExpertSettings
from sealed_experts.configuration.held_out import validation_is_public
from sealed_experts.data.sources import Source
from sealed_experts.evaluation.settings import measurable, not_measurable
from sealed_experts.metrics import metric_of
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import Mistake, listed, shown


def chain_mistakes(expert: ExpertSettings, layers: Layers, *, datasets: Mapping[str, Source]) -> Iterator[Mistake]:
    """Yield what is wrong with an expert's stages: with each one, and with the chain."""
    for stage in expert.training.values():
        yield from stage.mistakes(layers)
    for stage in expert.configured.values():
        yield from stage.choice_mistakes(layers)
    first = expert.stages[0]
    if expert.stage(first).follows:
        yield Mistake(
            ("experts", expert.name, "stages"),
            f"`{first}` refines an adapter, and none is there yet: put `sft` before it",
        )
    classes = {stage.model_class.noun: name for name, stage in expert.training.items()}
    if len(classes) > 1:
        told = " and ".join(f"`{name}` trains a {noun}" for noun, name in classes.items())
        yield Mistake(
            ("experts", expert.name, "stages"), f"{told}: one adapter cannot be both; make two experts of them"
        )
    yield from _budget_mistakes(expert, layers)
    yield from _best_mistakes(expert, layers, datasets)
    yield from expert.evaluation.mistakes(layers, measured=expert.measured, rewarded=expert.rewarded)
    if expert.select == "best":
        yield from _selection_mistakes(expert, layers, datasets)


def _budget_mistakes(expert: ExpertSettings, layers: Layers) -> Iterator[Mistake]:
    """Yield a target below an earlier one: the joint ε only grows, so that stage could take no step."""
    private = [name for name, stage in expert.training.items() if stage.privacy.enabled]
    for before, after in itertools.pairwise(private):
        earlier, later = (expert.stage(stage).privacy.target_epsilon for stage in (before, after))
        if later < earlier:
            yield Mistake(
                layers.locate(after, "privacy", "target_epsilon"),
                f"{later} is below the {earlier} of stage `{before}` before it; it caps the joint ε, which only grows",
                involves=(layers.locate(before, "privacy", "target_epsilon"),),
            )


def _best_mistakes(expert: ExpertSettings, layers: Layers, datasets: Mapping[str, Source]) -> Iterator[Mistake]:
    """Yield private stages where private validation records would decide something: no ledger counts them."""
    for name, stage in expert.training.items():
        if not stage.privacy.enabled or not stage.chooses or validation_is_public(expert, name, datasets):
            continue
        key = "patience" if stage.patience is not None else "keep"
        dataset = expert.validation_of(name)
        yield Mistake(
            layers.locate(name, key),
            f"{shown(getattr(stage, key))} would choose by held-out records of `{dataset}`, which are private, and no ε"
            f" covers that; remove it, name a public dataset as {name}.validation, or write"
            f" datasets.{dataset}.public_evaluation: true if they are public",
            involves=(("datasets", dataset, "public_evaluation"), layers.locate(name, "privacy", "enabled")),
        )


def _selection_mistakes(expert: ExpertSettings, layers: Layers, datasets: Mapping[str, Source]) -> Iterator[Mistake]:
    """Yield what `select: best` lacks: it compares numbers, measured on records that are not private."""
    metric, measured, rewarded = expert.select_metric, expert.measured, expert.rewarded
    names = expert.evaluation.settled(measured=measured, rewarded=rewarded).metrics
    wrong = ""
    if not measurable(metric, measured=measured, rewarded=rewarded):
        right = f"`{names[0]}`, or `select: last`" if names else "`select: last`"
        wrong = f"{not_measurable(metric, expert=expert.name, measured=measured)}; write {right}"
    elif names and metric_of(metric).feature not in names:
        wrong = f"{shown(metric)} is not measured; write one of {listed(names)}, or add it to evaluation.metrics"
    if wrong:
        yield Mistake(
            layers.locate("select_metric"),
            wrong,
            involves=(
                layers.locate("select"),
                layers.locate("evaluation", "metrics"),
                ("experts", expert.name, "stages"),
            ),
        )
    dataset = expert.validation_of()
    private = [name for name, stage in expert.training.items() if stage.privacy.enabled]
    if private and not validation_is_public(expert, None, datasets):
        yield Mistake(
            layers.locate("select"),
            f"{shown(expert.select)} would choose by held-out records of `{dataset}`, which are private, and no"
            f" ε covers that; write `last`, or datasets.{dataset}.public_evaluation: true if they are public",
            involves=(
                ("datasets", dataset, "public_evaluation"),
                *(layers.locate(name, "privacy", "enabled") for name in private),
            ),
        )
