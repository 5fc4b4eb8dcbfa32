"""Buffers that start on a cache line.

A vector or tile row of 64 bytes that straddles two lines costs two accesses: loading AMX tiles from NumPy's usual
address (16 bytes past a page) takes 15 ns instead of 2.5.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_LINE = 64
# NumPy asks for huge pages from 4 MiB on; a buffer that starts on one has no small pages at its ends, whose translation
# costs a stream 10 to 15 % of its bandwidth. What is skipped at the start is never touched.
_HUGE_FROM, _HUGE_PAGE = 4 << 20, 2 << 20


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As `numpy.empty`, the data aligned to 64 bytes, or to a huge page from 4 MiB on."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    line = _HUGE_PAGE if size >= _HUGE_FROM else _LINE
    raw = np.empty(size + line, np.uint8)
    start = -raw.ctypes.data % line
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy aligned as `aligned_empty` does; the array itself when it is that already."""
    if array.flags.c_contiguous and array.ctypes.data % (_HUGE_PAGE if array.nbytes >= _HUGE_FROM else _LINE) == 0:
        return array
    out = aligned_empty(array.shape, array.dtype)
    out[...] = array
    return out


@njit(cache=True)
def aligned_float32(count: Any) -> Any:
    """As `aligned_empty`, flat, inside compiled code."""
    raw = np.empty(count + 16, np.float32)
    start = (64 - raw.ctypes.data % 64) % 64 // 4
    return raw[start : start + count]


@njit(cache=True)
def aligned_int32(count: Any) -> Any:
    """As `aligned_empty`, flat, inside compiled code."""
    raw = np.empty(count + 16, np.int32)
    start = (64 - raw.ctypes.data % 64) % 64 // 4
    return raw[start : start + count]
