"""Fast twins of `reference_other` for one tile: integers, FMA chains, exact sums, AMD's CDNA models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from qsim.formats import FloatFormat

from .decode import INF, NAN, cleared_bits, decode_rows, decoder
from .exact import round_bits
from .fused import fma_chain
from .model import CANONICAL_NAN, Instruction

_EXACT_BLOCK = 256
"""8-bit products are below 2^16: sums of 256 are exact in float32, and a float32 GEMM adds them."""


def run_integer(ins: Instruction, a: np.ndarray, b: np.ndarray, c: np.ndarray, k_index: np.ndarray) -> np.ndarray:
    """Exact int32 sums that wrap modulo 2^32, or clamp after each instruction."""
    total = c.astype(np.int64)
    block = ins.k if ins.satfinite else _EXACT_BLOCK
    for start in range(0, len(k_index), block):
        k = k_index[start : start + block]
        k = k[k >= 0]
        total += (a[:, k].astype(np.float32) @ b[:, k].astype(np.float32).T).astype(np.int64)
        if ins.satfinite:
            np.clip(total, -(2**31), 2**31 - 1, out=total)
    return total.astype(np.int32)


def _floats(codes: np.ndarray, fmt: FloatFormat, dtype: Any, k_index: np.ndarray) -> np.ndarray:
    """Codes to floats, Inf and NaN included; -1 in k_index gives +0."""
    padded = np.concatenate([codes, np.zeros((len(codes), 1), codes.dtype)], axis=1)[:, k_index]
    if padded.dtype == np.uint64:
        return padded.view(np.float64)
    if fmt.storage_bits == 32:
        return (padded & np.uint32(cleared_bits(fmt))).view(np.float32)
    d = decoder(fmt)
    sign = np.where(d.significand < 0, -1.0, 1.0)
    value = np.where(d.exponent == NAN, np.nan, np.where(d.exponent == INF, sign * np.inf, d.value))
    # -0 matters to an IEEE sum
    if fmt.has_negative_zero:
        value[fmt.sign_mask << fmt.padding_bits] = -0.0
    return np.ascontiguousarray(value.astype(dtype)[padded])


def run_fma(ins: Instruction, a: np.ndarray, b: np.ndarray, c: np.ndarray, k_index: np.ndarray) -> np.ndarray:
    """A chain of IEEE fused multiply-adds, float32 or float64, to nearest even."""
    dtype = np.float64 if ins.output == "f64" else np.float32
    assert isinstance(ins.format_a, FloatFormat)
    assert isinstance(ins.format_b, FloatFormat)
    k_index = k_index[k_index >= 0]
    out = c.view(dtype).copy()
    fma_chain(
        _floats(a, ins.format_a, dtype, k_index),
        np.ascontiguousarray(_floats(b, ins.format_b, dtype, k_index).T),
        out,
    )
    bits = out.view(c.dtype)
    bits[np.isnan(out)] = 0x7FF8000000000000 if ins.output == "f64" else CANONICAL_NAN["f32"]
    return bits


def _decoded(ins: Instruction, a: np.ndarray, b: np.ndarray, k_index: np.ndarray) -> tuple[np.ndarray, ...]:
    """Significands and exponents of a tile's rows: (rows, K) int32 and int16 for both operands."""
    out: list[np.ndarray] = []
    for codes, fmt in ((a, ins.format_a), (b, ins.format_b)):
        assert isinstance(fmt, FloatFormat)
        d = decoder(fmt)
        s, e = np.empty((len(codes), len(k_index)), np.int32), np.empty((len(codes), len(k_index)), np.int16)
        decode_rows(codes, k_index, d.significand, d.exponent, cleared_bits(fmt), s, e)
        out += [s, e]
    return tuple(out)


@numba.njit(cache=True, nogil=True)
def _special(sa: np.ndarray, ea: np.ndarray, sb: np.ndarray, eb: np.ndarray, overflow: Any, c: Any) -> Any:
    """0 when a step is finite, else 1 NaN, 2 +Inf, 3 -Inf. Products of 2^overflow and more count as infinite."""
    c_magnitude = c & 0x7FFFFFFF
    nan = c_magnitude > 0x7F800000
    plus = c == 0x7F800000
    minus = c == 0xFF800000
    for i in range(len(sa)):
        m = np.int64(sa[i]) * np.int64(sb[i])
        if ea[i] == NAN or eb[i] == NAN:
            nan = True
        elif ea[i] == INF or eb[i] == INF or (m != 0 and _top(m) + np.int64(ea[i]) + np.int64(eb[i]) >= overflow):
            nan |= m == 0
            plus |= m > 0
            minus |= m < 0
    if nan or (plus and minus):
        return 1
    return 2 if plus else 3 if minus else 0


@numba.njit(cache=True, nogil=True)
def _top(m: Any) -> Any:
    """floor(log2 |m|)."""
    magnitude, length = abs(m), np.int64(-1)
    while magnitude:
        magnitude >>= 1
        length += 1
    return length


@numba.njit(cache=True, nogil=True)
def _special_bits(what: Any) -> Any:
    return np.int64(0x7FFFFFFF if what == 1 else 0x7F800000 if what == 2 else 0xFF800000)


@numba.njit(cache=True, nogil=True)
def _c_parts(c: Any) -> Any:
    """Signed significand and exponent of finite float32 bits (23 fraction bits)."""
    field = (c >> 23) & 255
    m = (c & 0x7FFFFF) + (np.int64(1 << 23) if field else np.int64(0))
    return (-m if c >> 31 else m), max(field, 1) - 127


_LIMBS, _LOWEST = 24, -400
"""The exact accumulator: 24 limbs of 32 bits from 2^-400 up, enough for products of float32 and carries."""


@numba.njit(cache=True, nogil=True)
def _add_exact(limbs: np.ndarray, m: Any, unit: Any) -> None:
    """limbs += m * 2^unit; limbs are signed and carry later."""
    at = unit - _LOWEST
    limb, shift = at // 32, at % 32
    sign = np.int64(-1) if m < 0 else np.int64(1)
    magnitude = abs(np.int64(m))
    low, high = magnitude & 0xFFFFFFFF, magnitude >> 32
    low <<= shift
    high <<= shift
    limbs[limb] += sign * (low & 0xFFFFFFFF)
    limbs[limb + 1] += sign * ((low >> 32) + (high & 0xFFFFFFFF))
    limbs[limb + 2] += sign * (high >> 32)


@numba.njit(cache=True, nogil=True)
def _round_exact(limbs: np.ndarray, to_nearest: Any, kept: Any, mantissa_bits: Any, min_exponent: Any) -> Any:
    """The accumulator's value to float bits: its top 60 bits, with all the rest as a sticky bit."""
    negative = _carry(limbs)
    if negative:
        for n in range(len(limbs)):
            limbs[n] = -limbs[n]
        _carry(limbs)
    top = len(limbs) - 1
    while top >= 0 and limbs[top] == 0:
        top -= 1
    if top < 0:
        return np.int64(0)
    total = limbs[top]
    unit = _LOWEST + 32 * top
    n = top - 1
    while n >= 0 and n >= top - 1:
        total = (total << 30) | (limbs[n] >> 2)  # up to 62 bits
        unit -= 30
        if limbs[n] & 3:
            total |= 1
        n -= 1
    while n >= 0:
        if limbs[n]:
            total |= 1
        n -= 1
    return round_bits(-total if negative else total, unit, to_nearest, kept, mantissa_bits, min_exponent)


@numba.njit(cache=True, nogil=True)
def _carry(limbs: np.ndarray) -> Any:
    """Bring limbs into 0..2^32-1 but for the top one; True when the value is negative."""
    carry = np.int64(0)
    for n in range(len(limbs) - 1):
        value = limbs[n] + carry
        carry = value >> 32
        limbs[n] = value & 0xFFFFFFFF
    limbs[len(limbs) - 1] += carry
    return limbs[len(limbs) - 1] < 0


@numba.njit(cache=True, nogil=True)
def _exact_step(sa: np.ndarray, ea: np.ndarray, sb: np.ndarray, eb: np.ndarray, c: Any, q: np.ndarray) -> Any:
    p, to_nearest, kept = q[1], q[2] != 0, q[3]
    limbs = np.zeros(_LIMBS, np.int64)
    for i in range(len(sa)):
        _add_exact(limbs, np.int64(sa[i]) * np.int64(sb[i]), np.int64(ea[i]) + np.int64(eb[i]) - p)
    m, e = _c_parts(c)
    _add_exact(limbs, m, e - 23)
    return _round_exact(limbs, to_nearest, kept, 23, -126)


@numba.njit(cache=True, nogil=True)
def _shift(value: Any, by: Any, floor: Any) -> Any:
    """value * 2^by in integers, to minus infinity or toward zero."""
    if by >= 0:
        return value << by if value != 0 else value
    by = min(-by, 63)
    if floor or value >= 0:
        return value >> by
    return -((-value) >> by)


@numba.njit(cache=True, nogil=True)
def _truncated_products(
    sa: np.ndarray, ea: np.ndarray, sb: np.ndarray, eb: np.ndarray, start: Any, stride: Any, p: Any, big_f: Any
) -> Any:
    e_max = np.int64(-999)
    for i in range(start, len(sa), stride):
        if sa[i] != 0 and sb[i] != 0:
            e_max = max(e_max, np.int64(ea[i]) + np.int64(eb[i]))
    total = np.int64(0)
    for i in range(start, len(sa), stride):
        m = np.int64(sa[i]) * np.int64(sb[i])
        if m != 0:
            total += _shift(m, big_f + np.int64(ea[i]) + np.int64(eb[i]) - e_max - p, False)
    return total, e_max


@numba.njit(cache=True, nogil=True)
def _floored_step(sa: np.ndarray, ea: np.ndarray, sb: np.ndarray, eb: np.ndarray, c: Any, q: np.ndarray) -> Any:
    p, big_f, wide, even_odd = q[1], q[4], q[5], q[6] != 0
    if even_odd:
        even, e_even = _truncated_products(sa, ea, sb, eb, 0, 2, p, big_f)
        odd, e_odd = _truncated_products(sa, ea, sb, eb, 1, 2, p, big_f)
        e_dot = max(e_even, e_odd)
        total = _shift(even, e_even - e_dot, True) + _shift(odd, e_odd - e_dot, True)
    else:
        total, e_dot = _truncated_products(sa, ea, sb, eb, 0, 1, p, big_f)
    m, e_c = _c_parts(c)
    e_max = max(e_dot, e_c)
    total = _shift(total, e_dot - e_max + wide + 1 - big_f, True)
    c_aligned = _shift(m, e_c - e_max + big_f - 23, True)
    if even_odd and e_c < e_max - big_f - 1:
        c_aligned = np.int64(0)
    total += c_aligned << (wide + 1 - big_f)
    if total == 0:
        return np.int64(0)
    unit = e_max - wide - 1
    cut = max(_top(total) + unit, -126) - wide
    return round_bits(_shift(total, unit - cut, True), cut, True, 23, 23, -126)


@numba.njit(cache=True, nogil=True)
def _other_tile(
    sa: np.ndarray, ea: np.ndarray, sb: np.ndarray, eb: np.ndarray, c: np.ndarray, q: np.ndarray, out: np.ndarray
) -> None:
    """Chains of exact (q[0] = 0) or floored (1) steps for every output of a tile."""
    products = q[7]
    for i in range(len(sa)):
        for j in range(len(sb)):
            acc = np.int64(c[i, j])
            for start in range(0, sa.shape[1], products):
                end = start + products
                x, ex, y, ey = sa[i, start:end], ea[i, start:end], sb[j, start:end], eb[j, start:end]
                what = _special(x, ex, y, ey, q[8], acc)
                if what:
                    acc = _special_bits(what)
                elif q[0] == 0:
                    acc = _exact_step(x, ex, y, ey, acc, q)
                else:
                    acc = _floored_step(x, ex, y, ey, acc, q)
            out[i, j] = acc


def run_exact_or_floored(
    ins: Instruction, a: np.ndarray, b: np.ndarray, c: np.ndarray, k_index: np.ndarray
) -> np.ndarray:
    """Exact sums with one rounding a step, and CDNA3's floored sums."""
    sa, ea, sb, eb = _decoded(ins, a, b, k_index)
    fmt_a, fmt_b, rounding = ins.format_a, ins.format_b, ins.sum_rounding
    assert isinstance(fmt_a, FloatFormat)
    assert isinstance(fmt_b, FloatFormat)
    p = decoder(fmt_a).fraction_bits + decoder(fmt_b).fraction_bits
    # only CDNA3's 16-bit instructions take a product of 2^128 for infinite
    overflow = 128 + p if ins.arithmetic == "floored" else 100000
    q = np.array(
        [
            ins.arithmetic != "exact",
            p,
            rounding.to_nearest,
            rounding.fraction_bits,
            ins.fraction_bits,
            ins.sum_fraction_bits,
            ins.arithmetic == "floored_even_odd",
            ins.products,
            overflow,
        ],
        np.int64,
    )
    out = np.empty_like(c)
    _other_tile(sa, ea, sb, eb, c, q, out)
    return out


@numba.njit(cache=True, nogil=True)
def _flush(x: Any) -> Any:
    """A subnormal float32 to a zero of its sign."""
    return x * np.float32(0.0) if abs(x) < np.float32(1.1754943508222875e-38) else x


@numba.njit(cache=True, nogil=True)
def _flushed_tile(a: np.ndarray, b: np.ndarray, products: Any, out: np.ndarray) -> None:
    for i in range(len(a)):
        for j in range(len(b)):
            acc = _flush(out[i, j]) + np.float32(0.0)
            for start in range(0, a.shape[1], products):
                s = _flush(_flush(a[i, start] * b[j, start]) + _flush(a[i, start + 1] * b[j, start + 1]))
                if products == 4:
                    t = _flush(_flush(a[i, start + 2] * b[j, start + 2]) + _flush(a[i, start + 3] * b[j, start + 3]))
                    s = _flush(s + t)
                acc = _flush(acc + s)
            out[i, j] = acc


def run_flushed(ins: Instruction, a: np.ndarray, b: np.ndarray, c: np.ndarray, k_index: np.ndarray) -> np.ndarray:
    """CDNA2: float32 products and pairwise sums, subnormals flushed."""
    operands = []
    for codes, fmt in ((a, ins.format_a), (b, ins.format_b)):
        assert isinstance(fmt, FloatFormat)
        x = _floats(codes, fmt, np.float32, k_index)
        operands.append(np.where(np.abs(x) < np.float32(fmt.smallest_normal), np.float32(0.0), x))
    out = c.view(np.float32).copy()
    _flushed_tile(operands[0], operands[1], ins.products, out)
    bits = out.view(np.uint32)
    bits[np.isnan(out)] = CANONICAL_NAN["f32"]
    return bits


RUN: dict[str, Callable[[Instruction, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "integer": run_integer,
    "fma": run_fma,
    "exact": run_exact_or_floored,
    "floored": run_exact_or_floored,
    "floored_even_odd": run_exact_or_floored,
    "flushed_pairs": run_flushed,
}
