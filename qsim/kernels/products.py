"""The portable product with many tokens: weights are expanded to float32 once for all of them.

Shapes as in `streams`; x (M, padded K) float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from . import lanes
from .memory import aligned_float32
from .streams import finish, tile_scales, tile_zeros

F32, I32 = np.float32, np.int32


@njit(cache=True)
def tokens_at_once(rest: Any) -> Any:
    """6, 4 or 1 of the remaining tokens; 6 fill the registers, 8 and 9 are two fours rather than a six with singles."""
    return 6 if rest == 6 or rest == 7 or rest >= 10 else 4 if rest >= 4 else 1


@njit(cache=True, boundscheck=False)
def _expand_tiles(
    first: Any, last: Any, words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any,
    zero: Any, group: Any, bias: Any, x: Any, xrow: Any, depth: Any, exact: Any, out: Any,
) -> None:  # fmt: skip
    """Tiles first .. last - 1 for all tokens: a slice of columns of x stays in L2 while the tiles pass over it."""
    tokens, k = x.shape
    groups, tiles, step = k // group, last - first, lanes.columns_per_step(words)
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        tile_scales(scales, scale_kind, rows_per_scale, first + t, scale[t])
        tile_zeros(zeros, zero_bits, zero, first + t, shift[t])
    ones = np.ones((1, 64), F32)
    acc = aligned_float32(tiles * tokens * 64).reshape(tiles, tokens, 64)
    acc[:] = F32(0)
    total = np.zeros((tiles if exact else 0, tokens, 64), I32)
    w = aligned_float32(depth * 64).reshape(depth, 64)
    if not exact:
        scale *= lanes.value_factor(words)
    for k0 in range(0, k, depth):
        k1 = min(k0 + depth, k)
        for t in range(tiles):
            here, by, less = acc[t], scale[t], shift[t]  # a view costs a reference count: not in the loops below
            for r in range(0, k1 - k0, step):
                g = (k0 + r) // group
                if exact:
                    lanes.expand(words, first + t, (k0 + r) // step, ones, less, 0, w, r)
                else:
                    lanes.expand(words, first + t, (k0 + r) // step, by, less, g, w, r)
            m = 0
            while m < tokens:
                size = tokens_at_once(tokens - m)
                if size == 6:
                    lanes.product_6(w, k1 - k0, x, m, k0, here)
                elif size == 4:
                    lanes.product_4(w, k1 - k0, x, m, k0, here)
                else:
                    lanes.product_1(w, k1 - k0, x, m, k0, here)
                m += size
            if exact:
                whole = total[t]
                for m in range(tokens):
                    for lane in range(64):
                        whole[m, lane] += I32(here[m, lane])
                        here[m, lane] = F32(0)
    nothing = np.zeros(tokens, I32)  # zero points are in the expanded weights
    for t in range(tiles):
        column = (first + t) * 64
        if exact:
            finish(total[t], 0, tokens, scale[t], shift[t], nothing, xrow, F32(1), bias, out, column)
        else:
            finish(acc[t], 0, tokens, scale[t], shift[t], nothing, xrow, F32(1), bias, out, column)


@njit(cache=True, parallel=True, boundscheck=False)
def expand_matmul(
    words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any, zero: Any, group: Any,
    bias: Any, x: Any, xrow: Any, depth: Any, exact: Any, tiles: Any, out: Any,
) -> None:  # fmt: skip
    """out[m, n] = xrow[m] * sum_k w[n, k] * x[m, k] + bias[n] for many tokens, `tiles` tiles to a task.

    x (M, padded K). `exact`: x and q - zero are integers, exact in float32 over `depth` columns and added in int32.
    """
    count = words.shape[0]
    for task in prange((count + tiles - 1) // tiles):
        first = np.int64(task) * tiles
        last = min(first + tiles, count)
        _expand_tiles(first, last, words, scales, scale_kind, rows_per_scale, zeros, zero_bits, F32(zero), group, bias,
                       x, xrow, depth, exact, out)  # fmt: skip
