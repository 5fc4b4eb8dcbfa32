"""Activations to codes with dynamic scales, in one compiled pass: a decode step has microseconds for it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from qsim._native.threads import for_chunks
from qsim.formats import FloatFormat

F32, U32, I32 = np.float32, np.uint32, np.int32
_MAGIC = np.float32(3 << 22)  # x + 1.5 * 2^23 - 1.5 * 2^23 is rint(x) for |x| < 2^22, in instructions that vectorise
_SERIAL = 1 << 15  # elements below which starting threads costs more than they save
FLOATS = ("float8_e4m3fn", "float8_e5m2")  # what `quantize_floats` rounds to


@njit(cache=True, boundscheck=False, inline="always")
def _peak(x: Any) -> Any:
    """Bits of the largest |x|: without the sign they are ordered as values, with NaN above Inf above all."""
    peak, bits = U32(0), x.view(np.uint32)
    for at in range(x.shape[0]):
        peak = max(peak, U32(bits[at] & U32(0x7FFFFFFF)))
    return peak


@njit(cache=True, boundscheck=False)
def _token(x: Any, levels: Any, out: Any) -> Any:
    peak = _peak(x)
    if peak >= U32(0x7F800000):
        return F32(0)
    scale = F32(max(U32(peak).view(np.float32), F32(1e-5)) / levels)
    for at in range(x.shape[0]):
        out[at] = np.int8(np.int32(F32(F32(x[at] / scale) + _MAGIC) - _MAGIC))
    return scale


@njit(cache=True, nogil=True, boundscheck=False)
def _tokens(x: Any, levels: Any, out: Any, scale: Any) -> None:
    for m in range(x.shape[0]):
        scale[m] = _token(x[m], levels, out[m])


def quantize_tokens(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """SmoothQuant's dynamic per-token codes: scale = max(amax, 1e-5) / (2^(bits-1) - 1), code = rint(x / scale).

    Arguments:
        x: (M, K) float32.

    Returns:
        Codes as int8 (M, K) and scales (M,), equal bit for bit to `quantize(..., scale_rule="smoothquant")`.

    Raises:
        ValueError: NaN or Inf; the message names the row.
    """
    out, scale = np.empty(x.shape, np.int8), np.empty(x.shape[0], F32)
    levels = F32((1 << (bits - 1)) - 1)
    if x.size < _SERIAL:
        _tokens(x, levels, out, scale)
    else:
        for_chunks(len(x), lambda a, b: _tokens(x[a:b], levels, out[a:b], scale[a:b]), chunk=_rows(x))
    _refuse(x, scale)
    return out, scale


def _rows(x: np.ndarray) -> int:
    """Rows that a thread takes at a time."""
    return max(1, 4 * _SERIAL // x.shape[1])


def _refuse(x: np.ndarray, scale: np.ndarray) -> None:
    """A scale of 0 marks a row with NaN or Inf."""
    if not scale.all():
        from qsim.scheme.quantizer import check_finite

        check_finite(x, what="activations")


@njit(cache=True, boundscheck=False)
def _float_token(x: Any, top: Any, shift: Any, least: Any, codes: Any, values: Any) -> Any:
    """x / scale to the nearest float with 23 - `shift` bits of mantissa and smallest normal number `least` (its bits).

    Adding 2^(e + shift), with e the exponent of |x| but at least that of `least`, rounds |x| in float32's addition, as
    in `qsim.formats`.
    """
    peak = _peak(x)
    if peak >= U32(0x7F800000):
        return F32(0)
    scale = F32(U32(peak).view(np.float32) / top)
    if scale == F32(0):
        scale = F32(1)
    magic = U32(shift << U32(23))
    offset = U32(U32(0) - magic - U32(least >> (shift & U32(31))))
    for at in range(x.shape[0]):
        bits = U32(F32(x[at] / scale).view(np.uint32))
        sign = U32(bits & U32(0x80000000))
        size = F32(min(U32(bits ^ sign).view(np.float32), top))
        e = max(U32(F32(size).view(np.uint32) & U32(0x7F800000)), least)
        big = F32(U32(e + magic).view(np.float32))
        total = F32(size + big)
        code = U32(U32(U32(F32(total).view(np.uint32) - e) + U32(e >> (shift & U32(31)))) + offset)
        codes[at] = np.uint8(U32(code | U32(sign >> U32(24))))
        values[at] = U32(F32(total - big).view(np.uint32) | sign).view(np.float32)
    return scale


@njit(cache=True, nogil=True, boundscheck=False)
def _float_tokens(x: Any, top: Any, shift: Any, least: Any, codes: Any, values: Any, scale: Any) -> None:
    for m in range(x.shape[0]):
        scale[m] = _float_token(x[m], top, shift, least, codes[m], values[m])


@cache
def _rounding(fmt: FloatFormat) -> tuple[np.float32, np.uint32, np.uint32]:
    """`top`, `shift` and `least` of `_float_token`."""
    return F32(fmt.max), U32(23 - fmt.mantissa_bits), U32((128 - fmt.bias) << 23)


def quantize_floats(x: np.ndarray, fmt: FloatFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dynamic per-token FP8 by the rule `amax`: scale = amax / max (1 for zeros), x / scale to nearest even.

    Arguments:
        x: (M, K) float32.
        fmt: one of `FLOATS`.

    Returns:
        Codes (M, K) uint8, their values (M, K) float32, scales (M,), equal bit for bit to `quantize`.

    Raises:
        ValueError: NaN or Inf; the message names the row.
    """
    codes, values, scale = np.empty(x.shape, np.uint8), np.empty(x.shape, F32), np.empty(x.shape[0], F32)
    how = _rounding(fmt)
    if x.size < _SERIAL:
        _float_tokens(x, *how, codes, values, scale)
    else:
        for_chunks(len(x), lambda a, b: _float_tokens(x[a:b], *how, codes[a:b], values[a:b], scale[a:b]),
                   chunk=_rows(x))  # fmt: skip
    _refuse(x, scale)
    return codes, values, scale
