"""What a block's scale follows from: its largest magnitude, and NVFP4's two levels of scales."""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np

from qsim._native.threads import for_chunks
from qsim.errors import QsimError

from . import _sources
from .spec import BlockFormat


def nvfp4_tensor_scale(source: _sources.Source, block: BlockFormat, row: int) -> float:
    tops = []

    def work(start: int, stop: int) -> None:
        values = source.load(start, stop)
        amax = block_amax(values.reshape(-1, block.block_size))
        tops.append(float(np.fmax.reduce(amax, initial=0.0)))

    # NaN blocks are left out, with what else they hold
    for_chunks(source.size, work, chunk=max(1, (1 << 16) // block.block_size) * block.block_size)
    amax = max(tops, default=0.0)
    if math.isinf(amax):
        bad = int(np.flatnonzero(np.isinf(source.load(0, source.size)))[0])
        raise QsimError(
            f"{block.name} cannot scale Inf: the first is in row {bad // row} at {bad % row}; clip or replace it"
        )
    largest = block.scale.max * block.element.max
    in_float32 = amax <= float(np.finfo(np.float32).max)
    scale = np.float32(amax) / np.float32(largest) if in_float32 else np.float32(float32(amax / largest))
    if not np.isfinite(scale):
        raise QsimError(
            f"{block.name} has a float32 tensor scale: the largest value {amax:g} needs {amax / largest:g}, which is "
            "beyond float32; scale the values down"
        )
    return 1.0 if amax == 0 else float(max(scale, np.finfo(np.float32).tiny))


def float32(value: float) -> float:
    """The nearest float32, Inf beyond its range."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def nvfp4_factors(scales: np.ndarray, tensor_scale: np.float32) -> np.ndarray:
    """float64 products of block scales and tensor scale, rounded to float32 where that is a normal number or 0."""
    exact = scales.astype(np.float64) * np.float64(tensor_scale)
    with np.errstate(over="ignore"):
        rounded = (scales * tensor_scale).astype(np.float64)
    return np.where((exact >= np.finfo(np.float32).tiny) & np.isfinite(rounded), rounded, exact)


def nvfp4_ratios(amax: np.ndarray, unit: float, smallest: float) -> np.ndarray:
    """Block scales before rounding. In float64 the quotient's own rounding cannot make or break a tie of E4M3."""
    ratio = amax.astype(np.float64) / unit
    return np.where((ratio > 0) & (ratio < smallest), smallest, ratio)


def block_amax(rows: np.ndarray) -> np.ndarray:
    """Largest magnitude of each row, or NaN: patterns of magnitudes order like them, and NaN stands above Inf."""
    word = np.dtype(f"u{rows.itemsize}")
    tops = np.empty(rows.shape[0], word)
    _row_maxima(rows.view(word), word.type((1 << (8 * word.itemsize - 1)) - 1), tops)
    return tops.view(rows.dtype)


@nb.njit(nogil=True, cache=True)
def _row_maxima(bits: Any, mask: Any, tops: Any) -> Any:
    for k in range(bits.shape[0]):
        top = bits[k, 0] & mask
        for i in range(bits.shape[1]):
            top = max(top, bits[k, i] & mask)
        tops[k] = top
