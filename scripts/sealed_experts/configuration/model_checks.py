"""Adapters that stages learn from: which they are, what data are behind them, and what must hold of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from sealed_experts.configuration.document import Settings
from sealed_experts.data.parts import leaves
from sealed_experts.settings.layers import OVERRIDES, Layers
from sealed_experts.settings.messages import Mistake, listed, shown, suggestion
from sealed_experts.training.frozen_models import FrozenModel

Node = tuple[str, str]  # expert and stage: the adapter that the stage makes


def models_of(settings: Settings, node: Node) -> dict[str, Node]:
    """Return the adapters that a stage learns from besides the one that it starts from, by setting."""
    expert, stage = node
    return {
        name: (model.expert, model.stage or settings.by_name[model.expert].stages[-1])
        for name, model in settings.by_name[expert].stage(stage).models().items()
    }


def datasets_behind(settings: Settings, expert: str, stage: str | None = None, *, public: bool = False) -> list[str]:
    """Return the datasets that an adapter learned from, by itself or through the adapters behind it.

    Args:
        stage: the stage that made it; None for the last one.
        public: whether to count those behind models that are declared public too.
    """
    start = (expert, stage or settings.by_name[expert].stages[-1])
    nodes = [start, *_behind(settings, start, public=public)]
    return list(dict.fromkeys(settings.by_name[name].dataset for name, _ in nodes))


def model_mistakes(settings: Settings, document: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield models that do not exist, learn from themselves, or whose privacy cannot be counted."""
    unknown = list(_unknown(settings, document))
    yield from unknown
    if unknown:
        return  # the rest follows them
    for expert in settings.experts:
        layers = Layers.of({"defaults": {}, OVERRIDES: {}, **document}, expert.name)
        for stage, of in expert.training.items():
            here = (expert.name, stage)
            for name, model in of.models().items():
                node = models_of(settings, here)[name]
                place = layers.locate(stage, name)
                if here in (node, *_behind(settings, node, public=True)):
                    text = f"the adapter of {'.'.join(node)} learns from this very stage: name one that is made before"
                    yield Mistake((*place, "expert"), text)
                elif of.privacy.enabled:
                    yield from _privacy_mistakes(settings, layers, here, name, model)


def _unknown(settings: Settings, document: Mapping[str, Any]) -> Iterator[Mistake]:
    names = list(document["experts"])
    for expert in settings.experts:
        layers = Layers.of({"defaults": {}, OVERRIDES: {}, **document}, expert.name)
        for stage, of in expert.training.items():
            for name, model in of.models().items():
                place = layers.locate(stage, name)
                if model.expert not in names:
                    text = f"{shown(model.expert)} is not an expert; {suggestion(model.expert, names)}"
                    yield Mistake((*place, "expert"), text)
                elif model.stage and model.stage not in settings.by_name[model.expert].stages:
                    stages = settings.by_name[model.expert].stages
                    text = f"{shown(model.stage)} is not a stage of expert `{model.expert}`, which has {listed(stages)}"
                    yield Mistake((*place, "stage"), text, involves=(("experts", model.expert, "stages"),))


def _privacy_mistakes(
    settings: Settings, layers: Layers, here: Node, name: str, model: FrozenModel
) -> Iterator[Mistake]:
    """Yield what makes the privacy of a stage that learns from a model wrong, or impossible."""
    expert, stage = settings.by_name[here[0]], here[1]
    node = models_of(settings, here)[name]
    own, theirs = (settings.by_name[name].stage(of).privacy for name, of in (here, node))
    if model.public:
        learned = {
            leaf for data in datasets_behind(settings, *node, public=True) for leaf in leaves(data, settings.datasets)
        }
        common = learned & {
            leaf for data in datasets_behind(settings, *here) for leaf in leaves(data, settings.datasets)
        }
        if common:
            yield Mistake(
                (*layers.locate(stage, name), "public"),
                f"{'.'.join(node)} learned from {listed(sorted(common))}, which `{expert.name}` keeps private:"
                " remove `public`, so that its ε is counted",
            )
        return
    if not theirs.enabled:
        return
    for key in ("target_epsilon", "delta"):
        mine, other = getattr(own, key), getattr(theirs, key)
        if (mine < other) if key == "target_epsilon" else (mine > other):
            limit = "below" if key == "target_epsilon" else "above"
            why = "its ε is a part of this one" if key == "target_epsilon" else "δ must suit its data too"
            yield Mistake(
                layers.locate(stage, "privacy", key),
                f"{shown(mine)} is {limit} the {shown(other)} of {'.'.join(node)}, from which `{stage}` learns: {why}",
                involves=(layers.locate(stage, name),),
            )


def _behind(settings: Settings, node: Node, *, public: bool) -> list[Node]:
    """Return every adapter that one learned from: those that its stage started from, models, and what is behind."""
    found: dict[Node, None] = {}
    open_ends = [node]
    while open_ends:
        expert, stage = open_ends.pop()
        chain = settings.by_name[expert].stages
        before = [(expert, chain[chain.index(stage) - 1])] if chain.index(stage) else []
        chosen = settings.by_name[expert].stage(stage).models()
        models = models_of(settings, (expert, stage))
        counted = [other for name, other in models.items() if public or not chosen[name].public]
        for other in (*before, *counted):
            if other not in found:
                found[other] = None
                open_ends.append(other)
    return list(found)
