"""JSON Schema (2020-12) of a package's manifest: the allow-list of what a package says about itself.

`config/schemas/manifest.schema.json` is this text for other programs; a test holds the two equal.
"""

from typing import Any

MANIFEST_FORMAT = 1
# The members of a package, in the order in which the payload holds them, each with its largest size in bytes.
MEMBERS = {
    "README.md": 1 << 18,
    "adapter_config.json": 1 << 16,
    "adapter_model.safetensors": (1 << 32) - (1 << 20),
    "privacy_receipt.json": 1 << 20,
}
MEMBER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
EXPERT_NAME = r"^[a-z0-9][a-z0-9_-]{0,99}$"
VERSION = r"^[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$"
_DIGEST = r"^[0-9a-f]{64}$"
_STAGE = r"^[a-z][a-z0-9_]{0,63}$"


def _mapping(description: str, properties: dict[str, Any], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "additionalProperties": False,
        "required": sorted(set(properties) - set(optional)),
        "properties": properties,
    }


def _text(description: str, *, least: int = 1, most: int = 1000) -> dict[str, Any]:
    return {"description": description, "type": "string", "minLength": least, "maxLength": most}


def _matching(description: str, pattern: str) -> dict[str, Any]:
    return {"description": description, "type": "string", "pattern": pattern, "maxLength": 200}


def _whole(description: str, *, least: int, most: int = 2**53 - 1) -> dict[str, Any]:
    return {"description": description, "type": "integer", "minimum": least, "maximum": most}


def _number(description: str, **bounds: float) -> dict[str, Any]:
    return {"description": description, "type": "number", **bounds}


def _texts(description: str, *, least: int, most: int) -> dict[str, Any]:
    items = {"type": "string", "minLength": 1, "maxLength": 200}
    return {
        "description": description,
        "type": "array",
        "items": items,
        "minItems": least,
        "maxItems": most,
        "uniqueItems": True,
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


_BASE = _mapping(
    "The frozen language model that the adapter belongs to.",
    {
        "name": _text("Its name: a hub id, a folder's name or `demo`."),
        "revision": _or_null(_text("Commit of a hub model.")),
        "digest": _matching("SHA-256 over the names and digests of its files.", _DIGEST),
    },
)
_ADAPTER = _mapping(
    "The adapter.",
    {
        "kind": {"description": "Its kind.", "enum": ["lora"]},
        "rank": _whole("Rank of the update.", least=1, most=4096),
        "alpha": _number("Scale of the update: alpha / rank.", exclusiveMinimum=0),
        "target_modules": _texts("The base's modules that it adapts.", least=1, most=100),
        "parameters": _whole("Number of its parameters.", least=1),
    },
)
_ROUTING = _mapping(
    "Which questions the expert answers.",
    {
        "keywords": _texts("Words and phrases that call it.", least=0, most=10_000),
        "always_active": {"description": "Whether it is the fallback.", "type": "boolean"},
        "gate": {"description": "Type of the gate.", "enum": ["step", "none"]},
        "match": {"description": "How keywords are matched.", "enum": ["word", "substring"]},
    },
)
_TRAINING = _mapping(
    "How it was trained. No number here depends on which private records were drawn, or on what they hold.",
    {
        "stages": {
            "description": "The chain of stages, in order.",
            "type": "array",
            "items": {"type": "string", "pattern": _STAGE},
            "minItems": 1,
            "maxItems": 16,
            "uniqueItems": True,
        },
        "selected_stage": _matching("The stage that the package holds; settings and steps are its own.", _STAGE),
        "selection_reason": _text("Why that one."),
        "steps": _whole("Optimizer steps of the selected stage.", least=0),
        "stopped_reason": _text("Why it ended.", most=100),
        "learning_rate": _number("Peak learning rate.", exclusiveMinimum=0),
        "batch_size": _whole("Logical batch in examples; under privacy, the expected number.", least=1),
        "max_seq_len": _whole("Longest example, or prompt with its sampled answer, in tokens.", least=1),
        "schedule": _text("Learning-rate schedule.", most=100),
        "warmup_steps": _whole("Steps of linear warmup.", least=0),
        "weight_decay": _number("Decoupled weight decay.", minimum=0),
        "reward": _text("What scored sampled answers, by its name."),
        "max_new_tokens": _whole("Longest sampled answer in tokens.", least=1),
        "temperature": _number("Divides the logits that answers were sampled from.", exclusiveMinimum=0),
        "top_p": _number("Share of probability that answers were sampled from.", exclusiveMinimum=0, maximum=1),
        "kl_coef": _number("Weight of the divergence from the stage before.", minimum=0),
        "entropy_coef": _number("Weight of the entropy bonus.", minimum=0),
    },
    optional=(
        *("learning_rate", "batch_size", "max_seq_len", "schedule", "warmup_steps", "weight_decay", "reward"),
        *("max_new_tokens", "temperature", "top_p", "kl_coef", "entropy_coef"),
    ),
)
_EVALUATION = {
    "description": "Numbers measured on held-out records, only where these are not private.",
    "oneOf": [
        _mapping(
            "Published.",
            {
                "published": {"const": True},
                "held_out_loss_before": _number(
                    "Mean over response tokens, in nats, before the selected stage: the base's, or the stage before's.",
                    minimum=0,
                ),
                "held_out_loss": _number("The same after the selected stage.", minimum=0),
                "held_out_reward_before": _number("Mean reward of sampled answers before the selected stage."),
                "held_out_reward": _number("The same after the selected stage, sampled with the same seed."),
            },
            optional=("held_out_reward_before", "held_out_reward"),
        ),
        _mapping("Withheld.", {"published": {"const": False}, "reason": _text("Why.")}),
    ],
}
_PRIVACY = _mapping(
    "What is guaranteed to each unit of the training data; the member privacy_receipt.json says how.",
    {
        "epsilon": _or_null(_number("Joint ε of all stages, selected or not; null where none is claimed.", minimum=0)),
        "delta": _or_null(_number("The δ at which ε is stated.", exclusiveMinimum=0, exclusiveMaximum=1)),
        "mode": {
            "description": "`release`, `reproducible` (noise follows from the seed) or `none`.",
            "enum": ["release", "reproducible", "none"],
        },
        "unit": _or_null(_text("What one unit of privacy is.", most=200)),
        "reason": _text("Why no ε is claimed."),
    },
    optional=("reason",),
)
_MEMBERS = {
    "description": "The members, in the order in which the payload holds them.",
    "type": "array",
    "minItems": 1,
    "maxItems": 64,
    "items": _mapping(
        "A member.",
        {
            "path": _matching("Its name.", MEMBER_NAME),
            "size": _whole("Its size in bytes.", least=0, most=1 << 32),
            "sha256": _matching("Its SHA-256.", _DIGEST),
        },
    ),
}

MANIFEST_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Manifest of a sealed expert",
    **_mapping(
        "What a package says about itself. RFC 8785 JSON; every field is listed here, others are refused.",
        {
            "format_version": {"description": "Version of this schema.", "const": MANIFEST_FORMAT},
            "name": _matching("The expert's name.", EXPERT_NAME),
            "version": _matching("The package's version.", VERSION),
            "description": _text("One line about the expert.", least=0),
            "base": _BASE,
            "adapter": _ADAPTER,
            "template": _text("How instruction, input and answer become text.", most=100),
            "routing": _ROUTING,
            "training": _TRAINING,
            "evaluation": _EVALUATION,
            "privacy": _PRIVACY,
            "payload": _mapping(
                "How the members are stored.",
                {
                    "compression": {"description": "Compression of the payload.", "enum": ["none"]},
                    "encryption": {"description": "Encryption of the payload.", "enum": ["none"]},
                },
            ),
            "members": _MEMBERS,
        },
    ),
}
