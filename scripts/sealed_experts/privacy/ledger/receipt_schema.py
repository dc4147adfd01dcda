"""JSON Schema (2020-12) of privacy_receipt.json: all fields that a package may state about its privacy.

`config/schemas/receipt.schema.json` is the same schema for other programs; a test compares the two.
"""

from typing import Any

from sealed_experts.files.json_schema import mapping, matching, number, or_null, text, whole

MAX_EVENTS, MAX_STAGES = 64, 16
STAGE = r"^[a-z][a-z0-9_]{0,63}$"
# Numbers outside these bounds make no sense, and the accountants cannot use them.
NOISE = {"minimum": 1e-3, "maximum": 1e6}
_TOGETHER = {**NOISE, "minimum": 5e-4}  # of several queries on one draw
RATE = {"minimum": 1e-12, "maximum": 1}
DELTA = {"minimum": 1e-12, "exclusiveMaximum": 1}
_STEPS = whole("Noisy steps on record.", least=0)
_EVENT = mapping(
    "Steps of one stage. Each drew every unit with the same probability and released a noised sum of the drawn ones.",
    {
        "stage": matching("The stage that took the steps.", STAGE),
        "noise_multiplier": number(
            "Noise of all queries of a step together, in units of their sensitivity.", **_TOGETHER
        ),
        "sample_rate": number("Probability that a step draws a unit.", **RATE),
        "steps": _STEPS,
        "key_id": text("Public id of the secret noise key. Steps of one key are one release.", most=200),
    },
    optional=("key_id",),
)
_OVER_RELEASES = mapping(
    "The same for everything that was sealed from these units so far.",
    {
        "epsilon": or_null(number("The joint ε; null if none can be claimed.", minimum=0)),
        "delta": number("The δ for which it is stated: that of the receipt.", **DELTA),
        "reason": or_null(text("Why none is claimed.", most=4000)),
        "meaning": text("What is counted.", most=4000),
    },
    optional=("delta", "reason", "meaning"),
)


def _texts(description: str) -> dict[str, Any]:
    items = {"type": "string", "minLength": 1, "maxLength": 4000}
    return {"description": description, "type": "array", "maxItems": 32, "items": items}


def _numbers(description: str, values: dict[str, Any], most: int) -> dict[str, Any]:
    return {
        "description": description,
        "type": "object",
        "maxProperties": most,
        "propertyNames": {"pattern": STAGE},
        "additionalProperties": values,
    }


_FIELDS: dict[str, Any] = {
    "enabled": {"description": "Whether the last stage was trained under privacy.", "type": "boolean"},
    "mode": {
        "description": "`release`, `reproducible` (noise follows from the seed) or null.",
        "enum": ["release", "reproducible", None],
    },
    "unit": or_null(text("What one unit of privacy is.", most=200)),
    "units": or_null(whole("Number of units in the training data; it is public.", least=1)),
    "public": _texts("What is treated as public."),
    "neighbouring": {"description": "Which datasets are neighbours.", "enum": ["add_or_remove_one", None]},
    "sampling": {"description": "How a step draws units.", "enum": ["poisson", None]},
    "mechanism": {"description": "What a step releases.", "enum": ["gaussian_on_clipped_sums", None]},
    "expected_batch_size": or_null(whole("Units that a step draws on average.", least=1)),
    "sample_rate": or_null(number("Probability that a step of the last stage draws a unit.", **RATE)),
    "noise_multiplier": or_null(number("Noise of the last stage's gradient.", **NOISE)),
    "queries": _numbers(
        "Noise of the other queries on the same draws, by name.", number("Noise.", **NOISE), MAX_STAGES
    ),
    "effective_noise_multiplier": or_null(
        number("Noise of the last stage's gradient and queries together.", **_TOGETHER)
    ),
    "max_grad_norm": or_null(number("Clipping norm of each unit's gradient in the last stage.", exclusiveMinimum=0)),
    "steps": _STEPS,
    "events": {
        "description": "Everything that all stages released about the units.",
        "type": "array",
        "maxItems": MAX_EVENTS,
        "items": _EVENT,
    },
    "accountant": or_null(text("The accountant that computed ε, and its version.", most=200)),
    "delta": or_null(number("The δ for which every ε here is stated.", **DELTA)),
    "target_epsilon": or_null(number("The limit of the joint ε.", exclusiveMinimum=0)),
    "epsilon": or_null(number("Joint ε of all events; null if none is claimed.", minimum=0)),
    "stage_epsilon": _numbers(
        "Joint ε at each stage's end; null if none is claimed.",
        or_null(number("The joint ε.", minimum=0)),
        MAX_STAGES,
    ),
    "over_releases": _OVER_RELEASES,
    "reason": or_null(text("Why no ε is claimed.", most=4000)),
    "covers": text("The stages that the receipt covers, if the package holds an earlier one.", most=4000),
    "protects": _texts("What is protected, and against whom."),
    "does_not_protect": _texts("What is not protected."),
}
RECEIPT_FIELDS = tuple(_FIELDS)
# The values that a claim of ε requires: another relation, sampling or mechanism has another ε.
CLAIMED = {
    "enabled": {"const": True},
    "mode": {"const": "release"},
    "unit": {"type": "string"},
    "units": {"type": "integer", "minimum": 2},
    "neighbouring": {"const": "add_or_remove_one"},
    "sampling": {"const": "poisson"},
    "mechanism": {"const": "gaussian_on_clipped_sums"},
    "expected_batch_size": {"type": "integer"},
    "sample_rate": {"type": "number"},
    "noise_multiplier": {"type": "number"},
    "queries": {"type": "object"},
    "effective_noise_multiplier": {"type": "number"},
    "max_grad_norm": {"type": "number"},
    "steps": {"type": "integer"},
    "events": {"minItems": 1},
    "accountant": {"type": "string"},
    "delta": {"type": "number"},
    "stage_epsilon": {"additionalProperties": {"type": "number"}},
}
_NO_CLAIM = {
    "required": ["reason"],
    "properties": {
        "reason": {"type": "string"},
        "stage_epsilon": {"additionalProperties": {"type": "null"}},
        "over_releases": {"properties": {"epsilon": {"type": "null"}}},
    },
}
RECEIPT_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Privacy receipt of a sealed expert",
    **mapping(
        "What is promised to each unit of the training data, and why. No other fields are allowed.",
        _FIELDS,
        optional=tuple(_FIELDS.keys() - {"enabled", "epsilon", "events"}),
    ),
    "if": {"properties": {"epsilon": {"type": "null"}}},
    "then": _NO_CLAIM,
    "else": {"required": sorted(CLAIMED), "properties": CLAIMED},
}
