"""The manifest's rules: consistency between its fields, and a complete allow-list."""

import functools
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema import Draft202012Validator

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json
from sealed_experts.packages.content.manifest import check_manifest, manifest_bytes, parse_manifest, payload_order
from sealed_experts.packages.content.manifest_schema import (
    MANIFEST_SCHEMA,
    MAX_MANIFEST,
    MEMBERS,
    REQUIRED_MEMBERS,
)
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.settings import ConstraintSettings, PackageSettings, RoutingSettings
from sealed_experts.packages.tgsp.package import open_bytes
from sealed_experts.packages.times import stated_times
from tests.attacks import building

ROOT = Path(__file__).resolve().parents[3]


def opened(**changes: Any):
    return open_bytes(building.package(**changes), trust=building.trust())


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a valid manifest with one field changed; `...` removes it."""
    manifest, _ = building.parts()
    *parents, last = path.split(".")
    place = manifest
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return manifest


def fields(value: Any, place: str = "") -> list[str]:
    if not isinstance(value, dict):
        return []
    below = [found for key, item in value.items() for found in fields(item, f"{place}{key}.")]
    return [f"{place}{key}" for key in value] + below


def test_the_schema_is_valid():
    Draft202012Validator.check_schema(MANIFEST_SCHEMA)


def test_a_validator_is_made_once(monkeypatch):
    """Making one for every package once took longer than using it."""
    check_manifest(building.parts()[0])
    monkeypatch.setattr(jsonschema, "Draft202012Validator", None)
    check_manifest(building.parts()[0])


def test_the_manifest_survives_its_bytes():
    manifest, _ = building.parts()
    assert parse_manifest(manifest_bytes(manifest)) == manifest


@pytest.mark.parametrize("path", [path for path in fields(building.parts()[0]) if not path.startswith("members")])
def test_every_mapping_refuses_a_field_more(path):
    """The allow-list has no gaps: an additional field is refused in every mapping."""
    *parents, _ = path.split(".")
    refusal = r"(Additional|additional) properties|valid under|not a setting that the stage|no such setting"
    with pytest.raises(PackageError, match=refusal) as caught:
        check_manifest(changed(".".join([*parents, "unheard_of"]), 1))
    assert "\n" not in str(caught.value)


REQUIRED = {
    *("name", "version", "description", "author", "licence", "base", "adapter", "capabilities", "routing"),
    *("constraints", "training", "quality", "perf", "members", "privacy", "template", "payload", "format_version"),
}


def test_the_manifest_says_what_the_specification_lists():
    manifest, _ = building.parts()
    assert set(manifest) == REQUIRED
    assert set(manifest["base"]) == {"name", "revision", "digest", "quantization", "rope_scaling"}
    assert set(manifest["adapter"]) == {"kind", "settings", "size", "digest"}
    assert set(manifest["routing"]) == {"keywords", "exclude", "priority", "gate_type", "always_active", "match"}
    assert set(manifest["constraints"]) == {"requires", "incompatible_with", "load_order", "max_chain"}
    assert set(manifest["perf"]) == {"size", "parameters"}
    assert set(manifest["members"][0]) == {"path", "size", "sha256"}
    for field in REQUIRED:
        with pytest.raises(PackageError, match=field):
            check_manifest(changed(field, ...))


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("adapter.settings.rank", 0, r"adapter\.settings\.rank: 0 is not a whole number from 1 to 4096"),
        ("adapter.settings.rank", ..., r"adapter\.settings: rank is missing"),
        ("adapter.settings.kind", "lora", r"adapter\.settings: kind is not a setting of a `lora` adapter"),
        ("adapter.settings.target_modules", ["v_proj", "q_proj"], r"adapter\.settings is .*, but it must be"),
        ("adapter.settings.rank", {"a": 1}, r"adapter\.settings\.rank: "),
        ("adapter.settings.Rank", 2, r"adapter\.settings: 'Rank' does not match"),
        ("adapter.kind", "no_such_kind", r"adapter\.kind: this program has no adapter kind 'no_such_kind'"),
        ("adapter.size", 5, r"adapter\.size is 5, but it must be"),
        ("adapter.digest", "0" * 64, r"adapter\.digest is 0"),
        ("version", "1.0", r"version: '1\.0' does not match"),
        ("version", "01.0.0", "version: "),
        ("licence", "<b>", "licence: "),
        ("licence", "", "licence: "),
        ("author", "x\x1b[2J", "author: it holds a control character"),
        ("author", "Bank\u202eknaB", "author: it holds a control character"),
        ("routing.keywords", ["\u2066loan"], r"routing\.keywords\[0\]: it holds a control character"),
        ("capabilities", ["Sing"], "capabilities.0: "),
        ("capabilities", ["a", "a"], "capabilities: "),
        ("constraints.requires", ["other@1.0"], r"constraints\.requires\.0: "),
        (
            "constraints.requires",
            ["tiny_expert@*"],
            r"requires: tiny_expert@\* names the package itself",
        ),
        (
            "constraints.incompatible_with",
            ["tiny_expert@>=2.0.0"],
            r"incompatible_with: .* names the package",
        ),
        ("constraints.max_chain", 0, r"constraints\.max_chain: "),
        ("constraints.load_order", 0.5, r"constraints\.load_order: "),
        ("routing.priority", 10**6, r"routing\.priority: "),
        ("training.seed", 1, r"training\.seed: only a reproducible run may state it"),
        ("training.started", "2026-01-31", r"training\.started: "),
        ("training.datasets", [], r"training\.datasets: "),
        ("training.datasets", [{"sha256": "0" * 64}], r"training\.datasets\.0: "),
        ("training.datasets", [{"name": "x", "hmac_sha256": "0" * 64}], r"training\.datasets\.0: "),
        ("training.examples_seen", 5, "examples_seen"),
        ("quality", {"published": True, "metrics": []}, "quality: "),
        ("quality", {"published": False, "reason": "x", "metrics": []}, "quality: "),
        ("base.quantization", {"bits": 4}, r"base\.quantization: "),
        ("base.rope_scaling", {"rope_type": "linear", "magic": 1}, r"base\.rope_scaling: "),
        ("payload.encryption", "rot13", r"payload\.encryption: "),
    ],
)
def test_a_field_that_contradicts_the_rules_is_refused(path, value, match):
    with pytest.raises(PackageError, match=match):
        check_manifest(changed(path, value))


HUGE = {
    "mixed items": ("routing.keywords", [None, *range(150_000)]),
    "mappings": ("routing.keywords", [{"a": number} for number in range(80_000)]),
    "too many texts": ("routing.keywords", [f"{number:x}" for number in range(120_000)]),
    "too many metrics": ("quality", {"published": True, "metrics": [0] * 400_000}),
    "too many data sets": ("training.datasets", [{}] * 300_000),
    "a deep list": ("author", functools.reduce(lambda inner, _: [inner], range(900), 0)),
}


@pytest.mark.parametrize(("path", "value"), HUGE.values(), ids=HUGE)
def test_a_manifest_of_a_megabyte_is_judged_at_once(path, value):
    """`inspect` of an untrusted file of 72 kB once took minutes: each item of a list was compared with every other."""
    content = canonical_json(changed(path, value)).encode()
    assert len(content) < MAX_MANIFEST
    started = time.process_time()
    with pytest.raises(PackageError, match=r"^manifest: ") as caught:
        parse_manifest(content)
    assert time.process_time() - started < 2
    assert len(str(caught.value)) < 1000


def test_duplicate_names_are_found_at_once():
    """The search for them once took minutes on a megabyte, before the check of any signature."""
    text = "{" + ",".join(f'"{number:x}":0' for number in range(100_000)) + ',"1869f":0}'
    started = time.process_time()
    with pytest.raises(PackageError, match="duplicate key '1869f'"):
        parse_manifest(text.encode())
    assert time.process_time() - started < 2


def test_an_end_before_the_start_is_refused():
    manifest = changed("training.started", "2026-01-31T09:00:00Z")
    manifest["training"]["finished"] = "2026-01-31T08:00:00Z"
    with pytest.raises(PackageError, match=r"training\.finished: it is before"):
        check_manifest(manifest)
    with pytest.raises(UserError, match=r"would have ended .* before it started"):
        stated_times(PackageSettings(started="2026-01-31T09:00:00Z"), epoch=0)


def test_the_weights_stand_first_and_the_others_by_name():
    manifest, _ = building.parts()
    paths = [entry["path"] for entry in manifest["members"]]
    assert paths == payload_order(reversed(paths)) == list(REQUIRED_MEMBERS)
    assert paths[0] == "adapter_model.safetensors"
    assert paths[1:] == sorted(paths[1:])
    manifest["members"] = sorted(manifest["members"], key=lambda entry: entry["path"])
    with pytest.raises(PackageError, match="must be first"):
        check_manifest(manifest)


def test_a_reproducible_run_states_its_seed_and_no_other_does():
    privacy = building.privacy(mode="reproducible", epsilon=None, reason="the seed reveals the noise")
    package = opened(privacy=privacy)
    assert package.manifest["training"]["seed"] == 424242
    assert "| Seed | 424242 |" in package.members["README.md"].decode()
    off = building.privacy(enabled=False, mode=None, epsilon=None, delta=None, events=[], reason="privacy is off")
    for other in (building.privacy(), off):
        assert b"424242" not in building.package(privacy=other)


def test_settings_reach_the_manifest_and_the_card():
    run = building.run(
        routing=RoutingSettings(keywords=("loan",), exclude=("river",), priority=3, gate="none"),
        package=PackageSettings(
            author="Bank of Nowhere",
            licence="Apache-2.0",
            capabilities=("question-answering",),
            constraints=ConstraintSettings(requires=("a@^1.2",), incompatible_with=("b@*",), load_order=2, max_chain=3),
            started="2026-01-31T09:00:00Z",
        ),
    )
    package = opened(settings=run, base_config={"quantization_config": {"quant_method": "gptq", "bits": 4}})
    manifest, card = package.manifest, package.members["README.md"].decode()
    assert (manifest["author"], manifest["licence"]) == ("Bank of Nowhere", "Apache-2.0")
    assert manifest["capabilities"] == ["question-answering"]
    assert manifest["routing"] == {
        **{"keywords": ["loan"], "exclude": ["river"], "priority": 3, "always_active": False},
        **{"gate_type": "none", "match": "word"},
    }
    assert manifest["constraints"] == {
        **{"requires": ["a@^1.2"], "incompatible_with": ["b@*"], "load_order": 2, "max_chain": 3},
    }
    assert manifest["training"]["started"] == "2026-01-31T09:00:00Z"
    assert manifest["base"]["quantization"] == {"method": "gptq", "bits": 4}
    assert b"Apache-2.0" in package.members["LICENSE"]
    for text in (
        *("An expert by Bank of Nowhere. Licence: Apache-2.0; see `LICENSE`.", "Excluded by: river."),
        *("It needs `a@^1.2`.", "It must not be installed with `b@*`.", "quantized by gptq", "## How to load"),
        *("## Data", "## Training", "## Privacy", "## Evaluation", "## Limits"),
    ):
        assert text in card


def test_the_model_card_cannot_carry_markup_in_new_fields():
    run = building.run(package=PackageSettings(author="<b>x</b> [y](javascript:z)"))
    card = opened(settings=run).members["README.md"].decode()
    assert "<b>" not in card
    assert "[y](" not in card


def test_the_document_lists_every_field_and_every_member():
    text = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")
    manifest, _ = building.parts()
    for field in MANIFEST_SCHEMA["properties"]:
        assert f"`{field}`" in text, field
    for group in ("base", "adapter", "routing", "constraints", "perf"):
        for field in MANIFEST_SCHEMA["properties"][group]["properties"]:
            assert f"`{field}`" in text, f"{group}.{field}"
    for field in MANIFEST_SCHEMA["properties"]["training"]["properties"]:
        assert f"`{field}`" in text, f"training.{field}"
    for member in MEMBERS:
        assert f"`{member}`" in text, member
    assert json.dumps(manifest["format_version"]) == "1"
