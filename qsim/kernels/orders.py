"""Every value that a sum of a few BF16 numbers may have when they are added in BF16 in any order."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

F32, I32, U16, U32 = np.float32, np.int32, np.uint16, np.uint32
MOST_VALUES = 1024
"""Different values that a subset of the parts may have; sums that cancel have hundreds."""


@numba.njit(cache=True, nogil=True, inline="always")
def _sum(a: Any, b: Any) -> Any:
    """BF16 code of the sum of two BF16 codes: the float32 sum rounded again, which equals one rounding because float32
    has more than twice the bits of BF16 and two more."""
    bits = F32(U32(U32(a) << U32(16)).view(F32) + U32(U32(b) << U32(16)).view(F32)).view(U32)
    bits += U32(0x7FFF) + ((bits >> U32(16)) & U32(1))  # the low half of a NaN is 0: it stays one
    code = U16(bits >> U32(16))
    return U16(0) if code == U16(0x8000) else code


@numba.njit(cache=True, nogil=True, inline="always")
def _rank(code: Any) -> Any:
    """A number that grows with the value of a BF16 code; NaN is above or below all."""
    return -I32(code & U16(0x7FFF)) if code & U16(0x8000) else I32(code)


@numba.njit(cache=True, nogil=True)
def _insert(row: np.ndarray, count: Any, code: Any) -> Any:
    """Put a code into the first `count` ascending ones of a row unless it is there; the new count."""
    low, high, rank = 0, count, _rank(code)
    while low < high:
        middle = (low + high) // 2
        if _rank(row[middle]) < rank:
            low = middle + 1
        else:
            high = middle
    if low < count and row[low] == code:
        return count
    if count == len(row):
        return count + 1
    for i in range(count, low, -1):
        row[i] = row[i - 1]
    row[low] = code
    return count + 1


@numba.njit(cache=True, nogil=True)
def reachable(parts: np.ndarray, values: np.ndarray, counts: np.ndarray) -> None:
    """What each subset of parts may sum to: subset s is built from every subset with one part less.

    Arguments:
        parts: (P,) BF16 codes (uint16).
        values, counts: (2^P, MOST_VALUES) BF16 codes and (2^P,), written; a count beyond MOST_VALUES says that there
            are more, and the last subset's count is then so too.
    """
    size = len(parts)
    for subset in range(1, 1 << size):
        count = 0
        for i in range(size):
            if not subset >> i & 1:
                continue
            rest = subset ^ (1 << i)
            if rest == 0:
                count = _insert(values[subset], count, parts[i])
            for j in range(min(counts[rest], MOST_VALUES)):
                count = _insert(values[subset], min(count, MOST_VALUES), _sum(values[rest, j], parts[i]))
            if counts[rest] > MOST_VALUES:
                count = MOST_VALUES + 1
            if count > MOST_VALUES:
                break
        counts[subset] = count
