"""Every value that a sum of a few BF16 numbers may have when they are added in BF16 in any order."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

F32, U32 = np.float32, np.uint32
MOST_VALUES = 256
"""Different values that a subset of the parts may have."""


@numba.njit(cache=True, nogil=True, inline="always")
def _sum(a: Any, b: Any) -> Any:
    """BF16 sum of BF16 values: the float32 sum of two BF16 numbers rounded again, which equals one rounding because
    float32 has more than twice the bits of BF16 and two more."""
    bits = F32(a + b).view(U32)
    bits += U32(0x7FFF) + ((bits >> U32(16)) & U32(1))  # the low half of a NaN is 0: it stays one
    return U32(bits & U32(0xFFFF0000)).view(F32)


@numba.njit(cache=True, nogil=True)
def _insert(row: np.ndarray, count: Any, value: Any) -> Any:
    """Put a value into the first `count` ascending ones of a row unless it is there; the new count."""
    place = count
    while place > 0 and not row[place - 1] < value:
        if row[place - 1] == value or (value != value and row[place - 1] != row[place - 1]):
            return count
        if value != value:
            break  # NaN stands last
        place -= 1
    if count == len(row):
        return count + 1
    for i in range(count, place, -1):
        row[i] = row[i - 1]
    row[place] = value
    return count + 1


@numba.njit(cache=True, nogil=True)
def reachable(parts: np.ndarray, values: np.ndarray, counts: np.ndarray) -> None:
    """What each subset of parts may sum to: subset s is built from every subset with one part less.

    Arguments:
        parts: (P,) float32 that holds BF16 values.
        values, counts: (2^P, MOST_VALUES) float32 and (2^P,), written; a count beyond MOST_VALUES says that there are
            more, and the last subset's count is then so too.
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
