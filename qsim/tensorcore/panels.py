"""Codes to the values and exponents that `simd.run_panel` reads: rows of A, panels of B; largest exponents of rows."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import overload

from .decode import INF


def _value(code: Any, keep: Any, table: Any) -> Any:
    """The value of a code, 0 for Inf and NaN.

    `table`: values; for 32-bit words powers of two by exponent field; of BF16, a table of no entries and two axes.
    """
    raise NotImplementedError("compiled code only")


def _exponent(code: Any, keep: Any, table: Any, mark: Any) -> Any:
    """The exponent of a code, `mark` for zeros, Inf and NaN."""
    raise NotImplementedError("compiled code only")


@overload(_value)
def _value_overload(code: Any, keep: Any, table: Any) -> Any:
    def short(code: Any, keep: Any, table: Any) -> Any:
        return table[code & keep]

    def words(code: Any, keep: Any, table: Any) -> Any:
        word = np.int64(code) & np.int64(keep)
        field = (word >> 23) & 255
        significand: Any = (word & 0x7FFFFF) + (0x800000 if field else 0)
        if field == 255:
            significand = 0
        value = np.float64(significand) * table[field]
        return -value if word >> 31 else value

    def bf16(code: Any, keep: Any, table: Any) -> Any:  # without a table of 512 KiB, and vectorised
        word = np.uint32(np.uint32(code) << np.uint32(16))
        finite = np.uint32((word & np.uint32(0x7F800000)) != np.uint32(0x7F800000))
        return np.float64(np.uint32(word * finite).view(np.float32))

    if table.ndim == 2:
        return bf16
    return words if code.bitwidth == 32 else short


@overload(_exponent)
def _exponent_overload(code: Any, keep: Any, table: Any, mark: Any) -> Any:
    def short(code: Any, keep: Any, table: Any, mark: Any) -> Any:
        return table[code & keep]

    def words(code: Any, keep: Any, table: Any, mark: Any) -> Any:
        word = np.int64(code) & np.int64(keep)
        field = (word >> 23) & 255
        return mark if field == 255 or word & 0x7FFFFFFF == 0 else table[field]

    def bf16(code: Any, keep: Any, table: Any, mark: Any) -> Any:
        size = np.int16(code & np.uint16(0x7FFF))
        e = np.int16(np.int16(max(np.int16(size >> np.int16(7)), np.int16(1))) - np.int16(127))
        return np.int16(mark) if size == 0 or size >= 0x7F80 else e

    if table.ndim == 2:
        return bf16
    return words if code.bitwidth == 32 else short


@numba.njit(cache=True, nogil=True)
def row_tops(
    codes: np.ndarray, significands: np.ndarray, exponents: np.ndarray, keep: Any, scale: np.ndarray, block: Any
) -> np.ndarray:
    """Largest exponent of every row, int64; INF or more when the row holds an Inf or NaN."""
    rows, k = codes.shape
    tops = np.empty(rows, np.int64)
    for i in range(rows):
        top: Any = np.int64(-1000)
        for kk in range(k):
            code = np.int64(codes[i, kk]) & np.int64(keep)
            if codes.itemsize < 4:
                e: Any = exponents[code]
            else:
                field = (code >> 23) & 255
                e = exponents[field] if field < 255 else INF
            if scale.shape[0]:
                e += scale[i, kk // block]
            top = max(top, np.int64(e))
        tops[i] = top
    return tops


@numba.njit(cache=True, nogil=True)
def row_peaks(codes: np.ndarray, mask: Any) -> np.ndarray:
    """The largest code of every row under a mask, in the codes' type."""
    peaks = np.empty(len(codes), codes.dtype)
    for i in range(len(codes)):
        row, peak = codes[i], codes.dtype.type(0)
        for k in range(len(row)):
            peak = max(peak, codes.dtype.type(row[k] & mask))
        peaks[i] = peak
    return peaks


@numba.njit(cache=True, nogil=True)
def pack_a(
    codes: np.ndarray,
    scale: np.ndarray,
    k_index: np.ndarray,
    block: Any,
    values: np.ndarray,
    exponents: np.ndarray,
    keep: Any,
    mark: Any,
    value_out: np.ndarray,
    exponent_out: np.ndarray,
) -> None:
    """Rows of A in the order of k_index: (rows, K) flat."""
    at = 0
    plain = scale.shape[0] == 0 and _is_ascending(k_index)
    for i in range(codes.shape[0]):
        if plain:  # the usual case, without branches, so that it is vectorised
            row = codes[i, k_index[0] : k_index[0] + len(k_index)]
            for n in range(len(row)):
                value_out[at + n] = _value(row[n], keep, values)
            for n in range(len(row)):
                exponent_out[at + n] = _exponent(row[n], keep, exponents, mark)
            at += len(row)
            continue
        for n in range(len(k_index)):
            k = k_index[n]
            if k < 0:
                value_out[at] = 0
                exponent_out[at] = mark
            else:
                code = codes[i, k]
                value_out[at] = _value(code, keep, values)
                exponent_out[at] = _exponent(code, keep, exponents, mark)
                if scale.shape[0]:
                    _apply_scale(value_out, exponent_out, at, scale[i, k // block], mark)
            at += 1


@numba.njit(cache=True, nogil=True)
def _is_ascending(k_index: np.ndarray) -> Any:
    """Whether k_index is k, k + 1, k + 2, ... without padding."""
    for n in range(len(k_index)):
        if k_index[n] != k_index[0] + n:
            return False
    return k_index[0] >= 0


@numba.njit(cache=True, nogil=True)
def _apply_scale(value: np.ndarray, exponent: np.ndarray, at: Any, scale: Any, mark: Any) -> None:
    if exponent[at] != mark and scale < INF:
        value[at] *= 2.0**scale
        exponent[at] += scale


@numba.njit(cache=True, nogil=True)
def pack_b(
    codes: np.ndarray,
    scale: np.ndarray,
    first: Any,
    k_index: np.ndarray,
    block: Any,
    values: np.ndarray,
    exponents: np.ndarray,
    keep: Any,
    mark: Any,
    columns: Any,
    value_out: np.ndarray,
    exponent_out: np.ndarray,
) -> None:
    """A panel of B, `columns` rows of codes from `first`: (K, 2, columns) positive and negative parts, flat."""
    here = min(columns, codes.shape[0] - first)
    plain = scale.shape[0] == 0 and here == columns and _is_ascending(k_index)
    turned = np.empty((len(k_index), columns), codes.dtype)
    if plain:  # columns of the panel first: rows of B are often a power of two apart, and would evict one another
        for j in range(columns):
            codes_j = codes[first + j, k_index[0] : k_index[0] + len(k_index)]
            for n in range(len(codes_j)):
                turned[n, j] = codes_j[n]
    for n in range(len(k_index)):
        k = k_index[n]
        row = n * 2 * columns
        if plain:  # the usual case, without branches, so that it is vectorised
            column = turned[n]
            for j in range(columns):
                value = _value(column[j], keep, values)
                value_out[row + j] = max(value, value - value)
                value_out[row + columns + j] = min(value, value - value)
            for j in range(columns):
                exponent_out[n * columns + j] = _exponent(column[j], keep, exponents, mark)
            continue
        for j in range(columns):
            if k < 0 or j >= here:
                value_out[row + j] = 0
                value_out[row + columns + j] = 0
                # columns beyond B have an ordinary exponent, so that nobody takes care of their zeros
                exponent_out[n * columns + j] = mark if j < here else 0
                continue
            code = codes[first + j, k]
            value = _value(code, keep, values)
            at = n * columns + j
            exponent_out[at] = _exponent(code, keep, exponents, mark)
            value_out[row + j] = value
            if scale.shape[0]:
                # through the place of the positive part, which is written again below
                _apply_scale_b(value_out, row + j, exponent_out, at, scale[first + j, k // block], mark)
                value = value_out[row + j]
            value_out[row + j] = max(value, value - value)
            value_out[row + columns + j] = min(value, value - value)


@numba.njit(cache=True, nogil=True)
def _apply_scale_b(value: np.ndarray, at_value: Any, exponent: np.ndarray, at: Any, scale: Any, mark: Any) -> None:
    if exponent[at] != mark and scale < INF:
        value[at_value] *= 2.0**scale
        exponent[at] += scale
