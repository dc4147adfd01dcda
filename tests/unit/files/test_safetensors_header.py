"""The header of a safetensors file: what the format's own library reads, is read alike; what it refuses, is refused."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from sealed_experts.files.safetensors_header import PREFIX, Rules, header_length, parse_header

ONE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def read(content, rules=None):
    """Return {name: (dtype, shape, bytes)} of a whole file."""
    options = {} if rules is None else {"rules": rules}
    length = header_length(content[:PREFIX], size=len(content), **options)
    text, data = content[PREFIX : PREFIX + length], content[PREFIX + length :]
    tensors = parse_header(text, data_size=len(data), **options)
    return {tensor.name: (tensor.dtype, list(tensor.shape), data[tensor.start : tensor.end]) for tensor in tensors}


def by_library(content):
    return {name: (entry["dtype"], entry["shape"], bytes(entry["data"])) for name, entry in deserialize(content)}


def file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", ["bool", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8", "c8"])
def test_what_the_library_writes_is_read(dtype):
    arrays = {
        "a.b": np.arange(6).reshape(2, 3).astype(dtype),
        "scalar": np.array(1).astype(dtype),
        "none": np.zeros((0, 3), dtype),
        "\u202e/..": np.ones(2, dtype),
    }
    content = save(arrays, metadata={"format": "np", "by": "me"})
    assert read(content) == by_library(content)


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F4", [2, 3], 3), ("F6_E2M3", [4], 3), ("F6_E3M2", [8], 6), ("F8_E8M0", [3], 3), ("F8_E5M2FNUZ", [3], 3)],
)
def test_elements_of_less_than_a_byte_or_two_are_measured_in_bits(dtype, shape, size):
    content = file({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, bytes(size))
    assert read(content) == by_library(content)


number = st.integers(-2, 20) | st.sampled_from([True, 1.5, None, "4", 1 << 60])
entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8", "BOOL", "F4", "F5", "", None, 4]),
        "shape": st.lists(number, max_size=3) | st.just(None),
        "data_offsets": st.lists(number, min_size=1, max_size=3) | st.just({}),
    },
    optional={"more": st.just(1)},
)


@settings(max_examples=400, deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "c", ""]), entry | st.sampled_from([None, [], ONE]), max_size=3),
    metadata=st.sampled_from([None, {}, {"format": "pt"}, {"n": 1}, [], "x"]),
    size=st.integers(0, 40),
)
def test_nothing_is_accepted_that_the_library_refuses(header, metadata, size):
    content = file(header if metadata is None else {**header, "__metadata__": metadata}, bytes(size))
    try:
        found = read(content)
    except ValueError:
        return
    assert found == by_library(content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "too few for its header"),
        (struct.pack("<Q", 3) + b"{}", "header's length"),
        (struct.pack("<Q", 1) + b"{}", "header's length"),
        (file(b"[]"), "opening brace"),
        (file(b"{} x"), "not strict JSON"),
        (file(b'{"a":\xff}'), "not strict JSON"),
        (file({"a": ONE}, bytes(17)), "fill 16 bytes, but it holds 17"),
        (file({"a": ONE}, bytes(15)), "fill 16 bytes, but it holds 15"),
        (file({"a": {**ONE, "data_offsets": [4, 20]}}, bytes(20)), "starts at byte 4, where 0 is expected"),
        (file({"a": ONE, "b": ONE}, bytes(32)), "starts at byte 0, where 16 is expected"),
    ],
)
def test_the_library_refuses_these_too(content, problem):
    with pytest.raises(SafetensorError):
        deserialize(content)
    with pytest.raises(ValueError, match=problem):
        read(content)


def test_a_name_that_stands_twice_is_refused_though_the_library_takes_the_last():
    content = file(b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}", bytes(16))
    assert len(by_library(content)) == 1
    with pytest.raises(ValueError, match="duplicate key"):
        read(content)


def test_a_header_starts_with_its_brace_as_the_specification_says():
    with pytest.raises(ValueError, match="opening brace"):
        read(file(b" {}"))


def test_a_shape_of_many_large_sizes_costs_no_time():
    sizes = [10**4000] * 500
    assert math.prod(sizes[:2]) > 1
    with pytest.raises(ValueError, match="its shape must be"):
        read(file({"a": {"dtype": "F32", "shape": sizes, "data_offsets": [0, 4]}}, bytes(4)))


def test_rules_narrow_what_the_format_allows():
    content = file({"a": ONE, "__metadata__": {"format": "pt"}}, bytes(16))
    narrow = Rules(name="[a-z]", dtypes=("F32",), dimensions=(2, 2), sizes=(1, 2), tensors=(1, 1), length=100)
    assert read(content, narrow) == by_library(content)
    for rules, problem in (
        (Rules(length=8), "header's length"),
        (Rules(tensors=(2, 3)), "1 tensors; 2 to 3"),
        (Rules(name="b"), "'a' is not a tensor's name"),
        (Rules(dtypes=("F16",)), "dtype must be one of F16"),
        (Rules(dimensions=(0, 1)), "0 to 1 sizes"),
        (Rules(sizes=(1, 1)), "from 1 to 1"),
        (Rules(metadata={"format": "np"}), 'must be {"format": "np"} or absent'),
    ):
        with pytest.raises(ValueError, match=problem):
            read(content, rules)
