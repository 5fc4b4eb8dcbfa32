"""Packed words: fixed vectors, and every packer against a slow one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.layouts import words as w

from . import reference as slow


def test_eight_nibbles_in_order():
    """GPTQ and compressed-tensors: rows 0..7 make the word 0x76543210."""
    codes = np.arange(8, dtype=np.uint8)
    assert w.pack_dense(codes, 4).tolist() == [0x76543210]
    assert w.pack_whole(codes, 4).tolist() == [0x76543210]
    assert w.unpack_dense(np.array([0x76543210], np.uint32), 4, 8).tolist() == list(range(8))


def test_eight_nibbles_of_awq():
    """AutoAWQ: columns 0..7 make the word 0x75316420."""
    codes = np.arange(8, dtype=np.uint8)
    assert w.pack_awq(codes).tolist() == [0x75316420]
    assert w.unpack_awq(np.array([0x75316420], np.uint32)).tolist() == list(range(8))
    assert w.AWQ_INVERSE.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_three_bits_straddle():
    """Value 10 lies in words 0 and 1, value 21 in words 1 and 2; 32 values take three words."""
    one = np.zeros((2, 32), np.uint8)
    one[0, 10] = one[1, 21] = 7
    assert w.pack_dense(one, 3).tolist() == [[0xC0000000, 0x1, 0x0], [0x0, 0x80000000, 0x3]]
    assert w.dense_count(32, 3) == 3
    assert w.whole_count(32, 3) == 4
    assert w.pack_whole(one, 3).tolist() == [[0, 0x7, 0, 0], [0, 0, 0x7 << 3, 0]]


def test_words_of_symmetric_zero_points():
    """4-bit zero point 8 everywhere: 0x88888888 as it is, 0x77777777 minus one."""
    eights = np.full(8, 8, np.uint8)
    assert w.pack_dense(eights, 4).tolist() == [0x88888888]
    assert w.pack_dense(eights - np.uint8(1), 4).tolist() == [0x77777777]


@st.composite
def rows(draw, bits=None, multiple=1, most=70):
    bits = draw(st.integers(1, 8)) if bits is None else bits
    count = draw(st.integers(1, most // multiple)) * multiple
    return bits, draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=count, max_size=count))


@given(rows())
@settings(max_examples=150, deadline=None)
def test_dense_words(case):
    bits, codes = case
    packed = w.pack_dense(np.array(codes, np.uint8), bits)
    assert packed.tolist() == slow.pack_dense(codes, bits)
    assert packed.size == w.dense_count(len(codes), bits)
    assert w.unpack_dense(packed.view(np.int32), bits, len(codes)).tolist() == codes


@given(rows())
@settings(max_examples=150, deadline=None)
def test_whole_words(case):
    bits, codes = case
    packed = w.pack_whole(np.array(codes, np.uint8), bits)
    assert packed.tolist() == slow.pack_whole(codes, bits)
    assert packed.size == w.whole_count(len(codes), bits)
    assert w.unpack_whole(packed.view(np.int32), bits, len(codes)).tolist() == codes
    if 32 % bits == 0:
        np.testing.assert_array_equal(packed, w.pack_dense(np.array(codes, np.uint8), bits))


@given(rows(bits=4, multiple=8))
@settings(max_examples=60, deadline=None)
def test_awq_words(case):
    _, codes = case
    packed = w.pack_awq(np.array(codes, np.uint8))
    assert packed.tolist() == slow.pack_awq(codes)
    assert w.unpack_awq(packed).tolist() == codes


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_many_rows_at_once(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 5, 37)).astype(np.uint8)
    for pack, unpack in ((w.pack_dense, w.unpack_dense), (w.pack_whole, w.unpack_whole)):
        packed = pack(codes, bits)
        np.testing.assert_array_equal(packed[1, 4], pack(codes[1, 4], bits))
        np.testing.assert_array_equal(unpack(packed, bits, 37), codes)


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 130), (200, 3)])
def test_transpose(shape):
    codes = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    out = w.transposed(codes)
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, codes.T)
