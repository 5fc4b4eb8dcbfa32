"""float32 functions of CUDA's mathematics library, bit for bit: expf, sinf, cosf and powf, as PyTorch calls them.

Each is a short run of float32 additions, products and fused multiply-adds around the hardware's approximate functions
(`functions`). `expf` has the hashes of all outputs that an H200 gave; the others were compared where a model uses
them (`reports/fused_layers.md`).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError

from .functions import algebraic, power_of_two, table
from .fused import fma

F32, I32, U32 = np.float32, np.int32, np.uint32
_LOG2_E, _LOG2_E_LOW = U32(0x3FB8AA3B).view(F32), U32(0x32A57060).view(F32)
_ROUNDS = F32(12582913.0)  # 1.5 * 2^23 + 1: adding it leaves a whole number in the last bits
_LARGEST_ANGLE = F32(105615)
_TWO_OVER_PI = F32(0.63661975)
_PI_2 = (U32(0xBFC90FDA).view(F32), U32(0xB3A22168).view(F32), U32(0xA7C234C5).view(F32))
"""-pi/2 in three parts."""


@numba.njit(cache=True)
def _expf(x: Any, values: np.ndarray) -> Any:
    """2^j 2^r: j = floor of x log2(e) + 1/2, by a scaled and clamped sum whose last bits hold it; r by two products."""
    t = fma(x, F32(_LOG2_E / F32(252)), F32(0.5))
    t = F32(0) if not t > F32(0) else min(t, F32(1))  # NaN becomes 0
    # rounded down: exact in float64, since t has 24 bits and the sum less than 53
    down = np.float64(t) * 252.0 + np.float64(_ROUNDS)
    shifted = F32(np.floor(down))
    whole = F32(shifted - F32(_ROUNDS + F32(126)))
    r = fma(x, _LOG2_E, F32(-whole))
    r = fma(x, _LOG2_E_LOW, r)
    scale = U32(F32(shifted).view(U32) << U32(23)).view(F32)
    return F32(power_of_two(r, True, values) * scale)


@numba.njit(cache=True)
def _reduced(x: Any) -> Any:
    """(x less q pi/2, q) for |x| below 105615."""
    q = I32(np.rint(F32(x * _TWO_OVER_PI)))
    j = F32(q)
    r = fma(j, _PI_2[0], x)
    r = fma(j, _PI_2[1], r)
    return fma(j, _PI_2[2], r), q


@numba.njit(cache=True)
def _sine(r: Any, q: Any) -> Any:
    """sin(r + q pi/2) by the polynomial of the quadrant."""
    square = F32(r * r)
    if q & 1:
        z = fma(U32(0x37CBAC00).view(F32), square, U32(0xBAB607ED).view(F32))
        z = fma(z, square, U32(0x3D2AAABB).view(F32))
        z = fma(z, square, U32(0xBEFFFFFF).view(F32))
        z = fma(z, square, F32(1))
    else:
        z = fma(U32(0xB94D4153).view(F32), square, U32(0x3C0885E4).view(F32))
        z = fma(z, square, U32(0xBE2AAAA8).view(F32))
        z = fma(z, F32(square * r), r)
    return F32(-z) if q & 2 else z


@numba.njit(cache=True)
def _powf(a: Any, b: Any, reciprocals: np.ndarray) -> Any:
    """2^(b log2 a) for a normal and positive: the logarithm as the sum of two float32, and a polynomial of degree 6."""
    bits = I32(F32(a).view(I32) - I32(1060439283)) & I32(-8388608)
    m, e = I32(F32(a).view(I32) - bits).view(F32), F32(F32(bits) * F32(2.0**-23))
    less, more = F32(m - F32(1)), F32(m + F32(1))
    inverse = algebraic(F32(more).view(U32), 0, True, reciprocals)
    f = F32(F32(F32(2) * less) * inverse)
    square = F32(f * f)
    low = F32(inverse * fma(F32(-f), less, F32(F32(2) * F32(less - f))))
    p = fma(U32(0x3A2C32E4).view(F32), square, U32(0x3B52E7DB).view(F32))
    p = fma(p, square, U32(0x3C93BB73).view(F32))
    p = fma(p, square, U32(0x3DF6384F).view(F32))
    p = F32(p * square)
    head = fma(f, _LOG2_E, e)
    tail = fma(f, _LOG2_E, F32(e - head))
    tail = fma(low, _LOG2_E, tail)
    tail = fma(f, U32(0x32A55E34).view(F32), tail)
    tail = fma(F32(F32(3) * p), low, tail)
    tail = fma(p, f, tail)
    log = F32(head + tail)
    log_low = F32(tail - F32(log - head))
    y = F32(log * b)
    rest = fma(log_low, b, fma(log, b, F32(-y)))
    whole = F32(np.rint(y))
    x = F32(F32(y - whole) + rest)
    z = fma(U32(0x391FCB8E).view(F32), x, U32(0x3AAF85ED).view(F32))
    z = fma(z, x, U32(0x3C1D9856).view(F32))
    z = fma(z, x, U32(0x3D6357BB).view(F32))
    z = fma(z, x, U32(0x3E75FDEC).view(F32))
    z = fma(z, x, U32(0x3F317218).view(F32))
    z = fma(z, x, F32(1))
    if y > F32(152):
        return U32(0x7F800000).view(F32)
    if y < F32(-152):
        return F32(0)
    back = I32(0) if whole > F32(0) else I32(-2097152000)
    return F32(F32(z * I32(I32(2130706432) + back).view(F32)) * I32(I32(I32(whole) << I32(23)) - back).view(F32))


@numba.njit(cache=True)
def _all_expf(x: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(x)):
        out[i] = _expf(x[i], values)


@numba.njit(cache=True)
def _all_sines(x: np.ndarray, quadrants: Any, out: np.ndarray) -> None:
    for i in range(len(x)):
        r, q = _reduced(x[i])
        out[i] = _sine(r, I32(q + quadrants))


@numba.njit(cache=True)
def _all_powf(a: Any, b: np.ndarray, reciprocals: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(b)):
        out[i] = _powf(a, b[i], reciprocals)


def _flat(x: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    given = real_array(x, what, dtype=F32)
    return np.ascontiguousarray(given).reshape(-1), np.empty(given.shape, F32)


def expf(x: Any) -> np.ndarray:
    """e^x as CUDA's `expf`, of real floats of any shape; NaN is 0x7FFFFFFF.

    Raises:
        QsimError: x that is no real floats.
    """
    flat, out = _flat(x, "inputs of expf")
    _all_expf(flat, table("ex2"), out.reshape(-1))
    return out


def cosf(x: Any) -> np.ndarray:
    """cos(x) as CUDA's `cosf`, of angles whose magnitude is at most 105615.

    Raises:
        QsimError: x that is no real floats; a larger angle, NaN or Inf.
    """
    return _trigonometric(x, 1)


def sinf(x: Any) -> np.ndarray:
    """sin(x) as CUDA's `sinf`, as `cosf`.

    Raises:
        QsimError: x that is no real floats; a larger angle, NaN or Inf.
    """
    return _trigonometric(x, 0)


def _trigonometric(x: Any, quadrants: int) -> np.ndarray:
    flat, out = _flat(x, "angles")
    if not (np.abs(flat) < _LARGEST_ANGLE).all():
        raise QsimError(f"angles must be below {_LARGEST_ANGLE:.0f}, where CUDA reduces them in float32: got others")
    _all_sines(flat, quadrants, out.reshape(-1))
    return out


def powf(base: float, exponents: Any) -> np.ndarray:
    """base^y as CUDA's `powf`, of a normal positive base and real floats y.

    Raises:
        QsimError: another base; exponents that are no finite floats.
    """
    a = F32(base)
    flat, out = _flat(exponents, "exponents")
    if not F32(2.0**-126) <= a < F32(np.inf) or not np.isfinite(flat).all():
        raise QsimError(f"powf takes a normal positive base and finite exponents: got base {base}")
    _all_powf(a, flat, table("rcp"), out.reshape(-1))
    return out
