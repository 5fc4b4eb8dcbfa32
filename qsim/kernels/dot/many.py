"""The product with many tokens by VNNI and BF16 dot products. Compile nothing here unless `features` offers the path.

A slice of columns of a tile is expanded to bytes or BF16 (exactly) into the first level of cache, unless it is bytes
already, and all tokens pass over it. Shapes as in `stream.loops`; xw (M', W) activations, records `bytes` (four int8
in a word) or `bf16` (two), M' even and at least 4. They lie slice by slice, first the columns of the first slice of
every token: rows as far apart as a power of two would share the few lines of a cache's set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from qsim._native.memory import aligned_float32, aligned_int32
from qsim._native.vectors import prefetch_lines

from ..epilogue import finish
from ..portable import ir as portable
from ..stored import stored_of
from ..stream.prepare import chunk_sums, narrow
from ..weights import bf16_factors, tile_factors
from . import ir

F32, I32 = np.float32, np.int32


@njit(cache=True)
def slice_end(k0: Any, step: Any, span: Any) -> Any:
    """Where the slice that begins at column k0 ends: `step` columns further, or where its span of columns does."""
    return min(k0 + step, (k0 // span + 1) * span)


@njit(cache=True, parallel=True, boundscheck=False)
def pack(x: Any, span: Any, step: Any, out: Any, xsum: Any) -> None:
    """int8, or float32 numbers that are BF16, (M, K) to `out` (M', K') int8 or uint16, the rest 0, and their sums."""
    flat, (rows, padded) = out.reshape(-1), out.shape
    for row in prange(rows):
        m = np.int64(row)
        k = x.shape[1] if m < x.shape[0] else 0
        k0 = 0
        while k0 < padded:
            k1 = slice_end(k0, step, span)
            start, inside = rows * k0 + m * (k1 - k0), max(min(k1, k) - k0, 0)
            to = flat[start : start + k1 - k0]  # indices from 0 are known not to be negative: the loops vectorise
            if inside:
                row = x[m, k0 : k0 + inside]
                for at in range(row.shape[0]):
                    to[at] = narrow(row[at])
            for at in range(inside, k1 - k0):
                to[at] = 0
            k0 = k1
        if k:
            chunk_sums(x, m, span, step, padded, xsum)


# The rest depends on what the words of xw hold. Each function exists in compiled code only and is chosen by its type.


def _of_bytes(xw: Any) -> bool:
    return "bytes" in xw.dtype.fields


def _columns_per_word(xw: Any) -> Any:
    """4 bytes or 2 BF16."""
    raise NotImplementedError


@overload(_columns_per_word, strict=False)
def _columns_per_word_by_type(xw: Any) -> Any:
    return (lambda xw: 4) if _of_bytes(xw) else (lambda xw: 2)


def _factors(w: Any, tile: Any, folded: Any, xw: Any, by: Any, less: Any, scale: Any, shift: Any) -> None:
    """by, less, scale and shift of a tile, see `bf16_factors`."""
    raise NotImplementedError


@overload(_factors, strict=False)
def _factors_by_type(w: Any, tile: Any, folded: Any, xw: Any, by: Any, less: Any, scale: Any, shift: Any) -> Any:
    def for_bytes(w, tile, folded, xw, by, less, scale, shift):  # type: ignore[no-untyped-def]
        tile_factors(w, tile, scale, shift)

    def for_bf16(w, tile, folded, xw, by, less, scale, shift):  # type: ignore[no-untyped-def]
        bf16_factors(w, tile, folded, by, less, scale, shift)

    return for_bytes if _of_bytes(xw) else for_bf16


def _expanded(words: Any, tile: Any, k0: Any, k1: Any, group: Any, xw: Any, by: Any, less: Any, b: Any) -> Any:
    """Columns k0 .. k1 - 1 of a tile as `ir` multiplies them: in b, or where they are."""
    raise NotImplementedError


@overload(_expanded, strict=False)
def _expanded_by_type(words: Any, tile: Any, k0: Any, k1: Any, group: Any, xw: Any, by: Any, less: Any, b: Any) -> Any:
    def as_they_are(words, tile, k0, k1, group, xw, by, less, b):  # type: ignore[no-untyped-def]
        return words[tile, k0 // 4 : k1 // 4]

    def to_bytes(words, tile, k0, k1, group, xw, by, less, b):  # type: ignore[no-untyped-def]
        step = portable.columns_per_step(words)
        for k in range(k0, k1, step):
            ir.expand_bytes(words, tile, k // step, b, k - k0)
        return b

    def to_bf16(words, tile, k0, k1, group, xw, by, less, b):  # type: ignore[no-untyped-def]
        step = portable.columns_per_step(words)
        for k in range(k0, k1, step):
            ir.expand_bf16(words, tile, k // step, by, less, k // group, b, k - k0)
        return b

    if _of_bytes(xw):
        return as_they_are if stored_of(words).bits == 8 else to_bytes
    return to_bf16


def _multiply(b: Any, steps: Any, xw: Any, w0: Any, scale: Any, shift: Any, g: Any, xsum: Any, c: Any, xgroup: Any,
              total: Any, words: Any, ahead: Any, lines: Any) -> None:  # fmt: skip
    """All tokens times one slice, added to `total`; `lines` lines of `words` from byte `ahead` on come in meanwhile."""
    raise NotImplementedError


@overload(_multiply, strict=False)
def _multiply_by_type(b: Any, steps: Any, xw: Any, w0: Any, scale: Any, shift: Any, g: Any, xsum: Any, c: Any,
                      xgroup: Any, total: Any, words: Any, ahead: Any, lines: Any) -> Any:  # fmt: skip
    if not _of_bytes(xw):
        six, four = ir.bf16_grouped_6, ir.bf16_grouped_4
    elif total.dtype == types.int32:
        six, four = ir.bytes_product_6, ir.bytes_product_4
    else:
        six, four = ir.bytes_grouped_6, ir.bytes_grouped_4

    def multiply(b, steps, xw, w0, scale, shift, g, xsum, c, xgroup, total, words, ahead, lines):  # type: ignore[no-untyped-def]
        m, tokens = 0, xw.shape[0]
        some = (lines * 6 + tokens - 1) // tokens
        while m < tokens:
            prefetch_lines(words, ahead, min(some, lines))
            ahead += some * 64
            lines -= some
            if (tokens - m) % 6 == 0 or tokens - m > 8:  # an even number from 4 on is a sum of sixes and fours
                six(b, steps, xw, m, w0, scale, shift, g, xsum, c, xgroup, total)
                m += 6
            else:
                four(b, steps, xw, m, w0, scale, shift, g, xsum, c, xgroup, total)
                m += 4

    return multiply


@njit(cache=True, boundscheck=False)
def _dot_tiles(
    first: Any, last: Any, w: Any, xw: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, folded: Any, sums: Any,
    exact: Any, out: Any,
) -> None:  # fmt: skip
    words, group, bias = w.words, w.group, w.bias
    tokens, k, tiles = out.shape[0], portable.padded_columns(words), last - first
    groups, rows = k // group, xw.shape[0]
    by, less = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        _factors(w, first + t, folded, xw, by[t], less[t], scale[t], shift[t])
    per_word = _columns_per_word(xw)
    b = aligned_int32(step // per_word * 64).reshape(step // per_word, 64).view(np.uint32)
    per_column = words.shape[1] * 256 // k  # bytes of the 64 rows; 8, 4, 3 or 2 bits
    total = aligned_float32(tiles * rows * 64).view(sums.dtype).reshape(tiles, rows, 64)
    for t in range(tiles):
        for m in range(rows):
            for lane in range(64):
                total[t, m, lane] = 0
    c = k0 = 0
    while k0 < k:
        g = k0 // group
        k1 = slice_end(k0, step, k if folded else group)
        for t in range(tiles):
            tb, tl, ts, tz, tt = by[t], less[t], scale[t], shift[t], total[t]  # a view costs a reference count
            weights = _expanded(words, first + t, k0, k1, group, xw, tb, tl, b)
            then, at = (first + t + 1, k0) if t + 1 < tiles else (first, k1)
            ahead, lines = words.shape[1] * 256 * then + at * per_column, (k1 - k0) * per_column // 64
            _multiply(weights, (k1 - k0) // per_word, xw, k0 // per_word, ts, tz, 0 if folded else g, xsum, c, xgroup,
                      tt, words, ahead, lines)  # fmt: skip
        c += 1
        k0 = k1
    sx = np.zeros(tokens, I32)
    if exact:
        for m in range(tokens):
            for i in range(c):
                sx[m] += I32(xsum[m, i])
    for t in range(tiles):
        finish(total[t], 0, tokens, scale[t], shift[t], sx, xrow, bias, out, (first + t) * 64)


@njit(cache=True, parallel=True, boundscheck=False)
def dot_matmul(
    w: Any, xw: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, folded: Any, sums: Any, exact: Any, tiles: Any,
    out: Any,
) -> None:  # fmt: skip
    """`expand_matmul` for integers by integers or activations that are BF16.

    `folded`: scales are in the expanded weights and slices of `step` columns may cross groups.
    """
    count = w.words.shape[0]
    for task in prange((count + tiles - 1) // tiles):
        first = np.int64(task) * tiles
        last = min(first + tiles, count)
        _dot_tiles(first, last, w, xw, xsum, xgroup, xrow, step, folded, sums, exact, out)
