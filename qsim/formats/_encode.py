"""Compiled loops from values to codes. `codec` chooses among them; arguments are checked there.

Every loop is free of branches that depend on the data, so that LLVM turns it into vector code. Three things matter
for that and look odd: Numba widens uint32 arithmetic to 64 bits, so each result is cast back at once; a shift count
is masked, so that LLVM knows it is below the word size and keeps 32-bit lanes; `wide_vectors()` asks for 512-bit
registers, which LLVM avoids by default on Intel servers (1.4x here).

Each loop returns the largest |x| pattern it saw, or whether there was a NaN. What these cannot do, `_encode_general`
does.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from qsim._native.vectors import prefetch, wide_vectors

u32, u64, f32, f64 = np.uint32, np.uint64, np.float32, np.float64


@nb.njit(nogil=True, cache=True)
def _narrow_f32(
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
def _lean_f32(bits: Any, out: Any, shift: Any, min_bits: Any, cap: Any, sign_shift: Any, sign_mask: Any) -> Any:
    """`_narrow_f32` for numbers that clamp: without its eight operations for overflow, NaN and unsigned zeros."""
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
        out[i] = code | u32(u32(b >> (sign_shift & u32(31))) & sign_mask)
    return largest


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
    lean: Any,
) -> Any:
    """`_narrow_f32` in pieces, by `_lean_f32` where `lean` allows it and a piece turns out to hold no NaN.

    The next piece is fetched meanwhile: the arithmetic is too dense for the processor to run ahead to the next cache
    miss on its own (1.1 to 1.4 times as fast from memory, where one thread works).
    """
    largest = u32(0)
    for start in range(0, bits.size, 8192):
        for line in range(start + 16384, start + 24576, 16):
            prefetch(bits, line)
        stop = min(start + 8192, bits.size)
        x, codes = bits[start:stop], out[start:stop]
        if lean:
            found = _lean_f32(x, codes, shift, min_bits, cap, sign_shift, sign_mask)
            if found <= u32(0x7F800000):
                largest = max(largest, found)
                continue
        found = _narrow_f32(
            x, codes, shift, min_bits, cap, over_bits, over_code, nan_code,
            sign_shift, sign_mask, zero_mask, over_mask, nan_mask,
        )  # fmt: skip
        largest = max(largest, found)
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
    """float32 patterns to E8M0, nearest, ties to the larger; `below_code` for zeros and negative values."""
    wide_vectors()
    largest = u32(0)
    for i in range(bits.size):
        b = bits[i]
        a = u32(b & u32(0x7FFFFFFF))
        largest = max(largest, a)
        # float32's subnormals from 2^-127 on are code 0's binade: stretch them to a full one, flush the rest to it
        stretched = u32(max(u32(a << u32(1)), u32(0x800000)) - u32(0x800000))
        s = stretched if a < u32(0x800000) else a
        code = u32(u32(s + u32(0x400000)) >> u32(23))
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
    """Values to the index in a table of 16: the last of the 15 ascending thresholds that is not above.

    A bisection takes half the comparisons, but LLVM makes branches of it that real data mispredict.
    """
    wide_vectors()
    t0, t1, t2, t3, t4 = thresholds[0], thresholds[1], thresholds[2], thresholds[3], thresholds[4]
    t5, t6, t7, t8, t9 = thresholds[5], thresholds[6], thresholds[7], thresholds[8], thresholds[9]
    ta, tb, tc, td, te = thresholds[10], thresholds[11], thresholds[12], thresholds[13], thresholds[14]
    nan_seen = u32(0)
    for i in range(x.size):
        v = x[i]
        code = u32(0)
        code = u32(1) if v >= t0 else code
        code = u32(2) if v >= t1 else code
        code = u32(3) if v >= t2 else code
        code = u32(4) if v >= t3 else code
        code = u32(5) if v >= t4 else code
        code = u32(6) if v >= t5 else code
        code = u32(7) if v >= t6 else code
        code = u32(8) if v >= t7 else code
        code = u32(9) if v >= t8 else code
        code = u32(10) if v >= t9 else code
        code = u32(11) if v >= ta else code
        code = u32(12) if v >= tb else code
        code = u32(13) if v >= tc else code
        code = u32(14) if v >= td else code
        code = u32(15) if v >= te else code
        is_nan = v != v
        nan_seen |= u32(is_nan)
        out[i] = nan_code if is_nan else code
    return nan_seen
