"""Fused multiply-adds for Numba, which has none: chains of them, and promotion by one FFMA."""

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


@numba.njit(cache=True, nogil=True)
def promote_scaled(
    total: np.ndarray, part: np.ndarray, scale_rows: np.ndarray, scale_columns: np.ndarray, out: np.ndarray
) -> None:
    """out = fma(scale_row * scale_column, part, total): the product of scales rounded, then one FFMA."""
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            out[i, j] = fma(scale_rows[i] * scale_columns[j], part[i, j], total[i, j])
