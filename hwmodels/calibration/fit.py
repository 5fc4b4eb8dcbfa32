"""Fitting the parameters of a kernel to measured times, and judging them on shapes that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..device import Device
from ..grid import Knots, fit_grid
from ..kernels import VECTOR, KernelFamily
from ..surface import Surface, fit_surface
from ..timing import soft_roofline
from .store import REGIME_EDGES, REGIMES, Parameters

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
        campaign: (n,) 0 for the campaign whose level counts.
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
    campaign: NDArray[np.int64]
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
        folds: how many parts the shapes are left out in.
    """

    tau: bool = True
    ridge: tuple[float, ...] = (1.0,)
    smooth: float = 1.0
    waves: bool = True
    exp_weight: float = 0.0
    knots: Knots | None = None
    folds: int = 5


def gemm_rows(device: Device, family: KernelFamily, m: Any, n: Any, k: Any, time_s: Any, campaign: Any = 0) -> Rows:
    """Rows of a matrix product y[M,N] = x[M,K] w[N,K]^T; the weight costs the family's bits per weight."""
    peak = device.compute.vector_flop_per_s if family.compute == VECTOR else device.peak_flop_per_s(family.compute)
    if peak is None:
        raise ValueError(f"{device.name} has no {family.compute} peak, which {family.name} multiplies in")
    m, n, k = (np.asarray(v, dtype=np.float64) for v in (m, n, k))
    traffic = family.weight_bits / 8 * n * k + family.activation_bytes * m * k + family.output_bytes * m * n
    _, shape = np.unique(np.stack([n, k]), axis=1, return_inverse=True)
    return Rows(
        x=m, a=n, b=k, k=k, time_s=np.asarray(time_s, dtype=np.float64), shape=shape.reshape(-1),
        flop_s=2 * m * n * k / peak, memory_s=traffic / device.memory.bandwidth_bytes_per_s,
        campaign=np.broadcast_to(np.asarray(campaign, dtype=np.int64), m.shape), known=np.zeros(m.shape),
        exp_s=np.zeros(m.shape),
    )  # fmt: skip


def fit_parameters(rows: Rows, kernel: str, settings: Settings, units: int | None) -> Parameters:
    """Soft roofline by robust least squares on the logarithm, then the surface on what is left.

    The roofline is fitted on the first campaign alone when it has rows: its level is the one that is kept.
    """
    from scipy.optimize import least_squares

    base = rows.take(rows.campaign == 0) if (rows.campaign == 0).any() else rows

    def unpack(theta: Array) -> Parameters:
        t0, eta_c, eta_m, p = np.exp(theta[:4])
        return Parameters(
            kernel=kernel, t0_s=t0, eta_compute=eta_c, eta_memory=eta_m, p=1 + p,
            tau_s_per_k=float(np.exp(theta[4])) if settings.tau else 0.0, exp_weight=settings.exp_weight,
        )  # fmt: skip

    def misfit(theta: Array) -> Any:
        return np.log(soft_time(base, unpack(theta)) / base.time_s)

    best = None
    for start in (0.0, 1.5):
        guess = [np.log(5e-6), np.log(0.7), np.log(0.85), start] + ([np.log(1e-9)] if settings.tau else [])
        low = [np.log(1e-8), np.log(0.01), np.log(0.2), -4.0] + ([np.log(1e-12)] if settings.tau else [])
        high = [np.log(1e-4), np.log(1.5), np.log(1.2), 3.5] + ([np.log(3e-8)] if settings.tau else [])
        found = least_squares(misfit, guess, bounds=(low, high), loss="soft_l1", f_scale=0.1)
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    fitted = replace(unpack(best.x), rows=len(rows), shapes=len(np.unique(rows.shape)))
    left = np.log(rows.time_s / soft_time(rows, fitted))
    if settings.knots is not None:
        grid = fit_grid(
            rows.x, rows.a, rows.b, left, knots=settings.knots, units=units if settings.waves else None, smooth=0.1,
            ridge=0.01,
        )  # fmt: skip
        return replace(fitted, surface=grid)
    if not settings.ridge:
        return fitted
    return replace(fitted, surface=_surface(rows, left, settings, units))


def _surface(rows: Rows, left: Array, settings: Settings, units: int | None) -> Surface:
    """The surface of what is left, with the ridge that predicts left-out shapes best."""
    knots: Array = np.unique(np.round(np.log2(rows.x), 6)).astype(np.float64)

    def fit(mask: NDArray[np.bool_], ridge: float) -> Surface:
        return fit_surface(
            rows.x[mask], rows.a[mask], rows.b[mask], left[mask], knots=knots, ridge=ridge, smooth=settings.smooth,
            units=units if settings.waves else None, campaign=rows.campaign[mask],
        )  # fmt: skip

    everything = np.ones(len(rows), dtype=bool)
    if len(settings.ridge) == 1:
        return fit(everything, settings.ridge[0])

    def score(ridge: float) -> float:
        """Mean absolute residual of left-out shapes; the level of a further campaign is not held against it."""
        total = 0.0
        for shape in np.unique(rows.shape):
            out = rows.shape == shape
            found = fit(~out, ridge)
            rest = left[out] - found(rows.x[out], rows.a[out], rows.b[out], units)
            for c in np.unique(rows.campaign[out]):
                mine = rest[rows.campaign[out] == c]
                total += float(np.abs(mine if c == 0 else mine - np.median(mine)).sum())
        return total

    return fit(everything, min(settings.ridge, key=score))


def soft_time(rows: Rows, fitted: Parameters) -> Array:
    """Soft roofline of the rows with what is known of their shapes, without the correction fitted on them."""
    compute = rows.flop_s / fitted.eta_compute + rows.k * fitted.tau_s_per_k + fitted.exp_weight * rows.exp_s
    soft = fitted.t0_s + soft_roofline(compute, rows.memory_s / fitted.eta_memory, fitted.p)
    return np.asarray(soft * np.exp(rows.known))


def predict_rows(rows: Rows, fitted: Parameters, units: int | None) -> Array:
    """Predicted time of the rows."""
    time = soft_time(rows, fitted)
    surface = fitted.surface
    return time if surface is None else time * np.exp(surface(rows.x, rows.a, rows.b, units))


def held_out(
    rows: Rows, kernel: str, settings: Settings, units: int | None, report: Callable[[int], None] | None = None
) -> tuple[Array, NDArray[np.int64]]:
    """Prediction of every row by a fit that has not seen any row of its shape, and the fold it was left out with.

    A second campaign's level is estimated, from the shapes that stay in, as a median by octave of M.
    """
    shapes = np.unique(rows.shape)
    folds = min(settings.folds, len(shapes))
    order = np.random.default_rng(0).permutation(len(shapes))
    fold_of = np.empty(len(shapes), dtype=np.int64)
    fold_of[order] = np.arange(len(shapes)) % folds
    fold = fold_of[np.searchsorted(shapes, rows.shape)]
    out = np.empty(len(rows))
    for i in range(folds):
        inside, outside = rows.take(fold != i), rows.take(fold == i)
        fitted = fit_parameters(inside, kernel, settings, units)
        guess = predict_rows(outside, fitted, units)
        if (outside.campaign > 0).any():
            seen = inside.take(inside.campaign > 0)
            ratio = np.log(seen.time_s / predict_rows(seen, fitted, units))
            octaves = np.unique(seen.x)
            level = np.array([np.median(ratio[seen.x == m]) for m in octaves])
            shift = np.interp(np.log2(outside.x), np.log2(octaves), level)
            guess = np.where(outside.campaign > 0, guess * np.exp(shift), guess)
        out[fold == i] = guess
        if report is not None:
            report(i)
    return out, fold


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
    guess, _ = held_out(rows, kernel, settings, units)
    fitted = fit_parameters(rows, kernel, settings, units)
    return replace(fitted, held_out_mape=judge(rows, guess), band=bands(rows.x, rows.time_s, guess))
