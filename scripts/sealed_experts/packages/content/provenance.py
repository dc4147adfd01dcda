"""provenance.json: what a package was made from, as an in-toto statement with SLSA's provenance predicate.

Public inputs are named by their digests. Private inputs are named by an HMAC with the owner's key (`owner_names`), so
only the owner can identify them. Nothing here depends on the machine or on the content of private records.

Specifications: https://in-toto.io/Statement/v1 and https://slsa.dev/provenance/v1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.json_schema import JsonSchema
from sealed_experts.packages.content.linter import CONFIG, WEIGHTS
from sealed_experts.packages.content.manifest import canonical_object
from sealed_experts.packages.content.provenance_schema import PROVENANCE_SCHEMA
from sealed_experts.packages.errors import PackageError
from sealed_experts.privacy.ledger.owner_names import OwnerNames

PROVENANCE = "provenance.json"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
BUILD_TYPE, BUILDER = "urn:sealed-experts:package:v1", "urn:sealed-experts:pipeline:v1"
HMAC = "hmacSha256"  # in a DigestSet, next to in-toto's own algorithm names
_SUBJECT = (CONFIG, WEIGHTS)
_SCHEMA = JsonSchema(PROVENANCE_SCHEMA)
_DESCRIBED = ("name", "version", "template", "base", "adapter", "training", "privacy")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Facts about the program that sealed the package.

    Attributes:
        version: the program's version.
        revision: commit of its repository, if the code is unchanged from that commit.
        lock: SHA-256 of requirements.txt, which pins the environment.
    """

    version: str
    revision: str | None = None
    lock: str | None = None


def provenance_bytes(
    manifest: Mapping[str, Any],
    *,
    subject: Mapping[str, str],
    stages: Mapping[str, Mapping[str, Any]],
    names: OwnerNames,
    origin: Origin,
    public_evaluation: bool = False,
) -> bytes:
    """Return provenance.json.

    Args:
        manifest: the package's manifest; it may lack `payload` and `members`.
        subject: SHA-256 of each of the adapter's files.
        stages: the metrics of every stage, selected or not, in order. Each stage started from the one before it.
        public_evaluation: whether held-out records are public; if the training data are too, their digests are plain.
    """
    training = manifest["training"]
    times = {
        name: training[field]
        for name, field in (("startedOn", "started"), ("finishedOn", "finished"))
        if field in training
    }
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": subject[name]}} for name in _SUBJECT],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": external_parameters(manifest),
                "internalParameters": {
                    "stages": [_stage(stage, metrics, names=names) for stage, metrics in stages.items()]
                },
                "resolvedDependencies": [
                    _base(manifest["base"]),
                    *_data(
                        stages[training["selected_stage"]],
                        names=names,
                        public=any("sha256" in dataset for dataset in training["datasets"]),
                        public_evaluation=public_evaluation,
                    ),
                    *_adapters(stages[training["selected_stage"]].get("models") or {}, names=names),
                    *_code(stages),
                    *_origin(origin),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"sealed-experts": origin.version}},
                **({"metadata": times} if times else {}),
            },
        },
    }
    return canonical_json(statement).encode()


def external_parameters(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the provenance that repeats the manifest."""
    return {field: manifest[field] for field in _DESCRIBED}


def check_provenance(manifest: Mapping[str, Any], content: bytes) -> None:
    """Check provenance.json against its schema, and compare it with the complete manifest.

    Raises:
        PackageError: it does not follow the schema, or describes another package.
    """
    statement = canonical_object(content, PROVENANCE)
    if mistake := _SCHEMA.mistake_in(statement):
        raise PackageError(f"{PROVENANCE}: {mistake}")
    stated = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    digests = {entry["path"]: entry["sha256"] for entry in manifest["members"] if entry["path"] in _SUBJECT}
    if stated != digests or len(statement["subject"]) != len(_SUBJECT):
        raise PackageError(f"{PROVENANCE}: its subject is not this package's {' and '.join(_SUBJECT)}")
    build = statement["predicate"]["buildDefinition"]
    described, expected = build["externalParameters"], external_parameters(manifest)
    if canonical_json(described) != canonical_json(expected):  # compare JSON texts: in Python, False == 0
        differing = _differing(described, expected)
        raise PackageError(f"{PROVENANCE}: what it says about {differing[:50]!a} is not what the manifest says")
    stages = [entry["stage"] for entry in build["internalParameters"]["stages"]]
    if stages != manifest["training"]["stages"]:
        raise PackageError(f"{PROVENANCE}: its stages are {', '.join(stages)[:200]}, not those of the manifest")
    _check_dependencies(manifest, build["resolvedDependencies"])


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the first field that only one of them has, or that differs as JSON."""
    return next(
        field
        for field in sorted(one.keys() | other.keys())
        if field not in one or field not in other or canonical_json(one[field]) != canonical_json(other[field])
    )


def _check_dependencies(manifest: Mapping[str, Any], dependencies: list[dict[str, Any]]) -> None:
    data = [
        {"sha256": entry["sha256"]} if "sha256" in entry else {HMAC: entry["hmac_sha256"]}
        for entry in manifest["training"]["datasets"]
    ]
    for name, expected in (("base", [{"sha256": manifest["base"]["digest"]}]), ("training-data", data)):
        if [entry["digest"] for entry in dependencies if entry["name"] == name] != expected:
            raise PackageError(f"{PROVENANCE}: resolvedDependencies: {name} is missing, or is not the manifest's")


def _base(base: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "name": "base",
        "digest": {"sha256": base["digest"]},
        "annotations": {"digestOf": "canonical JSON of {path: SHA-256}"},
    }
    # Only models from a hub have a commit. A package URL identifies them by name and commit.
    return {**found, "uri": f"pkg:huggingface/{base['name']}@{base['revision']}"} if base["revision"] else found


def _data(
    metrics: Mapping[str, Any], *, names: OwnerNames, public: bool, public_evaluation: bool
) -> list[dict[str, Any]]:
    found = []
    for name, field, plain in (
        ("training-data", "train_digest", public),
        ("held-out-data", "val_digest", public and public_evaluation),
    ):
        if field in metrics:
            digest = metrics[field]
            found.append({"name": name, "digest": {"sha256": digest} if plain else {HMAC: names.of_data(digest)}})
    return found


def _adapters(models: Mapping[str, str], *, names: OwnerNames) -> list[dict[str, Any]]:
    """Return the other adapters that the stages learned from, given by `stage.setting`. Weights follow from data."""
    return [
        {
            "name": "adapter",
            "digest": {HMAC: names.of_data(digest)},
            "annotations": {"digestOf": "weights by name", "stage": name.partition(".")[0]},
        }
        for name, digest in models.items()
    ]


def _stage(stage: str, metrics: Mapping[str, Any], *, names: OwnerNames) -> dict[str, Any]:
    libraries = (metrics.get("environment") or {}).get("libraries") or {}
    configuration = {HMAC: names.of_configuration(metrics["settings"])}
    return {"stage": stage, "configuration": configuration, "libraries": dict(libraries)}


def _code(stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "name": "training-code",
            "digest": {"sha256": metrics["environment"]["code"]},
            "annotations": {"digestOf": "canonical JSON of {path: SHA-256}", "stage": stage},
        }
        for stage, metrics in stages.items()
        if "code" in (metrics.get("environment") or {})
    ]


def _origin(origin: Origin) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if origin.revision is not None:
        found.append({"name": "source", "digest": {"gitCommit": origin.revision}})
    if origin.lock is not None:
        found.append({"name": "requirements.txt", "digest": {"sha256": origin.lock}})
    return found
