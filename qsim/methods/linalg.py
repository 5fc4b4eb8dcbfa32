"""Dense linear algebra of the algorithms: the running Hessian, its inverse factor, and the error it measures.

Everything is float32 and in place, since a layer's Hessian is often larger than its weights: 4096 inputs are 64 MiB.
LAPACK and BLAS come from SciPy, which takes column-major arrays: a row-major lower triangle is a column-major upper
one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit

from qsim._native.blas import one_blas_thread
from qsim._native.threads import for_chunks

F32 = np.float32
_ROWS = 64  # rows a thread takes at a time in the loops over a square matrix
_TEXTBOOK = 512  # up to here the paper's three steps
_SLICE = 256  # columns of H in one product of `output_error`: narrow, for half a slice's square is done twice
_STRIP = 64  # columns of a small Hessian that a thread takes at a time
SMALL = 1024  # columns up to which a product is shorter than BLAS's workers spin
DOUBLE_COLUMNS = 1024  # up to here `output_error` computes in float64


@njit(cache=True, nogil=True, boundscheck=False)
def _gather_lower(h: Any, order: Any, dead: Any, unit: Any, damp: Any, start: int, stop: int, out: Any) -> None:
    for i in range(start, stop):
        row = order[i]
        for j in range(i + 1):
            out[i, j] = h[row, order[j]] * unit
        if dead[row]:
            out[i, i] = F32(1)
        out[i, i] += damp


@njit(cache=True, nogil=True, boundscheck=False)
def _row_sums(h: Any, start: int, stop: int, out: Any) -> None:
    for i in range(start, stop):
        total = 0.0
        for j in range(h.shape[1]):
            total += abs(h[i, j])
        out[i] = total


@njit(cache=True, nogil=True, boundscheck=False)
def _finite_upper(u: Any, start: int, stop: int) -> Any:
    for i in range(start, stop):
        for j in range(i, u.shape[1]):
            if not np.isfinite(u[i, j]):
                return False
    return True


@njit(cache=True, nogil=True, boundscheck=False)
def _reverse(flat: Any, start: int, stop: int) -> None:
    last = flat.size - 1
    for i in range(start, stop):
        flat[i], flat[last - i] = flat[last - i], flat[i]


@njit(cache=True, nogil=True, boundscheck=False)
def _mirror(h: Any, start: int, stop: int) -> None:
    tile = 32  # both the row and the column of a tile stay in L1
    n = h.shape[0]
    for i0 in range(start, stop, tile):
        for j0 in range(0, i0 + 1, tile):
            for i in range(i0, min(i0 + tile, n)):
                for j in range(j0, min(j0 + tile, i)):
                    h[j, i] = h[i, j]


def inverse_factor(
    hessian: np.ndarray,
    order: np.ndarray,
    dead: np.ndarray,
    damp: float,
    *,
    unit: float = 1.0,
    flip: bool | None = None,
) -> tuple[np.ndarray, float] | None:
    """U upper triangular with inv(H') = U^T U, and the condition of H'.

    H' is the Hessian times `unit`, damped, in processing order.

    The paper factors H', inverts, and factors again: 4n^3/3 multiply-adds. With J the matrix that reverses rows, one
    factorisation J H' J = L L^T and one triangular inverse give the same U = J inv(L) J: 2n^3/3.

    Arguments:
        hessian: (K, K) float32, symmetric; not changed.
        order: (K,) the column that is processed first, second, ...
        dead: (K,) bool, columns whose diagonal is 0; they get 1.
        damp: what is added to the diagonal of H'.
        unit: a power of two.
        flip: the second way. None takes it above 512 columns: below, both are quick, and the paper's way meets the
            original code's rounding flips more often.

    Returns:
        U (K, K) float32, row-major; its strict lower triangle holds nothing of use. And LAPACK's estimate of the
        1-norm condition number of H'. None when H' is not positive definite in float32, or U beyond its range.
    """
    n = hessian.shape[0]
    flip = n > _TEXTBOOK if flip is None else flip
    work = np.empty((n, n), F32)
    order = np.ascontiguousarray(order[::-1] if flip else order, dtype=np.intp)
    for_chunks(n, lambda a, b: _gather_lower(hessian, order, dead, F32(unit), F32(damp), a, b, work), chunk=_ROWS)
    norm = _one_norm(hessian) * unit + damp
    found = _by_reversal(work, norm) if flip else _by_the_book(work, norm)
    return found if found is not None and is_finite_upper(found[0]) else None


def is_finite_upper(u: np.ndarray) -> bool:
    """Whether the upper triangle of a matrix is free of NaN and Inf."""
    parts: list[bool] = []
    for_chunks(u.shape[0], lambda a, b: parts.append(_finite_upper(u, a, b)), chunk=_ROWS)
    return all(parts)


def _by_reversal(work: np.ndarray, norm: float) -> tuple[np.ndarray, float] | None:
    from scipy.linalg import lapack

    factor, info = lapack.spotrf(work.T, lower=0, overwrite_a=1, clean=0)
    if info != 0:
        return None
    reciprocal, _ = lapack.spocon(factor, F32(norm), uplo="U")
    factor, info = lapack.strtri(factor, lower=0, overwrite_c=1)
    if info != 0:
        return None
    flat = factor.T.reshape(-1)
    for_chunks(flat.size // 2, lambda a, b: _reverse(flat, a, b))
    return flat.reshape(work.shape), _reciprocal(reciprocal)


def _by_the_book(work: np.ndarray, norm: float) -> tuple[np.ndarray, float] | None:
    from scipy.linalg import lapack

    try:
        lower = np.linalg.cholesky(mirror(work))
        inverse = np.linalg.inv(lower)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found by the caller
            factor = np.linalg.cholesky(inverse.T @ inverse).T
    except np.linalg.LinAlgError:
        return None
    reciprocal, _ = lapack.spocon(lower.T, F32(norm), uplo="U")
    return np.ascontiguousarray(factor), _reciprocal(reciprocal)


def _reciprocal(x: float) -> float:
    return float(1 / x) if x > 0 else float("inf")


def _one_norm(h: np.ndarray) -> float:
    sums = np.empty(h.shape[0])
    for_chunks(h.shape[0], lambda a, b: _row_sums(h, a, b, sums), chunk=_ROWS)
    return float(sums.max())


def accumulate(total: np.ndarray, x: np.ndarray) -> None:
    """Add x^T x to the lower triangle of `total`, in place.

    By SSYRK (DSYRK for float64) on BLAS's threads; up to 1024 columns by strips of columns on ours, which do not spin
    into the loops around them, and give the same bits whatever their number. There `total` gets some of the upper
    triangle, too.

    Arguments:
        total: (K, K) row-major float32 or float64.
        x: (tokens, K) row-major of the same dtype.
    """
    from scipy.linalg import blas

    k = total.shape[0]
    if k <= SMALL:
        strips = -(-k // _STRIP)

        def work(first: int, stop: int) -> None:
            a, b = (strips - stop) * _STRIP, min((strips - first) * _STRIP, k)  # the longest first
            total[a:b, :b] += x[:, a:b].T @ x[:, :b]

        with one_blas_thread():
            for_chunks(strips, work, chunk=1)
        return
    syrk = blas.ssyrk if total.dtype == F32 else blas.dsyrk
    # column-major: total.T has its upper triangle written, x.T is (K, tokens)
    out = syrk(1.0, x.T, 1.0, total.T, lower=0, overwrite_c=1)
    if not np.shares_memory(out, total):  # SciPy copied after all: a layout it does not take
        total[...] = out.T


def mirror(total: np.ndarray) -> np.ndarray:
    """Copy the lower triangle to the upper one, in place."""
    for_chunks(total.shape[0], lambda a, b: _mirror(total, a, b), chunk=_ROWS)
    return total


@njit(cache=True, nogil=True, boundscheck=False, fastmath={"reassoc", "contract"})
def _dot(x: Any, y: Any) -> Any:
    total = 0.0
    for i in range(x.shape[0]):
        row = 0.0
        for j in range(x.shape[1]):
            row += np.float64(x[i, j]) * np.float64(y[i, j])
        total += row
    return total


def dot(x: np.ndarray, y: np.ndarray) -> float:
    """The sum of x * y over two float32 matrices, in float64."""
    return float(_dot(x, y))


def by_rows(rows: Sequence[slice], work: Callable[[slice], float]) -> float:
    """The sum of work(slice), the slices side by side.

    Each multiplies on one BLAS thread: rows do not meet, so nothing waits for anything, as BLAS's own threads do at
    every step. The sum has the same bits for any number of threads.
    """
    parts = np.empty(len(rows))

    def some(first: int, stop: int) -> None:
        for i in range(first, stop):
            parts[i] = work(rows[i])

    with one_blas_thread():
        for_chunks(len(rows), some, chunk=1)
    return float(parts.sum())


def output_error(delta: np.ndarray, hessian: np.ndarray) -> float:
    """tr(D H D^T): the squared error of the outputs that an error D of the weights makes, with H = sum of x x^T.

    Works through the upper blocks of H only, twice those off the diagonal: half the work of D @ H.

    Arguments:
        delta: (N, K) float32.
        hessian: (K, K) float32, symmetric.

    Returns:
        float; products are float64 up to 1024 columns, else float32 with a float64 sum over them (relative error
        about 1e-6).
    """
    k = delta.shape[1]
    if k <= DOUBLE_COLUMNS:
        d = delta.astype(np.float64)
        return float(np.einsum("nk,nk->", d @ hessian.astype(np.float64), d))
    total = 0.0
    for a in range(0, k, _SLICE):
        b = min(a + _SLICE, k)
        here = delta[:, a:b]
        total += dot(here @ hessian[a:b, a:b], here)
        if a:
            total += 2 * dot(delta[:, :a] @ hessian[:a, a:b], here)
    return total
