"""The first reading of a payload gives the same results as a separate check of the weights."""

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealed_experts.packages import source
from sealed_experts.packages.content.tensors import TensorCheck, read_tensors
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.source import BLOCK, Memory
from sealed_experts.packages.tgsp import payload
from sealed_experts.packages.tgsp.package import seal_package, verify_package
from tests.attacks import building
from tests.unit.packages.test_tgsp_streaming import content, large_adapter


def of_payload(data: bytes, *, offset: int = 0) -> payload.FirstReading:
    """Return the completed first reading of a payload that begins at `offset`."""
    frame = building.container.Frame(
        header=b"", manifest=b"", recipients=b"", payload_offset=offset, payload_size=len(data) - offset, signatures=()
    )
    reading = payload.FirstReading(Memory(data), frame)
    assert reading.run() == hashlib.sha256(data[offset:]).digest()
    return reading


def large_weights(folder: Path) -> Path:
    large_adapter(folder / building.WEIGHTS, width=BLOCK)
    return folder / building.WEIGHTS


def sealed(weights: Path) -> Path:
    """Return a package of these weights, in the same folder."""
    manifest, members = content(weights)
    path = weights.with_name("p.tgsp")
    seal_package(path, manifest=manifest, members=members, key=building.key())
    return path


def test_the_weights_digest_comes_from_the_payloads_hash(tmp_path, monkeypatch):
    """A second pass over them would cost as much as the first."""
    path = sealed(large_weights(tmp_path))
    hashed = []
    real = payload.FirstReading.first

    def counting(self, size):
        hashed.append(size - max(position for position, _ in self._states if position <= size))
        return real(self, size)

    monkeypatch.setattr(payload.FirstReading, "first", counting)
    verify_package(path, trust=building.trust())
    assert len(hashed) == 1
    assert hashed[0] <= BLOCK


@pytest.mark.parametrize("size", [0, 1, 100, BLOCK, 3 * BLOCK + 5, 20 * BLOCK])
def test_the_digest_of_any_beginning_is_sha256s(size):
    data = os.urandom(20 * BLOCK + 77)
    assert of_payload(data, offset=7).first(size) == hashlib.sha256(data[7 : 7 + size]).hexdigest()


SPECIAL = {"F32": (0x7F800000, 0xFF800001), "F16": (0x7C00, 0xFE00), "BF16": (0x7F80, 0xFFC0)}


@st.composite
def files(draw):
    """A safetensors file of a few blocks, a number of small members' bytes after it, and whether a value is broken."""
    entries, parts, position = {}, [], 0
    for index in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(list(SPECIAL)))
        size = 4 if dtype == "F32" else 2
        elements = draw(st.integers(1, 3) | st.integers(BLOCK // 8, BLOCK // 2))
        entries[f"t{index}"] = {
            "dtype": dtype,
            "shape": [elements],
            "data_offsets": [position, position + size * elements],
        }
        position += size * elements
        values = np.full(elements, 0x3C00, dtype=f"<u{size}")
        if draw(st.booleans()) and draw(st.booleans()):
            values[draw(st.integers(0, elements - 1))] = draw(st.sampled_from(SPECIAL[dtype]))
        parts.append(values.tobytes())
    text = json.dumps(entries).encode() + b" " * draw(st.integers(0, 8))
    rest = draw(st.sampled_from([b"", b"{}", b"\xff" * 70, b"text" * 5]))
    return struct.pack("<Q", len(text)) + text + b"".join(parts), rest


@settings(max_examples=80, deadline=None)
@given(file=files(), offset=st.integers(0, 9))
def test_weights_that_are_handed_over_get_the_verdict_of_the_whole_check(file, offset):
    weights, rest = file
    verdicts = []
    for look in (lambda: read_tensors(weights, member="w"), lambda: handed_over(weights, rest, offset)):
        try:
            verdicts.append(look())
        except PackageError as error:
            verdicts.append(str(error))
    assert verdicts[0] == verdicts[1]


def handed_over(weights, rest, offset):
    check = TensorCheck(size=len(weights), member="w")
    of_payload(bytes(offset) + weights + rest, offset=offset).hand_over(check, size=len(weights))
    return check.finish()


def read_places(monkeypatch) -> list[tuple[int, int]]:
    """Return a list that records every read of a file: offset and length."""
    places = []
    plain, into = source.OpenFile.read, source.OpenFile.read_into
    monkeypatch.setattr(
        source.OpenFile, "read", lambda self, at, size: (places.append((at, size)), plain(self, at, size))[1]
    )
    monkeypatch.setattr(
        source.OpenFile, "read_into", lambda self, at, room: (places.append((at, len(room))), into(self, at, room))[1]
    )
    return places


def test_finite_weights_are_read_once(tmp_path, monkeypatch):
    path = sealed(large_weights(tmp_path))
    places = read_places(monkeypatch)
    verify_package(path, trust=building.trust())
    assert path.stat().st_size <= sum(length for _, length in places) <= path.stat().st_size + 3 * BLOCK


def test_large_values_are_read_again_and_are_fine(tmp_path, monkeypatch):
    """Their squares are infinite, so the quick check cannot distinguish them from infinite values."""
    with open(large_weights(tmp_path), "r+b") as stream:
        stream.seek(9 * BLOCK)
        stream.write(np.float32(1e30).tobytes())
    path = sealed(tmp_path / building.WEIGHTS)
    places = read_places(monkeypatch)
    verify_package(path, trust=building.trust())
    again = [at for at, _ in places if 8 * BLOCK <= at - payload_offset(path) < 10 * BLOCK]
    assert len(again) == 3, "two blocks under the signature, and one of them once more"


def payload_offset(path: Path) -> int:
    return building.frame(path.read_bytes()).payload_offset
