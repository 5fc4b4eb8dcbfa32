"""The AMX path for activations that are BF16 numbers.

The tile registers and the vector units work at the same time: while one product runs, the sums of the one before are
scaled and added in float32, and a part of the weights that come next is expanded. So the sums of a product are stored
only after that work (stores wait for the product, and what follows them in the program waits with them), the expanded
weights have two places, and the activations of a chunk lie together, whatever K is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from qsim._native.memory import aligned_float32, aligned_int32

from ..dot import ir as dot
from ..portable import ir as portable
from ..stream.prepare import narrow, sum_columns
from ..weights import bf16_factors
from . import ir
from .int8 import finish

F32 = np.float32


@njit(cache=True, boundscheck=False)
def _pack_block(x: Any, block: Any, step: Any, sums: Any, out: Any, xsum: Any) -> None:
    tokens, k = x.shape
    for r in range(16):
        m = block * 16 + r
        inside = k if m < tokens else 0
        row = x[min(m, tokens - 1)]
        for c in range(out.shape[0]):
            for t in range(out.shape[2]):
                first = c * step + t * 32
                whole = min(max(inside - first, 0), 32)
                to, values = out[c, block, t, r], row[first : first + whole]
                for at in range(values.shape[0]):
                    to[at] = narrow(values[at])
                for at in range(whole, 32):
                    to[at] = 0
            if sums:
                xsum[c, m] = sum_columns(x, min(m, tokens - 1), c * step, min((c + 1) * step, inside))


@njit(cache=True, parallel=True, boundscheck=False)
def pack_chunks(x: Any, step: Any, sums: Any, out: Any, xsum: Any) -> None:
    """float32 numbers that are BF16, (M, K), to A tiles chunk by chunk: (C, M'/16, step/32, 16, 32) uint16, the rest 0.

    If `sums`, xsum (C, M') float32 are the sums of each chunk's columns.
    """
    for block in prange(out.shape[1]):
        _pack_block(x, np.int64(block), step, sums, out, xsum)


@njit(inline="always")
def _apply(
    sums: Any, at: Any, scale: Any, shift: Any, s: Any, half: Any, xsum: Any, chunk: Any, xgroup: Any, g: Any, m: Any,
    full: Any, total: Any, row: Any,
) -> None:  # fmt: skip
    """Add the sums of 32 tokens from m on and 32 rows, of one chunk, to `total` from `row` on."""
    for i in range(4):
        down, column = (i // 2) * 16, half * 32 + (i % 2) * 16
        if full:
            ir.apply_float_full(
                sums, at + i * 1024, scale, shift, s, column, xsum, chunk, xgroup, g, m + down, total, row + down
            )
        else:
            ir.apply_float(
                sums, at + i * 1024, scale, shift, s, column, xsum, chunk, xgroup, g, m + down, total, row + down
            )


@njit(cache=True, boundscheck=False)
def _tiles(
    first: Any, last: Any, w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, folded: Any, whole: Any, full: Any,
    table: Any, out: Any,
) -> None:  # fmt: skip
    words, group, k = w.words, w.group, portable.padded_columns(w.words)
    chunks, tiles, blocks, step = xa.shape[0], last - first, xa.shape[1] // 2, xa.shape[2] * 32
    groups, columns = k // group, portable.columns_per_step(words)
    by, less = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        bf16_factors(w, first + t, folded, by[t], less[t], scale[t], shift[t])
    if whole:  # code - zero is a whole number of at most 8 bits: BF16, and the sums of the activations are not needed
        less += shift
        shift[:] = F32(0)
    # One row for each tile and group: a view of one of them would count references in the loops below.
    by, less = by.reshape(-1, 64), less.reshape(-1, 64)
    scale, shift = scale.reshape(-1, 64), shift.reshape(-1, 64)
    tile_bytes = step * 32  # of 16 tokens or of 16 rows, in one chunk
    both = aligned_int32(step * 64).reshape(2, 4, step * 8)
    here, there = both[0], both[1]
    sums = aligned_float32(2048)
    total = aligned_float32(tiles * blocks * 2048).reshape(tiles * blocks * 32, 64)
    total[:] = F32(0)
    for r in range(0, min(step, k), columns):
        dot.amx_bf16(words, first, r // columns, by, less, r // group, here, r)
    turn, at = 0, 0  # which of the two places the product reads, and the byte where its sums go
    s = g = chunk = half = m = row = 0  # of the product before
    begun = False
    ir.configure_tiles(table)
    for c in range(chunks):
        depth = min(step, k - c * step)
        for t in range(tiles):
            then, k1 = (t + 1, c * step) if t + 1 < tiles else (0, (c + 1) * step)
            depth1 = max(min(step, k - k1), 0)
            some = (depth1 // columns + 2 * blocks - 1) // (2 * blocks) * columns
            r = 0
            for block in range(blocks):
                a0 = (c * blocks + block) * 2 * tile_bytes
                for side in range(2):
                    b0 = (turn * 4 + side * 2) * tile_bytes
                    ir.start_bf16(xa, a0, a0 + tile_bytes, both, b0, b0 + tile_bytes, depth // 32)
                    if begun:
                        _apply(sums, 4096 - at, scale, shift, s, half, xsum, chunk, xgroup, g, m, full, total, row)
                    for k0 in range(k1 + r, k1 + min(r + some, depth1), columns):
                        if turn == 0:
                            dot.amx_bf16(words, first + then, k0 // columns, by, less, then * groups + k0 // group,
                                         there, k0 - k1)  # fmt: skip
                        else:
                            dot.amx_bf16(words, first + then, k0 // columns, by, less, then * groups + k0 // group,
                                         here, k0 - k1)  # fmt: skip
                    r += some
                    ir.store_sums(sums, at)
                    begun, at = True, 4096 - at
                    g, chunk, half = c * step // group, c, side
                    s, m, row = t * groups + g, block * 32, (t * blocks + block) * 32
            turn = 1 - turn
    _apply(sums, 4096 - at, scale, shift, s, half, xsum, chunk, xgroup, g, m, full, total, row)
    ir.release_tiles()
    for t in range(tiles):
        finish(total[t * blocks * 32 : (t + 1) * blocks * 32], (first + t) * 64, xrow, w.bias, out)


@njit(cache=True, parallel=True, boundscheck=False)
def bf16_matmul(
    w: Any, xa: Any, xsum: Any, xgroup: Any, xrow: Any, folded: Any, whole: Any, full: Any, tiles: Any, table: Any,
    out: Any,
) -> None:  # fmt: skip
    """`portable_matmul` for activations that are BF16, xa from `pack_chunks`.

    Chunks divide a group, or, with `folded`, scales are in the expanded weights and a chunk may cross groups. `whole`:
    zero points are whole numbers and go into the expanded weights too; not with `folded`. `full`: there are sums of
    activations or scales of their groups to be used, xsum (C, M') and xgroup (G, M').
    """
    count = w.words.shape[0]
    for task in prange((count + tiles - 1) // tiles):
        first = np.int64(task) * tiles
        last = min(first + tiles, count)
        _tiles(first, last, w, xa, xsum, xgroup, xrow, folded, whole, full, table, out)
