"""JSON Schema (2020-12) of a package's manifest: all fields that a package may state about itself.

`config/schemas/manifest.schema.json` is the same schema for other programs; a test compares the two.
"""

from typing import Any

from sealed_experts.files.json_schema import (
    mapping,
    matching,
    number,
    or_null,
    text,
    texts,
    whole,
)
from sealed_experts.packages.settings import CAPABILITY, LARGEST_LICENCE, LICENCE, TIME, VERSION_PATTERN
from sealed_experts.privacy.ledger.receipt_schema import MAX_STAGES, STAGE
from sealed_experts.settings.texts import VERSION

MANIFEST_FORMAT = 1
MAX_MANIFEST = 1 << 20  # bytes
# The members of every package, in the payload's order, with their largest sizes in bytes.
REQUIRED_MEMBERS = {
    "adapter_model.safetensors": (1 << 32) - (1 << 20),
    "LICENSE": LARGEST_LICENCE,
    "README.md": 1 << 18,
    "adapter_config.json": 1 << 16,
    "privacy_receipt.json": 1 << 20,
    "provenance.json": 1 << 20,
}
# More members of a package that includes the base's tokenizer: the first two always, the others if the base has them.
TOKENIZER_MEMBERS = {
    "tokenizer.json": 1 << 26,
    "tokenizer_config.json": 1 << 20,
    "special_tokens_map.json": 1 << 18,
    "chat_template.jinja": 1 << 20,
}
MEMBERS = {**REQUIRED_MEMBERS, **TOKENIZER_MEMBERS}
MEMBER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
EXPERT_NAME = r"^[a-z0-9][a-z0-9_-]{0,99}$"
_DIGEST = r"^[0-9a-f]{64}$"
_SETTING = r"^[a-z][a-z0-9_]*$"
_SCALAR = {"type": ["boolean", "number", "string", "null"], "maxLength": 1000}
_ROPE_NUMBERS = (
    *("attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim"),
    *("rope_theta", "partial_rotary_factor"),
)


def _patterns(description: str) -> dict[str, Any]:
    """Return the schema of a list of version patterns."""
    items = {"type": "string", "pattern": VERSION_PATTERN, "maxLength": 200}
    return {"description": description, "type": "array", "items": items, "maxItems": 100, "uniqueItems": True}


_FACTORS = {
    "description": "A factor for each dimension.",
    "type": "array",
    "items": {"type": "number"},
    "maxItems": 1024,
}
ROPE_SCALING = {
    "rope_type": text("Name of the method.", most=100),
    "factor": number("Factor of the context's length."),
    "original_max_position_embeddings": whole("Context length of the pretraining.", least=1),
    **{name: number("See the base's config.json.") for name in _ROPE_NUMBERS},
    "truncate": {"description": "See the base's config.json.", "type": "boolean"},
    "short_factor": _FACTORS,
    "long_factor": _FACTORS,
}
_BASE = mapping(
    "The frozen language model that the adapter was trained on.",
    {
        "name": text("Its name: a hub id, a folder's name or `demo`."),
        "revision": or_null(text("Commit of a hub model.")),
        "digest": matching("SHA-256 over the names and digests of its files.", _DIGEST),
        "quantization": or_null(
            mapping(
                "How its weights are stored in fewer bits; null if they are not.",
                {"method": text("Name of the method.", most=100), "bits": whole("Bits per weight.", least=1, most=16)},
                optional=("bits",),
            )
        ),
        "rope_scaling": or_null(
            mapping(
                "How its positions are scaled beyond the pretrained context length; null if they are not.",
                ROPE_SCALING,
                optional=tuple(ROPE_SCALING.keys() - {"rope_type"}),
            )
        ),
    },
)
_ADAPTER = mapping(
    "The adapter.",
    {
        "kind": matching("Its kind.", _SETTING),
        "settings": {
            "description": "Settings of its kind: everything needed to build the adapter. The kind checks them.",
            "type": "object",
            "maxProperties": 50,
            "propertyNames": {"pattern": _SETTING, "maxLength": 100},
            "additionalProperties": {
                "anyOf": [_SCALAR, {"type": "array", "maxItems": 1000, "items": _SCALAR}],
            },
        },
        "size": whole("Bytes of adapter_model.safetensors.", least=0),
        "digest": matching("SHA-256 of adapter_model.safetensors.", _DIGEST),
    },
)
_ROUTING = mapping(
    "Which questions the expert answers.",
    {
        "keywords": texts("Words and phrases that call it.", least=0, most=10_000),
        "exclude": texts("Words and phrases that exclude it from a question.", least=0, most=10_000),
        "priority": whole("Decides between experts with equally many matches.", least=-1000, most=1000),
        "always_active": {"description": "Whether it is the fallback.", "type": "boolean"},
        "gate_type": {"description": "Type of the gate.", "enum": ["step", "none"]},
        "match": {"description": "How keywords are matched.", "enum": ["word", "substring"]},
    },
)
_CONSTRAINTS = mapping(
    "What it requires of other packages.",
    {
        "requires": _patterns("Packages that must be installed."),
        "incompatible_with": _patterns("Packages that must not be installed."),
        "load_order": whole("Place among adapters that are active together: lower first.", least=-1000, most=1000),
        "max_chain": or_null(whole("Most adapters active together, itself included.", least=1, most=1000)),
    },
)
_DATASET = {
    "description": "A dataset.",
    "oneOf": [
        mapping(
            "Declared public: `public_evaluation`.",
            {"name": text("Its name.", most=100), "sha256": matching("SHA-256 of its training records.", _DIGEST)},
        ),
        mapping(
            "Private: named by an HMAC-SHA-256 with a key that only the owner has.",
            {"hmac_sha256": matching("The HMAC.", _DIGEST)},
        ),
    ],
}
_TRAINING = mapping(
    "How it was trained. No number here depends on which private records were drawn, or on their content.",
    {
        "datasets": {
            "description": "The training data.",
            "type": "array",
            "items": _DATASET,
            "minItems": 1,
            "maxItems": 100,
        },
        "stages": {
            "description": "The chain of stages, in order.",
            "type": "array",
            "items": {"type": "string", "pattern": STAGE},
            "minItems": 1,
            "maxItems": MAX_STAGES,
            "uniqueItems": True,
        },
        "selected_stage": matching(
            "The stage that the package holds; settings and steps are those of this stage.", STAGE
        ),
        "selection_reason": text("Why this stage was selected."),
        "steps": whole("Optimizer steps of the selected stage.", least=0),
        "stopped_reason": text("Why the stage ended.", most=100),
        "settings": {
            "description": "Public settings of the selected stage, by name.",
            "type": "object",
            "maxProperties": 100,
            "propertyNames": {"pattern": r"^[a-z][a-z0-9_]{0,63}$"},
            "additionalProperties": {"type": ["number", "string", "boolean"], "maxLength": 200},
        },
        "seed": whole("The run's seed; only a reproducible run states it.", least=0),
        "started": matching("When training started; optional.", TIME),
        "finished": matching("When training ended; optional.", TIME),
    },
    optional=("seed", "started", "finished"),
)
_METRIC = mapping(
    "A measurement.",
    {
        "metric": matching("What was measured, by the metric's name.", r"^[a-z][a-z0-9_]{0,63}$"),
        "title": text("The same in words.", most=100),
        "unit": text("In which unit, or what it is a share or mean of; may be empty.", least=0, most=100),
        "higher_is_better": {"description": "Whether a higher value is better.", "type": "boolean"},
        "value": number("The expert's mean."),
        "base_value": number("The base's mean."),
        "interval": or_null(
            mapping(
                "Interval of the expert's mean; null if there are too few records.",
                {
                    "low": number("Its lower end."),
                    "high": number("Its upper end."),
                    "confidence": number("Its confidence.", exclusiveMinimum=0, exclusiveMaximum=1),
                },
            )
        ),
    },
)
_QUALITY = {
    "description": "Numbers measured on held-out records, only if these are public.",
    "oneOf": [
        mapping(
            "Published.",
            {
                "published": {"const": True},
                "metrics": {
                    "description": "The measurements, each with the base's value on the same records.",
                    "type": "array",
                    "items": _METRIC,
                    "minItems": 1,
                    "maxItems": 20,
                },
            },
        ),
        mapping("Withheld.", {"published": {"const": False}, "reason": text("Why.")}),
    ],
}
_PRIVACY = mapping(
    "The guarantee for each unit of the training data; the member privacy_receipt.json has the details.",
    {
        "epsilon": or_null(number("Joint ε of all stages, selected or not; null if none is claimed.", minimum=0)),
        "delta": or_null(number("The δ for which ε is stated.", exclusiveMinimum=0, exclusiveMaximum=1)),
        "mode": {
            "description": "`release`, `reproducible` (noise follows from the seed) or `none`.",
            "enum": ["release", "reproducible", "none"],
        },
        "unit": or_null(text("What one unit of privacy is.", most=200)),
        "reason": text("Why no ε is claimed."),
    },
    optional=("reason",),
)
_MEMBERS = {
    "description": "The members, in the payload's order.",
    "type": "array",
    "minItems": 1,
    "maxItems": 64,
    "items": mapping(
        "A member.",
        {
            "path": matching("Its name.", MEMBER_NAME),
            "size": whole("Its size in bytes.", least=0, most=1 << 32),
            "sha256": matching("Its SHA-256.", _DIGEST),
        },
    ),
}

MANIFEST_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Manifest of a sealed expert",
    **mapping(
        "What a package says about itself. RFC 8785 JSON. No other fields are allowed.",
        {
            "format_version": {"description": "Version of this schema.", "const": MANIFEST_FORMAT},
            "name": matching("The expert's name.", EXPERT_NAME),
            "version": matching("The package's version.", VERSION),
            "description": text("One line about the expert.", least=0),
            "author": text("Who made it.", least=0, most=200),
            "licence": matching("Its licence, an SPDX expression; NOASSERTION means that none is stated.", LICENCE),
            "base": _BASE,
            "adapter": _ADAPTER,
            "template": text("How instruction, input and answer become text.", most=100),
            "capabilities": {
                **texts("What it can do.", least=0, most=50),
                "items": {"type": "string", "pattern": CAPABILITY, "maxLength": 64},
            },
            "routing": _ROUTING,
            "constraints": _CONSTRAINTS,
            "training": _TRAINING,
            "quality": _QUALITY,
            "perf": mapping(
                "What it costs to load.",
                {
                    "size": whole("Bytes of its tensors.", least=1),
                    "parameters": whole("Number of its parameters.", least=1),
                },
            ),
            "privacy": _PRIVACY,
            "payload": mapping(
                "How the members are stored.",
                {
                    "compression": {"description": "Compression of the payload.", "enum": ["none", "zstd"]},
                    "encryption": {
                        "description": "Encryption of the payload.",
                        "enum": ["none", "hpke-mlkem768-x25519"],
                    },
                },
            ),
            "members": _MEMBERS,
        },
    ),
}
