"""Packing against a bit-by-bit transcription of its definition, and fixed words of known layouts."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.formats import pack, packed_size, unpack


def by_bits(codes: np.ndarray, width: int, order: str) -> bytes:
    """One row as a string of bits: low bits first or high bits first."""
    if order == "low_first":
        bits = [(int(c) >> j) & 1 for c in codes for j in range(width)]
    else:
        bits = [(int(c) >> (width - 1 - j)) & 1 for c in codes for j in range(width)]
    bits += [0] * (-len(bits) % 8)
    chunks = [bits[k : k + 8] for k in range(0, len(bits), 8)]
    if order == "low_first":
        return bytes(sum(b << j for j, b in enumerate(chunk)) for chunk in chunks)
    return bytes(sum(b << (7 - j) for j, b in enumerate(chunk)) for chunk in chunks)


@pytest.mark.parametrize("order", ["low_first", "high_first"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 8])
def test_every_length(width, order):
    rng = np.random.default_rng(width)
    for count in (*range(1, 26), 1000):
        codes = rng.integers(0, 1 << width, count).astype(np.uint8)
        packed = pack(codes, width, order=order)
        assert packed.tobytes() == by_bits(codes, width, order)
        assert packed.size == packed_size(count, width) == -(-count * width // 8)
        assert np.array_equal(unpack(packed, width, count, order=order), codes)


def test_nibble_orders():
    assert pack(np.array([0x1, 0x2]), 4).tolist() == [0x21]
    assert pack(np.array([0x1, 0x2]), "int4", order="high_first").tolist() == [0x12]
    # GPTQ's int32 word of 0..7 is 0x76543210
    assert pack(np.arange(8), 4).view("<u4")[0] == 0x76543210


def test_any_rank_and_layout():
    codes = np.random.default_rng(0).integers(0, 8, (2, 3, 16)).astype(np.uint8)
    packed = pack(codes, 3)
    assert packed.shape == (2, 3, 6)
    assert np.array_equal(unpack(packed, 3), codes)
    turned = np.asfortranarray(codes).transpose(1, 0, 2)
    assert np.array_equal(pack(turned, 3), packed.transpose(1, 0, 2))
    assert pack(np.zeros((0, 5), np.uint8), 4).shape == (0, 3)
    assert unpack(np.zeros((2, 0), np.uint8), 4).shape == (2, 0)
    assert pack([], 4).shape == (0,)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"2 of 3 codes do not fit 4 bits; the first is 16 at index \(1,\)"):
        pack(np.array([1, 16, 300]), 4)
    with pytest.raises(ValueError, match="1 of 2 codes do not fit 4 bits"):
        pack(np.array([-1, 3]), 4)
    with pytest.raises(ValueError, match="integer array of at least one axis: got float64"):
        pack(np.array([1.5]), 4)
    with pytest.raises(ValueError, match="5 codes of 3 bits take 2 bytes per row: got 3"):
        unpack(np.zeros(3, np.uint8), 3, 5)
    with pytest.raises(ValueError, match="uint8 array"):
        unpack(np.zeros(3, np.int32), 4)
    with pytest.raises(ValueError, match="codes of 1 to 8 bits"):
        pack(np.array([1]), 16)
    with pytest.raises(ValueError, match="unknown nibble order 'big'"):
        pack(np.array([1]), 4, order="big")
