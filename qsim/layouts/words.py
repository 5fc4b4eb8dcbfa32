"""Codes of a few bits in 32-bit words, as checkpoints pack them.

    dense   code i of a row at bits [b i, b (i + 1)) of one little-endian bit stream; 3, 5, 6 and 7 bits straddle words
            (3 bits: value 10 lies in words 0 and 1, value 21 in words 1 and 2; 32 values take 3 words)
    whole   floor(32 / b) codes per word from the lowest bit, the top bits unused: the same for 2, 4 and 8 bits
    awq     eight 4-bit codes per word in the order 0 2 4 6 1 3 5 7

All three pack along the last axis and pad the last word with zeros. GPTQ and compressed-tensors from 0.19 are dense,
compressed-tensors before that is whole.
"""

from __future__ import annotations

import sys

import numpy as np

from qsim.formats import pack, packed_size, unpack

AWQ_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # nibble i of a word holds column AWQ_ORDER[i]
AWQ_INVERSE = np.argsort(AWQ_ORDER)

assert sys.byteorder == "little", "words are viewed as bytes"


def dense_count(count: int, bits: int) -> int:
    """Words of a dense row of `count` codes: ceil(count * bits / 32)."""
    return -(-count * bits // 32)


def whole_count(count: int, bits: int) -> int:
    """Words of a row that holds floor(32 / bits) codes in each: ceil(count / floor(32 / bits))."""
    return -(-count // (32 // bits))


def pack_dense(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes (..., K) below 2^bits as uint32 (..., ceil(K bits / 32))."""
    stream = pack(codes, bits)
    missing = -stream.shape[-1] % 4
    if missing:
        stream = np.concatenate([stream, np.zeros((*stream.shape[:-1], missing), np.uint8)], axis=-1)
    return stream.view(np.uint32)


def unpack_dense(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The `count` uint8 codes per row that `pack_dense` packed."""
    stream = np.ascontiguousarray(words).view(np.uint8)
    return unpack(np.ascontiguousarray(stream[..., : packed_size(count, bits)]), bits, count)


def pack_whole(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes (..., K) as uint32 (..., ceil(K / floor(32 / bits))), none across a border."""
    per_word, count = 32 // bits, codes.shape[-1]
    padded = np.zeros((*codes.shape[:-1], whole_count(count, bits) * per_word), np.uint8)
    padded[..., :count] = codes
    fields = padded.reshape(*codes.shape[:-1], -1, per_word)
    words = np.zeros(fields.shape[:-1], np.uint32)
    for i in range(per_word):
        words |= fields[..., i].astype(np.uint32) << np.uint32(bits * i)
    return words


def unpack_whole(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The `count` uint8 codes per row that `pack_whole` packed."""
    per_word = 32 // bits
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    codes = np.empty((*unsigned.shape, per_word), np.uint8)
    for i in range(per_word):
        codes[..., i] = (unsigned >> np.uint32(bits * i)) & np.uint32((1 << bits) - 1)
    return np.ascontiguousarray(codes.reshape(*unsigned.shape[:-1], -1)[..., :count])


def pack_awq(codes: np.ndarray) -> np.ndarray:
    """4-bit codes (..., N), N a multiple of 8, as uint32 (..., N / 8) in AWQ's order."""
    return _permuted(pack_dense(codes, 4), AWQ_ORDER)


def unpack_awq(words: np.ndarray) -> np.ndarray:
    """The uint8 codes (..., 8 W) that `pack_awq` packed."""
    in_order = _permuted(np.ascontiguousarray(words).view(np.uint32), AWQ_INVERSE)
    return unpack_dense(in_order, 4, words.shape[-1] * 8)


def _permuted(words: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Words whose nibble i is nibble order[i] of these."""
    out = np.zeros_like(words)
    for i, j in enumerate(order):
        out |= ((words >> np.uint32(4 * j)) & np.uint32(15)) << np.uint32(4 * i)
    return out


def transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous transpose of a matrix, in 64x64 tiles: elements far apart cost a cache line each otherwise."""
    n, k = matrix.shape
    out = np.empty((k, n), matrix.dtype)
    for i in range(0, n, 64):
        for j in range(0, k, 64):
            out[j : j + 64, i : i + 64] = matrix[i : i + 64, j : j + 64].T
    return out
