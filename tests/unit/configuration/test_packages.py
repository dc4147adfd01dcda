"""Settings of packages: who inherits what, and mistakes that would else be found after all the training."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from sealed_experts.configuration import jobs
from sealed_experts.configuration.resolution import resolve
from sealed_experts.configuration.schema import document_schema
from sealed_experts.errors import UserError
from sealed_experts.packages.content.base_facts import quantization_of, rope_scaling_of
from sealed_experts.packages.content.licence import licence_bytes
from sealed_experts.packages.content.manifest import LONGEST_NAME, long_name
from sealed_experts.packages.content.manifest_schema import MANIFEST_SCHEMA
from sealed_experts.packages.job import package_from_json
from sealed_experts.packages.recipients.encryption import MAX_RECIPIENTS
from sealed_experts.packages.settings import MOST_RECIPIENTS, ConstraintSettings, PackageSettings, RoutingSettings
from sealed_experts.packages.settings_checks import LONGEST_NAME_AND_VERSION
from sealed_experts.packages.times import check_times

DOCUMENT: dict[str, Any] = {
    "datasets": {"a": {"source": "demo", "domain": "banking"}},
    "defaults": {
        "package": {"author": "Bank of Nowhere", "licence": "Apache-2.0", "constraints": {"load_order": 2}},
    },
    "experts": {
        "one": {
            "dataset": "a",
            "routing": {"keywords": ["x"]},
            "package": {"constraints": {"requires": ["two@^1.2"]}, "capabilities": ["question-answering"]},
        },
        "two": {"dataset": "a", "routing": {"keywords": ["y"]}},
    },
}


def changed(package: dict[str, Any], *, routing: dict[str, Any] | None = None, **expert: Any) -> dict[str, Any]:
    document = copy.deepcopy(DOCUMENT)
    document["experts"]["one"]["package"] = package
    document["experts"]["one"]["routing"] |= routing or {}
    document["experts"]["one"] |= expert
    return document


def mistakes(document: dict[str, Any], root: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve(document, root=root)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_an_expert_inherits_what_it_does_not_say_also_inside_constraints():
    one, two = resolve(DOCUMENT, root=Path()).experts
    assert one.package.constraints == ConstraintSettings(requires=("two@^1.2",), load_order=2)
    assert (one.package.author, one.package.licence) == ("Bank of Nowhere", "Apache-2.0")
    assert one.package.capabilities == ("question-answering",)
    assert two.package == PackageSettings(
        author="Bank of Nowhere", licence="Apache-2.0", constraints=ConstraintSettings(load_order=2)
    )


def test_overrides_beat_the_expert():
    document = changed({"signatures": ["ed25519", "ml-dsa-65"]}) | {"overrides": {"package": {"signatures": []}}}
    assert resolve(document, root=Path()).experts[0].package.signatures == ()


def test_the_rules_text_is_read_back_as_it_was():
    settings = resolve(DOCUMENT, root=Path())
    run = package_from_json(jobs.package_settings(settings, "one"))
    assert run.package == settings.experts[0].package
    assert run.routing == settings.experts[0].routing
    assert run.dataset == "a"  # the demo's records are public


def test_the_name_of_a_private_dataset_stays_at_home():
    document = copy.deepcopy(DOCUMENT)
    document["datasets"]["a"]["public_evaluation"] = False
    text = jobs.package_settings(resolve(document, root=Path()), "one")
    assert package_from_json(text).dataset is None
    document["datasets"] = {"b": document["datasets"]["a"]}
    for expert in document["experts"].values():
        expert["dataset"] = "b"
    assert jobs.package_settings(resolve(document, root=Path()), "one") == text


@pytest.mark.parametrize(
    "package",
    [
        *({"author": "new"}, {"licence": "MIT"}, {"capabilities": []}, {"constraints": {"max_chain": 2}}),
        *({"started": "2026-01-31T09:00:00Z"}, {"signatures": ["ed25519"]}),
    ],
)
def test_an_edited_package_makes_the_package_stale_and_no_training(package):
    before, after = resolve(DOCUMENT, root=Path()), resolve(changed(package), root=Path())
    assert jobs.package_settings(before, "one") != jobs.package_settings(after, "one")
    assert jobs.package_settings(before, "two") == jobs.package_settings(after, "two")
    assert jobs.stage_settings(before, "one", "sft") == jobs.stage_settings(after, "one", "sft")
    assert jobs.moe_settings(before) == jobs.moe_settings(after)


def test_another_container_makes_no_package_stale():
    before, after = resolve(DOCUMENT, root=Path()), resolve(changed({"containers": ["tgsp", "expert"]}), root=Path())
    plain = resolve(changed({}), root=Path())
    assert [expert.package.containers for expert in before.experts] == [("tgsp",), ("tgsp",)]
    assert [expert.package.containers for expert in after.experts] == [("tgsp", "expert"), ("tgsp",)]
    assert jobs.package_settings(after, "one") == jobs.package_settings(plain, "one")


HERE = "experts.one.package."
WRONG = {
    "a licence that nobody knows": ({"licence": "Apache 2"}, "licence: .*is no SPDX expression"),
    "a licence in other letters": ({"licence": "apache-2.0"}, 'licence: "apache-2.0" is written `Apache-2.0`'),
    "one's own licence without its text": ({"licence": "LicenseRef-Mine"}, "licence: only its text can say"),
    "a licence that is no text": ({"licence": 2}, "licence: "),
    "a text without its name": (
        {"licence": "NOASSERTION", "licence_file": "text"},
        "licence_file: which licence that is",
    ),
    "a missing file": ({"licence_file": "nowhere"}, 'licence_file: "nowhere" is not an existing file'),
    "a folder": ({"licence_file": "."}, "licence_file: .* is not an existing file"),
    "a name that no file can have": ({"licence_file": "a\0b"}, "licence_file: .* is not an existing file"),
    "a binary file": ({"licence_file": "binary"}, "licence_file: .* is not an existing file of UTF-8 text"),
    "a file with an escape sequence": ({"licence_file": "escape"}, "licence_file: .* no control characters"),
    "an empty file": ({"licence_file": "empty"}, "licence_file: .* must hold text"),
    "a private key": (
        {"licence": "LicenseRef-Mine", "licence_file": "key"},
        "licence_file: .* holds a private key, which everybody would get",
    ),
    "an author who turns the text's direction": ({"author": "Bank\u202eknaB"}, "author: "),
    "more recipients than a package can have": (
        {"recipients": [f"reader{number}.pub" for number in range(51)]},
        "recipients: ",
    ),
    "a file that is too long": ({"licence_file": "long"}, "licence_file: .* at most 262144 bytes"),
    "a pattern that is none": (
        {"constraints": {"requires": ["two@>=1.0"]}},
        r"requires\[0\]: .* version pat",
    ),
    "a pattern without a name": ({"constraints": {"incompatible_with": ["1.0.0"]}}, "version pattern such as"),
    "the expert itself": ({"constraints": {"requires": ["one@*"]}}, r"requires\[0\]: .* speaks of the expert itself"),
    "required and excluded": (
        {"constraints": {"requires": ["two@*"], "incompatible_with": ["two@*"]}},
        r"requires\[0\]: .* is in incompatible_with too",
    ),
    "a chain of none": ({"constraints": {"max_chain": 0}}, "constraints.max_chain: 0 is not a whole number from 1"),
    "an unknown constraint": ({"constraints": {"require": []}}, "did you mean `requires`"),
    "a day that is none": ({"started": "2026-02-30T00:00:00Z"}, "started: .* is no day of the calendar"),
    "a time of another zone": ({"finished": "2026-01-31T09:00:00+01:00"}, "finished: .* is not a time in UTC such as"),
    "an end before the start": (
        {"started": "2026-01-31T09:00:00Z", "finished": "2026-01-31T08:59:59Z"},
        "finished: .* is before `started`",
    ),
    "no Ed25519": ({"signatures": ["ml-dsa-65"]}, "signatures: `ed25519` is missing"),
    "an unknown algorithm": ({"signatures": ["rsa"]}, r'signatures\[0\]: "rsa" is not one of `ed25519`, `ml-dsa-65`'),
    "an unknown container": ({"containers": ["tgsp", "zip"]}, r'containers\[1\]: "zip" is not one of `tgsp`, `expert`'),
    "no TGSP": ({"containers": ["expert"]}, "containers: `tgsp` is missing: the mixture is assembled from it"),
    "no container": ({"containers": []}, "containers: `tgsp` is missing"),
    "an open copy of what is encrypted": (
        {"containers": ["tgsp", "expert"], "recipients": ["text"]},
        "containers: an `expert` file is never encrypted",
    ),
    "an unknown compression": ({"compression": "gzip"}, 'compression: "gzip" is not one of `none`, `zstd`'),
    "a recipient that is missing": ({"recipients": ["nobody.pub"]}, r"recipients\[0\]: .* public key"),
    "a capability of several words": ({"capabilities": ["can sing"]}, r"capabilities\[0\]: .* is not a word of"),
    "an author with a line break": ({"author": "a\nb"}, "author: .* control characters"),
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "text").write_text("Do as you like.\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "escape").write_text("\x1b[2J")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "key").write_text("Mine.\n-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII=\n")
    (tmp_path / "long").write_text("x" * 262_145)
    return tmp_path


@pytest.mark.parametrize(("package", "match"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_found_before_the_first_job(package, match, root):
    (told,) = mistakes(changed(package), root)
    assert told.startswith(HERE)
    assert re.search(match, told), told


def test_zstandard_must_be_installed_where_it_is_asked_for(root, monkeypatch):
    monkeypatch.setattr("sealed_experts.packages.settings_checks.has_zstandard", lambda: False)
    assert mistakes(changed({"compression": "zstd"}), root) == [
        f"{HERE}compression: `zstd` needs the package backports.zstd: install it"
    ]
    monkeypatch.setattr("sealed_experts.packages.settings_checks.has_zstandard", lambda: True)
    assert resolve(changed({"compression": "zstd"}), root=root).experts[0].package.compression == "zstd"


def test_a_version_that_leaves_no_room_for_a_file_name_is_found_before_the_first_job(root):
    document = copy.deepcopy(DOCUMENT)
    name = next(iter(document["experts"]))
    for letters, told in ((LONGEST_NAME_AND_VERSION, 0), (LONGEST_NAME_AND_VERSION + 1, 1)):
        document["experts"][name]["version"] = "1.0.0-" + "x" * (letters - len(name) - 6)
        found = mistakes(document, root) if told else [resolve(document, root=root)]
        assert len(found) == 1
    assert found[0].startswith(f"experts.{name}.version: ")
    longest = {"name": "n", "base": {"name": "b" * 300}, "version": "1" * (LONGEST_NAME_AND_VERSION - 1)}
    assert len(long_name(longest)) == LONGEST_NAME


def test_a_mistake_is_told_where_it_stands(root):
    document = copy.deepcopy(DOCUMENT)
    document["defaults"]["package"]["licence"] = "Whatever"
    (told,) = mistakes(document, root)
    assert told.startswith("defaults.package.licence: ")


@pytest.mark.parametrize(
    ("epoch", "package", "match"),
    [
        ("yesterday", {}, "^SOURCE_DATE_EPOCH is 'yesterday': it must be a whole number"),
        ("1770000000", {"started": "2026-02-02T02:40:01Z"}, r"^experts\.one\.package: .* before it started"),
        ("1770000000", {"finished": "2026-02-02T02:39:59Z"}, r"^experts\.one\.package: .* before it started"),
    ],
)
def test_a_source_date_epoch_that_no_package_could_state_is_refused_before_the_first_job(epoch, package, match):
    with pytest.raises(UserError, match=match):
        check_times({"one": PackageSettings(**package)}, {"SOURCE_DATE_EPOCH": epoch})
    check_times({"one": PackageSettings(**package)}, {"SOURCE_DATE_EPOCH": ""})


def test_a_package_is_encrypted_for_as_many_as_settings_may_name():
    """The settings once allowed 64, of which the sealing job refused the last 14 after all the training."""
    assert MAX_RECIPIENTS == MOST_RECIPIENTS


def test_a_licence_that_became_a_private_key_is_not_sealed():
    with pytest.raises(UserError, match="holds a private key"):
        licence_bytes("LicenseRef-Mine", author="", text=b"-----BEGIN PRIVATE KEY-----\n")


def test_a_sound_licence_file_passes(root):
    package = resolve(changed({"licence": "LicenseRef-Mine", "licence_file": "text"}), root=root).experts[0].package
    assert package.licence_file == "text"


@pytest.mark.parametrize("version", ["1.0", "01.0.0", "1.0.0-01", "v1.0.0", "1.0.0-"])
def test_a_version_must_be_a_semantic_one(version, root):
    (told,) = mistakes(changed({}, version=version), root)
    assert told.startswith("experts.one.version: ")
    assert resolve(changed({}, version="1.0.0-rc.1+build.7"), root=root)


@pytest.mark.parametrize(
    ("routing", "told"),
    [
        ({"exclude": ["river", "X"]}, 'routing.exclude[1]: "X" is one of this expert\'s keywords too'),
        ({"exclude": ["\u200b"]}, "routing.exclude[0]: "),
        ({"exclude": "river"}, 'routing.exclude: "river" is not a list; write [river]'),
        ({"priority": 1.5}, "routing.priority: 1.5 is not a whole number from -1000 to 1000"),
    ],
)
def test_mistakes_in_excluded_words_and_priorities(routing, told, root):
    (line,) = mistakes(changed({}, routing=routing), root)
    assert line.startswith(f"experts.one.{told}")


def test_white_space_in_excluded_words_is_collapsed(root):
    settings = resolve(changed({}, routing={"exclude": [" river \n bank "]}), root=root)
    assert settings.experts[0].routing == RoutingSettings(keywords=("x",), exclude=("river bank",))


def test_the_limits_of_settings_are_those_of_the_manifest():
    groups, manifest = document_schema()["$defs"], MANIFEST_SCHEMA["properties"]
    package, constraints = (groups[name]["properties"] for name in ("PackageSettings", "ConstraintSettings"))
    for name in ("author", "licence"):
        assert package[name]["maxLength"] == manifest[name]["maxLength"]
    assert package["licence"]["pattern"] == manifest["licence"]["pattern"]
    assert package["capabilities"]["maxItems"] == manifest["capabilities"]["maxItems"]
    assert package["capabilities"]["items"]["pattern"] == manifest["capabilities"]["items"]["pattern"]
    assert package["started"]["pattern"] == manifest["training"]["properties"]["started"]["pattern"]
    assert package["compression"]["enum"] == manifest["payload"]["properties"]["compression"]["enum"]
    sealed = manifest["constraints"]["properties"]
    for name in ("requires", "incompatible_with"):
        assert constraints[name]["maxItems"] == sealed[name]["maxItems"]
        assert constraints[name]["items"]["pattern"] == sealed[name]["items"]["pattern"]
    routing = manifest["routing"]["properties"]
    for name, group, whole in (
        ("load_order", constraints, sealed),
        ("max_chain", constraints, sealed),
        ("priority", groups["RoutingSettings"]["properties"], routing),
    ):
        assert [group[name][end] for end in ("minimum", "maximum")] == [
            whole[name][end] for end in ("minimum", "maximum")
        ]
    assert groups["RoutingSettings"]["properties"]["exclude"]["maxItems"] == routing["exclude"]["maxItems"]
    assert groups["ExpertLayer"]["properties"]["version"]["pattern"] == manifest["version"]["pattern"]


# What a package says about its licence and its base


def test_the_licence_member_is_the_owners_text_or_names_the_licence():
    assert licence_bytes("MIT", author="A", text=b"my text") == b"my text"
    named = licence_bytes("Apache-2.0", author="Bank", text=None).decode()
    assert named.startswith("SPDX-License-Identifier: Apache-2.0\n")
    assert "Bank" in named
    assert (
        "No licence is stated. Ask the publisher that signed"
        in licence_bytes("NOASSERTION", author="", text=None).decode()
    )


LLAMA = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"rope_scaling": None, "rope_theta": 1e6}, None),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, None),
        ({"rope_scaling": LLAMA}, LLAMA),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                }
            },
            {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        ),
    ],
)
def test_how_a_base_stretches_its_positions(config, expected):
    assert rope_scaling_of(config) == expected


def test_what_no_manifest_can_state_of_a_base_is_refused():
    with pytest.raises(UserError, match="'magic', which no manifest can state"):
        rope_scaling_of({"rope_scaling": {"rope_type": "yarn", "magic": 1}})
    ways = {"a": {"rope_type": "linear", "factor": 2.0}, "b": {"rope_type": "linear", "factor": 4.0}}
    with pytest.raises(UserError, match="in several ways"):
        rope_scaling_of({"rope_parameters": ways})
    with pytest.raises(UserError, match="names no quant_method"):
        quantization_of({"quantization_config": {"bits": 4}})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, None),
        ({"quant_method": "gptq", "bits": 4}, {"method": "gptq", "bits": 4}),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"method": "bitsandbytes", "bits": 4}),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, {"method": "bitsandbytes", "bits": 8}),
        ({"quant_method": "fp8"}, {"method": "fp8"}),
    ],
)
def test_how_a_base_is_quantized(found, expected):
    assert quantization_of({"quantization_config": found}) == expected
