"""Compiled loops from values to codes. `codec` chooses among them; arguments are checked there.

Every loop is free of branches that depend on the data, so that LLVM turns it into vector code. Three things matter
for that and look odd: Numba widens uint32 arithmetic to 64 bits, so each result is cast back at once; a shift count
is masked, so that LLVM knows it is below the word size and keeps 32-bit lanes; `wide_vectors()` asks for 512-bit
registers, which LLVM avoids by default on Intel servers (1.4x here).

Loops return the largest |x| pattern they saw, or flags, from which the caller knows of NaN and overflow.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba.core import types as nb_types
from numba.extending import intrinsic

u32, u64, f32, f64 = np.uint32, np.uint64, np.float32, np.float64

# Flags of the general loops: what was met that a policy had to decide.
NAN_SEEN, OVER_SEEN, BELOW_SEEN = 1, 2, 4

# Where the stored codes for special results stand in the array that the general loops take. BELOW is for values under
# the smallest one of a format without a sign or without a zero.
S_OVER_POS, S_OVER_NEG, S_INF_POS, S_INF_NEG, S_NAN_POS, S_NAN_NEG, S_ZERO_POS, S_ZERO_NEG, S_BELOW = range(9)


def _wide_vectors(typing_context: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        attributes = builder.function.attributes
        if isinstance(attributes, set):  # llvmlite checks names in its own `add`, LLVM takes any string attribute
            set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return nb_types.void(), codegen


# Lets the vectoriser use 512-bit registers in the function that calls it. Without AVX-512 it changes nothing.
wide_vectors: Any = intrinsic(_wide_vectors)


@nb.njit(nogil=True, cache=True)
def narrow_f32(
    bits: Any,
    out: Any,
    shift: Any,
    min_bits: Any,
    cap: Any,
    over_bits: Any,
    over_code: Any,
    nan_code: Any,
    sign_shift: Any,
    sign_mask: Any,
    zero_mask: Any,
    over_mask: Any,
    nan_mask: Any,
) -> Any:
    """float32 patterns to codes, nearest even, for formats whose exponents lie inside float32's.

    Adding 2^(e + shift), with e the exponent of |x| but at least the format's smallest normal one, makes the
    hardware round |x| to the format's grid, subnormals included: what is left in the low bits is the significand.
    The masks say which results keep the input's sign: zeros, overflowed ones, NaNs, and all the others.
    """
    wide_vectors()
    magic = u32(u32(shift) << u32(23))
    offset = u32(u32(0) - magic - u32(min_bits >> (shift & u32(31))))
    largest = u32(0)
    for i in range(bits.size):
        b = bits[i]
        a = u32(b & u32(0x7FFFFFFF))
        largest = max(largest, a)
        c = min(a, cap)
        e = max(u32(c & u32(0x7F800000)), min_bits)
        t = f32(u32(c).view(np.float32)) + f32(u32(e + magic).view(np.float32))
        code = u32(u32(f32(t).view(np.uint32) - e) + u32(e >> (shift & u32(31))) + offset)
        is_over = a >= over_bits
        is_nan = a > u32(0x7F800000)
        code = over_code if is_over else code
        mask = zero_mask if code == u32(0) else sign_mask
        mask = over_mask if is_over else mask
        mask = nan_mask if is_nan else mask
        code = nan_code if is_nan else code
        out[i] = code | u32(u32(b >> (sign_shift & u32(31))) & mask)
    return largest


@nb.njit(nogil=True, cache=True)
def narrow_f64(
    bits: Any,
    out: Any,
    shift: Any,
    min_bits: Any,
    cap: Any,
    over_bits: Any,
    over_code: Any,
    nan_code: Any,
    sign_shift: Any,
    sign_mask: Any,
    zero_mask: Any,
    over_mask: Any,
    nan_mask: Any,
) -> Any:
    """As `narrow_f32` for float64 patterns: one rounding, straight from 53 bits."""
    wide_vectors()
    magic = u64(u64(shift) << u64(52))
    offset = u64(u64(0) - magic - u64(min_bits >> (shift & u64(63))))
    largest = u64(0)
    for i in range(bits.size):
        b = bits[i]
        a = u64(b & u64(0x7FFFFFFFFFFFFFFF))
        largest = max(largest, a)
        c = min(a, cap)
        e = max(u64(c & u64(0x7FF0000000000000)), min_bits)
        t = f64(u64(c).view(np.float64)) + f64(u64(e + magic).view(np.float64))
        code = u64(u64(f64(t).view(np.uint64) - e) + u64(e >> (shift & u64(63))) + offset)
        is_over = a >= over_bits
        is_nan = a > u64(0x7FF0000000000000)
        code = over_code if is_over else code
        mask = zero_mask if code == u64(0) else sign_mask
        mask = over_mask if is_over else mask
        mask = nan_mask if is_nan else mask
        code = nan_code if is_nan else code
        out[i] = code | u64(u64(b >> (sign_shift & u64(63))) & mask)
    return largest


@nb.njit(nogil=True, cache=True)
def wide_f32(
    bits: Any,
    out: Any,
    shift: Any,
    padding: Any,
    over_bits: Any,
    over_code: Any,
    inf_code: Any,
    nan_code: Any,
    sign_shift: Any,
    sign_mask: Any,
    nan_mask: Any,
) -> Any:
    """float32 patterns to formats with float32's own exponents (bfloat16, tf32, float32): round the pattern itself.

    A carry out of the largest number makes Inf by itself; `over_bits` is where a clamp to `over_code` begins.
    """
    wide_vectors()
    keep = u32(u32(1) if shift > u32(0) else u32(0))
    below_half = u32(u32(u32(1) << ((shift - u32(1)) & u32(31))) - u32(1)) if shift > u32(0) else u32(0)
    largest = u32(0)
    for i in range(bits.size):
        b = bits[i]
        a = u32(b & u32(0x7FFFFFFF))
        largest = max(largest, a)
        even = u32(u32(a >> (shift & u32(31))) & keep)
        code = u32(u32(a + below_half + even) >> (shift & u32(31)))
        is_nan = a > u32(0x7F800000)
        code = over_code if a >= over_bits else code
        code = inf_code if a == u32(0x7F800000) else code
        code = nan_code if is_nan else code
        mask = nan_mask if is_nan else sign_mask
        code = u32(code | u32(u32(b >> (sign_shift & u32(31))) & mask))
        out[i] = u32(code << (padding & u32(31)))
    return largest


@nb.njit(nogil=True, cache=True)
def power_of_two_f32(bits: Any, out: Any, over_code: Any, nan_code: Any, below_code: Any) -> Any:
    """float32 patterns to E8M0, nearest, ties to the even code; `below_code` for zeros and negative values."""
    wide_vectors()
    largest = u32(0)
    for i in range(bits.size):
        b = bits[i]
        a = u32(b & u32(0x7FFFFFFF))
        largest = max(largest, a)
        # float32's subnormals from 2^-127 on are code 0's binade: stretch them to a full one, flush the rest to it
        stretched = u32(max(u32(a << u32(1)), u32(0x800000)) - u32(0x800000))
        s = stretched if a < u32(0x800000) else a
        code = u32(u32(s + u32(0x3FFFFF) + u32(u32(s >> u32(23)) & u32(1))) >> u32(23))
        code = over_code if code > u32(0xFE) else code
        code = below_code if (b != a) | (a == u32(0)) else code
        out[i] = nan_code if a > u32(0x7F800000) else code
    return largest


@nb.njit(nogil=True, cache=True)
def integers_f32(x: Any, out: Any, low: Any, high: Any, scale: Any, code_mask: Any, nan_code: Any) -> Any:
    """float32 to integer codes, nearest even, clamped: adding 1.5 * 2^23 leaves the rounded integer in the low bits."""
    wide_vectors()
    magic = f32(12582912.0)
    nan_seen = u32(0)
    for i in range(x.size):
        v = x[i]
        c = f32(min(max(v, low), high) * scale)
        code = u32(f32(c + magic).view(np.uint32) & code_mask)
        is_nan = v != v
        nan_seen |= u32(is_nan)
        out[i] = nan_code if is_nan else code
    return nan_seen


@nb.njit(nogil=True, cache=True)
def integers_f64(x: Any, out: Any, low: Any, high: Any, scale: Any, code_mask: Any, nan_code: Any) -> Any:
    """As `integers_f32` from float64."""
    wide_vectors()
    magic = f64(6755399441055744.0)
    nan_seen = u64(0)
    for i in range(x.size):
        v = x[i]
        c = f64(min(max(v, low), high) * scale)
        code = u64(f64(c + magic).view(np.uint64) & code_mask)
        is_nan = v != v
        nan_seen |= u64(is_nan)
        out[i] = nan_code if is_nan else code
    return nan_seen


@nb.njit(nogil=True, cache=True)
def codebook16(x: Any, out: Any, thresholds: Any, nan_code: Any) -> Any:
    """Values to the index in a table of 16: how many of the 15 thresholds lie at or below."""
    wide_vectors()
    t0, t1, t2, t3, t4 = thresholds[0], thresholds[1], thresholds[2], thresholds[3], thresholds[4]
    t5, t6, t7, t8, t9 = thresholds[5], thresholds[6], thresholds[7], thresholds[8], thresholds[9]
    ta, tb, tc, td, te = thresholds[10], thresholds[11], thresholds[12], thresholds[13], thresholds[14]
    nan_seen = u32(0)
    for i in range(x.size):
        v = x[i]
        code = u32(u32(v >= t0) + u32(v >= t1) + u32(v >= t2) + u32(v >= t3) + u32(v >= t4))
        code = u32(code + u32(v >= t5) + u32(v >= t6) + u32(v >= t7) + u32(v >= t8) + u32(v >= t9))
        code = u32(code + u32(v >= ta) + u32(v >= tb) + u32(v >= tc) + u32(v >= td) + u32(v >= te))
        is_nan = v != v
        nan_seen |= u32(is_nan)
        out[i] = nan_code if is_nan else code
    return nan_seen


@nb.njit(nogil=True, cache=True)
def _rounds_up(
    mode: Any, low_is_odd: Any, negative: Any, against_half: Any, fraction: Any, random: Any, random_bits: Any
) -> Any:
    """Whether a magnitude between two grid points goes to the upper one. Modes are indices of ROUNDINGS.

    `against_half` is -1, 0 or 1: how the discarded part compares with half an ulp. `fraction` is that part in units
    of 2^-random_bits, rounded down.
    """
    if mode == 0:
        return against_half > 0 or (against_half == 0 and low_is_odd)
    if mode == 1:
        return against_half >= 0
    if mode == 2:
        return False
    if mode == 3:
        return not negative
    if mode == 4:
        return negative
    if mode == 5:
        return not low_is_odd
    return fraction + random >= u64(1) << random_bits


@nb.njit(nogil=True, cache=True)
def general_float(
    x: Any,
    random: Any,
    random_bits: Any,
    out: Any,
    mode: Any,
    mantissa_bits: Any,
    min_exponent: Any,
    has_zero: Any,
    max_magnitude: Any,
    sign_mask: Any,
    padding: Any,
    special: Any,
) -> Any:
    """float32 or float64 values to any float format in any rounding mode, in integer arithmetic."""
    flags = 0
    m = np.int64(mantissa_bits)
    n_random = u64(random_bits)
    min_field = np.int64(min_exponent) + np.int64(1023)
    hidden = np.int64(0) if has_zero else np.int64(1) << m
    for i in range(x.size):
        b = u64(f64(x[i]).view(np.uint64))
        a = u64(b & u64(0x7FFFFFFFFFFFFFFF))
        negative = b != a
        if a >= u64(0x7FF0000000000000):
            if a == u64(0x7FF0000000000000):
                flags |= BELOW_SEEN if negative and sign_mask == 0 else OVER_SEEN
                out[i] = special[S_INF_NEG] if negative else special[S_INF_POS]
            else:
                flags |= NAN_SEEN
                out[i] = special[S_NAN_NEG] if negative else special[S_NAN_POS]
            continue
        field = np.int64(a >> u64(52))
        significand = u64(a & u64(0xFFFFFFFFFFFFF))
        if field > 0:
            significand |= u64(0x10000000000000)
        else:
            field = np.int64(1)
        above = field - min_field
        # At 63 discarded bits a 53-bit significand is below any fraction that a mode or 10 random bits can see;
        # with more random bits the fraction is taken from the true distance below.
        distance = np.int64(52) - m + max(-above, np.int64(0))
        shift = u64(min(distance, np.int64(63)))
        low = np.int64(significand >> shift) + (max(above, np.int64(0)) << m) - hidden
        rest = u64(significand & u64((u64(1) << shift) - u64(1)))
        position = low
        if rest != u64(0):
            half = u64(u64(1) << u64(shift - u64(1)))
            against_half = 1 if rest > half else (0 if rest == half else -1)
            fraction = u64(0)
            random_i = u64(0)
            if mode == 6:
                drop = distance - np.int64(n_random)
                fraction = u64(rest >> u64(min(drop, np.int64(63)))) if drop >= 0 else u64(rest << u64(-drop))
                random_i = u64(random[i])
            up = _rounds_up(mode, (low & 1) == 1, negative, against_half, fraction, random_i, n_random)
            if low < 0:  # under the smallest value of a format without zero there is no second neighbour
                up = up or mode <= 1 or mode >= 5
            position = low + 1 if up else low
        if position > max_magnitude:
            flags |= OVER_SEEN
            out[i] = special[S_OVER_NEG] if negative else special[S_OVER_POS]
        elif position == 0 and has_zero:
            out[i] = special[S_ZERO_NEG] if negative else special[S_ZERO_POS]
        elif position < 0 or (negative and sign_mask == 0):
            flags |= BELOW_SEEN
            out[i] = special[S_BELOW]
        else:
            out[i] = (position | (sign_mask if negative else 0)) << padding
    return flags


@nb.njit(nogil=True, cache=True)
def general_integer(
    x: Any,
    random: Any,
    random_bits: Any,
    out: Any,
    mode: Any,
    scale: Any,
    low_limit: Any,
    high_limit: Any,
    code_mask: Any,
    special: Any,
) -> Any:
    """float32 or float64 values to integer codes in any rounding mode."""
    flags = 0
    units = f64(2.0) ** f64(random_bits)
    n_random = u64(random_bits)
    for i in range(x.size):
        v = f64(x[i])
        if v != v:
            flags |= NAN_SEEN
            out[i] = special[S_NAN_POS]
            continue
        negative = v < 0.0
        magnitude = min(abs(v) * scale, f64(4503599627370496.0))  # 2^52: far beyond every format, and still exact
        floor = np.floor(magnitude)
        rest = magnitude - floor
        position = np.int64(floor)
        if rest > 0.0:
            against_half = 1 if rest > 0.5 else (0 if rest == 0.5 else -1)
            fraction = u64(0)
            random_i = u64(0)
            if mode == 6:
                fraction = u64(np.floor(rest * units))
                random_i = u64(random[i])
            if _rounds_up(mode, (position & 1) == 1, negative, against_half, fraction, random_i, n_random):
                position += 1
        signed = -position if negative else position
        if signed > high_limit:
            flags |= OVER_SEEN
            out[i] = special[S_OVER_POS]
        elif signed < low_limit:
            flags |= OVER_SEEN
            out[i] = special[S_OVER_NEG]
        else:
            out[i] = signed & code_mask
    return flags


@nb.njit(nogil=True, cache=True)
def general_codebook(
    x: Any, random: Any, random_bits: Any, out: Any, mode: Any, table: Any, thresholds: Any, special: Any
) -> Any:
    """float32 or float64 values to codebook indices: by thresholds, or stochastic with float64 probabilities."""
    flags = 0
    units = f64(2.0) ** f64(random_bits)
    last = table.size - 1
    for i in range(x.size):
        v = f64(x[i])
        if v != v:
            flags |= NAN_SEEN
            out[i] = special[S_NAN_POS]
        elif v > table[last]:
            flags |= OVER_SEEN
            out[i] = special[S_OVER_POS]
        elif v < table[0]:
            flags |= OVER_SEEN
            out[i] = special[S_OVER_NEG]
        elif mode == 6:
            high = np.searchsorted(table, v)
            if table[high] == v:
                out[i] = high
            else:
                fraction = np.floor((v - table[high - 1]) / (table[high] - table[high - 1]) * units)
                out[i] = high if fraction + f64(random[i]) >= units else high - 1
        else:
            out[i] = np.searchsorted(thresholds, v, side="right")
    return flags
