"""The features that a configuration names, of every kind of feature."""

from collections.abc import Iterator

from sealed_experts.configuration.document import Settings
from sealed_experts.features import Feature
from sealed_experts.metrics import METRICS


def named_features(settings: Settings) -> Iterator[type[Feature]]:
    """Yield the sources of its datasets, and of each expert adapter kind, stages, what these chose, and metrics."""
    for dataset in settings.datasets.values():
        yield type(dataset)
    for expert in settings.experts:
        yield type(expert.adapter)
        for stage in expert.training.values():
            yield from stage.chosen()
        yield from (METRICS[name] for name in expert.evaluation.metrics)
