"""A packed weight as the kernels take it, and what each of them reads of it: scales and zero points of 64 rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .portable import ir

F32, U32, I32 = np.float32, np.uint32, np.int32


class Weights(NamedTuple):
    """A packed weight (N, K), T tiles of 64 rows, as one argument of a kernel; see `packing` for the layout.

    Kernels look its parts up before their loops: it counts a reference, on a cache line that all threads share, and
    left in a loop it made products of INT8 a tenth slower.

    Arguments:
        words: (T, W, 64) records of the stored format, see `stored`.
        scales: the bits of scales in their own format.
        scale_kind, rows_per_scale: what they are and for how many rows, as in `PackedWeight`.
        zeros: packed zero points, of `zero_bits` bits, as in `PackedWeight`.
        zero: the zero point where there is none in `zeros`, float32.
        group: columns that share a scale.
        bias: (N,) float32.
    """

    words: np.ndarray
    scales: np.ndarray
    scale_kind: int
    rows_per_scale: int
    zeros: np.ndarray
    zero_bits: int
    zero: np.float32
    group: int
    bias: np.ndarray


@njit(cache=True)
def decode_scale(code: Any, kind: Any) -> Any:
    """float32 value of the bits of a scale, a uint32; `kind` as in `PackedWeight`."""
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
        ir.half_scales(scales, (tile * scales.shape[1] + g) * 64, out, row)
    elif rows_per_scale == 1:
        for lane in range(64):
            out[row, lane] = decode_scale(U32(scales[tile, g, lane]), kind)
    else:
        for lane in range(64):
            block = (tile * 64 + lane) // rows_per_scale if rows_per_scale else 0
            block = min(block, scales.shape[0] - 1)  # a padded row may lie past the last block
            out[row, lane] = decode_scale(U32(scales[block, min(g, scales.shape[1] - 1), 0]), kind)


@njit(cache=True, inline="always")
def group_zeros(zeros: Any, bits: Any, constant: Any, tile: Any, g: Any, out: Any, row: Any) -> None:
    """out[row] = the zero points of the 64 rows of a tile in group g, float32."""
    if bits == 0:
        for lane in range(64):
            out[row, lane] = constant
    elif bits == 4:
        ir.nibble_zeros(zeros, (tile * zeros.shape[1] + g) * 32, out, row)
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
            out[row, lane] = decode_scale(U32(zeros[tile, g, lane]), kind)


@njit(cache=True)
def tile_factors(w: Any, tile: Any, scale: Any, shift: Any) -> None:
    """Scales and zero points of the 64 rows of a tile, both (G, 64) float32."""
    scales, kind, rows_per_scale = w.scales, w.scale_kind, w.rows_per_scale
    zeros, bits, zero = w.zeros, w.zero_bits, w.zero
    for g in range(scale.shape[0]):
        group_scales(scales, kind, rows_per_scale, tile, g, scale, g)
        group_zeros(zeros, bits, zero, tile, g, shift, g)


@njit(cache=True)
def bf16_factors(w: Any, tile: Any, folded: Any, by: Any, less: Any, scale: Any, shift: Any) -> None:
    """For weights that become BF16, (code - less) * by: what is left for the sums, (sum - shift * sum x) * scale.

    All (G, 64) float32. Integers less 2^(bits-1) are BF16; so are floats times the power of two that their fields lack.
    When `folded` the scale is small enough to be in them too.
    """
    words = w.words
    tile_factors(w, tile, scale, shift)
    for g in range(scale.shape[0]):
        for lane in range(64):
            by[g, lane] = ir.value_factor(words)
            less[g, lane] = ir.centre(words)
            shift[g, lane] -= ir.centre(words)
            if folded:
                by[g, lane] *= scale[g, lane]
                scale[g, lane] = F32(1)
