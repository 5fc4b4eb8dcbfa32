"""Means over windows of text, and how sure they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from qsim._native.threads import CHUNK, for_chunks


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float | None]:
    """sum(numerators) / sum(denominators) over windows, and its standard error.

    A window is the sampling unit, so what correlates inside one does no harm. Neighbouring windows of one text
    correlate too: their autocovariances enter with Bartlett weights (Newey and West) up to lag
    floor(4 (n/100)^(2/9)), and the error is never taken to be less than without them.

    Arguments:
        numerators, denominators: (n,) sums of each window, in the order of the text.

    Returns:
        The ratio, and its standard error; None for a single window, of which nothing can be said.

    Source: ratio estimator, Cochran, "Sampling Techniques", section 6.4; Newey and West, Econometrica 55 (1987).
    """
    total = float(denominators.sum())
    value = float(numerators.sum()) / total
    n = len(numerators)
    if n < 2:
        return value, None
    residual = numerators - value * denominators
    plain = float(residual @ residual)
    variance = plain
    for lag in range(1, min(n - 1, math.floor(4 * (n / 100) ** (2 / 9))) + 1):
        weight = 1 - lag / (1 + math.floor(4 * (n / 100) ** (2 / 9)))
        variance += 2 * weight * float(residual[lag:] @ residual[:-lag])
    return value, math.sqrt(max(variance, plain) * n / (n - 1)) / total


@njit(cache=True, nogil=True, boundscheck=False)
def _log_sum_exp(row: Any) -> Any:
    """log sum exp and the first index of the largest."""
    best = 0
    for v in range(1, row.shape[0]):
        if row[v] > row[best]:
            best = v
    top, total = np.float64(row[best]), 0.0
    for v in range(row.shape[0]):
        total += math.exp(np.float64(row[v]) - top)
    return top + math.log(total), best


@njit(cache=True, nogil=True, boundscheck=False)
def _score(logits: Any, targets: Any, nll: Any, top: Any) -> None:
    for m in range(logits.shape[0]):
        total, best = _log_sum_exp(logits[m])
        nll[m] = total - np.float64(logits[m, targets[m]])
        top[m] = best


def score(logits: np.ndarray, targets: np.ndarray, nll: np.ndarray, top: np.ndarray) -> None:
    """-log p(target) in nats, in float64, and the likeliest token of every row of logits (M, V) float32."""
    for_chunks(len(logits), lambda a, b: _score(logits[a:b], targets[a:b], nll[a:b], top[a:b]), chunk=_rows(logits))


@njit(cache=True, nogil=True, boundscheck=False)
def _divergence(reference: Any, logits: Any, kl: Any, same: Any) -> None:
    for m in range(logits.shape[0]):
        p_total, p_best = _log_sum_exp(reference[m])
        q_total, q_best = _log_sum_exp(logits[m])
        total = 0.0
        for v in range(logits.shape[1]):
            log_p = np.float64(reference[m, v]) - p_total
            total += math.exp(log_p) * (log_p - (np.float64(logits[m, v]) - q_total))
        kl[m] = max(total, 0.0)  # rounding can leave -1e-17 where both agree
        same[m] = p_best == q_best


def divergence(reference: np.ndarray, logits: np.ndarray, kl: np.ndarray, same: np.ndarray) -> None:
    """KL(reference || model) in nats, in float64, and whether the likeliest tokens agree, of every row (M, V)."""
    for_chunks(len(logits), lambda a, b: _divergence(reference[a:b], logits[a:b], kl[a:b], same[a:b]),
               chunk=_rows(logits))  # fmt: skip


def _rows(logits: np.ndarray) -> int:
    """Rows that a thread takes at a time: half a million logits, some milliseconds."""
    return max(1, CHUNK // logits.shape[1])
