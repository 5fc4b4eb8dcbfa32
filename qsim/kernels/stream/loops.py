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
from numba import njit

from qsim._native.parallel import ALL, on_threads
from qsim._native.vectors import take_next

from ..epilogue import finish
from ..weights import group_scales, group_zeros
from . import ir
from .prepare import prepare

F32, I32 = np.float32, np.int32
EXACT_COLUMNS = 512  # 2^24 / (255 * 128): columns whose u8 x s8 products sum exactly in float32
FLOAT_COLUMNS = 128  # shorter chunks keep q * x and zero * sum x, which cancel, small: 3x less error at 8 bits
COUNTER_STRIDE = 16  # int64: counters of two threads do not share a pair of cache lines


@njit(cache=True, boundscheck=False)
def starts(tiles: Any, threads: Any) -> Any:
    """For each thread, in cache lines of its own, the first of its consecutive tiles: counters for `take_next`."""
    counters = np.empty(threads * COUNTER_STRIDE, np.int64)
    for t in range(threads):
        counters[t * COUNTER_STRIDE] = t * tiles // threads
    return counters


@njit(cache=True, boundscheck=False)
def _stream_share(
    thread: Any, threads: Any, counters: Any, w: Any, xs: Any, xsum: Any, factors: Any, xrow: Any, step: Any,
    sums: Any, out: Any,
) -> None:  # fmt: skip
    """One thread's consecutive tiles, then what the others have not begun: a core that was interrupted is not awaited.

    Consecutive, because a thread's tiles are then one stream to the hardware's prefetcher. Scales are decoded a group
    at a time: those of a whole tile would be a microsecond in which nothing comes from memory.
    """
    if on_threads(threads):
        return
    words, scales, scale_kind, rows_per_scale, zeros, zero_bits, zero, group, bias = w
    tokens, tiles = out.shape[0], words.shape[0]
    scale, shift = np.empty((1, 64), F32), np.empty((1, 64), F32)
    total, nothing = np.empty((xs.shape[0], 64), sums.dtype), np.zeros(tokens, I32)
    group_zeros(zeros, 0, zero, 0, 0, shift, 0)  # of symmetric codes: the same for all
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
                if zero_bits:
                    group_zeros(zeros, zero_bits, zero, tile, g, shift, 0)
                m = 0
                while m < tokens:  # four tokens to a pass; what the pass reads stays in the first level of cache
                    if m + 1 == tokens:
                        ir.stream_1(words, tile, g, xs, m, xsum, factors, scale, shift, group, step, total, scales,
                                    zeros)  # fmt: skip
                    else:
                        ir.stream_4(words, tile, g, xs, m, xsum, factors, scale, shift, group, step, total, scales,
                                    zeros)  # fmt: skip
                    m += 4
            finish(total, 0, tokens, scale, shift, nothing, xrow, bias, out, tile * 64)
            tile = take_next(counters, owner * COUNTER_STRIDE)


@njit(cache=True, boundscheck=False)
def stream_matmul(w: Any, x: Any, xgroup: Any, xrow: Any, step: Any, sums: Any, threads: Any, out: Any) -> None:
    """out[m, n] = xrow[m] * sum_g xgroup[m, g] * scale[n, g] * (sum_k q x - zero[n, g] * sum_k x) + bias[n].

    The dtype of x chooses the instructions, see `prepare`; with float32 this is the portable kernel.
    """
    xs, xsum, factors = prepare(w.words, x, xgroup, w.group, step)
    counters = starts(w.words.shape[0], threads)
    _stream_share(ALL, threads, counters, w, xs, xsum, factors, xrow, step, sums, out)
