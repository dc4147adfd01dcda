"""Check settings that must fit each other, and files that must exist."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sealed_experts.configuration.budget_checks import delta_mistakes
from sealed_experts.configuration.chain_checks import chain_mistakes
from sealed_experts.configuration.document import ExpertSettings, Settings
from sealed_experts.configuration.held_out import held_out_mistakes
from sealed_experts.configuration.model_checks import datasets_behind, model_mistakes
from sealed_experts.data.units import unit_mistakes
from sealed_experts.models.adapters import KINDS
from sealed_experts.models.base_checks import BaseFacts, base_mistakes
from sealed_experts.moe.settings import MoeSettings
from sealed_experts.packages.settings_checks import package_mistakes
from sealed_experts.privacy.engines import RECOMPUTING
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import KeyPath, Mistake, listed, shown, suggestion


def cross_mistakes(
    settings: Settings, document: Mapping[str, Any], *, dataset_names: Sequence[str], root: Path
) -> Iterator[Mistake]:
    """Yield every mistake in settings that are valid one by one.

    Args:
        settings: the settings, resolved.
        document: the document that they were read from. Messages name places in it.
        dataset_names: every dataset in the configuration, also those with mistakes.
        root: folder that relative paths start from.
    """
    facts = BaseFacts.of(settings.base, root=root)
    yield from base_mistakes(settings.base, root=root)
    for name, dataset in settings.datasets.items():
        yield from dataset.mistakes(name, settings.datasets, names=dataset_names, root=root)
    private = [
        expert for expert in settings.experts if any(stage.privacy.enabled for stage in expert.training.values())
    ]
    yield from unit_mistakes(
        [name for expert in private for name in datasets_behind(settings, expert.name)],
        settings.datasets,
        others=[
            name
            for expert in private
            for name in (
                *map(expert.validation_of, (None, *expert.training)),
                *datasets_behind(settings, expert.name, public=True),
            )
        ],
        root=root,
    )
    for expert in settings.experts:
        layers = Layers.of({"defaults": {}, "overrides": {}, **document}, expert.name)
        yield from _expert_mistakes(expert, dataset_names)
        yield from expert.adapter.mistakes(layers, model_type=facts.model_type, modules=facts.modules)
        yield from _length_mistakes(expert, layers, facts)
        yield from package_mistakes(expert.name, expert.version, expert.routing, expert.package, layers, root=root)
        yield from delta_mistakes(expert, layers)
        yield from _rank_mistakes(expert, layers, settings.moe)
        yield from _recomputation_mistakes(expert, layers, facts)
        yield from chain_mistakes(expert, layers, datasets=settings.datasets)
        yield from held_out_mistakes(expert, layers, settings.datasets, names=dataset_names)
    yield from model_mistakes(settings, document, root=root)
    yield from _fallback_mistakes(settings)
    yield from settings.moe.he_config.mistakes()
    yield from settings.moe.gatelink_config.mistakes()
    yield from _limit_mistakes(settings, document)


def _expert_mistakes(expert: ExpertSettings, datasets: Sequence[str]) -> Iterator[Mistake]:
    here = ("experts", expert.name)
    if expert.dataset not in datasets:
        text = f"{shown(expert.dataset)} is not a dataset; {suggestion(expert.dataset, datasets)}"
        yield Mistake((*here, "dataset"), text, involves=(("datasets", expert.dataset),))
    routing = (*here, "routing", "keywords")
    if not expert.routing.keywords and not expert.routing.always_active:
        yield Mistake(
            routing,
            "none are given, so no question would reach this expert; list some, or set routing.always_active: true",
            involves=((*here, "routing", "always_active"),),
        )
    first: dict[str, str] = {}
    for place, keyword in enumerate(expert.routing.keywords):
        folded = " ".join(keyword.casefold().split())
        if folded in first:
            text = f"{shown(keyword)} is the same keyword as {shown(first[folded])}; it would count twice: keep one"
            yield Mistake((*routing, place), text)
        first.setdefault(folded, keyword)


def _length_mistakes(expert: ExpertSettings, layers: Layers, facts: BaseFacts) -> Iterator[Mistake]:
    for name, stage in expert.training.items():
        if facts.longest is not None and stage.max_seq_len > facts.longest:
            yield Mistake(
                layers.locate(name, "max_seq_len"),
                f"{stage.max_seq_len} is longer than the base can read, which is {facts.longest} tokens",
                involves=(("base", "demo", "context"), ("base", "name")),
            )


def _rank_mistakes(expert: ExpertSettings, layers: Layers, moe: MoeSettings) -> Iterator[Mistake]:
    adapter, most = expert.adapter, moe.gatelink_config.max_lora_rank
    rank = adapter.lora_rank
    if adapter.rank_setting is not None and rank is not None and rank > most:
        yield Mistake(
            layers.locate("adapter", adapter.rank_setting),
            f"{rank} is above moe.gatelink_config.max_lora_rank, which is {most}; lower the one or raise the other",
            involves=(("moe", "gatelink_config", "max_lora_rank"),),
        )


def _recomputation_mistakes(expert: ExpertSettings, layers: Layers, facts: BaseFacts) -> Iterator[Mistake]:
    """Yield `gradient_checkpointing: on` if the adapter kind's gradient engine cannot recompute activations."""
    if facts.config is None or expert.adapter.kind not in KINDS or expert.adapter.engine(facts.config) in RECOMPUTING:
        return
    for name, stage in expert.training.items():
        if stage.privacy.enabled and stage.gradient_checkpointing == "on":
            yield Mistake(
                layers.locate(name, "gradient_checkpointing"),
                f"`on` cannot be kept: under privacy, the gradients of a `{expert.adapter.kind}` adapter cannot be"
                " computed while activations are recomputed; write `off`, and a lower token_budget if memory is short",
                involves=(layers.locate("adapter", "kind"), layers.locate(name, "privacy", "enabled")),
            )


def _fallback_mistakes(settings: Settings) -> Iterator[Mistake]:
    """Yield a second fallback. None at all is allowed: then a question without a keyword finds no expert."""
    active = [expert.name for expert in settings.experts if expert.routing.always_active]
    for name in active[1:]:
        yield Mistake(
            ("experts", name, "routing", "always_active"),
            f"`{active[0]}` is always active already; at most one expert can be the fallback: set one of them to false",
        )


def _limit_mistakes(settings: Settings, document: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a limit on ε that no mixture can meet, because one of its experts claims no ε."""
    unclaimed: list[str] = []
    places: list[KeyPath] = []
    for expert in settings.experts:
        layers = Layers.of({"defaults": {}, "overrides": {}, **document}, expert.name)
        for name, stage in expert.training.items():
            if not stage.privacy.enabled or stage.privacy.mode == "reproducible":
                unclaimed.append(f"{expert.name}.{name}")
                places += [layers.locate(name, "privacy", key) for key in ("enabled", "mode")]
    if unclaimed and settings.moe.max_epsilon is not None:
        yield Mistake(
            ("moe", "max_epsilon"),
            f"{settings.moe.max_epsilon} cannot be kept: {listed(unclaimed)} will claim no ε, with privacy off or"
            " reproducible; change that, or remove the limit",
            involves=tuple(places),
        )
