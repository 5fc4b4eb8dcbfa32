"""Blocks of GGUF from values, one function for each type that is written: float32 (B, values) to uint8 (B, bytes).

Every code is the nearest to its value under the scale as it is stored; scales are those of a short search with the
smallest square error; one of them is what llama.cpp's simple quantisers take. Types with minima or superblocks are
schemes: `qsim.scheme.superblock` finds their codes, and a `pack_` here lays them out.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from qsim.scheme import get_scheme
from qsim.scheme.superblock import Blocks, best_scales, blocks_of, halves, largest, nearest

from .decode import E2M1_DOUBLED, half_e8m0
from .decode import mxfp4 as decode_mxfp4

F32, U8 = np.float32, np.uint8


def half_bytes(scales: np.ndarray) -> np.ndarray:
    """float16 numbers (B, n), given as float32, as (B, 2 n) bytes."""
    return np.ascontiguousarray(scales.astype("<f2")).view(U8).reshape(scales.shape[0], -1)


def pack_nibbles(codes: np.ndarray, width: int) -> np.ndarray:
    """The inverse of `decode.nibbles`."""
    parts = codes.reshape(codes.shape[0], -1, 2, width)
    return (parts[:, :, 0] | (parts[:, :, 1] << U8(4))).reshape(codes.shape[0], -1)


def _pack_fields(codes: np.ndarray, width: int, bits: int) -> np.ndarray:
    """The inverse of `decode._fields`."""
    parts = codes.reshape(codes.shape[0], -1, 8 // bits, width)
    out = np.zeros((codes.shape[0], parts.shape[1], width), U8)
    for i in range(8 // bits):
        out |= parts[:, :, i] << U8(bits * i)
    return out.reshape(codes.shape[0], -1)


# --- floats and 32 values ---------------------------------------------------------------------------------------


def f32(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, "<f4").view(U8)


def f16(x: np.ndarray) -> np.ndarray:
    return half_bytes(halves(x))


def bf16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, F32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return rounded.astype("<u2").view(U8)


def _symmetric(x: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """float16 scales and codes from 0 to 2 half - 1 of symmetric blocks, whose lowest code is the largest value."""
    top = largest(x)
    candidates = np.concatenate([top / F32(-half + step) for step in (0, 0.25, 0.5, 0.75, 1)], axis=1)
    scales = best_scales(x, halves(candidates), -half, half - 1)
    return scales, (nearest(x, scales, -half, half - 1) + F32(half)).astype(U8)


def q4_0(x: np.ndarray) -> np.ndarray:
    scales, codes = _symmetric(x, 8)
    return np.concatenate([half_bytes(scales), pack_nibbles(codes, 16)], axis=1)


def pack_q5_0(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Blocks of Q5_0 from the bytes of float16 scales (B, 2) and codes (B, 32) counted from the lowest."""
    high = np.packbits(codes >> U8(4), axis=1, bitorder="little")
    return np.concatenate([scales, high, pack_nibbles(codes & U8(15), 16)], axis=1)


def q5_0(x: np.ndarray) -> np.ndarray:
    scales, codes = _symmetric(x, 16)
    return pack_q5_0(half_bytes(scales), codes)


def q8_0(x: np.ndarray) -> np.ndarray:
    scales = halves(np.abs(x).max(axis=1, keepdims=True) / F32(127))
    codes = nearest(x, scales, -127, 127).astype(np.int8)
    return np.concatenate([half_bytes(scales), codes.view(U8)], axis=1)


_MIDDLES = (E2M1_DOUBLED[1:8] + E2M1_DOUBLED[:7]) / F32(2)


def mxfp4(x: np.ndarray) -> np.ndarray:
    top = np.abs(x).max(axis=1, keepdims=True)
    _, exponent = np.frexp(top)  # top is below 2^exponent
    first = np.where(top > 0, np.clip(exponent - 1 - 2 + 127, 0, 254), 0)
    best, least = None, None
    for step in (0, 1):  # the largest value is clipped to 6 times the scale, or not
        e = np.minimum(first + step, 254).astype(U8)
        with np.errstate(over="ignore", divide="ignore"):
            magnitude = np.searchsorted(_MIDDLES, np.abs(x) / half_e8m0(e)).astype(U8)
        codes = magnitude | ((x < 0).astype(U8) << U8(3))
        blocks = np.concatenate([e, pack_nibbles(codes, 16)], axis=1)
        error = np.square(x - decode_mxfp4(blocks), dtype=np.float64).sum(axis=1, keepdims=True)
        if best is None or least is None:
            best, least = blocks, error
        else:
            best = np.where(error < least, blocks, best)
    assert best is not None
    return best


# --- super-blocks of 256 values ---------------------------------------------------------------------------------


def pack_six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """The inverse of `decode.six_bits`."""
    a = (scales[:, :4] & U8(63)) | ((scales[:, 4:] >> U8(4)) << U8(6))
    b = (minima[:, :4] & U8(63)) | ((minima[:, 4:] >> U8(4)) << U8(6))
    c = (scales[:, 4:] & U8(15)) | ((minima[:, 4:] & U8(15)) << U8(4))
    return np.concatenate([a, b, c], axis=1)


def _of_scheme(name: str, x: np.ndarray) -> np.ndarray:
    """Blocks of values, by the rule of the scheme of that name."""
    return PACK[name](blocks_of(x, get_scheme(name).weight))


def pack_q4_1(b: Blocks) -> np.ndarray:
    assert b.minima is not None
    return np.concatenate([half_bytes(b.scales), half_bytes(-b.minima), pack_nibbles(b.codes, 16)], axis=1)


def pack_q5_1(b: Blocks) -> np.ndarray:
    assert b.minima is not None
    high = np.packbits(b.codes >> U8(4), axis=1, bitorder="little")
    head = [half_bytes(b.scales), half_bytes(-b.minima)]
    return np.concatenate([*head, high, pack_nibbles(b.codes & U8(15), 16)], axis=1)


def _two_halves(b: Blocks) -> list[np.ndarray]:
    assert b.super_scales is not None
    assert b.super_minima is not None
    return [half_bytes(b.super_scales), half_bytes(b.super_minima)]


def pack_q2_k(b: Blocks) -> np.ndarray:
    assert b.minima is not None
    both = b.scales.astype(U8) | (b.minima.astype(U8) << U8(4))
    return np.concatenate([both, _pack_fields(b.codes, 32, 2), *_two_halves(b)], axis=1)


def pack_q3_k(b: Blocks) -> np.ndarray:
    assert b.super_scales is not None
    codes, scales = b.codes ^ U8(4), (b.scales + F32(32)).astype(U8)  # counted from the lowest
    high = np.packbits((codes >> U8(2)).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    low = [pack_nibbles(scales & U8(15), 8), _pack_fields(scales >> U8(4), 4, 2)]
    return np.concatenate([high, _pack_fields(codes & U8(3), 32, 2), *low, half_bytes(b.super_scales)], axis=1)


def _six_bit_head(b: Blocks) -> list[np.ndarray]:
    assert b.minima is not None
    return [*_two_halves(b), pack_six_bits(b.scales.astype(U8), b.minima.astype(U8))]


def pack_q4_k(b: Blocks) -> np.ndarray:
    return np.concatenate([*_six_bit_head(b), pack_nibbles(b.codes, 32)], axis=1)


def pack_q5_k(b: Blocks) -> np.ndarray:
    high = np.packbits((b.codes >> U8(4)).reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)
    return np.concatenate([*_six_bit_head(b), high, pack_nibbles(b.codes & U8(15), 32)], axis=1)


def pack_q6_k(b: Blocks) -> np.ndarray:
    assert b.super_scales is not None
    codes, eight = b.codes ^ U8(32), b.scales.astype(np.int8).view(U8)
    low, high = pack_nibbles(codes & U8(15), 64), _pack_fields(codes >> U8(4), 32, 2)
    return np.concatenate([low, high, eight, half_bytes(b.super_scales)], axis=1)


PACK = {"q4_1": pack_q4_1, "q5_1": pack_q5_1, "q2_k": pack_q2_k, "q3_k": pack_q3_k, "q4_k": pack_q4_k,
        "q5_k": pack_q5_k, "q6_k": pack_q6_k}  # fmt: skip
"""How blocks are laid out, by the name of the type."""
q4_1, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k = (partial(_of_scheme, name) for name in PACK)
