"""A trusted publisher's signature over an adapter that no package may hold: refused, each for its reason."""

import json
import struct

import numpy as np
import pytest

from sealed_experts.packages.content.tensors import MAX_HEADER, MAX_TENSORS, TensorCheck, read_tensors
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.tgsp.package import open_bytes
from tests.attacks import building
from tests.attacks.building import CONFIG, WEIGHTS, refuse

# adapter_config.json


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"auto_mapping": {"base_model_class": "Evil", "parent_library": "os"}}, "auto_mapping"),
        ({"auto_mapping": None}, "auto_mapping"),
        ({"custom_modules": {}}, "custom_modules"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"peft_type": ...}, "peft_type is missing"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type"),
        ({"r": 0}, "r: 0 is not a whole number"),
        ({"r": True}, "r: true is not a whole number"),
        ({"r": 4097}, "r: 4097 is not a whole number"),
        ({"r": 2.0}, "r is 2.0; it must be 2"),
        ({"r": ...}, "r is missing"),
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
        ({"r": 4}, r"has the shape \[2, 4\]; it must be \[4, inputs\]"),
        ({"lora_alpha": 8}, r"adapter.settings.alpha is 4.0, but the adapter's files say 8"),
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


def test_a_header_bomb():
    """A header of more than 4 MiB is not even read, and one of 20,001 tensors no further than its names."""
    refuse(building.with_member(WEIGHTS, struct.pack("<Q", MAX_HEADER + 1) + bytes(MAX_HEADER + 1)), "header's length")
    size = MAX_HEADER - 8
    refuse(building.with_member(WEIGHTS, struct.pack("<Q", size) + b"{" + b" " * (size - 1)), "strict JSON")
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = json.dumps({f"t{index}": entry for index in range(MAX_TENSORS + 1)})
    refuse(building.with_member(WEIGHTS, building.weights({}, text=text)), "20001 tensors")


@pytest.mark.parametrize("number", ["9" * 5000, "1e400", "-0.0", "1e2", "NaN", "Infinity", "2e-400"])
@pytest.mark.parametrize("place", ['"shape": [', '"data_offsets": ['])
def test_huge_and_odd_numbers_in_a_header(number, place):
    text = json.dumps(building.header(building.tensors())).replace(place + "2", place + number, 1)
    text = text.replace(place + "0", place + number, 1)
    assert number in text
    refuse(building.with_member(WEIGHTS, building.weights(text=text)), f"^{WEIGHTS}: ")


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
        content = struct.pack("<Q", len(text)) + text + data
        if finite:
            open_bytes(building.package(adapter_weights=content), trust=building.trust())
        else:
            refuse(building.with_member(WEIGHTS, content), "not finite")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_finite_check_is_ieee_754s_for_every_pattern_of_bits(dtype):
    """Against NumPy's own, for all sixteen-bit patterns; for F32 with them as the upper and the lower half."""
    patterns = np.arange(1 << 16, dtype="<u2")
    if dtype == "F16":
        finite = np.isfinite(patterns.view("<f2"))
    else:  # bfloat16 is the upper half of a float32
        finite = np.isfinite((patterns.astype("<u4") << 16).view("<f4"))
    stored = patterns if dtype != "F32" else (patterns.astype("<u4") << 16) | patterns[::-1]
    if dtype == "F32":
        finite = np.isfinite(stored.view("<f4"))
    read_tensors(one_tensor(dtype, stored[finite]), member="weights")
    assert 0 < len(stored[~finite]) < len(stored) / 10
    for value in stored[~finite]:
        with pytest.raises(PackageError, match="not finite"):
            read_tensors(one_tensor(dtype, np.array([value])), member="weights")


def one_tensor(dtype: str, values: np.ndarray, *, name: str = "t") -> bytes:
    entry = {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, values.nbytes]}
    text = json.dumps({name: entry}).encode()
    return struct.pack("<Q", len(text)) + text + values.tobytes()


@pytest.mark.parametrize("block", [1, 3, 7, 4096])
def test_a_value_that_is_not_finite_is_found_wherever_blocks_cut(block):
    """Three tensors of three dtypes, one value of one of them not finite: the right tensor is named."""
    entries, data = {}, b""
    for name, (dtype, kind) in {"a": ("F32", "<u4"), "b": ("BF16", "<u2"), "c": ("F16", "<u2")}.items():
        part = np.full(11, 0x3C00, dtype=kind).tobytes()
        entries[name] = {"dtype": dtype, "shape": [11], "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(entries).encode()
    for name, entry in entries.items():
        size = 4 if name == "a" else 2
        for index in range(11):
            changed, place = bytearray(data), entry["data_offsets"][0] + index * size
            changed[place : place + size] = (0xFF800001).to_bytes(4, "little")[4 - size :]
            if name == "c":
                changed[place : place + size] = b"\x00\xfc"
            content = struct.pack("<Q", len(text)) + text + bytes(changed)
            check = TensorCheck(size=len(content), member="weights")
            with pytest.raises(PackageError, match=f"weights: {name}: it holds values that are not finite"):
                feed(check, content, block)


def feed(check: TensorCheck, content: bytes, block: int) -> None:
    for start in range(0, len(content), block):
        check.feed(content[start : start + block])


def test_an_extra_tensor():
    arrays = building.tensors() | {"base_model.model.lm_head.lora_A.weight": np.ones((2, 4), dtype="<f4")}
    refuse(building.with_member(WEIGHTS, building.weights(arrays)), "belongs to no module")
