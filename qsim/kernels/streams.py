"""A packed weight times a few tokens, on every path: words are decoded in registers, never expanded.

Shapes: words (T, W, 64) records of the stored format (`stored`); x (M, K) activations; xgroup (M, G) scale of
an activation group, without rows when there is none; xrow (M,); out (M, N). A chunk is at most `step` columns of one
group: sums of products of 8-bit integers stay below 2^24 in it, where float32 is exact, so integer schemes are exact
too. `sums` is an empty array whose dtype says how totals are kept: int32 for a scheme of integers with one scale per
row, else float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from qsim._native.vectors import take_next

from . import lanes
from .prepare import prepare

F32, U32, I32 = np.float32, np.uint32, np.int32
EXACT_COLUMNS = 512  # 2^24 / (255 * 128): columns whose u8 x s8 products sum exactly in float32
FLOAT_COLUMNS = 128  # shorter chunks keep q * x and zero * sum x, which cancel, small: 3x less error at 8 bits
COUNTER_STRIDE = 16  # int64: counters of two threads do not share a pair of cache lines


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


@njit(cache=True, inline="always")
def group_scales(scales: Any, kind: Any, rows_per_scale: Any, tile: Any, g: Any, out: Any, row: Any) -> None:
    """out[row] = the scales of the 64 rows of a tile in group g, float32."""
    if rows_per_scale == 1 and kind == 1:
        lanes.half_scales(scales, (tile * scales.shape[1] + g) * 64, out, row)
    elif rows_per_scale == 1:
        for lane in range(64):
            out[row, lane] = decode_scale(scales[tile, g, lane], kind)
    else:
        for lane in range(64):
            block = (tile * 64 + lane) // rows_per_scale if rows_per_scale else 0
            block = min(block, scales.shape[0] - 1)  # a padded row may lie past the last block
            out[row, lane] = decode_scale(scales[block, min(g, scales.shape[1] - 1), 0], kind)


@njit(cache=True, inline="always")
def group_zeros(zeros: Any, bits: Any, constant: Any, tile: Any, g: Any, out: Any, row: Any) -> None:
    """out[row] = the zero points of the 64 rows of a tile in group g, float32."""
    if bits == 0:
        for lane in range(64):
            out[row, lane] = constant
    elif bits == 4:
        lanes.nibble_zeros(zeros, (tile * zeros.shape[1] + g) * 32, out, row)
    elif bits == 8:
        for lane in range(64):
            out[row, lane] = F32(zeros[tile, g, lane])
    elif bits < 8:
        for lane in range(64):
            at = lane * bits
            pair = I32(zeros[tile, g, at >> 3])
            if (at & 7) + bits > 8:
                pair |= I32(zeros[tile, g, (at >> 3) + 1]) << 8
            out[row, lane] = F32((pair >> (at & 7)) & ((1 << bits) - 1))
    else:
        kind = 0 if bits == 32 else bits - 15
        for lane in range(64):
            out[row, lane] = decode_scale(zeros[tile, g, lane], kind)


@njit(cache=True)
def tile_scales(scales: Any, kind: Any, rows_per_scale: Any, tile: Any, out: Any) -> None:
    """Scales of the 64 rows of a tile, (G, 64) float32."""
    for g in range(out.shape[0]):
        group_scales(scales, kind, rows_per_scale, tile, g, out, g)


@njit(cache=True)
def tile_zeros(zeros: Any, bits: Any, constant: Any, tile: Any, out: Any) -> None:
    """Zero points of the 64 rows of a tile, (G, 64) float32."""
    for g in range(out.shape[0]):
        group_zeros(zeros, bits, constant, tile, g, out, g)


@njit(cache=True)
def bf16_factors(
    words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any, zero: Any, tile: Any,
    folded: Any, by: Any, less: Any, scale: Any, shift: Any,
) -> None:  # fmt: skip
    """For weights that become BF16, (code - less) * by: what is left for the sums, (sum - shift * sum x) * scale.

    All (G, 64) float32. Integers less 2^(bits-1) are BF16; so are floats times the power of two that their fields lack.
    When `folded` the scale is small enough to be in them too.
    """
    tile_scales(scales, scale_kind, rows_per_scale, tile, scale)
    tile_zeros(zeros, zero_bits, zero, tile, shift)
    for g in range(scale.shape[0]):
        for lane in range(64):
            by[g, lane] = lanes.value_factor(words)
            less[g, lane] = lanes.centre(words)
            shift[g, lane] -= lanes.centre(words)
            if folded:
                by[g, lane] *= scale[g, lane]
                scale[g, lane] = F32(1)


@njit(cache=True, boundscheck=False)
def finish(
    total: Any, first: Any, rows: Any, scale: Any, shift: Any, xsum: Any, xrow: Any, bias: Any, out: Any, column: Any,
) -> None:  # fmt: skip
    """As `lanes.finish_row`, rows of `total` to rows first .. of `out`, up to its last column.

    All rows in one call: each would count references to its arrays, on cache lines that the threads share.
    """
    inside = out.shape[1] - column
    if inside >= 64:
        for i in range(rows):
            m = first + i
            lanes.finish_row(total, i, scale, shift, xsum[m], xrow[m], bias, out, m, column)
        return
    part, padded = np.empty((1, 64), F32), np.zeros(64, F32)
    for lane in range(inside):
        padded[lane] = bias[column + lane]
    for i in range(rows):
        m = first + i
        lanes.finish_row(total, i, scale, shift, xsum[m], xrow[m], padded, part, 0, 0)
        for lane in range(inside):
            out[m, column + lane] = part[0, lane]


@njit(cache=True, boundscheck=False)
def starts(tiles: Any, threads: Any) -> Any:
    """For each thread, in cache lines of its own, the first of its consecutive tiles: counters for `take_next`."""
    counters = np.empty(threads * COUNTER_STRIDE, np.int64)
    for t in range(threads):
        counters[t * COUNTER_STRIDE] = t * tiles // threads
    return counters


@njit(cache=True, boundscheck=False)
def _stream_share(
    thread: Any, counters: Any, words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any,
    zero_bits: Any, zero: Any, group: Any, bias: Any, xs: Any, xsum: Any, factors: Any, xrow: Any, step: Any,
    sums: Any, out: Any,
) -> None:  # fmt: skip
    """One thread's consecutive tiles, then what the others have not begun: a core that was interrupted is not awaited.

    Consecutive, because a thread's tiles are then one stream to the hardware's prefetcher. Scales are decoded a group
    at a time: those of a whole tile would be a microsecond in which nothing comes from memory.
    """
    tokens, tiles, threads = out.shape[0], words.shape[0], counters.shape[0] // COUNTER_STRIDE
    scale, shift = np.empty((1, 64), F32), np.empty((1, 64), F32)
    total, nothing = np.empty((xs.shape[0], 64), sums.dtype), np.zeros(tokens, I32)
    for i in range(threads):
        owner = (thread + i) % threads
        end = (owner + 1) * tiles // threads
        tile = take_next(counters, owner * COUNTER_STRIDE)
        while tile < end:
            for m in range(total.shape[0]):
                for lane in range(64):
                    total[m, lane] = 0
            for g in range(factors.shape[1]):
                group_scales(scales, scale_kind, rows_per_scale, tile, g, scale, 0)
                group_zeros(zeros, zero_bits, zero, tile, g, shift, 0)
                m = 0
                while m < tokens:  # four tokens to a pass; what the pass reads stays in the first level of cache
                    if m + 1 == tokens:
                        lanes.stream_1(words, tile, g, xs, m, xsum, factors, scale, shift, group, step, total, scales,
                                       zeros)  # fmt: skip
                    else:
                        lanes.stream_4(words, tile, g, xs, m, xsum, factors, scale, shift, group, step, total, scales,
                                       zeros)  # fmt: skip
                    m += 4
            finish(total, 0, tokens, scale, shift, nothing, xrow, bias, out, tile * 64)
            tile = take_next(counters, owner * COUNTER_STRIDE)


@njit(cache=True, parallel=True, boundscheck=False)
def stream_matmul(
    words: Any, scales: Any, scale_kind: Any, rows_per_scale: Any, zeros: Any, zero_bits: Any, zero: Any, group: Any,
    bias: Any, x: Any, xgroup: Any, xrow: Any, step: Any, sums: Any, threads: Any, out: Any,
) -> None:  # fmt: skip
    """out[m, n] = xrow[m] * sum_g xgroup[m, g] * scale[n, g] * (sum_k q x - zero[n, g] * sum_k x) + bias[n].

    The dtype of x chooses the instructions, see `prepare`; with float32 this is the portable kernel.
    """
    xs, xsum, factors = prepare(words, x, xgroup, group, step)
    counters = starts(words.shape[0], threads)
    for t in prange(threads):
        # the index of a parallel loop is unsigned; with a signed one the body is compiled once, not twice
        _stream_share(np.int64(t), counters, words, scales, scale_kind, rows_per_scale, zeros, zero_bits, F32(zero),
                      group, bias, xs, xsum, factors, xrow, step, sums, out)  # fmt: skip
