"""Adapters that stages learn from: which ones, which data they learned from, and checks of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealed_experts.configuration.document import Settings
from sealed_experts.data.parts import leaves
from sealed_experts.data.units import unit_scheme
from sealed_experts.privacy.settings import PrivacySettings
from sealed_experts.settings.layers import OVERRIDES, Layers
from sealed_experts.settings.messages import KeyPath, Mistake, listed, shown, suggestion
from sealed_experts.training.frozen_model import FrozenModel

Node = tuple[str, str]  # expert and stage; it stands for the adapter that the stage makes


def models_of(settings: Settings, node: Node) -> dict[str, Node]:
    """Return the existing adapters that a stage learns from besides its start, by setting."""
    expert, stage = node
    found = {}
    for name, model in settings.by_name[expert].stage(stage).models().items():
        stages = settings.by_name[model.expert].stages if model.expert in settings.by_name else ()
        if stages and (model.stage or stages[-1]) in stages:
            found[name] = (model.expert, model.stage or stages[-1])
    return found


def datasets_behind(settings: Settings, expert: str, stage: str | None = None, *, public: bool = False) -> list[str]:
    """Return the datasets that an adapter learned from, directly or through other adapters.

    Args:
        stage: the stage that made it; None for the last one.
        public: whether to include datasets that it reached only through models declared public.
    """
    start = (expert, stage or settings.by_name[expert].stages[-1])
    nodes = [start, *_behind(settings, start, public=public)]
    return list(dict.fromkeys(settings.by_name[name].dataset for name, _ in nodes))


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A stage, and a model that it learns from."""

    learner: Node
    name: str  # of the setting that chooses the model
    model: FrozenModel
    layers: Layers  # of the learner

    @property
    def place(self) -> KeyPath:
        return self.layers.locate(self.learner[1], self.name)


def model_mistakes(settings: Settings, document: Mapping[str, Any], *, root: Path) -> Iterator[Mistake]:
    """Yield models that do not exist, learn from themselves, or whose privacy cannot be counted."""
    links = list(_links(settings, document))
    written = document.get("experts")
    yield from _unknown(settings, links, list(written) if isinstance(written, Mapping) else [])
    for link in links:
        node = models_of(settings, link.learner).get(link.name)
        if node is None:
            continue
        if link.learner in (node, *_behind(settings, node, public=True)):
            text = f"the adapter of {'.'.join(node)} learns from this very stage: name one that is made before"
            yield Mistake((*link.place, "expert"), text)
            continue
        yield from _template(settings, link, node)
        if _privacy(settings, link.learner).enabled and not link.model.public:
            yield from _budget(settings, link, node)
            yield from _unit(settings, link, node)
        if link.model.public:
            yield from _public_mistakes(settings, link, node, root=root)


def _links(settings: Settings, document: Mapping[str, Any]) -> Iterator[_Link]:
    for expert in settings.experts:
        layers = Layers.of({"defaults": {}, OVERRIDES: {}, **document}, expert.name)
        for stage, of in expert.training.items():
            for name, model in of.models().items():
                yield _Link(learner=(expert.name, stage), name=name, model=model, layers=layers)


def _unknown(settings: Settings, links: list[_Link], written: list[str]) -> Iterator[Mistake]:
    """Yield models of experts that do not exist, or of stages that these do not have."""
    for link in links:
        expert, stage = link.model.expert, link.model.stage
        known = settings.by_name.get(expert)
        if expert not in written:
            yield Mistake((*link.place, "expert"), f"{shown(expert)} is not an expert; {suggestion(expert, written)}")
        elif known and stage and stage not in known.stages:
            yield Mistake(
                (*link.place, "stage"),
                f"{shown(stage)} is not a stage of expert `{expert}`, which has {listed(known.stages)}",
                involves=(("experts", expert, "stages"),),
            )


def _public_mistakes(settings: Settings, link: _Link, node: Node, *, root: Path) -> Iterator[Mistake]:
    """Yield a model that is declared public although its data are private for a stage that learns from it.

    This stage is the learner, or any stage that learned from the learner. Data are compared by the places they are
    read from.
    """
    theirs = _places(settings, datasets_behind(settings, *node, public=True), root)
    for expert in settings.experts:
        for stage, of in expert.training.items():
            here = (expert.name, stage)
            if not of.privacy.enabled or link.learner not in (here, *_behind(settings, here, public=True)):
                continue
            own = _places(settings, datasets_behind(settings, *here), root)
            if common := sorted({own[place] for place in own.keys() & theirs.keys()}):
                yield Mistake(
                    (*link.place, "public"),
                    f"{'.'.join(node)} learned from {listed(common)}, which `{expert.name}` keeps private: remove"
                    " `public`, so that its ε is counted",
                )
                return


def _places(settings: Settings, names: Sequence[str], root: Path) -> dict[str, str]:
    """Return {place: dataset} for every place that these datasets and their parts read records from."""
    return {
        place: leaf
        for name in names
        for leaf in leaves(name, settings.datasets)
        for place in (f"dataset {leaf}", *(place for place, _ in settings.datasets[leaf].places(root)))
    }


def _template(settings: Settings, link: _Link, node: Node) -> Iterator[Mistake]:
    """Yield a model that learned with another template than the learner."""
    own, theirs = (settings.by_name[name].template for name, _ in (link.learner, node))
    if own != theirs:
        yield Mistake(
            (*link.place, "expert"),
            f"`{node[0]}` learned with the template `{theirs}`, and `{link.learner[0]}` uses `{own}`: give both the"
            " same `template`",
            involves=(("experts", node[0], "template"), link.layers.locate("template")),
        )


def _unit(settings: Settings, link: _Link, node: Node) -> Iterator[Mistake]:
    """Yield a model that counts other units: their ε cannot be composed."""
    own, theirs = (settings.by_name[name].dataset for name, _ in (link.learner, node))
    schemes = [unit_scheme(name, settings.datasets) for name in (own, theirs) if name in settings.datasets]
    if _privacy(settings, node).enabled and len(set(schemes)) > 1:
        yield Mistake(
            (*link.place, "expert"),
            f"{'.'.join(node)} protects units of `{theirs}` ({schemes[1]}), and `{link.learner[0]}` those of"
            f" `{own}` ({schemes[0]}): their ε cannot be composed; give both datasets the same `unit`",
            involves=(("datasets", own, "unit"), ("datasets", theirs, "unit")),
        )


def _budget(settings: Settings, link: _Link, node: Node) -> Iterator[Mistake]:
    """Yield privacy settings that do not fit those of a model."""
    own, theirs = _privacy(settings, link.learner), _privacy(settings, node)
    if not theirs.enabled:
        return
    stage = link.learner[1]
    spends_all = theirs.noise_multiplier == "auto" and own.target_epsilon == theirs.target_epsilon
    for key, wrong, relation, why in (
        ("target_epsilon", own.target_epsilon < theirs.target_epsilon, "below", "its ε is a part of this one"),
        ("target_epsilon", spends_all, "only", "with `noise_multiplier: auto` that stage spends all of it; raise it"),
        ("delta", own.delta > theirs.delta, "above", "δ must suit its data too"),
    ):
        if wrong:
            mine, other = (shown(getattr(privacy, key)) for privacy in (own, theirs))
            yield Mistake(
                link.layers.locate(stage, "privacy", key),
                f"{mine} is {relation} the {other} of {'.'.join(node)}, from which `{stage}` learns: {why}",
                involves=(link.place,),
            )


def _privacy(settings: Settings, node: Node) -> PrivacySettings:
    return settings.by_name[node[0]].stage(node[1]).privacy


def _behind(settings: Settings, node: Node, *, public: bool) -> list[Node]:
    """Return every adapter that one learned from: its start, its models, and all that these learned from."""
    found: dict[Node, None] = {}
    open_ends = [node]
    while open_ends:
        expert, stage = open_ends.pop()
        chain, chosen = settings.by_name[expert].stages, settings.by_name[expert].stage(stage).models()
        before = [(expert, chain[chain.index(stage) - 1])] if chain.index(stage) else []
        models = models_of(settings, (expert, stage)).items()
        for other in (*before, *(made for name, made in models if public or not chosen[name].public)):
            if other not in found:
                found[other] = None
                open_ends.append(other)
    return list(found)
