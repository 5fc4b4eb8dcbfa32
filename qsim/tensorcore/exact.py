"""The truncated fused dot product one output at a time in 64-bit integers, with Inf and NaN: Numba.

It takes every parameter (any L, F, e0, rounding, block scales) and every input. `fast` takes the ones that can be
vectorised and leaves to this module the rows and columns that hold Inf or NaN.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from qsim.formats import FloatFormat

from .decode import INF, NAN, decode_row, decoder
from .model import CANONICAL_NAN, Instruction


@numba.njit(cache=True, nogil=True)
def round_bits(total: Any, unit: Any, to_nearest: Any, kept: Any, mantissa_bits: Any, min_exponent: Any) -> Any:
    """total * 2^unit to the bits of a float with `mantissa_bits`, rounded to `kept` of them; zero is +0."""
    if total == 0:
        return np.int64(0)
    negative = total < 0
    magnitude = np.int64(-total) if negative else np.int64(total)
    length = np.int64(0)
    while magnitude >> length:
        length += 1
    top = length - 1 + unit
    cut = max(top, min_exponent) - kept
    shift = unit - cut
    if shift >= 0:
        quotient = magnitude << min(shift, 62) if shift <= 62 else np.int64(0)
    elif shift <= -63:
        quotient = np.int64(0)
    else:
        quotient = magnitude >> -shift
        rest = magnitude & ((np.int64(1) << -shift) - 1)
        half = np.int64(1) << (-shift - 1)
        if to_nearest and (rest > half or (rest == half and quotient & 1)):
            quotient += 1
    if quotient == 0:
        return np.int64(0)
    length = np.int64(0)
    while quotient >> length:
        length += 1
    top = length - 1 + cut
    bias = 1 - min_exponent
    sign_bit = np.int64(31) if mantissa_bits == 23 else np.int64(15)
    sign = np.int64(1) << sign_bit if negative else np.int64(0)
    if top > bias:
        return sign | (np.int64(2 * bias + 1) << mantissa_bits)
    move = cut - (max(top, min_exponent) - mantissa_bits)
    significand = quotient << move if move >= 0 else quotient >> -move
    if top < min_exponent:
        return sign | significand
    return sign | ((top + bias) << mantissa_bits) | (significand - (np.int64(1) << mantissa_bits))


@numba.njit(cache=True, nogil=True)
def _step(
    sa: np.ndarray,
    ea: np.ndarray,
    sb: np.ndarray,
    eb: np.ndarray,
    scale: np.ndarray,
    start: Any,
    products: Any,
    group: Any,
    group_unit: Any,
    p: Any,
    big_f: Any,
    e_zero: Any,
    sc: Any,
    ec: Any,
    p_c: Any,
    term: np.ndarray,
    exponent: np.ndarray,
) -> Any:
    """One step: (sum, exponent of its unit, 0), or (0, 0, what) with what = 1 NaN, 2 +Inf, 3 -Inf."""
    plus, minus, nan = ec == INF and sc > 0, ec == INF and sc < 0, ec == NAN
    n = 0
    if group == 0:
        for i in range(start, start + products):
            e = np.int64(ea[i]) + np.int64(eb[i])
            m = np.int64(sa[i]) * np.int64(sb[i])
            if ea[i] == NAN or eb[i] == NAN:
                nan = True
            elif ea[i] == INF or eb[i] == INF:
                nan |= m == 0
                plus |= m > 0
                minus |= m < 0
            term[n] = m
            exponent[n] = e if m != 0 else e_zero
            n += 1
    else:
        for g in range(start, start + products, group):
            total = np.int64(0)
            all_zero = True
            for i in range(g, g + group):
                m = np.int64(sa[i]) * np.int64(sb[i])
                if m != 0:
                    all_zero = False
                    total += m << (np.int64(ea[i]) + np.int64(eb[i]) - group_unit)
            s, e = scale[g, 0], scale[g, 1]
            if e >= NAN:
                nan = True
            term[n] = total * s
            exponent[n] = e_zero if (all_zero or s == 0) else e
            n += 1
    if nan or (plus and minus):
        return np.int64(0), np.int64(0), np.int64(1)
    if plus or minus:
        return np.int64(0), np.int64(0), np.int64(2 if plus else 3)
    e_max = e_zero if sc == 0 else np.int64(ec)
    for i in range(n):
        e_max = max(e_max, exponent[i])
    unit = e_max - big_f
    total = np.int64(0)
    for i in range(n + 1):
        m = term[i] if i < n else np.int64(sc)
        shift = exponent[i] - p - unit if i < n else np.int64(ec) - p_c - unit
        if m == 0:
            continue
        magnitude = abs(m)
        if shift >= 0:
            magnitude <<= shift
        else:
            magnitude = magnitude >> -shift if shift > -64 else np.int64(0)
        total += magnitude if m > 0 else -magnitude
    return total, unit, np.int64(0)


@numba.njit(cache=True, nogil=True)
def chain(
    sa: np.ndarray,
    ea: np.ndarray,
    sb: np.ndarray,
    eb: np.ndarray,
    scale: np.ndarray,
    c: Any,
    parameters: np.ndarray,
    term: np.ndarray,
    exponent: np.ndarray,
) -> Any:
    """One output over a chain of steps: decoded operands and C's bits in, bits out.

    Arguments:
        sa, ea, sb, eb: (K,) significands (signed) and exponents, K a multiple of L.
        scale: (K, 2) significand and exponent of each element's block scale ("grouped" only; else empty).
        c: bits of C.
        parameters: int64, see `parameters_of`.
        term, exponent: int64 work space of L entries.
    """
    products, big_f, e_zero, group, group_unit, p = parameters[:6]
    to_nearest, kept, mantissa_bits, min_exponent, nan = parameters[6:11]
    field_mask = 2 * (1 - min_exponent) + 1
    sign_bit = np.int64(31) if mantissa_bits == 23 else np.int64(15)
    infinity = field_mask << mantissa_bits
    for start in range(0, len(sa), products):
        field = (c >> mantissa_bits) & field_mask
        mantissa = c & ((np.int64(1) << mantissa_bits) - 1)
        ec = max(field, 1) + min_exponent - 1
        sc = mantissa + (np.int64(1) << mantissa_bits if field > 0 else np.int64(0))
        if field == field_mask:
            ec = np.int64(NAN if mantissa else INF)
        if c >> sign_bit:
            sc = -sc
        total, unit, what = _step(
            sa,
            ea,
            sb,
            eb,
            scale,
            start,
            products,
            group,
            group_unit,
            p,
            big_f,
            e_zero,
            sc,
            ec,
            mantissa_bits,
            term,
            exponent,
        )
        if what == 0:
            c = round_bits(total, unit, to_nearest != 0, kept, mantissa_bits, min_exponent)
        elif what == 1:
            c = nan
        else:
            c = infinity | (np.int64(1) << sign_bit if what == 3 else np.int64(0))
    return c


def parameters_of(ins: Instruction) -> np.ndarray:
    """The numbers `chain` needs: L, F, e0, group, unit of a group's products, p, rounding, output format, NaN."""
    assert isinstance(ins.format_a, FloatFormat)
    assert isinstance(ins.format_b, FloatFormat)
    fmt, rounding = ins.output_format, ins.sum_rounding
    p = decoder(ins.format_a).fraction_bits + decoder(ins.format_b).fraction_bits
    group_unit = 0
    if ins.group:
        assert ins.block_a is not None
        assert ins.block_b is not None
        group_unit = ins.format_a.min_exponent + ins.format_b.min_exponent
        p += ins.block_a.scale.mantissa_bits + ins.block_b.scale.mantissa_bits - group_unit
    # without e0, zeros take part with an exponent below every other: then it is never the largest
    e_zero = -2000 if ins.zero_exponent is None else ins.zero_exponent
    return np.array(
        [
            ins.products,
            ins.fraction_bits,
            e_zero,
            ins.group,
            group_unit,
            p,
            int(rounding.to_nearest),
            rounding.fraction_bits,
            fmt.mantissa_bits,
            fmt.min_exponent,
            CANONICAL_NAN[ins.output],
        ],
        np.int64,
    )


@numba.njit(cache=True, nogil=True)
def redo_tile(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    tops_a: np.ndarray,
    tops_b: np.ndarray,
    limit: Any,
    c_limit: Any,
    k_index: np.ndarray,
    scale_a: np.ndarray,
    scale_b: np.ndarray,
    block: Any,
    pair_scale_a: np.ndarray,
    pair_scale_b: np.ndarray,
    decoders: tuple,
    keep_a: Any,
    keep_b: Any,
    parameters: np.ndarray,
    out: np.ndarray,
) -> Any:
    """Recompute in exact integers the outputs that the fast kernel cannot do, and return how many they are.

    Those are the ones with tops_a[i] + tops_b[j] > limit, or with C's exponent above c_limit. `c` and `out` are bits.
    """
    significand_a, exponent_a, significand_b, exponent_b = decoders
    k, products = len(k_index), parameters[0]
    mantissa_bits, min_exponent = parameters[8], parameters[9]
    field_mask = 2 * (1 - min_exponent) + 1
    sa, sb = np.empty(k, np.int32), np.empty(k, np.int32)
    ea, eb = np.empty(k, np.int16), np.empty(k, np.int16)
    grouped = parameters[3] > 0
    scale = np.empty((k if grouped else 0, 2), np.int64)
    term, exponent = np.empty(products, np.int64), np.empty(products, np.int64)
    no_scale = np.empty(0, np.int16)
    done = 0
    for i in range(a.shape[0]):
        decoded = False
        for j in range(b.shape[0]):
            c_exponent = ((c[i, j] >> mantissa_bits) & field_mask) + min_exponent - 1
            if tops_a[i] + tops_b[j] <= limit and c_exponent <= c_limit:
                continue
            if not decoded:
                decode_row(
                    a[i],
                    k_index,
                    significand_a,
                    exponent_a,
                    keep_a,
                    scale_a[i] if len(scale_a) else no_scale,
                    block,
                    sa,
                    ea,
                )
                decoded = True
            decode_row(
                b[j],
                k_index,
                significand_b,
                exponent_b,
                keep_b,
                scale_b[j] if len(scale_b) else no_scale,
                block,
                sb,
                eb,
            )
            if grouped:
                for n in range(k):
                    _pair_scale(pair_scale_a[i], pair_scale_b[j], k_index[n], block, scale[n])
            out[i, j] = chain(sa, ea, sb, eb, scale, np.int64(c[i, j]), parameters, term, exponent)
            done += 1
    return done


@numba.njit(cache=True, nogil=True)
def _pair_scale(a: np.ndarray, b: np.ndarray, k: Any, block: Any, out: np.ndarray) -> None:
    """Significand and exponent of the product of two block scales; a padding element has scale 1."""
    if k < 0:
        out[0], out[1] = 1, 0
        return
    n = k // block
    out[0] = a[n, 0] * b[n, 0]
    out[1] = NAN if (a[n, 1] == NAN or b[n, 1] == NAN) else a[n, 1] + b[n, 1]
