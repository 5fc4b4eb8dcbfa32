"""Fused multiply-adds for Numba, which has none: chains of them, and what joins a chain's sum to a register."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic


def _fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding, for float32 or float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return c(a, b, c), codegen


fma: Any = intrinsic(_fma)


@numba.njit(cache=True, nogil=True)
def fma_chain(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out <- fma(a_k, b_k, out) in order of k; a (rows, K), b (K, columns), out (rows, columns)."""
    rows, columns = out.shape
    for i in range(rows):
        for k in range(a.shape[1]):
            x = a[i, k]
            for j in range(columns):
                out[i, j] = fma(x, b[k, j], out[i, j])


ADD, PRODUCT, ROW_FIRST, COLUMN_FIRST = 0, 1, 2, 3
"""register + chain; fma(row * column, chain, register); fma(chain * row, column, register); and of the column first."""


@numba.njit(cache=True, nogil=True)
def join_chain(
    state: np.ndarray, total: np.ndarray, how: Any, number: Any, scale_rows: np.ndarray, scale_columns: np.ndarray
) -> None:
    """Bring the sums of chain `number` to the registers: each operation to nearest even.

    Arguments:
        state, total: (rows, columns) float32, the sums and the registers.
        how: ADD, PRODUCT, ROW_FIRST or COLUMN_FIRST.
        scale_rows, scale_columns: (rows or columns, chains) float32; not read by ADD.
    """
    rows, columns = total.shape
    for i in range(rows):
        if how == ADD:
            for j in range(columns):
                total[i, j] = total[i, j] + np.float32(state[i, j])
            continue
        row = scale_rows[i, number]
        for j in range(columns):
            column = scale_columns[j, number]
            part = np.float32(state[i, j])
            if how == PRODUCT:
                total[i, j] = fma(row * column, part, total[i, j])
            elif how == ROW_FIRST:
                total[i, j] = fma(part * row, column, total[i, j])
            else:
                total[i, j] = fma(part * column, row, total[i, j])
