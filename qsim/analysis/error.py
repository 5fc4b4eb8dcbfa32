"""Error metrics of an approximation: arrays in, arrays and records out.

All of them compute in float64 and take arrays of any one shape. Non-finite elements are an error, for no metric says
anything about them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError


@dataclass(frozen=True, kw_only=True)
class ErrorCurve:
    """Relative error against magnitude: one entry a bin, all arrays of shape (bins,).

    Arguments:
        magnitude: geometric centre of the bin of |reference|.
        low, high: its ends.
        worst, rms: largest and root mean square relative error in the bin; NaN in an empty bin.
        count: elements in the bin.
    """

    magnitude: np.ndarray
    low: np.ndarray
    high: np.ndarray
    worst: np.ndarray
    rms: np.ndarray
    count: np.ndarray


def _pair(reference: Any, approximation: Any) -> tuple[np.ndarray, np.ndarray]:
    a = real_array(reference, "reference values", integers=True, dtype=np.float64)
    b = real_array(approximation, "approximated values", integers=True, dtype=np.float64)
    if a.shape != b.shape:
        raise QsimError(f"reference and approximation must have one shape: got {a.shape} and {b.shape}")
    if a.size == 0:
        raise QsimError("an error metric needs at least one element: got empty arrays")
    for name, array in (("reference", a), ("approximation", b)):
        bad = np.flatnonzero(~np.isfinite(array))
        if bad.size:
            raise QsimError(
                f"{name} must be finite: got {bad.size} NaN or Inf, the first at {_index(bad[0], array.shape)}"
            )
    return a, b


def _index(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(flat, shape))


def max_abs_error(reference: Any, approximation: Any) -> float:
    """Largest |approximation - reference|.

    Raises:
        ValueError: shapes that differ, arrays that are empty, non-finite, masked or no real numbers (as all metrics
            here).
    """
    a, b = _pair(reference, approximation)
    return float(np.max(np.abs(b - a)))


def mean_abs_error(reference: Any, approximation: Any) -> float:
    """Mean |approximation - reference|."""
    a, b = _pair(reference, approximation)
    return float(np.mean(np.abs(b - a)))


def rms_error(reference: Any, approximation: Any) -> float:
    """Root mean square of approximation - reference."""
    a, b = _pair(reference, approximation)
    return float(np.sqrt(np.mean(np.square(b - a))))


def sqnr_db(reference: Any, approximation: Any) -> float:
    """Signal-to-quantisation-noise ratio in dB, 10 log10(sum x^2 / sum (y - x)^2).

    inf when the two are equal; -inf for an all-zero reference that was not met.
    """
    a, b = _pair(reference, approximation)
    noise, signal = float(np.sum(np.square(b - a))), float(np.sum(np.square(a)))
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def relative_error(reference: Any, approximation: Any) -> np.ndarray:
    """Element-wise |approximation - reference| / |reference|, float64, shape of reference.

    Where the reference is 0: 0 if the approximation is 0 too, else inf.
    """
    a, b = _pair(reference, approximation)
    error = np.abs(b - a)
    out = np.where(error == 0, 0.0, np.inf)
    np.divide(error, np.abs(a), out=out, where=a != 0)
    return out


def relative_error_quantiles(
    reference: Any, approximation: Any, quantiles: Sequence[float] = (0.5, 0.9, 0.99, 1.0)
) -> np.ndarray:
    """Quantiles of the relative error over the elements whose reference is not 0; shape (len(quantiles),).

    Raises:
        ValueError: also when every reference element is 0.
    """
    a, b = _pair(reference, approximation)
    some = a != 0
    if not some.any():
        raise QsimError("relative errors need a non-zero reference element: all are 0")
    return np.quantile(relative_error(a[some], b[some]), quantiles)


def error_against_magnitude(reference: Any, approximation: Any, *, bins_per_octave: int = 1) -> ErrorCurve:
    """Worst and rms relative error in bins of |reference|, equal in log2 and aligned with the powers of two.

    Arguments:
        reference, approximation: arrays of one shape; zeros of the reference are left out.
        bins_per_octave: 1 gives a float format one bin per binade.

    Returns:
        Bins from the octave of the smallest to that of the largest magnitude, empty ones included.

    Raises:
        ValueError: as the metrics; no non-zero reference; bins_per_octave below 1.
    """
    a, b = _pair(reference, approximation)
    if bins_per_octave < 1:
        raise QsimError(f"bins_per_octave must be at least 1: got {bins_per_octave}")
    some = a != 0
    if not some.any():
        raise QsimError("relative errors need a non-zero reference element: all are 0")
    magnitude, error = np.abs(a[some]), relative_error(a[some], b[some])
    # frexp, not log2: a value just below a power of two must not round into the next octave
    mantissa, exponent = np.frexp(magnitude)
    first, last = int(exponent.min()) - 1, int(exponent.max()) - 1
    edges = np.exp2(np.arange((last - first + 1) * bins_per_octave + 1) / bins_per_octave + first)
    within = np.searchsorted(edges[: bins_per_octave + 1] / edges[0], mantissa * 2, side="right") - 1
    which = (exponent - 1 - first) * bins_per_octave + np.minimum(within, bins_per_octave - 1)
    n = edges.size - 1
    count = np.bincount(which, minlength=n)
    worst = np.full(n, -1.0)
    np.maximum.at(worst, which, error)
    mean_square = np.divide(
        np.bincount(which, weights=np.square(error), minlength=n), count, out=np.full(n, np.nan), where=count > 0
    )
    return ErrorCurve(
        magnitude=np.sqrt(edges[:-1]) * np.sqrt(edges[1:]),
        low=edges[:-1],
        high=edges[1:],
        worst=np.where(count > 0, worst, np.nan),
        rms=np.sqrt(mean_square),
        count=count,
    )
