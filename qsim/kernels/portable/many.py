"""The portable product with many tokens: weights are expanded to float32 once for all of them.

Shapes as in `stream.loops`; x (M, padded K) float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from qsim._native.memory import aligned_float32
from qsim._native.parallel import on_threads
from qsim._native.vectors import take_next

from ..epilogue import finish
from ..weights import tile_factors
from . import ir

F32, I32 = np.float32, np.int32


# Two functions that exist in compiled code only: what they do depends on the dtype of `sums`, as in `stream.loops`.


def _totals(acc: Any, sums: Any) -> Any:
    """Where the sums of all slices are kept: in the float32 sums of a slice themselves, or in int32 beside them."""
    raise NotImplementedError


@overload(_totals, strict=False)
def _totals_by_type(acc: Any, sums: Any) -> Any:
    if sums.dtype == types.int32:
        return lambda acc, sums: np.zeros(acc.shape, np.int32)
    return lambda acc, sums: acc


def _add(acc: Any, total: Any) -> None:
    """Exact sums of a slice, float32 (M, 64), to their int32 totals."""
    raise NotImplementedError


@overload(_add, strict=False)
def _add_by_type(acc: Any, total: Any) -> Any:
    def add(acc, total):  # type: ignore[no-untyped-def]
        for m in range(acc.shape[0]):
            for lane in range(64):
                total[m, lane] += I32(acc[m, lane])
                acc[m, lane] = F32(0)

    return add if total.dtype == types.int32 else (lambda acc, total: None)


@njit(cache=True, boundscheck=False, inline="always")
def _expand_tiles(
    first: Any, last: Any, w: Any, x: Any, xrow: Any, depth: Any, sums: Any, exact: Any, out: Any,
) -> None:  # fmt: skip
    """Tiles first .. last - 1 for all tokens: a slice of columns of x stays in L2 while the tiles pass over it."""
    rows, k = x.shape
    words, group, bias = w.words, w.group, w.bias
    groups, tiles, step = k // group, last - first, ir.columns_per_step(words)
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        tile_factors(w, first + t, scale[t], shift[t])
    factor = scale
    if exact:
        factor = np.empty((tiles, groups, 64), F32)
        factor[:] = F32(1)
    acc = aligned_float32(tiles * rows * 64).reshape(tiles, rows, 64)
    acc[:] = F32(0)
    total = _totals(acc, sums)
    wide = aligned_float32(depth * 64).reshape(depth, 64)
    for k0 in range(0, k, depth):
        k1 = min(k0 + depth, k)
        for t in range(tiles):
            here, by, less = acc[t], factor[t], shift[t]  # a view costs a reference count: not in the loops below
            for r in range(0, k1 - k0, step):
                ir.expand(words, first + t, (k0 + r) // step, by, less, (k0 + r) // group, wide, r)
            m = 0
            while m < rows:
                if (rows - m) % 6 == 0 or rows - m > 8:  # an even number from 4 on is a sum of sixes and fours
                    ir.product_6(wide, k1 - k0, x, m, k0, here)
                    m += 6
                else:
                    ir.product_4(wide, k1 - k0, x, m, k0, here)
                    m += 4
            _add(here, total[t])
    nothing = np.zeros(rows, I32)  # zero points are in the expanded weights
    for t in range(tiles):
        finish(total[t], 0, out.shape[0], scale[t], shift[t], nothing, xrow, bias, out, (first + t) * 64)


@njit(cache=True, boundscheck=False)
def expand_matmul(
    thread: Any, threads: Any, counter: Any, w: Any, x: Any, xrow: Any, depth: Any, sums: Any, exact: Any, tiles: Any,
    out: Any,
) -> None:  # fmt: skip
    """out[m, n] = xrow[m] * sum_k w[n, k] * x[m, k] + bias[n] for many tokens, `tiles` tiles to a task.

    x (M', padded K), M' even and at least 4. `exact`, with int32 `sums`: x and q - zero are integers, exact in float32
    over `depth` columns and added in int32.
    """
    if on_threads(threads):
        return
    count = w.words.shape[0]
    first = take_next(counter, 0) * tiles
    while first < count:
        _expand_tiles(first, min(first + tiles, count), w, x, xrow, depth, sums, exact, out)
        first = take_next(counter, 0) * tiles
