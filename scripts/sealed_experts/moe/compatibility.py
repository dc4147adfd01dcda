"""Check that a verified package fits its mixture. A signature alone is not enough."""

from collections.abc import Iterable
from pathlib import Path

from sealed_experts.models.classes import CAUSAL
from sealed_experts.moe.configuration import BaseReference
from sealed_experts.packages.content.linter import CONFIG, read_adapter_config
from sealed_experts.packages.content.manifest import adapter_of
from sealed_experts.packages.errors import IncompatibleError
from sealed_experts.packages.report import VerifiedPackage


def check_package(package: VerifiedPackage, *, path: Path, name: str, base: BaseReference, max_rank: int) -> None:
    """Check a package's expert, base, class of model and rank.

    Raises:
        IncompatibleError: one of them is wrong; the message names the file, what it holds and what would be right.
    """
    manifest = package.manifest
    if manifest["name"] != name:
        raise IncompatibleError(f"{path} holds the expert {manifest['name']!r}, but {name!r} is expected")
    if manifest["base"]["digest"] != base.digest:
        raise IncompatibleError(
            f"{path} was made for the base {manifest['base']['name']!r} of digest {manifest['base']['digest']}, but "
            f"this mixture's base is {base.name!r} of digest {base.digest}: all experts must adapt the same base"
        )
    model_class = read_adapter_config(package.members[CONFIG]).model_class
    if model_class is not CAUSAL:
        raise IncompatibleError(f"{path} holds a {model_class.noun}, which cannot answer questions: leave it out")
    adapter = adapter_of(manifest)
    if adapter.lora_rank is not None and adapter.lora_rank > max_rank:
        raise IncompatibleError(
            f"{path} has an adapter of rank {adapter.lora_rank}, above gatelink_config.max_lora_rank = "
            f"{max_rank}: train the expert with a smaller adapter.{adapter.rank_setting}, or raise the limit"
        )


def active_together(always_active: Iterable[bool]) -> int:
    """Return how many adapters of a mixture can be active together: all always-active ones, and one called by keywords.

    Our engine activates one adapter for each question. Other engines that read moe_config.json may also keep the
    always-active ones active.

    Args:
        always_active: for each expert, whether it is always active.
    """
    kept = list(always_active)
    return sum(kept) + (not all(kept))
