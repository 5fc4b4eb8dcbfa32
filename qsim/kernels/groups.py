"""Exact integer sums of groups of K, scaled and added up in one compiled loop."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from qsim.tensorcore.fused import fma

F32 = np.float32


@numba.njit(cache=True, parallel=True)
def _groups(
    a: np.ndarray,
    b: np.ndarray,
    step: Any,
    rows: np.ndarray,
    columns: np.ndarray,
    shifts: np.ndarray,
    out: np.ndarray,
) -> None:
    for n in numba.prange(b.shape[0]):
        wide = b[n].astype(np.int16)  # CPUs multiply and add pairs of int16
        for m in range(a.shape[0]):
            register = F32(0)
            for g in range(columns.shape[1]):
                x, w = a[m, g * step : (g + 1) * step], wide[g * step : (g + 1) * step]
                total: Any = 0
                for k in range(len(x)):
                    total += np.int32(x[k]) * np.int32(w[k])
                part = F32(total)
                if shifts.shape[0]:
                    given: Any = 0
                    for k in range(len(x)):
                        given += np.int32(x[k])
                    # exact for integer shifts, and far closer than float32 for any
                    part = F32(np.float64(total) - np.float64(given) * shifts[n, g])
                scale = F32(rows[m, g] * columns[n, g]) if rows.shape[0] else columns[n, g]
                register = fma(part, scale, register)
            out[m, n] = register


def integer_groups(
    a: np.ndarray,
    b: np.ndarray,
    step: int,
    columns: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    shifts: np.ndarray | None = None,
) -> np.ndarray:
    """Each group's exact sum joins a float32 register: fma(sum, row scale * column scale, register).

    Arguments:
        a, b: (M, K) and (N, K) int8.
        step: K of a group; the last may be shorter.
        columns: (N, groups) float32 scales.
        rows: (M, groups) float32 scales, or None for 1.
        shifts: (N, groups) float64 that every value of b is less by, or None for 0.

    Returns:
        (M, N) float32.
    """
    out = np.empty((len(a), len(b)), F32)
    _groups(
        np.ascontiguousarray(a, np.int16),
        np.ascontiguousarray(b),
        step,
        np.empty((0, 0), F32) if rows is None else np.ascontiguousarray(rows),
        np.ascontiguousarray(columns),
        np.empty((0, 0), np.float64) if shifts is None else np.ascontiguousarray(shifts),
        out,
    )
    return out
