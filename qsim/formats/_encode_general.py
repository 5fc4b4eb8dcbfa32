"""Compiled loops from values to codes for every format, rounding mode and policy, one element after the other.

15 to 35 times slower than the loops of `_encode` (reports/formats_speed.md), and as exact. They return whether they met
a value for which the policies have no code.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from ._encode import f64, u64

# Where the stored codes for special results stand in the array that the general loops take. BELOW is for values under
# the smallest one of a format without a sign or without a zero.
S_OVER_POS, S_OVER_NEG, S_INF_POS, S_INF_NEG, S_NAN_POS, S_NAN_NEG, S_ZERO_POS, S_ZERO_NEG, S_BELOW = range(9)


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
    refused = False
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
                code = special[S_INF_NEG] if negative else special[S_INF_POS]
            else:
                code = special[S_NAN_NEG] if negative else special[S_NAN_POS]
            refused |= code < 0
            out[i] = code
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
            code = special[S_OVER_NEG] if negative else special[S_OVER_POS]
            refused |= code < 0
            out[i] = code
        elif position == 0 and has_zero:
            out[i] = special[S_ZERO_NEG] if negative else special[S_ZERO_POS]
        elif position < 0 or (negative and sign_mask == 0):
            refused |= special[S_BELOW] < 0
            out[i] = special[S_BELOW]
        else:
            out[i] = (position | (sign_mask if negative else 0)) << padding
    return refused


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
    refused = False
    units = f64(2.0) ** f64(random_bits)
    n_random = u64(random_bits)
    for i in range(x.size):
        v = f64(x[i])
        if v != v:
            refused |= special[S_NAN_POS] < 0
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
            refused |= special[S_OVER_POS] < 0
            out[i] = special[S_OVER_POS]
        elif signed < low_limit:
            refused |= special[S_OVER_NEG] < 0
            out[i] = special[S_OVER_NEG]
        else:
            out[i] = signed & code_mask
    return refused


@nb.njit(nogil=True, cache=True)
def general_codebook(
    x: Any, random: Any, random_bits: Any, out: Any, mode: Any, table: Any, thresholds: Any, special: Any
) -> Any:
    """float32 or float64 values to codebook indices: by thresholds, or stochastic with float64 probabilities."""
    refused = False
    units = f64(2.0) ** f64(random_bits)
    last = table.size - 1
    for i in range(x.size):
        v = f64(x[i])
        if v != v:
            refused |= special[S_NAN_POS] < 0
            out[i] = special[S_NAN_POS]
        elif v > table[last]:
            refused |= special[S_OVER_POS] < 0
            out[i] = special[S_OVER_POS]
        elif v < table[0]:
            refused |= special[S_OVER_NEG] < 0
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
    return refused
