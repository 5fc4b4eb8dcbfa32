"""The AMX path: tile registers multiply 16 tokens by 16 output rows. Compile nothing here unless it is offered.

A slice of columns of a tile is expanded to bytes or to BF16 (exactly), multiplied by 32 tokens at a time, and the sums
of a group are scaled and added in float32. Shapes as in `stream.loops`; xa are activations in the layouts that
`pack_tiles` makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from qsim._native.memory import aligned_float32, aligned_int32

from ..dot import ir as dot
from ..portable import ir as portable
from ..stream.prepare import narrow, sum_columns
from ..weights import bf16_factors, tile_scales, tile_zeros
from . import ir

F32, I32 = np.float32, np.int32

# 64 bytes for ldtilecfg: palette 1, then 16 rows of 64 bytes for each of the eight tiles (Intel SDM, LDTILECFG)
TILE_TABLE = np.zeros(64, dtype=np.uint8)
TILE_TABLE[0] = 1
TILE_TABLE[16:32:2] = 64
TILE_TABLE[48:56] = 16


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
                to[at] = narrow(values[at])
            for at in range(whole, width):
                to[at] = 0
        if sums:
            for c in range(xsum.shape[0]):
                xsum[c, m] = sum_columns(x, min(m, x.shape[0] - 1), c * step, min((c + 1) * step, inside))


@njit(cache=True, parallel=True, boundscheck=False)
def pack_tiles(x: Any, step: Any, sums: Any, out: Any, xsum: Any) -> None:
    """Activations (M, K) to A tiles; if `sums`, xsum (C, M') float32 per `step` columns.

    int8 to (M'/16, K'/64, 16, 64), float32 numbers that are BF16 to (M'/16, K'/32, 16, 32) uint16.
    """
    for block in prange(out.shape[0]):
        _pack_block(x, np.int64(block), step, sums, out, xsum)


@njit(cache=True, boundscheck=False)
def _amx_int_tiles(
    first: Any, last: Any, w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, integer: Any, full: Any,
    table: Any, out: Any,
) -> None:  # fmt: skip
    words, group, bias = w.words, w.group, w.bias
    tokens, n, k = out.shape[0], out.shape[1], xa.shape[1] * 64
    groups, tiles, blocks = (1 if integer else k // group), last - first, xa.shape[0] // 2
    columns = portable.columns_per_step(words)
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        tile_scales(w, first + t, scale[t])
        tile_zeros(w, first + t, shift[t])
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
                            ir.apply_int_full(sums, i * 1024, ts, tz, g, column, xsum, xgroup, c, m, tt)
                        else:
                            ir.apply_int(sums, i * 1024, ts, tz, g, column, xsum, xgroup, c, m, tt)
    ir.release_tiles()
    for t in range(tiles):
        start = (first + t) * 64
        if not integer:
            _finish(total[t], start, xrow, bias, out)
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
def _finish(total: Any, start: Any, xrow: Any, bias: Any, out: Any) -> None:
    tokens, n = out.shape
    for m in range(tokens):
        for lane in range(min(64, n - start)):
            out[m, start + lane] = total[m, lane] * xrow[m] + bias[start + lane]


@njit(cache=True, boundscheck=False)
def _amx_bf16_tiles(
    first: Any, last: Any, w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, folded: Any, full: Any,
    table: Any, out: Any,
) -> None:  # fmt: skip
    words, group = w.words, w.group
    k = xa.shape[1] * 32
    groups, tiles, blocks = k // group, last - first, xa.shape[0] // 2
    columns = portable.columns_per_step(words)
    by, less = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        bf16_factors(w, first + t, folded, by[t], less[t], scale[t], shift[t])
    b = aligned_int32(step * 32).reshape(4, step * 8)
    sums = aligned_float32(1024)
    total = aligned_float32(tiles * blocks * 2048).reshape(tiles, blocks * 32, 64)
    total[:] = F32(0)
    ir.configure_tiles(table)
    for c in range((k + step - 1) // step):
        k0 = c * step
        depth = min(step, k - k0)
        g = k0 // group
        for t in range(tiles):
            tb, tl = by[t], less[t]
            for r in range(0, depth, columns):
                at = k0 + r
                dot.amx_bf16(words, first + t, at // columns, tb, tl, at // group, b, r)
            ts, tz, tt = scale[t], shift[t], total[t]  # a view costs a reference count: not in the loops below
            for block in range(blocks):
                a0 = (2 * block * xa.shape[1] + k0 // 32) * 1024
                for half in range(2):
                    b0 = half * 2 * step * 32
                    ir.block_bf16(xa, a0, a0 + xa.shape[1] * 1024, b, b0, b0 + step * 32, depth // 32, sums, 0, False)
                    for i in range(4):
                        m, column = block * 32 + (i // 2) * 16, half * 32 + (i % 2) * 16
                        if full:
                            ir.apply_float_full(sums, i * 1024, ts, tz, g, column, xsum, xgroup, c, m, tt)
                        else:
                            ir.apply_float(sums, i * 1024, ts, tz, g, column, xsum, xgroup, c, m, tt)
    ir.release_tiles()
    for t in range(tiles):
        _finish(total[t], (first + t) * 64, xrow, w.bias, out)


def _amx_tiles(
    first: Any, last: Any, w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, whole: Any, full: Any,
    table: Any, out: Any,
) -> None:  # fmt: skip
    """One task, by the dtype of xa; in compiled code only."""
    raise NotImplementedError


@overload(_amx_tiles, strict=False)
def _amx_tiles_by_type(
    first: Any, last: Any, w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, whole: Any, full: Any,
    table: Any, out: Any,
) -> Any:  # fmt: skip
    tiles = _amx_int_tiles if xa.dtype == types.int8 else _amx_bf16_tiles

    def run(first, last, w, xa, xsum, xgroup, xrow, step, whole, full, table, out):  # type: ignore[no-untyped-def]
        tiles(first, last, w, xa, xsum, xgroup, xrow, step, whole, full, table, out)

    return run


@njit(cache=True, parallel=True, boundscheck=False)
def amx_matmul(
    w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, step: Any, whole: Any, full: Any, tiles: Any, table: Any,
    out: Any,
) -> None:  # fmt: skip
    """`expand_matmul` for integers by integers, or for activations that are BF16. xa from `pack_tiles`.

    Chunks of `step` columns divide a group, or with BF16 and `whole` are folded over groups. With integers `whole`
    keeps int32 sums over all of K.
    """
    count = w.words.shape[0]
    for task in prange((count + tiles - 1) // tiles):
        first = np.int64(task) * tiles
        last = min(first + tiles, count)
        _amx_tiles(first, last, w, xa, xsum, xgroup, xrow, step, whole, full, table, out)
