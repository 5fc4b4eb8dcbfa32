"""Compiled loops from codes to values. `codec` chooses among them.

No tables: a gather is two to four times slower than putting the bits in place. No arithmetic on subnormal numbers
either: it is slow on some processors and wrong when a library has switched them off, so a subnormal code is first
read as a normal number of the same binade, from which the leading 1 is then subtracted.

Each loop returns the OR of all codes, from which the caller sees codes that are too wide.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from qsim._native.vectors import wide_vectors

from ._encode import f32, f64, u32, u64


@nb.njit(nogil=True, cache=True)
def narrow_f32(
    codes: Any,
    out: Any,
    shift: Any,
    rebias: Any,
    min_normal: Any,
    hidden: Any,
    max_magnitude: Any,
    inf_magnitude: Any,
    nan_code: Any,
    sign_mask: Any,
    sign_shift: Any,
) -> Any:
    """Codes to float32 patterns for formats whose normal exponents lie inside float32's.

    hidden: the smallest normal number, 2^emin. inf_magnitude, nan_code: a value no code has where there is none.
    """
    wide_vectors()
    seen = u32(0)
    magnitude_mask = u32(~sign_mask)
    for i in range(codes.size):
        c = u32(codes[i])
        seen |= c
        magnitude = u32(c & magnitude_mask)
        is_subnormal = magnitude < min_normal
        bits = u32(u32(magnitude << (shift & u32(31))) + rebias)
        bits = u32(bits + u32(0x800000)) if is_subnormal else bits
        value = f32(u32(bits).view(np.float32)) - (hidden if is_subnormal else f32(0.0))
        word = u32(f32(value).view(np.uint32))
        word = u32(0x7FC00000) if magnitude > max_magnitude else word
        word = u32(0x7F800000) if magnitude == inf_magnitude else word
        word = u32(word | u32(u32(c & sign_mask) << (sign_shift & u32(31))))
        out[i] = u32(0x7FC00000) if c == nan_code else word
    return seen


@nb.njit(nogil=True, cache=True)
def wide_f32(codes: Any, out: Any, shift: Any) -> Any:
    """bfloat16, tf32, float32: the code is the top of the pattern."""
    wide_vectors()
    seen = u32(0)
    for i in range(codes.size):
        c = u32(codes[i])
        seen |= c
        out[i] = u32(c << (shift & u32(31)))
    return seen


@nb.njit(nogil=True, cache=True)
def power_of_two_f32(codes: Any, out: Any) -> Any:
    """E8M0: the code is the exponent field, save for 2^-127, a float32 subnormal, and NaN."""
    wide_vectors()
    seen = u32(0)
    for i in range(codes.size):
        c = u32(codes[i])
        seen |= c
        word = u32(c << u32(23))
        word = u32(0x400000) if c == u32(0) else word
        out[i] = u32(0x7FC00000) if c == u32(0xFF) else word
    return seen


@nb.njit(nogil=True, cache=True)
def general_f64(
    codes: Any,
    out: Any,
    shift: Any,
    padding: Any,
    rebias: Any,
    min_normal: Any,
    hidden: Any,
    max_magnitude: Any,
    inf_magnitude: Any,
    nan_code: Any,
    sign_mask: Any,
    sign_shift: Any,
) -> Any:
    """Codes of any float format to float64 patterns; arguments as in `narrow_f32`. min_normal 0: no subnormals."""
    wide_vectors()
    seen = u64(0)
    magnitude_mask = u64(~sign_mask)
    for i in range(codes.size):
        c = u64(codes[i])
        seen |= c
        c = u64(c >> (padding & u64(63)))
        magnitude = u64(c & magnitude_mask)
        is_subnormal = magnitude < min_normal
        bits = u64(u64(magnitude << (shift & u64(63))) + rebias)
        bits = u64(bits + u64(0x10000000000000)) if is_subnormal else bits
        value = f64(u64(bits).view(np.float64)) - (hidden if is_subnormal else f64(0.0))
        word = u64(f64(value).view(np.uint64))
        word = u64(0x7FF8000000000000) if magnitude > max_magnitude else word
        word = u64(0x7FF0000000000000) if magnitude == inf_magnitude else word
        word = u64(word | u64(u64(c & sign_mask) << (sign_shift & u64(63))))
        out[i] = u64(0x7FF8000000000000) if c == nan_code else word
    return seen


@nb.njit(nogil=True, cache=True)
def integers(codes: Any, out: Any, sign_bit: Any, scale: Any) -> Any:
    """Two's complement (sign_bit set) or unsigned codes to values; `scale` is 2^-fraction_bits in out's type."""
    wide_vectors()
    seen = u32(0)
    for i in range(codes.size):
        c = u32(codes[i])
        seen |= c
        out[i] = np.int32(np.int32(u32(c ^ sign_bit)) - np.int32(sign_bit)) * scale
    return seen


@nb.njit(nogil=True, cache=True)
def codebook(codes: Any, out: Any, table: Any) -> Any:
    """Indices to values; the index is masked, so that a code outside the table reads inside it and is reported."""
    seen = u32(0)
    mask = u32(table.size - 1)
    for i in range(codes.size):
        c = u32(codes[i])
        seen |= c
        out[i] = table[c & mask]
    return seen


@nb.njit(nogil=True, cache=True)
def codebook16(codes: Any, out: Any, table: Any) -> Any:
    """As `codebook` for 16 values, as a tree of selects: half the time of a gather."""
    wide_vectors()
    t0, t1, t2, t3, t4, t5, t6, t7 = table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]
    t8, t9, ta, tb, tc, td, te, tf = (
        table[8],
        table[9],
        table[10],
        table[11],
        table[12],
        table[13],
        table[14],
        table[15],
    )
    seen = u32(0)
    for i in range(codes.size):
        c = u32(codes[i])
        seen |= c
        m1, m2 = u32(c & u32(1)) != u32(0), u32(c & u32(2)) != u32(0)
        m4, m8 = u32(c & u32(4)) != u32(0), u32(c & u32(8)) != u32(0)
        a = (t3 if m1 else t2) if m2 else (t1 if m1 else t0)
        b = (t7 if m1 else t6) if m2 else (t5 if m1 else t4)
        d = (tb if m1 else ta) if m2 else (t9 if m1 else t8)
        e = (tf if m1 else te) if m2 else (td if m1 else tc)
        out[i] = (e if m4 else d) if m8 else (b if m4 else a)
    return seen
