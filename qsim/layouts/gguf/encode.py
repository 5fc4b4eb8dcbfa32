"""Blocks of GGUF from values, one function for each type that is written: float32 (B, values) to uint8 (B, bytes).

Every code is the nearest to its value under the scale as it is stored, rounded to float16 or to 6 bits; scales are
those of a short search with the smallest square error; one of them is what llama.cpp's simple quantisers take.
"""

from __future__ import annotations

import numpy as np

from qsim.errors import QsimError

from .decode import E2M1_DOUBLED, half_e8m0, six_bits
from .decode import mxfp4 as decode_mxfp4

F32, U8 = np.float32, np.uint8


def _halves(scales: np.ndarray) -> np.ndarray:
    """Scales rounded to float16, as float32.

    Raises:
        QsimError: one is beyond float16.
    """
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise QsimError(
            f"GGUF blocks have float16 scales, up to 65504: values need one of {np.abs(scales).max():.4g}; use f32"
        )
    return rounded.astype(F32)


def half_bytes(scales: np.ndarray) -> np.ndarray:
    """float16 numbers (B, n), given as float32, as (B, 2 n) bytes."""
    return np.ascontiguousarray(scales.astype("<f2")).view(U8).reshape(scales.shape[0], -1)


def _inverse(scales: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 for a scale of 0."""
    with np.errstate(divide="ignore", over="ignore"):
        found = np.where(scales == 0, F32(0), F32(1) / scales)
    return np.where(np.isfinite(found), found, F32(0)).astype(F32)


def _codes(x: np.ndarray, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    """The nearest codes from `low` to `high` for a scale per row, float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.clip(np.rint(x * _inverse(scales)), low, high).astype(F32)


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


def _search(x: np.ndarray, candidates: np.ndarray, low: int, high: int) -> np.ndarray:
    """Of each row's candidates (B, n), the scale whose nearest codes leave the smallest square error: (B, 1)."""
    best, least = candidates[:, :1], np.full((x.shape[0], 1), np.inf)
    for i in range(candidates.shape[1]):
        scale = candidates[:, i : i + 1]
        gap = x - _codes(x, scale, low, high) * scale
        error = np.square(gap, dtype=np.float64).sum(axis=1, keepdims=True)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best


def _largest(x: np.ndarray) -> np.ndarray:
    """The value of the largest magnitude of each row, with its sign: (B, 1)."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)


# --- floats and 32 values ---------------------------------------------------------------------------------------


def f32(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, "<f4").view(U8)


def f16(x: np.ndarray) -> np.ndarray:
    return half_bytes(_halves(x))


def bf16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x, F32).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return rounded.astype("<u2").view(U8)


def _symmetric(x: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """float16 scales and codes from 0 to 2 half - 1 of symmetric blocks, whose lowest code is the largest value."""
    top = _largest(x)
    candidates = np.concatenate([top / F32(-half + step) for step in (0, 0.25, 0.5, 0.75, 1)], axis=1)
    scales = _search(x, _halves(candidates), -half, half - 1)
    return scales, (_codes(x, scales, -half, half - 1) + F32(half)).astype(U8)


def q4_0(x: np.ndarray) -> np.ndarray:
    scales, codes = _symmetric(x, 8)
    return np.concatenate([half_bytes(scales), pack_nibbles(codes, 16)], axis=1)


def pack_q5_0(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Blocks of Q5_0 from float16 scales (B, 1) and codes (B, 32) counted from the lowest."""
    high = np.packbits(codes >> U8(4), axis=1, bitorder="little")
    return np.concatenate([half_bytes(scales), high, pack_nibbles(codes & U8(15), 16)], axis=1)


def q5_0(x: np.ndarray) -> np.ndarray:
    return pack_q5_0(*_symmetric(x, 16))


def q8_0(x: np.ndarray) -> np.ndarray:
    scales = _halves(np.abs(x).max(axis=1, keepdims=True) / F32(127))
    codes = _codes(x, scales, -127, 127).astype(np.int8)
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


def _affine(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum >= 0 of each row of (B, n), for x = scale * code - minimum with codes 0 to `top`.

    A code for each of some ranges; scale and minimum that fit these codes best follow from least squares.
    """
    low = np.minimum(x.min(axis=1, keepdims=True), 0)
    high = np.maximum(x.max(axis=1, keepdims=True), low)
    count = F32(x.shape[1])
    sum_x = x.sum(axis=1, keepdims=True)
    best_scale, best_min = (high - low) / F32(top), -low
    least = np.full((x.shape[0], 1), np.inf)

    def consider(scale: np.ndarray, minimum: np.ndarray) -> None:
        nonlocal best_scale, best_min, least
        q = np.clip(np.rint((x + minimum) * _inverse(scale)), 0, top)
        error = np.square(q * scale - minimum - x, dtype=np.float64).sum(axis=1, keepdims=True)
        better = (error < least) & np.isfinite(error)
        best_scale, best_min = np.where(better, scale, best_scale), np.where(better, minimum, best_min)
        least = np.where(better, error, least)

    consider(best_scale, best_min)
    for step in range(-10, 11):
        guess = (high - low) / F32(top + 0.1 * step)
        q = np.clip(np.rint((x - low) * _inverse(guess)), 0, top)
        sum_q, sum_qq = q.sum(axis=1, keepdims=True), np.square(q).sum(axis=1, keepdims=True)
        sum_qx = (q * x).sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scale = (count * sum_qx - sum_q * sum_x) / (count * sum_qq - sum_q * sum_q)
            minimum = (sum_q * scale - sum_x) / count
            alone = sum_qx / sum_qq  # the best scale where the minimum must be 0
        wrong = (minimum < 0) | ~np.isfinite(minimum)
        scale, minimum = np.where(wrong, alone, scale), np.where(wrong, 0, minimum)
        usable = np.isfinite(scale) & (scale > 0)
        consider(np.where(usable, scale, best_scale).astype(F32), np.where(usable, minimum, best_min).astype(F32))
    return best_scale.astype(F32), best_min.astype(F32)


def pack_six_bits(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """The inverse of `decode.six_bits`."""
    a = (scales[:, :4] & U8(63)) | ((scales[:, 4:] >> U8(4)) << U8(6))
    b = (minima[:, :4] & U8(63)) | ((minima[:, 4:] >> U8(4)) << U8(6))
    c = (scales[:, 4:] & U8(15)) | ((minima[:, 4:] & U8(15)) << U8(4))
    return np.concatenate([a, b, c], axis=1)


def q4_k(x: np.ndarray) -> np.ndarray:
    parts = x.reshape(-1, 32)
    scales, minima = (found.reshape(-1, 8) for found in _affine(parts, 15))
    d, low = (_halves(found.max(axis=1, keepdims=True) / F32(63)) for found in (scales, minima))
    lost = (d == 0) & (scales.max(axis=1, keepdims=True) > 0)  # below float16's smallest number
    low = np.where(lost, F32(0), low)  # zeros, not the minimum everywhere
    packed = pack_six_bits(_codes(scales, d, 0, 63).astype(U8), _codes(minima, low, 0, 63).astype(U8))
    stored_scales, stored_minima = six_bits(packed)
    step = (d * stored_scales.astype(F32)).reshape(-1, 1)
    below = (low * stored_minima.astype(F32)).reshape(-1, 1)
    codes = _codes(parts + below, step, 0, 15).astype(U8).reshape(-1, 256)
    return np.concatenate([half_bytes(d), half_bytes(low), packed, pack_nibbles(codes, 32)], axis=1)


def q6_k(x: np.ndarray) -> np.ndarray:
    parts = x.reshape(-1, 16)
    top = _largest(parts)
    candidates = np.concatenate([top / F32(-32 + 0.25 * step) for step in range(9)], axis=1).astype(F32)
    scales = _search(parts, candidates, -32, 31).reshape(-1, 16)
    d = _halves(_largest(scales) / F32(-128))
    eight = _codes(scales, d, -128, 127).astype(np.int8)
    step = (d * eight.astype(F32)).reshape(-1, 1)
    codes = (_codes(parts, step, -32, 31) + F32(32)).astype(U8).reshape(-1, 256)
    low, high = pack_nibbles(codes & U8(15), 64), _pack_fields(codes >> U8(4), 32, 2)
    return np.concatenate([low, high, eight.view(U8), half_bytes(d)], axis=1)
