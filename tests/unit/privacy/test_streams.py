"""Keyed streams: pure functions of (key, purpose, step) with the distributions they claim."""

import numpy as np
import pytest
from scipy import stats

from sealed_experts.privacy.streams import Stream, derive_key

KEY = bytes(range(32))


def test_the_keystream_is_chacha20_as_rfc_8439_defines_it():
    """Independent reference: RFC 8439's block function, written in this file, with the derived key."""
    key = derive_key(KEY, "noise", 3, 0)
    assert Stream(KEY).integers("noise", 3, 8).astype("<u8").tobytes() == _chacha20_block(key, counter=0)


def test_values_are_a_function_of_key_purpose_and_step():
    first = Stream(KEY).normals("noise", 5, 1000)
    assert np.array_equal(first, Stream(KEY).normals("noise", 5, 1000))
    for other in (
        Stream(KEY).normals("noise", 6, 1000),
        Stream(KEY).normals("draw", 5, 1000),
        Stream(bytes(32)).normals("noise", 5, 1000),
    ):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.15


def test_a_longer_request_starts_with_the_shorter_one():
    assert np.array_equal(Stream(KEY).uniforms("draw", 1, 10), Stream(KEY).uniforms("draw", 1, 100)[:10])


def test_uniforms_are_uniform_and_never_touch_the_ends():
    values = Stream(KEY).uniforms("draw", 1, 200_000)
    assert 0.0 < values.min() < values.max() < 1.0
    assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_normals_are_normal_to_the_tails():
    values = Stream(KEY).normals("noise", 1, 500_000)
    assert stats.kstest(values, "norm").pvalue > 1e-3
    # One key in 400,000 of normal values exceeds it (D'Agostino and Stephens, "Goodness-of-Fit Techniques", table 4.9).
    assert stats.anderson(values, method="interpolate").statistic < 2.5
    # 687 values are expected beyond 3.2 standard deviations on either side, and six times their own deviation is 157.
    assert abs(int((np.abs(values) > 3.2).sum()) - 687) < 160


def test_the_largest_integer_gives_a_finite_normal(monkeypatch):
    stream = Stream(KEY)
    monkeypatch.setattr(stream, "integers", lambda *_: np.full(1, 2**64 - 1, dtype=np.uint64))
    assert np.isfinite(stream.normals("noise", 1, 1)).all()


def test_a_permutation_holds_every_index_once():
    assert sorted(Stream(KEY).permutation("epoch", 0, 1000)) == list(range(1000))


@pytest.mark.parametrize("parts", [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c")])
def test_derivation_keeps_parts_apart(parts):
    others = [("ab", "c"), ("a", "bc"), ("abc",), ("a", "b", "c")]
    assert [derive_key(KEY, *parts) == derive_key(KEY, *other) for other in others].count(True) == 1


def test_a_short_key_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        Stream(b"short")


def _chacha20_block(key: bytes, *, counter: int) -> bytes:
    def rotate(value, count):
        return ((value << count) | (value >> (32 - count))) & 0xFFFFFFFF

    def quarter(state, a, b, c, d):
        for x, y, z, count in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] = rotate(state[z] ^ state[x], count)

    words = [int.from_bytes(key[4 * i : 4 * i + 4], "little") for i in range(8)]
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *words, counter, 0, 0, 0]
    state = list(start)
    for _ in range(10):
        for indices in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            quarter(state, *indices)
        for indices in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(state, *indices)
    return b"".join(((x + y) & 0xFFFFFFFF).to_bytes(4, "little") for x, y in zip(state, start, strict=True))
