"""A trusted publisher's signature over content that no package may hold: refused all the same, each for its reason."""

import json
import struct

import numpy as np
import pytest
from tests.attacks import building
from tests.attacks.building import assembled

from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.digests import sha256_bytes
from sealed_experts.sealing import container
from sealed_experts.sealing.errors import PackageError, SignatureError
from sealed_experts.sealing.package import open_bytes

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def refuse(data: bytes, match: str) -> None:
    with pytest.raises(PackageError, match=match) as caught:
        open_bytes(data, trust=building.trust())
    assert not isinstance(caught.value, SignatureError)
    assert caught.value.exit_code == 11
    assert "\n" not in str(caught.value)


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
        ("adapter.rank", 0),
        ("adapter.rank", "2"),
        ("adapter.rank", True),
        ("adapter.kind", "dora"),
        ("routing.keywords", "loan"),
        ("routing.gate", "learned"),
        ("training.steps", -1),
        ("training.selected_stage", "reinforce"),
        ("training.examples_seen", 7654),
        ("training.seed", 42),
        ("training.final_loss", 1.5),
        ("fingerprint", "f" * 64),
        ("evaluation", {"published": False}),
        ("evaluation", {"published": False, "reason": "private", "held_out_loss": 2.0}),
        ("privacy.epsilon", -1),
        ("privacy.mode", "trust me"),
        ("payload.compression", "zstd"),
        ("payload", ...),
        ("members", []),
        ("members", ...),
    ],
)
def test_a_manifest_outside_its_schema(field, value):
    refuse(changed(field, value), "^manifest: ")


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
    refuse(building.signed(manifest, dict(reversed(members.items()))), "sorted by path")


def test_payload_bytes_that_belong_to_no_member():
    manifest, members = building.parts()
    refuse(building.signed(manifest, {**members, "hidden": b"secret"}), "sizes sum to")


def test_sizes_shifted_between_two_members():
    manifest, members = building.parts()
    manifest["members"][0]["size"] += 1
    manifest["members"][1]["size"] -= 1
    refuse(building.signed(manifest, members), "member README.md: its SHA-256")


def test_a_size_beyond_its_limit():
    manifest, members = building.parts()
    manifest["members"][1]["size"] = 1 << 20
    refuse(building.signed(manifest, members), f"member {CONFIG}: 1048576 bytes; at most 65536")


def test_a_wrong_digest():
    manifest, members = building.parts()
    manifest["members"][2]["sha256"] = "0" * 64
    refuse(building.signed(manifest, members), f"member {WEIGHTS}: its SHA-256")


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


# adapter_config.json


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"auto_mapping": {"base_model_class": "Evil", "parent_library": "os"}}, "auto_mapping"),
        ({"auto_mapping": None}, "auto_mapping"),
        ({"custom_modules": {}}, "custom_modules"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"peft_type": ...}, "peft_type is missing"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": 4097}, "r is 4097"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "4"}, "lora_alpha"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora"),
        ({"use_dora": 0}, "use_dora"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"megatron_core": "os"}, "megatron_core"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["q_proj", "q_proj"]}, "target_modules"),
        ({"target_modules": [".*"]}, "target_modules"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "no tensor belongs to k_proj"),
        ({"target_modules": ["q_proj"]}, "belongs to no module"),
        ({"r": 4}, "its axis 0 of 2 must be the rank, 4"),
        ({"lora_alpha": 8}, "adapter.alpha is 4, but the adapter's files say 8"),
        ({"base_model_name_or_path": "other"}, "base.name"),
        ({"revision": "main"}, "base.revision"),
    ],
)
def test_an_adapter_config_that_no_plain_lora_adapter_has(changes, match):
    refuse(building.with_member(CONFIG, building.adapter_config(**changes)), match)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"r": 2, "r": 2}', b"{}" + b" " * 60_000 + b"}", json.dumps({"r": 2}).encode("utf-16")],
    ids=["empty", "list", "torn", "duplicate key", "tail", "utf-16"],
)
def test_an_adapter_config_that_is_not_strict_json(content):
    refuse(building.with_member(CONFIG, content), f"^{CONFIG}: ")


# adapter_model.safetensors


def with_header(alter) -> bytes:
    entries = building.header(building.tensors())
    alter(entries)
    return building.weights(text=json.dumps(entries))


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SECOND = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("alter", "match"),
    [
        (lambda h: h.update(__metadata__={"format": "pt", "note": "x"}), "metadata"),
        (lambda h: h.update(__metadata__={"format": "tf"}), "metadata"),
        (lambda h: h.update(__metadata__=[]), "metadata"),
        (lambda h: h.update({"../../etc/x": h.pop(FIRST)}), "not a tensor's name"),
        (lambda h: h.update({"a" * 301: h.pop(FIRST)}), "not a tensor's name"),
        (lambda h: h.update({"lm_head.weight": h.pop(FIRST)}), "belongs to no module"),
        (lambda h: h.update({FIRST.replace("q_proj", "k_proj"): h.pop(FIRST)}), "belongs to no module"),
        (lambda h: h.update({FIRST.replace("layers.0", "layers.1"): h.pop(FIRST)}), "has no lora_"),
        (lambda h: h[FIRST].update(dtype="I64"), "dtype"),
        (lambda h: h[FIRST].update(dtype="F64"), "dtype"),
        (lambda h: h[FIRST].update(dtype=["F32"]), "dtype"),
        (lambda h: h[FIRST].update(shape=[2, 5]), "data_offsets span"),
        (lambda h: h[FIRST].update(shape=[8]), "has the shape"),
        (lambda h: h[FIRST].update(shape=[4, 2]), "has the shape"),
        (lambda h: h[FIRST].update(shape=[2, 4, 1]), "has the shape"),
        (lambda h: h[FIRST].update(shape=[-2, -4]), "shape must be"),
        (lambda h: h[FIRST].update(shape=[2.0, 4]), "shape must be"),
        (lambda h: h[FIRST].update(shape=[True, 8]), "shape must be"),
        (lambda h: h[FIRST].update(shape=[]), "shape must be"),
        (lambda h: h[FIRST].update(shape=[2**60, 2**60]), "shape must be"),
        (lambda h: h[FIRST].update(data_offsets=[0, 32, 64]), "two whole numbers"),
        (lambda h: h[FIRST].update(data_offsets=[-32, 0]), "starts at byte"),
        (lambda h: h[FIRST].update(data_offsets=[32, 64]), "starts at byte"),
        (lambda h: h[SECOND].update(data_offsets=[2**62, 2**62 + 32]), "starts at byte"),
        (lambda h: h[FIRST].update(extra=1), "exactly dtype"),
        (lambda h: h.update({FIRST: 5}), "exactly dtype"),
        (lambda h: h.pop(SECOND), "starts at byte"),
        (lambda h: [h.pop(name) for name in list(h) if name != "__metadata__"], "0 tensors"),
    ],
)
def test_a_weights_header_that_no_honest_writer_makes(alter, match):
    refuse(building.with_member(WEIGHTS, with_header(alter)), f"^{WEIGHTS}: .*{match}")


def test_a_duplicate_tensor_name():
    """The safetensors library accepts this one."""
    text = json.dumps(building.header(building.tensors()))
    entry = f'"{FIRST}": ' + json.dumps(building.header(building.tensors())[FIRST])
    refuse(building.with_member(WEIGHTS, building.weights(text=text[:-1] + ", " + entry + "}")), "duplicate key")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 1) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"  {}",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995,
        struct.pack("<Q", 3) + b'{"\xff',
        b"\x80\x04\x95cos\nsystem\n",
        b"PK\x03\x04" + b"\0" * 60,
    ],
    ids=["empty", "short", "huge", "tiny", "list", "spaces", "nested list", "nested", "not utf-8", "pickle", "zip"],
)
def test_a_weights_file_that_is_no_safetensors(content):
    refuse(building.with_member(WEIGHTS, content), f"^{WEIGHTS}: ")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, -1])
def test_values_that_are_not_finite(value, position):
    arrays = building.tensors()
    list(arrays.values())[position].flat[position] = value
    refuse(building.with_member(WEIGHTS, building.weights(arrays)), "not finite")


@pytest.mark.parametrize(("dtype", "bits"), [("F16", 0x7C00), ("F16", 0xFC01), ("BF16", 0x7F80), ("BF16", 0xFFC0)])
def test_values_that_are_not_finite_in_sixteen_bits(dtype, bits):
    for stored, finite in ((bits, False), (0x3C00, True)):
        entries, data = {}, b""
        for name, array in building.tensors().items():
            halves = np.full(array.shape, stored, dtype="<u2").tobytes()
            offsets = [len(data), len(data) + len(halves)]
            entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
            data += halves
        text = json.dumps(entries).encode()
        package = building.with_member(WEIGHTS, struct.pack("<Q", len(text)) + text + data)
        if finite:
            open_bytes(package, trust=building.trust())
        else:
            refuse(package, "not finite")


def test_an_extra_tensor():
    arrays = building.tensors() | {"base_model.model.lm_head.lora_A.weight": np.ones((2, 4), dtype="<f4")}
    refuse(building.with_member(WEIGHTS, building.weights(arrays)), "belongs to no module")


def test_a_parameter_count_that_the_tensors_do_not_have():
    refuse(changed("adapter.parameters", 33), "adapter.parameters is 33, but the adapter's files say 32")


def test_recipients_that_this_version_cannot_serve():
    """Signed properly, so only the content check can refuse it."""
    frame, key = container.parse(building.package()), building.key()
    message = container.signed_bytes(
        manifest=frame.manifest, recipients=b"someone", payload=frame.payload, signers=(("ed25519", key.public.raw),)
    )
    signature = container.Signature(algorithm="ed25519", public_key=key.public.raw, value=key.sign(message))
    data = assembled(manifest=frame.manifest, payload=frame.payload, signatures=(signature,), recipients=b"someone")
    refuse(data, "encrypted for recipients")
