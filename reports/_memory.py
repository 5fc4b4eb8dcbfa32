"""The loop that every report takes as the read bandwidth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange


@njit(parallel=True, cache=True)
def read(buffer: Any, out: Any) -> None:
    """Sum of 64 pieces of a buffer of words."""
    for t in prange(buffer.shape[0]):
        total = np.uint64(0)
        row = buffer[t]
        for i in range(row.shape[0]):
            total += row[i]
        out[t] = total
