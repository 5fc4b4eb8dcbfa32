"""Fitting the parameters of a kernel to measured times, and judging them on shapes that the fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsim.errors import QsimError

from ..calibration.fitted import REGIME_EDGES, REGIMES, Parameters
from ..calibration.grid import Knots, fit_grid
from ..calibration.neighbours import find_neighbours
from ..calibration.surface import Surface, fit_surface
from ..device.device import Device
from ..timing.family import VECTOR, KernelFamily
from ..timing.kernel import soft_roofline
from .field import Field, field_weights, fit_field, place

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Measured calls of one kernel.

    Attributes:
        x, a, b: (n,) coordinates of the surface: M, N, K of a product; sequence, batch * heads, group of attention.
        flop_s, memory_s: (n,) times at the peaks of the device.
        exp_s: (n,) time of the exponentials of a softmax at the device's rate.
        k: (n,) length of the inner loop, for tau.
        time_s: (n,) measured.
        shape: (n,) number of the shape a row belongs to; rows of one shape are held out together.
        known: (n,) log of a correction that is known beforehand: what another kernel's fit says of these shapes.
    """

    x: Array
    a: Array
    b: Array
    flop_s: Array
    memory_s: Array
    exp_s: Array
    k: Array
    time_s: Array
    shape: NDArray[np.int64]
    known: Array

    def __len__(self) -> int:
        return len(self.x)

    def take(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows where the mask is True."""
        return Rows(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of a fit.

    Attributes:
        tau: whether the latency of a step along K is fitted.
        ridge: penalty of the surface; several are tried by leaving out shapes of the rows that are fitted; empty for
            no surface.
        smooth, waves: further penalty, wave features.
        exp_weight: share of the exponentials' time that adds to the products' (not fitted).
        knots: log2 of the three coordinates: a grid instead of the surface.
        field: prior of what the grid holds; None takes penalties on the change from corner to corner. Shapes are then
            left out by the hash that numbers them.
        neighbours: whether what is left at the measured shapes corrects their surroundings.
        folds: how many parts the shapes are left out in.
    """

    tau: bool = True
    ridge: tuple[float, ...] = (1.0,)
    smooth: float = 1.0
    waves: bool = True
    exp_weight: float = 0.0
    knots: Knots | None = None
    field: Field | None = None
    neighbours: bool = False
    folds: int = 5


def gemm_rows(device: Device, family: KernelFamily, m: Any, n: Any, k: Any, time_s: Any) -> Rows:
    """Rows of a matrix product y[M,N] = x[M,K] w[N,K]^T; the weight costs the family's bits per weight."""
    peak = device.compute.vector_flop_per_s if family.compute == VECTOR else device.peak_flop_per_s(family.compute)
    if peak is None:
        raise QsimError(f"{device.name} has no {family.compute} peak, which {family.name} multiplies in")
    m, n, k = (np.asarray(v, dtype=np.float64) for v in (m, n, k))
    traffic = family.weight_bits / 8 * n * k + family.activation_bytes * m * k + family.output_bytes * m * n
    _, shape = np.unique(np.stack([n, k]), axis=1, return_inverse=True)
    return Rows(
        x=m, a=n, b=k, k=k, time_s=np.asarray(time_s, dtype=np.float64), shape=shape.reshape(-1),
        flop_s=2 * m * n * k / peak, memory_s=traffic / device.memory.bandwidth_bytes_per_s,
        known=np.zeros(m.shape), exp_s=np.zeros(m.shape),
    )  # fmt: skip


def fit_parameters(rows: Rows, kernel: str, settings: Settings, units: int | None) -> Parameters:
    """Soft roofline by robust least squares on the logarithm, then the correction fitted on what is left."""
    fitted = _fit_roofline(rows, kernel, settings)
    left = np.log(rows.time_s / soft_time(rows, fitted))
    if settings.knots is not None and settings.field is not None:
        coordinates = np.log2(np.stack([rows.x, rows.a, rows.b]))
        return replace(fitted, surface=fit_field(coordinates, left, settings.knots, settings.field))
    if settings.knots is not None:
        grid = fit_grid(
            rows.x, rows.a, rows.b, left, knots=settings.knots, units=units if settings.waves else None, smooth=0.1,
            ridge=0.01,
        )  # fmt: skip
        return replace(fitted, surface=grid)
    if settings.ridge:
        fitted = replace(fitted, surface=_surface(rows, left, settings, units))
    if settings.neighbours:
        left = np.log(rows.time_s / predict_rows(rows, fitted, units))
        fitted = replace(fitted, neighbours=find_neighbours(rows.x, rows.a, rows.b, left))
    return fitted


def _fit_roofline(rows: Rows, kernel: str, settings: Settings) -> Parameters:
    from scipy.optimize import least_squares

    def unpack(theta: Array) -> Parameters:
        t0, eta_c, eta_m, p = np.exp(theta[:4])
        return Parameters(
            kernel=kernel, t0_s=t0, eta_compute=eta_c, eta_memory=eta_m, p=1 + p,
            tau_s_per_k=float(np.exp(theta[4])) if settings.tau else 0.0, exp_weight=settings.exp_weight,
        )  # fmt: skip

    def misfit(theta: Array) -> Any:
        return np.log(soft_time(rows, unpack(theta)) / rows.time_s)

    best = None
    for start in (0.0, 1.5):
        guess = [np.log(5e-6), np.log(0.7), np.log(0.85), start] + ([np.log(1e-9)] if settings.tau else [])
        low = [np.log(1e-8), np.log(0.01), np.log(0.2), -4.0] + ([np.log(1e-12)] if settings.tau else [])
        high = [np.log(1e-4), np.log(1.5), np.log(1.2), 3.5] + ([np.log(3e-8)] if settings.tau else [])
        found = least_squares(misfit, guess, bounds=(low, high), loss="soft_l1", f_scale=0.1)
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    return replace(unpack(best.x), rows=len(rows), shapes=len(np.unique(rows.shape)))


def _surface(rows: Rows, left: Array, settings: Settings, units: int | None) -> Surface:
    """The surface of what is left, with the ridge that predicts left-out shapes best."""
    knots: Array = np.unique(np.round(np.log2(rows.x), 6)).astype(np.float64)

    def fit(mask: NDArray[np.bool_], ridge: float) -> Surface:
        return fit_surface(
            rows.x[mask], rows.a[mask], rows.b[mask], left[mask], knots=knots, ridge=ridge, smooth=settings.smooth,
            units=units if settings.waves else None,
        )  # fmt: skip

    everything = np.ones(len(rows), dtype=bool)
    if len(settings.ridge) == 1:
        return fit(everything, settings.ridge[0])

    fold = folds_of(rows.shape, 6)

    def score(ridge: float) -> float:
        """Absolute residuals of shapes that the fit has not seen."""
        total = 0.0
        for i in range(fold.max() + 1):
            out = fold == i
            rest = left[out] - fit(~out, ridge)(rows.x[out], rows.a[out], rows.b[out], units)
            total += float(np.abs(rest).sum())
        return total

    return fit(everything, min(settings.ridge, key=score))


def soft_time(rows: Rows, fitted: Parameters) -> Array:
    """Soft roofline of the rows with what is known of their shapes, without the correction fitted on them."""
    compute = rows.flop_s / fitted.eta_compute + rows.k * fitted.tau_s_per_k + fitted.exp_weight * rows.exp_s
    soft = fitted.t0_s + soft_roofline(compute, rows.memory_s / fitted.eta_memory, fitted.p)
    return np.asarray(soft * np.exp(rows.known))


def predict_rows(rows: Rows, fitted: Parameters, units: int | None) -> Array:
    """Predicted time of the rows."""
    own = replace(fitted, borrowed=None)  # what is borrowed is in rows.known
    return np.asarray(soft_time(rows, fitted) * np.exp(own.correction(rows.x, rows.a, rows.b, units)))


def folds_of(shape: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """The part that every row is left out with: shapes dealt out at random, rows of one shape together."""
    numbers = np.unique(shape)
    parts = min(folds, len(numbers))
    part = np.empty(len(numbers), dtype=np.int64)
    part[np.random.default_rng(0).permutation(len(numbers))] = np.arange(len(numbers)) % parts
    return part[np.searchsorted(numbers, shape)]


def held_out(
    rows: Rows, kernel: str, settings: Settings, units: int | None, others: Sequence[Rows] = ()
) -> tuple[Array, NDArray[np.int64], list[Array]]:
    """Prediction of every row by a fit that has not seen any row of its shape.

    Arguments:
        others: further rows of the same shapes (of another campaign, or at other sizes), which are never fitted.

    Returns:
        predictions (n,), the fold each row was left out with (n,), and predictions of `others` by the fit that has not
        seen their shape (by the whole fit, where `rows` lack the shape).
    """
    if settings.field is not None:
        guess, fold = _held_out_field(rows, kernel, settings)
        return guess, fold, []
    fold = folds_of(rows.shape, settings.folds)
    out = np.empty(len(rows))
    more = [np.full(len(o), np.nan) for o in others]
    for i in range(fold.max() + 1):
        fitted = fit_parameters(rows.take(fold != i), kernel, settings, units)
        outside = rows.take(fold == i)
        out[fold == i] = predict_rows(outside, fitted, units)
        for o, guess in zip(others, more, strict=True):
            same = (o.a[:, None] == outside.a) & (o.b[:, None] == outside.b)
            mine = same.any(axis=1)
            if mine.any():
                guess[mine] = predict_rows(o.take(mine), fitted, units)
    if any(np.isnan(guess).any() for guess in more):
        fitted = fit_parameters(rows, kernel, settings, units)
        more = [np.where(np.isnan(g), predict_rows(o, fitted, units), g) for o, g in zip(others, more, strict=True)]
    return out, fold, more


def _held_out_field(rows: Rows, kernel: str, settings: Settings) -> tuple[Array, NDArray[np.int64]]:
    """As `held_out`; the covariances of all rows are made once."""
    assert settings.field is not None
    assert settings.knots is not None
    between = place(np.log2(np.stack([rows.x, rows.a, rows.b])), settings.knots, settings.field).between
    fold = rows.shape % settings.folds
    out = np.empty(len(rows))
    for i in np.unique(fold):
        kept, outside = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
        fitted = _fit_roofline(rows.take(fold != i), kernel, settings)
        soft = soft_time(rows, fitted)
        left = np.log(rows.time_s[kept] / soft[kept])
        weights = field_weights(between[np.ix_(kept, kept)], left, settings.field.noise)
        out[outside] = soft[outside] * np.exp(between[np.ix_(outside, kept)] @ weights)
    return np.maximum(out, np.maximum(rows.flop_s, rows.memory_s)), fold


def regime_of(x: Array) -> NDArray[np.int64]:
    """0, 1, 2 for small, medium, large."""
    return np.searchsorted(np.asarray(REGIME_EDGES), x, side="left")


def bands(x: Array, measured: Array, predicted: Array, coverage: float = 0.8) -> dict[str, tuple[float, float]]:
    """Factors on the prediction between which `coverage` of the measurements lie, for each regime with >= 20 rows."""
    ratio = np.log(measured / predicted)
    out = {}
    for i, name in enumerate(REGIMES):
        mine = ratio[regime_of(x) == i]
        if len(mine) >= 20:
            tail = (1 - coverage) / 2
            out[name] = tuple(float(v) for v in np.exp(np.quantile(mine, [tail, 1 - tail])))
    tail = (1 - coverage) / 2
    out["all"] = tuple(float(v) for v in np.exp(np.quantile(ratio, [tail, 1 - tail])))
    return out  # type: ignore[return-value]


def band_of(x: Array, band: dict[str, tuple[float, float]]) -> tuple[Array, Array]:
    """Low and high factor of every row."""
    pairs = np.array([band.get(name, band["all"]) for name in REGIMES])[regime_of(x)]
    return pairs[:, 0], pairs[:, 1]


def coverage(x: Array, measured: Array, predicted: Array, fold: NDArray[np.int64]) -> float:
    """Share of rows inside a band that was drawn from the held-out errors of the other folds."""
    inside = np.zeros(len(x), dtype=bool)
    for i in np.unique(fold):
        mine = fold == i
        low, high = band_of(x[mine], bands(x[~mine], measured[~mine], predicted[~mine]))
        inside[mine] = (measured[mine] >= predicted[mine] * low) & (measured[mine] <= predicted[mine] * high)
    return float(inside.mean())


def judge(rows: Rows, predicted: Array) -> dict[str, float]:
    """Mean absolute relative error, over all rows and by regime."""
    error = np.abs(predicted / rows.time_s - 1)
    out = {"all": float(error.mean())}
    for i, name in enumerate(REGIMES):
        mine = regime_of(rows.x) == i
        if mine.any():
            out[name] = float(error[mine].mean())
    return out


def fit_and_judge(rows: Rows, kernel: str, settings: Settings, units: int | None) -> Parameters:
    """Fit on all rows, with held-out errors and bands from `held_out` attached."""
    guess, _, _ = held_out(rows, kernel, settings, units)
    fitted = fit_parameters(rows, kernel, settings, units)
    return replace(fitted, held_out_mape=judge(rows, guess), band=bands(rows.x, rows.time_s, guess))
