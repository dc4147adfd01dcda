"""What a schema cannot say: settings that must fit each other, and things that must exist."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.settings.basechecks import BaseFacts, base_mistakes
from sealed_experts.settings.budgetchecks import budget_problems, delta_mistakes
from sealed_experts.settings.datachecks import data_mistakes
from sealed_experts.settings.layers import Layers
from sealed_experts.settings.messages import KeyPath, Mistake, listed, shown, suggestion
from sealed_experts.settings.packagechecks import package_mistakes
from sealed_experts.settings.stagechecks import chain_mistakes
from sealed_experts.settings.types import (
    CombinedSource,
    ExpertSettings,
    FilesSource,
    MoeSettings,
    ReinforceSettings,
    Settings,
    StageSettings,
)

# Largest sum of coefficient modulus bits at 128-bit classical security for a ternary secret: HomomorphicEncryption.org,
# "Homomorphic Encryption Security Standard" (2018), table 1.
MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}


def cross_mistakes(
    settings: Settings, document: Mapping[str, Any], *, dataset_names: Collection[str], root: Path
) -> Iterator[Mistake]:
    """Yield every mistake in settings whose single values are right.

    Args:
        settings: the settings, resolved.
        document: what they were resolved from, mistaken values included, for the places of messages.
        dataset_names: every dataset the configuration declares, also one that is itself mistaken.
        root: folder that relative paths start from.
    """
    facts = BaseFacts.of(settings.base, root=root)
    yield from base_mistakes(settings.base, root=root)
    yield from _dataset_mistakes(settings, dataset_names, root)
    yield from data_mistakes(settings, root=root)
    for expert in settings.experts:
        layers = Layers.of(document, expert.name)
        yield from _expert_mistakes(expert, dataset_names)
        yield from facts.expert_mistakes(expert, layers)
        yield from package_mistakes(expert, layers, root=root)
        yield from delta_mistakes(expert, layers)
        yield from _rank_mistakes(expert, layers, settings.moe)
        yield from chain_mistakes(expert, layers, datasets=settings.datasets)
    yield from _fallback_mistakes(settings)
    yield from _moe_mistakes(settings.moe)
    yield from _limit_mistakes(settings, document)


def check_dataset_sizes(settings: Settings, counts: Mapping[str, int], *, exact: bool = True) -> None:
    """Check what depends on the number of privacy units in the datasets' training split.

    Args:
        settings: the run.
        counts: {dataset: units}; datasets that are not listed are not checked.
        exact: whether the counts are the true ones. From an upper bound follows that a batch is too large, but not that
            δ is: δ must be below 1/N, and the true N may be smaller.

    Raises:
        UserError: an expected batch is not smaller than its dataset, δ is not below 1/N, or a stage's first step must
            exceed its target_epsilon; all of them, one a line.
    """
    lines = [
        f"experts.{expert.name}.{stage}: {problem}"
        for expert in settings.experts
        if expert.dataset in counts
        for stage in expert.stages
        for problem in _size_problems(expert, expert.stage(stage), counts[expert.dataset], exact=exact)
    ] + [
        f"experts.{expert.name}.{stage}: {problem}"
        for expert in settings.experts
        if expert.dataset in counts
        for stage, problem in budget_problems(expert, units=counts[expert.dataset])
    ]
    if lines:
        raise UserError("\n  ".join(["these settings do not fit the size of the data:", *lines]))


def _size_problems(expert: ExpertSettings, stage: StageSettings, units: int, *, exact: bool) -> Iterator[str]:
    size = f"dataset `{expert.dataset}` has {'' if exact else 'at most '}{units} units to train on"
    if not stage.privacy.enabled:
        return
    if stage.logical_batch >= units:
        batch = "rollout_batch_size" if isinstance(stage, ReinforceSettings) else "batch_size"
        yield (
            f"the logical batch is {stage.logical_batch}, but {size}; under privacy the expected batch must be smaller"
            f" than the dataset: lower {batch}, or add data"
        )
    if exact and stage.privacy.delta * units >= 1:
        yield (
            f"privacy.delta is {stage.privacy.delta}, but {size}; it must be below 1/{units}, or publishing one whole"
            " record would count as private"
        )


def _dataset_mistakes(settings: Settings, names: Collection[str], root: Path) -> Iterator[Mistake]:
    for name, dataset in settings.datasets.items():
        if isinstance(dataset, FilesSource):
            for place, path in enumerate(dataset.paths):
                if not os.path.isfile(root / path):  # unlike Path's, it takes any text for a name
                    yield Mistake(
                        ("datasets", name, "paths", place),
                        f"{shown(path)} is not an existing file; put the data there or correct the path"
                        " (relative paths start in the repository's folder)",
                    )
        elif isinstance(dataset, CombinedSource):
            yield from _combined_mistakes(settings, name, dataset, names)


def _combined_mistakes(
    settings: Settings, name: str, dataset: CombinedSource, names: Collection[str]
) -> Iterator[Mistake]:
    for place, part in enumerate(dataset.of):
        if part not in names:
            others = [other for other in names if other != name]
            text = f"{shown(part)} is not a dataset; {suggestion(part, others)}"
            yield Mistake(("datasets", name, "of", place), text, involves=(("datasets", part),))
    leaves = _leaves(settings, name, ())
    if leaves is None:
        yield Mistake(("datasets", name, "of"), f"the dataset is combined of itself, through {listed(dataset.of)}")
        return
    twice = sorted({leaf for leaf in leaves if leaves.count(leaf) > 1})
    if twice:
        yield Mistake(("datasets", name, "of"), f"{listed(twice)} would come in more than once; name each only once")
    private = [leaf for leaf in leaves if leaf in settings.datasets and not settings.datasets[leaf].public_evaluation]
    if dataset.public_evaluation and private:
        yield Mistake(
            ("datasets", name, "public_evaluation"),
            f"true, but {listed(private)} in it does not allow publishing; set it there too, or false here",
            involves=tuple(("datasets", leaf, "public_evaluation") for leaf in private),
        )


def _leaves(settings: Settings, name: str, within: tuple[str, ...]) -> list[str] | None:
    """Return the uncombined datasets that a dataset is made of, each as often as it comes in; None for a circle."""
    dataset = settings.datasets.get(name)
    if name in within:
        return None
    if not isinstance(dataset, CombinedSource):
        return [name]
    leaves: list[str] = []
    for part in dataset.of:
        inner = _leaves(settings, part, (*within, name))
        if inner is None:
            return None
        leaves += inner
    return leaves


def _expert_mistakes(expert: ExpertSettings, datasets: Collection[str]) -> Iterator[Mistake]:
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


def _rank_mistakes(expert: ExpertSettings, layers: Layers, moe: MoeSettings) -> Iterator[Mistake]:
    if expert.adapter.rank > moe.gatelink_config.max_lora_rank:
        yield Mistake(
            layers.locate("adapter", "rank"),
            f"{expert.adapter.rank} is above moe.gatelink_config.max_lora_rank, which is"
            f" {moe.gatelink_config.max_lora_rank}; lower the one or raise the other",
            involves=(("moe", "gatelink_config", "max_lora_rank"),),
        )


def _fallback_mistakes(settings: Settings) -> Iterator[Mistake]:
    """At most one fallback. None is allowed: a question without a keyword then finds no expert, and is told so."""
    active = [expert.name for expert in settings.experts if expert.routing.always_active]
    for name in active[1:]:
        yield Mistake(
            ("experts", name, "routing", "always_active"),
            f"`{active[0]}` is always active already; at most one expert can be the fallback: set one of them to false",
        )


def _moe_mistakes(moe: MoeSettings) -> Iterator[Mistake]:
    he, here = moe.he_config, ("moe", "he_config")
    bits, largest = sum(he.coeff_modulus_bits), MODULUS_BITS[he.poly_modulus_degree]
    ring = (*here, "poly_modulus_degree")
    if bits > largest:
        yield Mistake(
            (*here, "coeff_modulus_bits"),
            f"{list(he.coeff_modulus_bits)} sums to {bits} bits; a ring of {he.poly_modulus_degree} allows at most"
            f" {largest} at 128-bit security: use fewer bits or a larger ring",
            involves=(ring,),
        )
    needed = (2 * he.poly_modulus_degree).bit_length()  # a prime that is 1 modulo 2N has more bits than 2N's logarithm
    if min(he.coeff_modulus_bits) < needed:
        yield Mistake(
            (*here, "coeff_modulus_bits"),
            f"a prime of {min(he.coeff_modulus_bits)} bits does not exist for a ring of {he.poly_modulus_degree};"
            f" each needs at least {needed} bits",
            involves=(ring,),
        )
    if he.scale_bits >= he.coeff_modulus_bits[0]:
        yield Mistake(
            (*here, "scale_bits"),
            f"{he.scale_bits} leaves no bits for the integer part; it must be below the first of coeff_modulus_bits,"
            f" which is {he.coeff_modulus_bits[0]}",
            involves=((*here, "coeff_modulus_bits"),),
        )
    link = moe.gatelink_config
    if link.dp_epsilon > link.max_epsilon:
        yield Mistake(
            ("moe", "gatelink_config", "dp_epsilon"),
            f"one query's budget of {link.dp_epsilon} is above max_epsilon, the budget of all, which is"
            f" {link.max_epsilon}",
            involves=(("moe", "gatelink_config", "max_epsilon"),),
        )


def _limit_mistakes(settings: Settings, document: Mapping[str, Any]) -> Iterator[Mistake]:
    """A mixture with an expert that claims no ε is within no limit: it would be refused after all the training."""
    unclaimed: list[str] = []
    places: list[KeyPath] = []
    for expert in settings.experts:
        layers = Layers.of(document, expert.name)
        for name in expert.stages:
            privacy = expert.stage(name).privacy
            if not privacy.enabled or privacy.mode == "reproducible":
                unclaimed.append(f"{expert.name}.{name}")
                places += [layers.locate(name, "privacy", key) for key in ("enabled", "mode")]
    if unclaimed and settings.moe.max_epsilon is not None:
        yield Mistake(
            ("moe", "max_epsilon"),
            f"{settings.moe.max_epsilon} cannot be kept: {listed(unclaimed)} will claim no ε, with privacy off or"
            " reproducible; change that, or remove the limit",
            involves=tuple(places),
        )
