"""The end of a product on every path but AMX's: sums of 64 rows become outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from .portable import ir

F32 = np.float32


@njit(cache=True, boundscheck=False)
def finish(
    total: Any, first: Any, rows: Any, scale: Any, shift: Any, xsum: Any, xrow: Any, bias: Any, out: Any, column: Any,
) -> None:  # fmt: skip
    """As `portable.ir.finish_row`, rows of `total` to rows first .. of `out`, up to its last column.

    All rows in one call: each would count references to its arrays, on cache lines that the threads share.
    """
    inside = out.shape[1] - column
    if inside >= 64:
        for i in range(rows):
            m = first + i
            ir.finish_row(total, i, scale, shift, xsum[m], xrow[m], bias, out, m, column)
        return
    part, padded = np.empty((1, 64), F32), np.zeros(64, F32)
    for lane in range(inside):
        padded[lane] = bias[column + lane]
    for i in range(rows):
        m = first + i
        ir.finish_row(total, i, scale, shift, xsum[m], xrow[m], padded, part, 0, 0)
        for lane in range(inside):
            out[m, column + lane] = part[0, lane]
