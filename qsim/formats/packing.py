"""Sub-byte codes packed into bytes, along the last axis.

Codes form one bit stream per row. `low_first` fills each byte from its low bits, so element 0 of a 4-bit row is the
low nibble of byte 0 (GPTQ, AWQ, compressed-tensors, NVFP4); `high_first` fills from the top, so it is the high nibble.
3- and 6-bit elements cross byte borders: 8 codes of 3 bits or 4 of 6 bits take 3 bytes.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numba as nb
import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError

from ._encode import u64
from .catalogue import FormatLike, get_element_format
from .rounding import check_choice

NibbleOrder: TypeAlias = Literal["low_first", "high_first"]

_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


def packed_size(count: int, bits: int | FormatLike) -> int:
    """Bytes that a row of `count` codes takes: ceil(count * bits / 8)."""
    return -(-int(count) * _width(bits) // 8)


def _width(bits: int | FormatLike) -> int:
    width = bits if isinstance(bits, int) else get_element_format(bits).bits
    if width not in _WIDTHS:
        raise QsimError(f"packing is for codes of 1 to 8 bits: got {bits!r} ({width} bits)")
    return width


def pack(codes: Any, bits: int | FormatLike, *, order: NibbleOrder = "low_first") -> np.ndarray:
    """Pack codes of a few bits into bytes.

    Arguments:
        codes: unsigned integers below 2^bits, shape (..., K).
        bits: the width, or a format that has it.
        order: `low_first` or `high_first`, see the module.

    Returns:
        uint8 of shape (..., ceil(K * bits / 8)); unused bits at a row's end are 0.

    Raises:
        ValueError: codes that are not integers, or too wide: how many and where the first is; a 0-d array.
    """
    width = _width(bits)
    check_choice("nibble order", order, ("low_first", "high_first"))
    array = as_plain_array(codes, "pack")
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu" or array.ndim == 0:
        raise QsimError(f"pack takes an integer array of at least one axis: got {array.dtype} of shape {array.shape}")
    if array.size and (int(array.max()) >> width or int(array.min()) < 0):
        bad = np.flatnonzero((array.reshape(-1) >> width) != 0)
        index = tuple(int(i) for i in np.unravel_index(bad[0], array.shape))
        raise QsimError(
            f"pack: {bad.size} of {array.size} codes do not fit {width} bits; "
            f"the first is {array[index]} at index {index}"
        )
    rows = np.ascontiguousarray(array, np.uint8).reshape(-1, array.shape[-1]) if array.size else None
    packed = np.zeros((*array.shape[:-1], packed_size(array.shape[-1], width)), np.uint8)
    if rows is not None:
        _pack_rows(rows, packed.reshape(rows.shape[0], -1), width, order == "high_first")
    return packed


def unpack(
    packed: Any, bits: int | FormatLike, count: int | None = None, *, order: NibbleOrder = "low_first"
) -> np.ndarray:
    """The codes that `pack` put into bytes.

    Arguments:
        packed: uint8 of shape (..., B).
        bits: the width, or a format that has it.
        count: K, codes in a row; default as many as fit, B * 8 // bits.
        order: as it was packed.

    Returns:
        uint8 codes of shape (..., K).

    Raises:
        ValueError: B is not the packed size of `count` codes; another dtype than uint8; a 0-d array.
    """
    width = _width(bits)
    check_choice("nibble order", order, ("low_first", "high_first"))
    array = as_plain_array(packed, "unpack")
    if array.dtype != np.uint8 or array.ndim == 0:
        raise QsimError(f"unpack takes a uint8 array of at least one axis: got {array.dtype} of shape {array.shape}")
    size = array.shape[-1]
    count = size * 8 // width if count is None else int(count)
    if count < 0 or packed_size(count, width) != size:
        raise QsimError(
            f"unpack: {count} codes of {width} bits take {packed_size(max(count, 0), width)} bytes per row: got {size}"
        )
    codes = np.zeros((*array.shape[:-1], count), np.uint8)
    if codes.size:
        rows = np.ascontiguousarray(array).reshape(-1, size)
        _unpack_rows(rows, codes.reshape(rows.shape[0], count), width, order == "high_first")
    return codes


@nb.njit(nogil=True, cache=True)
def _pack_rows(codes: Any, packed: Any, width: Any, high_first: Any) -> Any:
    """Eight codes are `width` bytes: they pass through one 64-bit word."""
    rows, count = codes.shape
    size = packed.shape[1]
    for r in range(rows):
        for group in range((count + 7) // 8):
            word = u64(0)
            for j in range(min(8, count - group * 8)):
                place = u64((7 - j if high_first else j) * width)
                word |= u64(codes[r, group * 8 + j]) << place
            first = group * width
            for k in range(min(width, size - first)):
                place = u64((width - 1 - k if high_first else k) * 8)
                packed[r, first + k] = np.uint8((word >> place) & u64(0xFF))


@nb.njit(nogil=True, cache=True)
def _unpack_rows(packed: Any, codes: Any, width: Any, high_first: Any) -> Any:
    rows, count = codes.shape
    size = packed.shape[1]
    mask = u64((1 << width) - 1)
    for r in range(rows):
        for group in range((count + 7) // 8):
            word = u64(0)
            first = group * width
            for k in range(min(width, size - first)):
                place = u64((width - 1 - k if high_first else k) * 8)
                word |= u64(packed[r, first + k]) << place
            for j in range(min(8, count - group * 8)):
                place = u64((7 - j if high_first else j) * width)
                codes[r, group * 8 + j] = np.uint8((word >> place) & mask)
