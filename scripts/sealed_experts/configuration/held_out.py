"""Where held-out records come from, whether they are public, and checks of them."""

from collections.abc import Iterator, Mapping, Sequence

from sealed_experts.configuration.document import ExpertSettings
from sealed_experts.data.parts import has_test_set, has_training_set, record_kinds
from sealed_experts.data.sources import Source
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import KeyPath, Mistake, listed, shown, suggestion


def validation_is_public(expert: ExpertSettings, stage: str | None, datasets: Mapping[str, Source]) -> bool:
    """Return whether figures on these held-out records can be published, or used for a choice, without any ε.

    Args:
        stage: the stage that is validated on them; None for the expert's evaluation.
        datasets: all datasets without a mistake. For other datasets the answer is True, because nothing is known.
    """
    dataset = datasets.get(expert.validation_of(stage))
    return dataset is None or dataset.public_evaluation


def publishes_evaluation(expert: ExpertSettings, datasets: Mapping[str, Source]) -> bool:
    """Return whether a package can state what was measured: all held-out records that were used are public."""
    return all(validation_is_public(expert, stage, datasets) for stage in (None, *expert.training))


def evaluated_on_test_set(expert: ExpertSettings, datasets: Mapping[str, Source]) -> bool:
    """Return whether the evaluation uses the test set: if there is one, unless the evaluation chooses a stage.

    Records that were used for a choice are no test any more.
    """
    return expert.select != "best" and has_test_set(expert.validation_of(), datasets)


def held_out_mistakes(
    expert: ExpertSettings, layers: Layers, datasets: Mapping[str, Source], *, names: Sequence[str]
) -> Iterator[Mistake]:
    """Yield data that an expert cannot learn from or be validated on.

    Args:
        datasets: all datasets without a mistake.
        names: the names of all datasets in the configuration.
    """
    if expert.dataset in datasets and not has_training_set(expert.dataset, datasets):
        yield Mistake(
            ("experts", expert.name, "dataset"),
            f"{shown(expert.dataset)} holds everything out for validation, so there is nothing to learn from; lower its"
            " val_fraction, or name another dataset",
            involves=(("datasets", expert.dataset, "val_fraction"),),
        )
    for place, name in _validations(expert, layers).items():
        if name not in names:
            text = f"{shown(name)} is not a dataset; {suggestion(name, names)}"
            yield Mistake(place, text, involves=(("datasets", name),))
    yield from _kind_mistakes(expert, layers, datasets)


def _validations(expert: ExpertSettings, layers: Layers) -> dict[KeyPath, str]:
    """Return {where it is given: dataset}."""
    given = {} if expert.validation is None else {layers.locate("validation"): expert.validation}
    stages = {
        layers.locate(name, "validation"): stage.validation
        for name, stage in expert.training.items()
        if stage.validation is not None
    }
    return given | stages


def _kind_mistakes(expert: ExpertSettings, layers: Layers, datasets: Mapping[str, Source]) -> Iterator[Mistake]:
    """Yield stages that cannot use the kind of records in their dataset."""
    for stage, settings in expert.training.items():
        here = ("experts", expert.name, "dataset")
        validation = expert.validation_of(stage)
        own = (stage,) if settings.validation is not None else ()
        for place, name, task in (
            (here, expert.dataset, "learn from"),
            (layers.locate(*own, "validation"), validation, "be validated on"),
        ):
            kinds = record_kinds(name, datasets)
            wrong = sorted(set(kinds.values()) - set(settings.records))
            mixed = len(set(kinds.values())) > 1  # the dataset's own check reports it
            if not wrong or mixed or (task == "be validated on" and name == expert.dataset):
                continue
            yield Mistake(
                place,
                f"stage `{stage}` cannot {task} records of kind {listed(wrong)}, which `{name}` holds; it takes"
                f" {listed(settings.records)}: name another dataset, or leave the stage out",
                involves=(("experts", expert.name, "stages"), *(("datasets", leaf, "kind") for leaf in kinds)),
            )
