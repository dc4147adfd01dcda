"""A trusted publisher's signature over content that no package may hold: refused all the same, each for its reason."""

import pytest

from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.packages.errors import IncompatibleError
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks import building
from tests.attacks.building import CONFIG, WEIGHTS, refuse


def changed(field: str, value) -> bytes:
    """Return a signed package in which one field of the manifest, `a.b`, has another value; `...` removes it."""
    manifest, members = building.parts()
    target = manifest
    *path, last = field.split(".")
    for key in path:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return building.signed(manifest, members)


# The manifest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../../etc/passwd"),
        ("name", "tiny_expert\n"),
        ("name", "Tiny"),
        ("version", "1.0"),
        ("description", "one line\nand \x1b[2Janother"),
        ("format_version", 2),
        ("format_version", True),
        ("base", {"name": "tiny", "revision": None}),
        ("base.digest", "B" * 64),
        ("adapter.settings.rank", 0),
        ("adapter.settings.rank", "2"),
        ("adapter.settings.rank", True),
        ("adapter.settings.rank", ...),
        ("adapter.settings.r", 2),
        ("adapter.settings", ["rank"]),
        ("adapter.kind", "../lora"),
        ("routing.keywords", "loan"),
        ("routing.gate", "learned"),
        ("training.steps", -1),
        ("training.selected_stage", "reinforce"),
        ("training.examples_seen", 7654),
        ("training.seed", 42),
        ("training.final_loss", 1.5),
        ("fingerprint", "f" * 64),
        ("quality", {"published": False}),
        ("quality", {"published": False, "reason": "private", "held_out_loss": 2.0}),
        ("privacy.epsilon", -1),
        ("privacy.mode", "trust me"),
        ("payload.compression", "brotli"),
        ("payload", ...),
        ("members", []),
        ("members", ...),
    ],
)
def test_a_manifest_outside_its_schema(field, value):
    refuse(changed(field, value), "^manifest: ")


def test_an_adapter_kind_that_this_program_does_not_have_is_refused_by_name():
    with pytest.raises(
        IncompatibleError, match=r"adapter\.kind: this program has no adapter kind 'future'; it has lora"
    ):
        open_bytes(changed("adapter.kind", "future"), trust=building.trust())


def test_settings_that_the_adapters_files_contradict():
    for name, value in (("rank", 3), ("alpha", 5), ("target_modules", ["q_proj"])):
        refuse(changed(f"adapter.settings.{name}", value), f"adapter.settings.{name} is ")


@pytest.mark.parametrize(
    "alter",
    [
        lambda text: text.replace('{"adapter"', '{"name":"other","adapter"', 1),
        lambda text: text.replace('"version":"1.0.0"', '"version":"0.0.1","version":"1.0.0"'),
        lambda text: " " + text,
        lambda text: text + "\n",
        lambda text: text.replace('"rank":2', '"rank":2.0'),
        lambda text: text.replace('"rank":2', '"rank":1e999'),
        lambda text: text.replace('"rank":2', '"rank":NaN'),
        lambda text: text.replace('"rank":2', '"rank":9007199254740993'),
        lambda text: text.replace('"rank":2', '"rank":' + "9" * 5000),
        lambda text: text.replace('"tiny_expert"', '"tiny\\u005fexpert"'),
        lambda text: text.replace('"An expert for tests."', '"\\ud800"'),
        lambda text: text.replace('"An expert for tests."', "[" * 50_000 + "]" * 50_000),
        lambda text: text.replace(",", ", "),
        lambda text: "[" + text + "]",
        lambda text: "null",
    ],
    ids=[
        "duplicate name",
        "duplicate version",
        "leading space",
        "final newline",
        "2.0 for 2",
        "infinity",
        "NaN",
        "beyond 2^53",
        "huge number",
        "escaped letter",
        "lone surrogate",
        "deep nesting",
        "spaces",
        "a list",
        "null",
    ],
)
def test_a_manifest_that_is_not_canonical_json(alter):
    manifest, members = building.parts()
    text = canonical_json(manifest)
    assert alter(text) != text
    refuse(building.signed(alter(text).encode(), members), "^manifest: ")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_manifest_in_another_encoding(encoding):
    manifest, members = building.parts()
    refuse(building.signed(canonical_json(manifest).encode(encoding), members), "^manifest: ")


# Members


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/cron.d/evil",
        "a/b",
        "a\\b",
        "C:evil",
        ".hidden",
        "",
        "nul\0l",
        "README.md\n",
        "adapter_model.bin",
        "optimizer.pt",
        "checkpoint_step_5.pt",
        "publisher.pem",
        "Readme.md",
        "ＲEADME.md",
        "adapter_config.json ",
    ],
)
def test_a_member_that_no_package_has(path):
    manifest, members = building.parts()
    manifest["members"].append({"path": path, "size": 1, "sha256": sha256_bytes(b"x")})
    refuse(building.signed(manifest, {**members, "added": b"x"}), "member")
    manifest["members"].sort(key=lambda entry: entry["path"])
    refuse(building.signed(manifest, members), "member")


@pytest.mark.parametrize("path", ["README.md", CONFIG, WEIGHTS, "privacy_receipt.json"])
def test_a_member_missing_renamed_or_duplicated(path):
    manifest, members = building.parts()
    entries = manifest["members"]
    kept = [entry for entry in entries if entry["path"] != path]
    others = {name: content for name, content in members.items() if name != path}
    refuse(building.signed({**manifest, "members": kept}, others), f"lacks {path}")
    renamed = [{**entry, "path": "z" + path} if entry["path"] == path else entry for entry in entries]
    refuse(building.signed({**manifest, "members": renamed}, members), "lacks")
    doubled = sorted(
        [*entries, *(entry for entry in entries if entry["path"] == path)], key=lambda entry: entry["path"]
    )
    refuse(building.signed({**manifest, "members": doubled}, members), "the same as")


def test_members_out_of_order():
    manifest, members = building.parts()
    manifest["members"].reverse()
    refuse(building.signed(manifest, dict(reversed(members.items()))), "must be first")


def test_payload_bytes_that_belong_to_no_member():
    manifest, members = building.parts()
    refuse(building.signed(manifest, {**members, "hidden": b"secret"}), "sizes sum to")


def test_sizes_shifted_between_two_members():
    manifest, members = building.parts()
    manifest["members"][0]["size"] += 1
    manifest["members"][1]["size"] -= 1
    refuse(building.signed(manifest, members), r"adapter\.size is")
    manifest["adapter"]["size"] += 1
    refuse(building.signed(manifest, members), f"member {WEIGHTS}: its SHA-256")
    manifest["adapter"]["size"] -= 1
    manifest["members"][0]["size"] -= 1
    manifest["members"][2]["size"] += 1
    refuse(building.signed(manifest, members), f"member {manifest['members'][1]['path']}: its SHA-256")


def test_a_size_beyond_its_limit():
    manifest, members = building.parts()
    next(entry for entry in manifest["members"] if entry["path"] == CONFIG)["size"] = 1 << 20
    refuse(building.signed(manifest, members), f"member {CONFIG}: 1048576 bytes; at most 65536")


def test_a_wrong_digest():
    manifest, members = building.parts()
    for entry in manifest["members"]:
        right, entry["sha256"] = entry["sha256"], "0" * 64
        if entry["path"] == WEIGHTS:
            refuse(building.signed(manifest, members), r"adapter\.digest is")
            manifest["adapter"]["digest"] = "0" * 64
        refuse(building.signed(manifest, members), f"member {entry['path']}: its SHA-256")
        entry["sha256"] = right
        if entry["path"] == WEIGHTS:
            manifest["adapter"]["digest"] = right


def test_a_model_card_that_is_no_text():
    refuse(building.with_member("README.md", b"\xff\xfe"), "README.md: it is not UTF-8")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epsilon": 1.5}, "its epsilon is 1.5, but the manifest states 4.2"),
        ({"mode": "reproducible"}, "its mode"),
        ({"enabled": False}, "its mode"),
        ({"unit": "customer"}, "its unit"),
        ({"delta": 1e-3}, "its delta"),
    ],
)
def test_a_receipt_that_contradicts_the_manifest(changes, match):
    receipt = canonical_json(building.privacy(**changes)).encode()
    refuse(building.with_member("privacy_receipt.json", receipt), match)


@pytest.mark.parametrize("content", [b"", b"{}x", b"[]", b'{"epsilon": 4.2}', b'{"epsilon":4.2,"epsilon":4.2}'])
def test_a_receipt_that_is_not_canonical_json(content):
    refuse(building.with_member("privacy_receipt.json", content), "^privacy_receipt.json: ")


def test_a_parameter_count_that_the_tensors_do_not_have():
    refuse(changed("perf.parameters", 33), "perf.parameters is 33, but the adapter's files say 32")


def test_recipients_of_a_payload_that_is_not_encrypted():
    """Signed properly, so only the content check can refuse it."""
    data = building.sealed_parts(
        manifest=building.frame().manifest, payload=building.payload(), by=building.key(), recipients=b"someone"
    )
    refuse(data, "payload.encryption is none, but the package has recipients")
