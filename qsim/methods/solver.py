"""GPTQ's inner loop, compiled: quantise the columns of one block and pass each error on inside the block.

Rows do not depend on one another. 64 of them are the lanes of the vector loops: a tile of 64 rows by one block is
transposed into L1, worked through column by column, and its codes and errors are transposed out again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from qsim._native.threads import for_chunks

from .columns import ColumnPlan
from .scales import ScaleFinder

F32 = np.float32
LANES = 64
_MAGIC = F32(3 << 22)  # x + 1.5 * 2^23 - 1.5 * 2^23 is rint(x) for |x| < 2^22, in instructions that vectorise
_FAR = F32(1 << 20)  # codes end far below: clamping x / s here first changes no code


@njit(cache=True, nogil=True, boundscheck=False, error_model="numpy")
def _solve(
    w: Any, u: Any, p: Any, i1: int, i2: int, scales: Any, zeros: Any, group_of: Any, column: Any,
    half: Any, flip: Any, round_then_add: bool, r0: int, err: Any, met: Any, at: int, codes: Any, loss: Any,
) -> None:  # fmt: skip
    """One tile: rows r0 .. r0 + 63 of `w`, columns i1 .. i2 - 1. See `solve_block`."""
    width, rows = i2 - i1, min(LANES, w.shape[0] - r0)
    top = F32(half + half - F32(1))
    corrected = p.shape[0] > 0
    tile = np.zeros((width, LANES), F32)
    errors = np.empty((width, LANES), F32)
    values = np.empty((width if corrected else 1, LANES), F32)
    chosen = np.empty((width, LANES), np.uint8)
    e, x = np.empty(LANES, F32), np.empty(LANES, F32)
    total = np.zeros(LANES, F32)
    for r in range(rows):
        for j in range(width):
            tile[j, r] = w[r0 + r, i1 + j]
    for i in range(width):
        c = i1 + i
        g = group_of[c]
        diagonal = u[c, c]
        for r in range(LANES):
            s, z = scales[g, r0 + r], zeros[g, r0 + r]
            x[r] = tile[i, r]
            v = F32(min(max(F32(x[r] / s), -_FAR), _FAR))
            if round_then_add:
                v = F32(F32(v + _MAGIC) - _MAGIC)
                v = F32(min(max(F32(v + z), F32(0)), top))
            else:
                # in signed integers, as the original: x/s + z rounds differently when z is larger
                v = F32(min(max(F32(v + F32(z - half)), -half), F32(half - F32(1))))
                v = F32(F32(F32(v + _MAGIC) - _MAGIC) + half)
            q = F32(s * F32(v - z))
            e[r] = F32(F32(x[r] - q) / diagonal)
            total[r] += F32(e[r] * e[r])
            chosen[i, r] = np.uint8(np.int32(v)) ^ flip
            errors[i, r] = e[r]
            if corrected:
                values[i, r] = q
        for j in range(i + 1, width):
            step = u[c, i1 + j]
            for r in range(LANES):
                tile[j, r] -= F32(e[r] * step)
        if corrected:
            for j in range(i + 1, width):
                step = p[c, i1 + j]
                for r in range(LANES):
                    tile[j, r] += F32(x[r] * step)
    for r in range(rows):
        for i in range(width):
            err[r0 + r, at + i] = errors[i, r]
            codes[r0 + r, column[i1 + i]] = chosen[i, r]
        if corrected:
            for i in range(width):
                met[r0 + r, at + i] = values[i, r]
        loss[r0 + r] += total[r] / 2


def solve_block(
    w: np.ndarray, u: np.ndarray, p: np.ndarray, columns: tuple[int, int], scales: np.ndarray, zeros: np.ndarray,
    plan: ColumnPlan, finder: ScaleFinder, err: np.ndarray, met: np.ndarray, at: int, codes: np.ndarray,
    loss: np.ndarray,
) -> None:  # fmt: skip
    """Quantise columns [i1, i2) of `w`, on `numba.get_num_threads()` threads.

    Arguments:
        w: (R, K) float32 in processing order, updated up to column i1. Only read.
        u: (K, K) float32, the upper factor of the inverse Hessian. p: (K, K) float32, GPTAQ's P; (0, 0) without it.
        columns: (i1, i2).
        scales, zeros: (G, R padded to whole tiles) float32.
        plan: order of the columns and their groups. finder: how codes are rounded.
        err: (R, S) float32, gets the errors e at [:, at : at + i2 - i1]. met: gets the quantised values there, with P.
        codes: (R, K) uint8, by original column. loss: (R,) float64, e^2 / 2 is added to it.
    """
    how, (i1, i2) = finder.how, columns
    half = 1 << (how.bits - 1)
    flip = np.uint8(half if how.symmetric else 0)  # signed codes are two's complement around the middle

    def work(first: int, stop: int) -> None:
        for tile in range(first, stop):
            _solve(w, u, p, i1, i2, scales, zeros, plan.group_of, plan.order, F32(half), flip,
                   finder.rule.round_then_add or how.symmetric, tile * LANES, err, met, at, codes, loss)  # fmt: skip

    for_chunks(-(-w.shape[0] // LANES), work, chunk=1)
