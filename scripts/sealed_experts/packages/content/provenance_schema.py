"""JSON Schema (2020-12) of provenance.json: the parts of in-toto's statement and SLSA's predicate that we use."""

from typing import Any

from sealed_experts.files.json_schema import mapping
from sealed_experts.privacy.ledger.receipt_schema import MAX_STAGES, STAGE
from sealed_experts.text import PRINTABLE

_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_SHORT = {"type": "string", "minLength": 1, "maxLength": 1200, "pattern": PRINTABLE}
_TIME = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"}
_STAGE = {"type": "string", "pattern": STAGE}
_DIGESTS = {
    "sha256": _DIGEST,
    "hmacSha256": _DIGEST,
    "gitCommit": {"type": "string", "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$"},
}
_DEPENDENCY = mapping(
    "Something that the package was made from.",
    {
        "name": {
            "enum": ["base", "training-data", "held-out-data", "adapter", "training-code", "source", "requirements.txt"]
        },
        "uri": _SHORT,
        "digest": {**mapping("One of these.", _DIGESTS, optional=tuple(_DIGESTS)), "minProperties": 1},
        "annotations": mapping(
            "What was hashed, if it is not a file, and the stage that it belongs to.",
            {"digestOf": _SHORT, "stage": _STAGE},
            optional=("stage",),
        ),
    },
    optional=("uri", "annotations"),
)
_VERSIONS = {
    "type": "object",
    "maxProperties": 100,
    "propertyNames": {"pattern": "^[A-Za-z0-9._-]{1,100}$"},
    "additionalProperties": _SHORT,
}
_STAGES = mapping(
    "A training stage.",
    {"stage": _STAGE, "configuration": mapping("Its settings.", {"hmacSha256": _DIGEST}), "libraries": _VERSIONS},
)
_BUILD = mapping(
    "The work and its inputs.",
    {
        "buildType": {"const": "urn:sealed-experts:package:v1"},
        "externalParameters": {"type": "object"},  # compared with the manifest
        "internalParameters": mapping(
            "Other facts that decided the result.",
            {"stages": {"type": "array", "minItems": 1, "maxItems": MAX_STAGES, "items": _STAGES}},
        ),
        "resolvedDependencies": {"type": "array", "minItems": 2, "maxItems": 100, "items": _DEPENDENCY},
    },
)
_RUN = mapping(
    "The program, and the times.",
    {
        "builder": mapping("The program.", {"id": {"const": "urn:sealed-experts:pipeline:v1"}, "version": _VERSIONS}),
        "metadata": mapping(
            "Times; optional.",
            {"startedOn": _TIME, "finishedOn": _TIME},
            optional=("startedOn", "finishedOn"),
        ),
    },
    optional=("metadata",),
)
PROVENANCE_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **mapping(
        "An in-toto statement.",
        {
            "_type": {"const": "https://in-toto.io/Statement/v1"},
            "subject": {
                "type": "array",
                "maxItems": 16,
                "items": mapping("A file.", {"name": _SHORT, "digest": mapping("Its digest.", {"sha256": _DIGEST})}),
            },
            "predicateType": {"const": "https://slsa.dev/provenance/v1"},
            "predicate": mapping("SLSA's provenance.", {"buildDefinition": _BUILD, "runDetails": _RUN}),
        },
    ),
}
