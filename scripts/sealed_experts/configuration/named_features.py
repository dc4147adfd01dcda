"""All features that a configuration names."""

from collections.abc import Iterator

from sealed_experts.configuration.document import Settings
from sealed_experts.features import Feature
from sealed_experts.metrics import METRICS


def named_features(settings: Settings) -> Iterator[type[Feature]]:
    """Yield the datasets' sources, and each expert's adapter kind, stages with their features, and metrics."""
    for dataset in settings.datasets.values():
        yield type(dataset)
    for expert in settings.experts:
        yield type(expert.adapter)
        for stage in expert.training.values():
            yield from stage.chosen()
        yield from (METRICS[name] for name in expert.evaluation.metrics)
