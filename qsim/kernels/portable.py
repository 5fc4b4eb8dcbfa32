"""The portable kernels: a packed weight times a few tokens, and a packed weight expanded for a matrix product.

Shapes: words (T, K*bits/32, 64) uint32; xs (M, K) float32 activations, scaled per field; xsum (M, C) their sums per
chunk;
xgroup (M, G) scale of an activation group; out (M, N). A chunk is at most `step` columns of one group: sums of products
of 8-bit integers stay below 2^24 in it, where float32 is exact, so integer schemes are exact too.
`kind` numbers a stored format: 2, 3, 4, 8 bits unsigned, 9 is E4M3, 10 is E5M2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from . import lanes
from .memory import aligned_float32

F32, U32, I32 = np.float32, np.uint32, np.int32
EXACT_COLUMNS = 512  # 2^24 / (255 * 128): columns whose u8 x s8 products sum exactly in float32
FLOAT_COLUMNS = 128  # shorter chunks keep q * x and zero * sum x, which cancel, small: 3x less error at 8 bits


@njit(cache=True)
def decode_scale(code: Any, kind: Any) -> Any:
    """float32 value of the bits of a scale; `kind` as in `PackedWeight`."""
    c = U32(code)
    if kind == 0:
        return np.uint32(c).view(np.float32)
    if kind == 1:  # binary16: exponent re-biased by a multiplication, which handles its subnormals
        sign = (c & U32(0x8000)) << U32(16)
        magnitude = U32((c & U32(0x7FFF)) << U32(13)).view(np.float32) * F32(2.0**112)
        return U32(sign | np.float32(magnitude).view(np.uint32)).view(np.float32)
    if kind == 2:
        return U32(c << U32(16)).view(np.float32)
    if kind == 3:
        return U32(c << U32(23)).view(np.float32) if c else F32(2.0**-127)
    return U32(((c & U32(0x80)) << U32(24)) | ((c & U32(0x7F)) << U32(20))).view(np.float32) * F32(2.0**120)


@njit(cache=True)
def tile_scales(scales: Any, kind: Any, rows_per_scale: Any, tile: Any, out: Any) -> None:
    """Scales of the 64 rows of a tile, (G, 64) float32."""
    for g in range(out.shape[0]):
        if rows_per_scale == 1 and kind == 1:
            lanes.half_scales(scales, (tile * scales.shape[1] + g) * 64, out, g)
        elif rows_per_scale == 1:
            for lane in range(64):
                out[g, lane] = decode_scale(scales[tile, g, lane], kind)
        else:
            for lane in range(64):
                row = (tile * 64 + lane) // rows_per_scale if rows_per_scale else 0
                row = min(row, scales.shape[0] - 1)  # a padded row may lie past the last block
                out[g, lane] = decode_scale(scales[row, min(g, scales.shape[1] - 1), 0], kind)


@njit(cache=True)
def tile_zeros(zeros: Any, bits: Any, constant: Any, tile: Any, out: Any) -> None:
    """Zero points of the 64 rows of a tile, (G, 64) float32."""
    for g in range(out.shape[0]):
        if bits == 0:
            for lane in range(64):
                out[g, lane] = constant
        elif bits == 4:
            lanes.nibble_zeros(zeros, (tile * zeros.shape[1] + g) * 32, out, g)
        elif bits == 8:
            for lane in range(64):
                out[g, lane] = F32(zeros[tile, g, lane])
        elif bits < 8:
            for lane in range(64):
                at = lane * bits
                pair = I32(zeros[tile, g, at >> 3])
                if (at & 7) + bits > 8:
                    pair |= I32(zeros[tile, g, (at >> 3) + 1]) << 8
                out[g, lane] = F32((pair >> (at & 7)) & ((1 << bits) - 1))
        else:
            kind = 0 if bits == 32 else bits - 15
            for lane in range(64):
                out[g, lane] = decode_scale(zeros[tile, g, lane], kind)


@njit(cache=True, boundscheck=False)
def _chunk1(kind: Any, words: Any, first: Any, last: Any, xs: Any, m: Any, acc: Any) -> None:
    if kind == 4:
        lanes.chunk_u4_1(words, first, last, xs, m, acc)
    elif kind == 8:
        lanes.chunk_u8_1(words, first, last, xs, m, acc)
    elif kind == 9:
        lanes.chunk_e4m3_1(words, first, last, xs, m, acc)
    elif kind == 3:
        lanes.chunk_u3_1(words, first, last, xs, m, acc)
    elif kind == 10:
        lanes.chunk_e5m2_1(words, first, last, xs, m, acc)
    else:
        lanes.chunk_u2_1(words, first, last, xs, m, acc)


@njit(cache=True, boundscheck=False)
def _chunk4(kind: Any, words: Any, first: Any, last: Any, xs: Any, m: Any, acc: Any) -> None:
    if kind == 4:
        lanes.chunk_u4_4(words, first, last, xs, m, acc)
    elif kind == 8:
        lanes.chunk_u8_4(words, first, last, xs, m, acc)
    elif kind == 9:
        lanes.chunk_e4m3_4(words, first, last, xs, m, acc)
    elif kind == 3:
        lanes.chunk_u3_4(words, first, last, xs, m, acc)
    elif kind == 10:
        lanes.chunk_e5m2_4(words, first, last, xs, m, acc)
    else:
        lanes.chunk_u2_4(words, first, last, xs, m, acc)


@njit(cache=True, boundscheck=False)
def columns_per_step(kind: Any) -> Any:
    """Columns in one step of a kernel's loop."""
    return 32 if kind == 3 else 4 if kind >= 8 else 32 // kind


@njit(cache=True, boundscheck=False)
def prefetch_next(scales: Any, zeros: Any, tile: Any, g: Any) -> None:
    """Scales and zero points of the next tile, a group at a time: read in one go they would be a stall of 80 lines."""
    size = scales.shape[2] * scales.itemsize
    for at in range(0, size, 64):
        lanes.prefetch(scales, (tile * scales.shape[1] + g) * size + at)
    lanes.prefetch(zeros, (tile * zeros.shape[1] + g) * zeros.shape[2] * zeros.itemsize)


@njit(cache=True, boundscheck=False)
def _decode_tile(
    tile: Any, words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any, zero: Any,
    xs: Any, xsum: Any, xgroup: Any, xrow: Any, bias: Any, group: Any, step: Any, kind: Any, integer: Any, out: Any,
) -> None:  # fmt: skip
    """All tokens of one tile, four to a pass; the tile stays in L2 between passes."""
    tokens, n, groups = xs.shape[0], out.shape[1], xgroup.shape[1]
    scale, shift = np.empty((groups, 64), F32), np.empty((groups, 64), F32)
    tile_scales(scales, scale_kind, rows_per_scale, tile, scale)
    tile_zeros(zeros, zero_bits, zero, tile, shift)
    acc, total, total_int = np.empty((4, 64), F32), np.empty((4, 64), F32), np.empty((4, 64), I32)
    here_words, fields = words[tile], columns_per_step(kind)
    rows = min(64, n - tile * 64)
    m = 0
    while m < tokens:
        here = 4 if m + 4 <= tokens else 1
        total[:here] = F32(0)
        total_int[:here] = I32(0)
        c = 0
        for g in range(groups):
            if m == 0:
                prefetch_next(scales, zeros, tile + 1, g)
            at = g * group
            while at < (g + 1) * group:
                end = min(at + step, (g + 1) * group)
                if here == 4:
                    _chunk4(kind, here_words, at // fields, end // fields, xs, m, acc)
                else:
                    _chunk1(kind, here_words, at // fields, end // fields, xs, m, acc)
                for i in range(here):
                    if integer:
                        for lane in range(64):
                            total_int[i, lane] += I32(acc[i, lane] - shift[g, lane] * xsum[m + i, c])
                    else:
                        lanes.apply_group(acc, i, scale, shift, g, xsum[m + i, c], xgroup[m + i, g], total)
                c += 1
                at = end
        for i in range(here):
            for lane in range(rows):
                value = F32(total_int[i, lane]) * scale[0, lane] if integer else total[i, lane]
                out[m + i, tile * 64 + lane] = value * xrow[m + i] + bias[tile * 64 + lane]
        m += here


@njit(cache=True, parallel=True, boundscheck=False)
def decode_matmul(
    words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any, zero: Any,
    xs: Any, xsum: Any, xgroup: Any, xrow: Any, bias: Any, group: Any, step: Any, kind: Any, integer: Any, out: Any,
) -> None:  # fmt: skip
    """out[m, n] = xrow[m] * sum_g xgroup[m, g] * scale[n, g] * (sum_k q x - zero[n, g] * sum_k x) + bias[n].

    `integer`: the sums are exact integers of a scheme with one scale a row, added up in int32.
    """
    for tile in prange(words.shape[0]):
        # the index of a parallel loop is unsigned; with a signed one the body is compiled once, not twice
        t = np.int64(tile)
        _decode_tile(t, words, scales, scale_kind, rows_per_scale, zeros, zero_bits, zero, xs, xsum, xgroup,
                     xrow, bias, group, step, kind, integer, out)  # fmt: skip


@njit(cache=True, boundscheck=False)
def field_scales(kind: Any) -> Any:
    """What the activation of each column of a step is multiplied by: 2^-(bits*j), or FP8's half of 2^120 or 2^112."""
    fields = columns_per_step(kind)
    out = np.ones(fields, F32)
    if kind >= 9:
        out[:] = F32(2.0**60) if kind == 9 else F32(2.0**56)
    elif kind == 3:
        for i in range(30):
            out[i] = F32(2.0) ** F32(-3 * (i % 10))
    else:
        for j in range(fields - 1):
            out[j] = F32(2.0) ** F32(-kind * j)
    return out


@njit(cache=True, boundscheck=False)
def prepare(x: Any, kind: Any, group: Any, step: Any, xs: Any, xsum: Any) -> None:
    """xs: activations times their field's factor, padded with 0; xsum: their sums over every chunk."""
    factors = field_scales(kind)
    k, period = x.shape[1], factors.shape[0]
    repeated = np.empty(32, F32)
    for i in range(32):
        repeated[i] = factors[i % period]
    for m in range(x.shape[0]):
        whole = k - k % 32
        for at in range(0, whole, 32):
            for j in range(32):
                xs[m, at + j] = x[m, at + j] * repeated[j]
        for at in range(whole, xs.shape[1]):
            xs[m, at] = x[m, at] * repeated[at % 32] if at < k else F32(0)
        c = 0
        total = np.empty(16, F32)  # sixteen sums: faster, and closer to the exact one
        for g in range(xs.shape[1] // group):
            start = g * group
            while start < (g + 1) * group:
                end = min(start + step, (g + 1) * group)
                total[:] = F32(0)
                at = start
                while at + 16 <= min(end, k):
                    for lane in range(16):
                        total[lane] += x[m, at + lane]
                    at += 16
                last = F32(0)
                for lane in range(16):
                    last += total[lane]
                while at < min(end, k):
                    last += x[m, at]
                    at += 1
                xsum[m, c] = last
                c += 1
                start = end


@njit(cache=True, boundscheck=False)
def _expand_steps(
    kind: Any, words: Any, k0: Any, k1: Any, scale: Any, zero: Any, group: Any, scaled: Any, out: Any
) -> None:
    """Columns k0 .. k1 - 1 of a tile as float32 rows (k1 - k0, 64): (q - zero) * scale, without the scale unless
    `scaled`.
    """
    step = columns_per_step(kind)
    ones = scale if scaled else np.ones((scale.shape[0], 64), F32)
    for r in range(0, k1 - k0, step):
        i, g = (k0 + r) // step, (k0 + r) // group
        if kind == 4:
            lanes.expand_u4(words, i, ones, zero, g, out, r, 0)
        elif kind == 8:
            lanes.expand_u8(words, i, ones, zero, g, out, r, 0)
        elif kind == 9:
            lanes.expand_e4m3(words, i, ones, zero, g, out, r, 0)
        elif kind == 3:
            lanes.expand_u3(words, i, ones, zero, g, out, r, 0)
        elif kind == 10:
            lanes.expand_e5m2(words, i, ones, zero, g, out, r, 0)
        else:
            lanes.expand_u2(words, i, ones, zero, g, out, r, 0)


@njit(cache=True, boundscheck=False)
def _prefill_tiles(
    first: Any, last: Any, words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any,
    zero: Any, x: Any, xrow: Any, bias: Any, group: Any, depth: Any, kind: Any, integer: Any, out: Any,
) -> None:  # fmt: skip
    """Tiles first .. last - 1 for all tokens: a slice of columns of x stays in L2 while the tiles pass over it."""
    tokens, k, n = x.shape[0], x.shape[1], out.shape[1]
    groups, tiles = k // group, last - first
    scale, shift = np.empty((tiles, groups, 64), F32), np.empty((tiles, groups, 64), F32)
    for t in range(tiles):
        tile_scales(scales, scale_kind, rows_per_scale, first + t, scale[t])
        tile_zeros(zeros, zero_bits, zero, first + t, shift[t])
    if kind >= 9:
        scale *= F32(2.0**120) if kind == 9 else F32(2.0**112)
    acc = aligned_float32(tiles * tokens * 64).reshape(tiles, tokens, 64)
    acc[:] = F32(0)
    total = np.zeros((tiles if integer else 0, tokens, 64), I32)
    w = aligned_float32(depth * 64).reshape(depth, 64)
    for k0 in range(0, k, depth):
        k1 = min(k0 + depth, k)
        for t in range(tiles):
            _expand_steps(kind, words[first + t], k0, k1, scale[t], shift[t], group, not integer, w)
            here = acc[t]
            m = 0
            while m < tokens:
                if m + 6 <= tokens:
                    lanes.product_6(w, k1 - k0, x, m, k0, here)
                    m += 6
                else:
                    lanes.product_1(w, k1 - k0, x, m, k0, here)
                    m += 1
            if integer:
                for m in range(tokens):
                    for lane in range(64):
                        total[t, m, lane] += I32(here[m, lane])
                        here[m, lane] = F32(0)
    for t in range(tiles):
        start = (first + t) * 64
        for m in range(tokens):
            for lane in range(min(64, n - start)):
                value = F32(total[t, m, lane]) * scale[t, 0, lane] if integer else acc[t, m, lane]
                out[m, start + lane] = value * xrow[m] + bias[start + lane]


@njit(cache=True, parallel=True, boundscheck=False)
def prefill_matmul(
    words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any, zero: Any,
    x: Any, xrow: Any, bias: Any, group: Any, depth: Any, kind: Any, integer: Any, tiles: Any, out: Any,
) -> None:  # fmt: skip
    """out[m, n] = xrow[m] * sum_k w[n, k] * x[m, k] + bias[n] for many tokens, `tiles` tiles to a task.

    x (M, padded K). `integer`: x and q - zero are integers, exact in float32 over `depth` columns and added in int32.
    """
    count = words.shape[0]
    for task in prange((count + tiles - 1) // tiles):
        first = np.int64(task) * tiles
        last = min(first + tiles, count)
        _prefill_tiles(first, last, words, scales, scale_kind, rows_per_scale, zeros, zero_bits, zero,
                       x, xrow, bias, group, depth, kind, integer, out)  # fmt: skip
