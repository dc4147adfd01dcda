"""Make the content of a package from a run's results. Only fields that are named here leave the machine."""

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.packages.content.base_facts import quantization_of, rope_scaling_of
from sealed_experts.packages.content.licence import LICENCE_MEMBER, licence_bytes
from sealed_experts.packages.content.linter import CONFIG, WEIGHTS, AdapterFacts, adapter_facts
from sealed_experts.packages.content.manifest_schema import MANIFEST_FORMAT
from sealed_experts.packages.content.model_card import model_card
from sealed_experts.packages.content.provenance import PROVENANCE, Origin, provenance_bytes
from sealed_experts.packages.content.receipt import RECEIPT, check_receipt_member
from sealed_experts.packages.content.tensors import TensorCheck
from sealed_experts.packages.job import PackageJob
from sealed_experts.packages.settings import RoutingSettings
from sealed_experts.packages.source import BytesOrFile, Memory, blocks, open_source
from sealed_experts.packages.times import stated_times
from sealed_experts.privacy.ledger.owner_names import OwnerNames
from sealed_experts.privacy.ledger.published_receipt import receipt_bytes
from sealed_experts.privacy.ledger.receipt_rules import privacy_summary
from sealed_experts.settings.fields import plain
from sealed_experts.training.objectives import STAGES

_WITHHELD = "measured on held-out private records; the dataset does not declare public_evaluation"
_NOT_MEASURED = "no measurements on held-out records"


@dataclass(frozen=True, kw_only=True)
class SealingInputs:
    """The content of all files that a package is made from.

    Attributes:
        settings: what the configuration says about the package.
        selection: the content of selection.json.
        metrics: the selected stage's metrics.
        stages: the metrics of every stage, in order.
        privacy: the receipt of everything that the package depends on (`published_receipt.covering`).
        base: the content of base.json.
        base_config: the base's config.json.
        evaluation: the content of evaluation.json; used only if the dataset is declared public.
        licence: the licence's text, if the owner gave one.
        adapter_config: content of adapter_config.json.
        adapter_weights: content of adapter_model.safetensors, or its path.
        tokenizer: the files of the base's tokenizer, by name; empty if the package does not hold it.
        names: names for private data.
        origin: facts about the program.
        epoch: SOURCE_DATE_EPOCH in seconds since 1970, or None. It is the time if the settings state none.
    """

    settings: PackageJob
    selection: Mapping[str, Any]
    metrics: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    privacy: Mapping[str, Any]
    base: Mapping[str, Any]
    base_config: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None = None
    licence: bytes | None = None
    adapter_config: bytes
    adapter_weights: BytesOrFile
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)
    names: OwnerNames
    origin: Origin
    epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Size in bytes and SHA-256 of the weights, and the facts in the adapter's files."""

    size: int
    digest: str
    facts: AdapterFacts


def package_content(inputs: SealingInputs) -> tuple[dict[str, Any], dict[str, BytesOrFile]]:
    """Return the manifest (without payload and members) and the members of an expert's package.

    Raises:
        PackageError: a package may not hold this adapter.
        UserError: an input lacks a field, or two inputs contradict each other.
    """
    members: dict[str, BytesOrFile] = {
        CONFIG: inputs.adapter_config,
        WEIGHTS: inputs.adapter_weights,
        **inputs.tokenizer,
    }
    weights = _examined(inputs)
    try:
        manifest = _manifest(inputs, weights)
        members[PROVENANCE] = provenance_bytes(
            manifest,
            subject={CONFIG: sha256_bytes(inputs.adapter_config), WEIGHTS: weights.digest},
            stages=inputs.stages,
            names=inputs.names,
            origin=inputs.origin,
            public_evaluation=inputs.settings.public_evaluation,
        )
    except KeyError as error:
        raise UserError(f"the inputs of the package lack the field {error.args[0]!r}: make them again") from error
    members[RECEIPT] = receipt = receipt_bytes(inputs.privacy)
    check_receipt_member(manifest, receipt)
    members["README.md"] = model_card(manifest).encode()
    members[LICENCE_MEMBER] = licence_bytes(manifest["licence"], author=manifest["author"], text=inputs.licence)
    return manifest, members


def _examined(inputs: SealingInputs) -> _Weights:
    """Lint the adapter and hash its weights, in one pass and constant memory."""
    digest, content = hashlib.sha256(), inputs.adapter_weights
    with open_source(content) if isinstance(content, Path) else nullcontext(Memory(content)) as source:
        check = TensorCheck(size=source.size, member=WEIGHTS)
        for block in blocks(source, offset=0, length=source.size):
            digest.update(block)
            check.feed(block)
        tensors = check.finish()
        return _Weights(
            size=source.size,
            digest=digest.hexdigest(),
            facts=adapter_facts(inputs.adapter_config, tensors, kind=type(inputs.settings.adapter)),
        )


def _manifest(inputs: SealingInputs, weights: _Weights) -> dict[str, Any]:
    settings, package, base = inputs.settings, inputs.settings.package, inputs.base
    if inputs.metrics["base_digest"] != base["digest"]:
        raise UserError(
            f"the adapter was trained on a base of digest {inputs.metrics['base_digest']}, but base.json states "
            f"{base['digest']}: train it again on this base"
        )
    return {
        "format_version": MANIFEST_FORMAT,
        "name": settings.name,
        "version": settings.version,
        # Several lines become one: a manifest holds no control characters.
        "description": " ".join(settings.description.split()),
        "author": " ".join(package.author.split()),
        "licence": package.licence,
        "base": {
            **{field: base[field] for field in ("name", "revision", "digest")},
            "quantization": quantization_of(inputs.base_config),
            "rope_scaling": rope_scaling_of(inputs.base_config),
        },
        # State the settings of the configuration: an adapter with other settings is then refused.
        "adapter": {
            "kind": settings.adapter.kind,
            "settings": settings.adapter.facts(),
            "size": weights.size,
            "digest": weights.digest,
        },
        "template": settings.template,
        "capabilities": list(package.capabilities),
        "routing": _routing(settings.routing),
        "constraints": plain(package.constraints),
        "training": _training(inputs),
        "quality": _quality(inputs),
        "privacy": privacy_summary(inputs.privacy),
        "perf": {"size": weights.facts.tensor_bytes, "parameters": weights.facts.parameters},
    }


def _routing(routing: RoutingSettings) -> dict[str, Any]:
    return {
        "keywords": list(routing.keywords),
        "exclude": list(routing.exclude),
        "priority": routing.priority,
        "always_active": routing.always_active,
        "gate_type": routing.gate,
        "match": routing.match,
    }


def _training(inputs: SealingInputs) -> dict[str, Any]:
    stage = STAGES[inputs.selection["stage"]]
    return {
        "settings": stage.published(inputs.metrics["settings"]["training"]),
        **_seed(inputs),
        **stated_times(inputs.settings.package, epoch=inputs.epoch),
        "datasets": [_dataset(inputs)],
        "stages": list(inputs.selection["candidates"]),
        "selected_stage": inputs.selection["stage"],
        "selection_reason": inputs.selection["reason"],
        "steps": inputs.metrics["total_steps"],
        "stopped_reason": inputs.metrics["stopped_reason"],
    }


def _seed(inputs: SealingInputs) -> dict[str, int]:
    """Return the seed of a reproducible run. Other runs do not publish theirs."""
    return {"seed": inputs.metrics["seed"]} if privacy_summary(inputs.privacy)["mode"] == "reproducible" else {}


def _dataset(inputs: SealingInputs) -> dict[str, str]:
    digest = inputs.metrics["train_digest"]
    if inputs.settings.dataset is not None:
        return {"name": inputs.settings.dataset, "sha256": digest}
    return {"hmac_sha256": inputs.names.of_data(digest)}


def _quality(inputs: SealingInputs) -> dict[str, Any]:
    """Return the evaluation of the selected stage and the base, if it may be published."""
    if not inputs.settings.public_evaluation:
        return {"published": False, "reason": _WITHHELD}
    evaluation = inputs.evaluation
    if evaluation is None:
        return {"published": False, "reason": _NOT_MEASURED}
    if evaluation["expert"] != inputs.settings.name:
        raise UserError(f"the evaluation is of {evaluation['expert']}, not of {inputs.settings.name}: make it again")
    confidence = evaluation["intervals"]["confidence"]
    of_chosen, of_base = (evaluation["models"][name]["metrics"] for name in (inputs.selection["stage"], "base"))
    measured = [
        {
            **{key: about[key] for key in ("metric", "title", "unit", "higher_is_better")},
            "value": of_chosen[about["metric"]]["mean"],
            "base_value": of_base[about["metric"]]["mean"],
            "interval": _interval(of_chosen[about["metric"]], confidence),
        }
        for about in evaluation["metrics"]
        if "." not in about["metric"]  # the name of a part (an axis of a reward) may be the owner's own text
    ]
    metrics = [one for one in measured if one["value"] is not None and one["base_value"] is not None]
    return {"published": True, "metrics": metrics} if metrics else {"published": False, "reason": _NOT_MEASURED}


def _interval(ends: Mapping[str, Any], confidence: float) -> dict[str, float] | None:
    if ends["low"] is None or ends["high"] is None:
        return None
    return {"low": ends["low"], "high": ends["high"], "confidence": confidence}
