"""The AMX path for integers by integers.

A slice of columns of a tile is expanded to bytes, multiplied by 32 tokens at a time, and the sums of a group are scaled
and added in float32. Shapes as in `stream.loops`; xa are activations as `pack_tiles` lays them out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from qsim._native.memory import aligned_float32, aligned_int32

from ..dot import ir as dot
from ..portable import ir as portable
from ..stream.prepare import sum_columns
from ..weights import tile_factors
from . import ir

F32, I32 = np.float32, np.int32


@njit(cache=True, parallel=True, boundscheck=False)
def pack_whole_tiles(x: Any, out: Any) -> None:
    """Rows of int64, (M, K*b/64) with b bits per value, to A tiles (M/16, T, 16, 8): M of 16 and K of a tile alone."""
    for block in prange(out.shape[0]):
        for r in range(16):
            row = x[np.int64(block) * 16 + r]
            for t in range(out.shape[1]):
                for i in range(8):
                    out[block, t, r, i] = row[t * 8 + i]


@njit(cache=True, boundscheck=False)
def _pack_block(x: Any, block: Any, step: Any, sums: Any, out: Any, xsum: Any) -> None:
    width = out.shape[3]
    for r in range(16):
        m = block * 16 + r
        inside = x.shape[1] if m < x.shape[0] else 0
        row = x[min(m, x.shape[0] - 1)]
        for t in range(out.shape[1]):
            whole = min(max(inside - t * width, 0), width)
            to, values = out[block, t, r], row[t * width : t * width + whole]
            for at in range(values.shape[0]):
                to[at] = values[at]
            for at in range(whole, width):
                to[at] = 0
        if sums:
            for c in range(xsum.shape[0]):
                xsum[c, m] = sum_columns(x, min(m, x.shape[0] - 1), c * step, min((c + 1) * step, inside))


@njit(cache=True, parallel=True, boundscheck=False)
def pack_tiles(x: Any, step: Any, sums: Any, out: Any, xsum: Any) -> None:
    """Activations (M, K) to A tiles; if `sums`, xsum (C, M') float32 per `step` columns.

    int8 to (M'/16, K'/64, 16, 64).
    """
    for block in prange(out.shape[0]):
        _pack_block(x, np.int64(block), step, sums, out, xsum)


@njit(cache=True, boundscheck=False)
def _tiles(
    first: Any, last: Any, w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, integer: Any, full: Any,
    table: Any, out: Any,
) -> None:  # fmt: skip
    words, group, bias = w.words, w.group, w.bias
    tokens, n, k = out.shape[0], out.shape[1], xa.shape[1] * 64
    groups, tiles, blocks = (1 if integer else k // group), last - first, xa.shape[0] // 2
    columns = portable.columns_per_step(words)
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        tile_factors(w, first + t, scale[t], shift[t])
        shift[t] -= portable.centre(words)
    b = aligned_int32(step * 16).reshape(4, step * 4)
    kept = tiles * blocks if integer else 1
    sums = aligned_int32(kept * 2048).reshape(tiles if integer else 1, blocks if integer else 1, 2, 1024)
    total = aligned_float32(0 if integer else tiles * blocks * 2048).reshape(tiles, 0 if integer else blocks * 32, 64)
    total[:] = F32(0)
    ir.configure_tiles(table)
    for c in range((k + step - 1) // step):
        k0 = c * step
        depth = min(step, k - k0)
        g = 0 if integer else k0 // group
        for t in range(tiles):
            for r in range(0, depth, columns):
                dot.amx_bytes(words, first + t, (k0 + r) // columns, b, r)
            ts, tz, tt = scale[t], shift[t], total[t]  # a view costs a reference count: not in the loops below
            for block in range(blocks):
                a0 = (2 * block * xa.shape[1] + k0 // 64) * 1024
                for half in range(2):
                    b0 = half * 2 * step * 16
                    if integer:
                        c0 = ((t * blocks + block) * 2 + half) * 4096
                        ir.block_s8(
                            xa, a0, a0 + xa.shape[1] * 1024, b, b0, b0 + step * 16, depth // 64, sums, c0, c > 0
                        )
                        continue
                    ir.block_s8(xa, a0, a0 + xa.shape[1] * 1024, b, b0, b0 + step * 16, depth // 64, sums, 0, False)
                    for i in range(4):
                        m, column = block * 32 + (i // 2) * 16, half * 32 + (i % 2) * 16
                        if full:
                            ir.apply_int_full(sums, i * 1024, ts, tz, g, column, xsum, c, xgroup, g, m, tt, m)
                        else:
                            ir.apply_int(sums, i * 1024, ts, tz, g, column, xsum, c, xgroup, g, m, tt, m)
    ir.release_tiles()
    for t in range(tiles):
        start = (first + t) * 64
        if not integer:
            finish(total[t], start, xrow, bias, out)
            continue
        whole_shift, here_scale = np.empty(64, I32), scale[t, 0]
        for lane in range(64):
            whole_shift[lane] = I32(shift[t, 0, lane])
        for m in range(tokens):
            sx = I32(0)
            for c in range(xsum.shape[0]):
                sx += I32(xsum[c, m])
            for part in range(4):
                at = ((t * blocks + m // 32) * 2 + part // 2) * 1024
                at += ((m % 32) // 16 * 2 + part % 2) * 256 + (m % 16) * 16
                column, lane0 = start + part * 16, part * 16
                if column + 16 <= n:
                    ir.finish_row(
                        sums, at, here_scale, whole_shift, lane0, sx, xrow[m], bias, column, out, m * n + column
                    )
                else:
                    flat = sums.reshape(-1)
                    for lane in range(n - column):
                        value = F32(flat[at + lane] - whole_shift[lane0 + lane] * sx) * here_scale[lane0 + lane]
                        out[m, column + lane] = value * xrow[m] + bias[column + lane]


@njit(cache=True, boundscheck=False)
def finish(total: Any, start: Any, xrow: Any, bias: Any, out: Any) -> None:
    """Columns start .. start + 63 of `out`, as far as it has them: total * xrow + bias."""
    tokens, n = out.shape
    for m in range(tokens):
        for lane in range(min(64, n - start)):
            out[m, start + lane] = total[m, lane] * xrow[m] + bias[start + lane]


@njit(cache=True, parallel=True, boundscheck=False)
def int8_matmul(
    w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, integer: Any, full: Any, tiles: Any, table: Any,
    out: Any,
) -> None:  # fmt: skip
    """`portable_matmul` for integers by integers, xa from `pack_tiles`.

    Chunks of `step` columns divide a group; `integer` keeps int32 sums over all of K.
    """
    count = w.words.shape[0]
    for task in prange((count + tiles - 1) // tiles):
        first = np.int64(task) * tiles
        last = min(first + tiles, count)
        _tiles(first, last, w, xa, xsum, xgroup, xrow, step, integer, full, table, out)
