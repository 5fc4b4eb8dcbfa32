"""Activations in the form in which the streaming kernels read them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from qsim._native.memory import aligned_float32

from ..portable import ir as portable
from ..stored import stored_of
from . import ir

F32, U32, U64, I32 = np.float32, np.uint32, np.uint64, np.int32
BYTES, BF16 = np.dtype([("bytes", "<u4")]), np.dtype([("bf16", "<u4")])


def prepare(words: Any, x: Any, xgroup: Any, group: Any, step: Any) -> Any:
    """What a stream reads of x (M, K): xs, xsum and xgroup, rows of zeros added up to a number that it takes at a time.

    In compiled code only. By the dtype of x:

    * float32: xs float32 (M', K'), each times the factor of the field that it meets (`ir.activation_factors`);
    * int8: xs records `bytes` (M', K'/4); against 4-bit fields the columns 0, 2, 4, 6, then 1, 3, 5, 7 of every eight;
    * uint32: bits of float32 numbers that are BF16; xs records `bf16` (M', K'/2), columns j and j + 4 of every eight.

    xsum (M', chunks) float32 are sums over at most `step` columns of a group.
    """
    raise NotImplementedError


@overload(prepare, strict=False)
def _prepare(words: Any, x: Any, xgroup: Any, group: Any, step: Any) -> Any:
    if x.dtype == types.float32:
        make = _floats
    elif x.dtype == types.int8:
        make = _bytes if stored_of(words).bits == 8 else _nibble_bytes
    else:
        make = _bf16

    def impl(words: Any, x: Any, xgroup: Any, group: Any, step: Any) -> Any:
        tokens, padded = x.shape[0], portable.padded_columns(words)
        groups, rest = padded // group, tokens % 4
        rows = tokens if rest <= 1 else tokens + 4 - rest  # two or three tokens are as fast as four
        xsum = np.zeros((rows, groups * ((group + step - 1) // step)), F32)
        factors = np.empty((rows, groups), F32)
        for m in range(rows):
            for g in range(groups):
                factors[m, g] = xgroup[m, g] if m < xgroup.shape[0] else F32(1)
        return make(words, x, rows, padded, group, step, xsum), xsum, factors

    return impl


@njit(cache=True, boundscheck=False)
def _floats(words: Any, x: Any, rows: Any, padded: Any, group: Any, step: Any, xsum: Any) -> Any:
    xs = aligned_float32(rows * padded).reshape(rows, padded)
    factors, ones = np.empty((1, 32), F32), np.empty((1, 32), F32)
    for i in range(32):
        ones[0, i] = F32(1)
    ir.prepare_run(words, ones, 0, 0, 1, factors)
    tokens, k = x.shape
    for m in range(tokens):
        c = 0
        for g in range(padded // group):
            start = g * group
            while start < (g + 1) * group:
                end = min(start + step, (g + 1) * group)
                inside = max(min(end, k), start)
                runs = (inside - start) // 32 if start % 32 == 0 else 0
                total = ir.prepare_run(words, x, m, start, runs, xs)
                for at in range(start + 32 * runs, inside):
                    xs[m, at] = x[m, at] * factors[0, at % 32]
                    total += x[m, at]
                for at in range(inside, end):
                    xs[m, at] = F32(0)
                xsum[m, c] = total
                c += 1
                start = end
    for m in range(tokens, rows):
        for at in range(padded):
            xs[m, at] = F32(0)
    return xs


def sum_columns(x: Any, m: Any, start: Any, end: Any) -> Any:
    """Sum of x[m, start:end] as float32; in compiled code only."""
    raise NotImplementedError


@overload(sum_columns, strict=False)
def _sum_by_type(x: Any, m: Any, start: Any, end: Any) -> Any:
    if x.dtype == types.int8:
        return lambda x, m, start, end: _sum_integers(x, m, start, end)
    return lambda x, m, start, end: _sum_floats(x, m, start, end)


@njit(cache=True, boundscheck=False)
def _sum_integers(x: Any, m: Any, start: Any, end: Any) -> Any:
    part, total = x[m, start:end], I32(0)  # an index that starts at 0 is known not to be negative: the loop vectorises
    for at in range(part.shape[0]):
        total += I32(part[at])
    return F32(total)


@njit(cache=True, boundscheck=False)
def _sum_floats(x: Any, m: Any, start: Any, end: Any) -> Any:
    part, at = np.zeros(16, F32), start  # sixteen sums: faster, and closer to the exact one
    while at + 16 <= end:
        for lane in range(16):
            part[lane] += x[m, at + lane]
        at += 16
    total = F32(0)
    for lane in range(16):
        total += part[lane]
    while at < end:
        total += x[m, at]
        at += 1
    return total


def narrow(value: Any) -> Any:
    """An int8 as it is, a float32 that is a BF16 number as its upper bits; in compiled code only."""
    raise NotImplementedError


@overload(narrow, strict=False)
def _narrow_by_type(value: Any) -> Any:
    if value == types.int8:
        return lambda value: value
    return lambda value: np.uint16(np.float32(value).view(np.uint32) >> U32(16))


@njit(cache=True, boundscheck=False)
def chunk_sums(x: Any, m: Any, group: Any, step: Any, padded: Any, xsum: Any) -> None:
    """xsum[m, c] = sum of x[m] over chunk c: at most `step` columns of a group."""
    c = 0
    for g in range(padded // group):
        start = g * group
        while start < (g + 1) * group:
            end = min(min(start + step, (g + 1) * group), x.shape[1])
            xsum[m, c] = sum_columns(x, m, start, end)
            c += 1
            start += step


@njit(cache=True, boundscheck=False)
def _bytes(words: Any, x: Any, rows: Any, padded: Any, group: Any, step: Any, xsum: Any) -> Any:
    out = aligned_float32(rows * padded // 4).view(np.int8).reshape(rows, padded)
    tokens, k = x.shape
    for m in range(rows):
        inside = k if m < tokens else 0
        for at in range(inside):
            out[m, at] = x[m, at]
        for at in range(inside, padded):
            out[m, at] = 0
        if m < tokens:
            chunk_sums(x, m, group, step, padded, xsum)
    return out.view(BYTES)


@njit(cache=True, boundscheck=False)
def _nibble_bytes(words: Any, x: Any, rows: Any, padded: Any, group: Any, step: Any, xsum: Any) -> Any:
    out = _bytes(words, x, rows, padded, group, step, xsum)
    eights = out.view(np.uint64)
    for m in range(rows):
        for i in range(padded // 8):
            even, odd = eights[m, i], eights[m, i] >> U64(8)
            eights[m, i] = _every_other(even) | (_every_other(odd) << U64(32))
    return out


@njit(cache=True)
def _every_other(eight: Any) -> Any:
    """Bytes 0, 2, 4 and 6 moved together."""
    four = eight & U64(0x00FF00FF00FF00FF)
    four = (four | (four >> U64(8))) & U64(0x0000FFFF0000FFFF)
    return (four | (four >> U64(16))) & U64(0xFFFFFFFF)


@njit(cache=True, boundscheck=False)
def _bf16(words: Any, x: Any, rows: Any, padded: Any, group: Any, step: Any, xsum: Any) -> Any:
    out = aligned_float32(rows * padded // 2).view(np.uint32).reshape(rows, padded // 2)
    tokens, k = x.shape
    for m in range(rows):
        whole = k // 8 if m < tokens else 0
        for i in range(whole):
            for j in range(4):
                out[m, 4 * i + j] = (x[m, 8 * i + j] >> U32(16)) | (x[m, 8 * i + 4 + j] & U32(0xFFFF0000))
        for at in range(4 * whole, padded // 2):
            out[m, at] = U32(0)
        if m < tokens:
            for at in range(8 * whole, k):
                j, high = at % 4, at % 8 // 4
                bits = x[m, at] >> U32(16)
                out[m, 4 * whole + j] |= bits << U32(16 * high)
            chunk_sums(x.view(np.float32), m, group, step, padded, xsum)
    return out.view(BF16)
