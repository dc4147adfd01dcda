"""From what a run left behind to what its package says: only fields that are named here leave the machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.sealing.linter import CONFIG, WEIGHTS, lint_adapter
from sealed_experts.sealing.manifest_schema import MANIFEST_FORMAT
from sealed_experts.sealing.model_card import model_card
from sealed_experts.sealing.receipt import RECEIPT, privacy_summary, receipt_bytes
from sealed_experts.settings.chain import PackageRun

_WITHHELD = "measured on held-out private records; the dataset does not declare public_evaluation"
_NOT_MEASURED = "nothing was measured on held-out records"
# Settings of a stage that a manifest may state. Not the reward's own options: they may hold words of the owner's.
_TRAINING_SETTINGS = (
    *("learning_rate", "batch_size", "rollout_batch_size", "max_seq_len", "schedule", "warmup_steps", "weight_decay"),
    *("reward", "max_new_tokens", "temperature", "top_p", "kl_coef", "entropy_coef"),
)
_NAMED_THERE = {"rollout_batch_size": "batch_size"}


@dataclass(frozen=True, kw_only=True)
class SealingInputs:
    """The files that a package is made from, read.

    Attributes:
        settings: what the configuration says about the package.
        selection: selection.json.
        metrics: the selected stage's metrics.
        privacy: the receipt of everything that the package depends on (`receipt.covering`).
        base: base.json.
        adapter_config: content of adapter_config.json.
        adapter_weights: content of adapter_model.safetensors.
    """

    settings: PackageRun
    selection: Mapping[str, Any]
    metrics: Mapping[str, Any]
    privacy: Mapping[str, Any]
    base: Mapping[str, Any]
    adapter_config: bytes
    adapter_weights: bytes


def package_content(inputs: SealingInputs) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest (but for payload and members) and the members of an expert's package.

    Raises:
        PackageError: the adapter is not one that a package may hold.
        UserError: an input lacks a field, or two inputs contradict each other.
    """
    members = {CONFIG: inputs.adapter_config, WEIGHTS: inputs.adapter_weights}
    facts = lint_adapter(members)
    try:
        manifest = _manifest(inputs, parameters=facts.parameters)
    except KeyError as error:
        raise UserError(f"the inputs of the package lack the field {error.args[0]!r}: make them again") from error
    members[RECEIPT] = receipt_bytes(inputs.privacy)
    members["README.md"] = model_card(manifest).encode()
    return manifest, members


def _manifest(inputs: SealingInputs, *, parameters: int) -> dict[str, Any]:
    settings, metrics, base = inputs.settings, inputs.metrics, inputs.base
    if metrics["base_digest"] != base["digest"]:
        raise UserError(
            f"the adapter was trained on a base of digest {metrics['base_digest']}, but base.json states "
            f"{base['digest']}: train it again on this base"
        )
    adapter, routing = settings.adapter, settings.routing
    return {
        "format_version": MANIFEST_FORMAT,
        "name": settings.name,
        "version": settings.version,
        # Of several lines a field makes one: a manifest holds no control characters.
        "description": " ".join(settings.description.split()),
        "base": {field: base[field] for field in ("name", "revision", "digest")},
        "adapter": {
            "kind": adapter.kind,
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "target_modules": sorted(adapter.target_modules),
            "parameters": parameters,
        },
        "template": settings.template,
        "routing": {
            "keywords": list(routing.keywords),
            "always_active": routing.always_active,
            "gate": routing.gate,
            "match": routing.match,
        },
        "training": _training(inputs),
        "evaluation": _evaluation(metrics, public=settings.public_evaluation),
        "privacy": privacy_summary(inputs.privacy),
    }


def _training(inputs: SealingInputs) -> dict[str, Any]:
    stage = inputs.metrics["settings"]["training"]
    facts = {
        _NAMED_THERE.get(field, field): stage[field] for field in _TRAINING_SETTINGS if stage.get(field) is not None
    }
    return {
        **facts,
        "stages": list(inputs.selection["candidates"]),
        "selected_stage": inputs.selection["stage"],
        "selection_reason": inputs.selection["reason"],
        "steps": inputs.metrics["total_steps"],
        "stopped_reason": inputs.metrics["stopped_reason"],
    }


def _evaluation(metrics: Mapping[str, Any], *, public: bool) -> dict[str, Any]:
    if not public:
        return {"published": False, "reason": _WITHHELD}
    before, after = metrics["first_val_loss"], metrics["final_val_loss"]
    if before is None or after is None:
        return {"published": False, "reason": _NOT_MEASURED}
    published = {"published": True, "held_out_loss_before": before, "held_out_loss": after}
    rewards = [metrics.get(field) for field in ("mean_reward_before", "mean_reward_after")]
    if None not in rewards:
        published |= dict(zip(("held_out_reward_before", "held_out_reward"), rewards, strict=True))
    return published
