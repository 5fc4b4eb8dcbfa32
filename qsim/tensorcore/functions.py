"""The approximate functions of an NVIDIA GPU, bit for bit: rcp, rsqrt, sqrt and ex2 of its multi-function unit.

One or two binades of each are a table in `functions.npz`, recorded on an H200; a law gives every other output from
them. The device itself compared each law with its instruction on all 2^32 inputs and found no difference
(`reports/h200_functions.py`). What CUDA's library builds on them is in `cuda_math`.
"""

from __future__ import annotations

import lzma
import math
from functools import lru_cache
from importlib import resources
from typing import Any

import numba
import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError, nearest

F32, F64, I64, U32 = np.float32, np.float64, np.int64, np.uint32
NAMES = ("rcp", "rsqrt", "sqrt", "ex2")
NAN = U32(0x7FFFFFFF)
_HIDDEN = I64(1 << 23)
_SMALLEST_NORMAL = F64(2.0**-126)


@numba.njit(cache=True)
def _place(base: np.ndarray, coefficients: np.ndarray, segment: Any, i: Any) -> Any:
    """The predicted entry i of a table and the bucket of its fraction: a quadratic in integers for each segment."""
    s, j = i // segment, i % segment
    value = coefficients[s, 0] + ((coefficients[s, 1] * j) >> 8) + ((coefficients[s, 2] * (j * j)) >> 20) + _HIDDEN
    return I64(base[s]) + (value >> 24), (value & I64(0xFFFFFF)) >> 12


@numba.njit(cache=True)
def _unpack(base: np.ndarray, coefficients: np.ndarray, residual: np.ndarray, repeat: Any, out: np.ndarray) -> None:
    """Predictions and what they miss; residuals stand in the order of the predictions' fractions, stable."""
    segment = len(residual) // len(base)
    starts = np.zeros(4097, I64)
    for i in range(len(residual)):
        starts[_place(base, coefficients, segment, i)[1] + 1] += 1
    for bucket in range(4096):
        starts[bucket + 1] += starts[bucket]
    for i in range(len(residual)):
        whole, bucket = _place(base, coefficients, segment, i)
        value = U32(whole + residual[starts[bucket]])
        starts[bucket] += 1
        for r in range(repeat):
            out[i * repeat + r] = value


def unpacked(packed: dict[str, np.ndarray]) -> np.ndarray:
    """The table (uint32) of {base, coefficients, residual, repeat}, as `reports/h200_functions.py` packs it."""
    residual = np.frombuffer(lzma.decompress(packed["residual"].tobytes()), np.int8)
    repeat = int(packed["repeat"])
    out = np.empty(len(residual) * repeat, U32)
    _unpack(packed["base"], packed["coefficients"], residual, repeat, out)
    return out


@lru_cache(maxsize=len(NAMES))
def table(name: str) -> np.ndarray:
    """Outputs (uint32) of `rcp` over [1, 2), of `rsqrt` and `sqrt` over [1, 4), of `ex2` over [0, 1): every input with
    23 fraction bits. Read-only, 32 or 64 MiB, kept.

    Raises:
        QsimError: another name.
    """
    if name not in NAMES:
        raise QsimError(nearest("function", name, NAMES))
    with resources.files(__package__).joinpath("functions.npz").open("rb") as stream, np.load(stream) as file:
        found = unpacked({key: file[f"{name}/{key}"] for key in ("base", "coefficients", "residual", "repeat")})
    found.setflags(write=False)
    return found


# ---- laws


@numba.njit(cache=True)
def _shifted(bits: Any, exponent: Any, flush: Any) -> Any:
    """A normal float32 times 2^exponent, to nearest even where that is subnormal, or 0 with flushing."""
    exact = math.ldexp(F64(U32(bits).view(F32)), exponent)
    if flush and abs(exact) < _SMALLEST_NORMAL:
        return F32(0)
    return F32(exact)


@numba.njit(cache=True)
def algebraic(bits: Any, which: Any, flush: Any, values: np.ndarray) -> Any:
    """1/x (which = 0), 1/sqrt(x) (1) or sqrt(x) (2) of a float32 given as its bits; the float32 result."""
    magnitude, negative = U32(bits & U32(0x7FFFFFFF)), bits >= U32(0x80000000)
    sign = U32(bits & U32(0x80000000))
    gone = magnitude == 0 or (flush and magnitude < U32(0x800000))
    if magnitude > U32(0x7F800000) or (which > 0 and negative and not gone):
        return U32(NAN).view(F32)
    if gone:
        return U32(sign).view(F32) if which == 2 else U32(sign | U32(0x7F800000)).view(F32)
    if magnitude == U32(0x7F800000):
        return U32(magnitude).view(F32) if which == 2 else U32(sign).view(F32)
    e, m = I64(magnitude >> U32(23)) - I64(127), I64(magnitude & U32(0x7FFFFF))
    if e == -127:  # a subnormal is normalised
        e += 1
        while m < _HIDDEN:
            m += m
            e -= 1
        m -= _HIDDEN
    if which == 0:
        y = _shifted(values[m], -e, flush)
        return -y if negative else y
    odd = e & 1
    half = (e - odd) // 2
    return _shifted(values[m + odd * _HIDDEN], -half if which == 1 else half, flush)


@numba.njit(cache=True)
def _power(x: Any, values: np.ndarray) -> Any:
    """2^x, |x| cut toward zero to 23 fraction bits. Below zero the hardware does not negate the fraction but
    complements it; only the fraction 0 is exact."""
    fixed = I64(math.ldexp(abs(F64(x)), 23))
    whole, m = fixed >> 23, fixed & (_HIDDEN - 1)
    if x >= 0:
        return _shifted(values[m], whole, True)
    if m == 0:
        return _shifted(U32(0x3F800000), -whole, True)
    return _shifted(values[_HIDDEN - 1 - m], -whole - 1, True)


@numba.njit(cache=True)
def power_of_two(x: Any, flush: Any, values: np.ndarray) -> Any:
    """ex2.approx of a float32. Without flushing, an input below -126 is halved and the result squared."""
    if x != x:
        return U32(NAN).view(F32)
    if x >= F32(128):
        return U32(0x7F800000).view(F32)
    if x < F32(-320):
        return F32(0)
    if abs(x) < F32(_SMALLEST_NORMAL):
        return F32(1)
    if not flush and x < F32(-126):
        y = _power(F32(x * F32(0.5)), values)
        return F32(y * y)
    return _power(x, values)


@numba.njit(cache=True)
def _evaluate(which: Any, flush: Any, values: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(x)):
        if which == 3:
            out[i] = power_of_two(x[i], flush, values)
        else:
            out[i] = algebraic(F32(x[i]).view(U32), which, flush, values)


def approximate(name: str, x: Any, *, ftz: bool = False) -> np.ndarray:
    """What `<name>.approx.f32` of PTX returns on an H200.

    Arguments:
        name: `rcp`, `rsqrt`, `sqrt` or `ex2`.
        x: real floats of any shape; taken to float32.
        ftz: the `.ftz` form: subnormal inputs and results are zero, with their sign.

    Returns:
        float32 of the shape of x. Every NaN is 0x7FFFFFFF.

    Raises:
        QsimError: another name; x that is no real floats.

    Source: recorded over all 2^32 inputs (`tests/golden/h200_functions.npz` has the hashes).
    """
    values = table(name)
    given = real_array(x, f"inputs of {name}", dtype=F32)
    flat = np.ascontiguousarray(given).reshape(-1)
    out = np.empty_like(flat)
    _evaluate(NAMES.index(name), ftz, values, flat, out)
    return out.reshape(given.shape)
