"""A smooth correction of the soft roofline: what is left of the logarithm of the time, over the shape of the problem.

A piecewise linear function of one coordinate (log2 of M, or of the sequence length), whose value at every knot is
linear in a few features of the other two (log2 N and log2 K, or heads) and of the tile waves. Outside the shapes it
was fitted on, the coordinates are clamped: the correction stays what it is at the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EDGE = 1e-3
"""Slack of a range in log2: calibrations are stored with four digits."""

# tiles (rows of M, columns of N) whose wave quantisation is a feature; the row count shrinks to M when M is smaller
TILES = ((128, 256), (128, 128), (128, 64), (64, 64))


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Coefficients of the correction.

    Attributes:
        knots: log2 of the leading coordinate, increasing, (P,).
        coefficients: (features, P).
        low, high: clamp of the two other coordinates, log2, (2,) each.
        waves: whether wave efficiencies are among the features.
    """

    knots: Array
    coefficients: Array
    low: Array
    high: Array
    waves: bool = False

    def measured(self, a: Any, b: Any) -> Any:
        """Whether the two other coordinates lie within what was measured."""
        u, v = np.log2(a), np.log2(b)
        inside = (self.low[0] - EDGE <= u) & (u <= self.high[0] + EDGE)
        return inside & (self.low[1] - EDGE <= v) & (v <= self.high[1] + EDGE)

    def __call__(self, x: Any, a: Any, b: Any, units: int | None = None) -> Any:
        """log(time / soft roofline) at leading coordinate x and the two others (plain values, they broadcast)."""
        lx = np.log2(np.maximum(x, 1))
        features = make_features(x, a, b, self.low, self.high, units if self.waves else None)
        at = np.clip(np.searchsorted(self.knots, lx, side="right") - 1, 0, len(self.knots) - 2)
        step = self.knots[at + 1] - self.knots[at]
        w = np.clip((lx - self.knots[at]) / step, 0.0, 1.0)
        total: Any = 0.0
        for row, value in zip(self.coefficients, features, strict=True):
            total = total + value * (row[at] * (1 - w) + row[at + 1] * w)
        return total


def tile_rows(largest: float) -> Array:
    """Sizes up to `largest` after which a tile of `TILES` gets another height, or another row of tiles begins."""
    step = min(rows for rows, _ in TILES)
    return np.concatenate([2.0 ** np.arange(4, np.log2(step)), np.arange(step, largest + 1, step)])


def wave_efficiency(m: Any, n: Any, units: int, tile: tuple[int, int]) -> Any:
    """Share of the units that work on average when the tiles of an (m, n) output are dealt out in waves."""
    rows = np.minimum(tile[0], 2.0 ** np.ceil(np.log2(np.maximum(m, 16))))
    tiles = np.ceil(m / rows) * np.ceil(n / tile[1])
    return tiles / (units * np.ceil(tiles / units))


def make_features(x: Any, a: Any, b: Any, low: Array, high: Array, units: int | None) -> list[Any]:
    """1, u, v, uv, u^2, v^2 and, with `units`, log2 of the wave efficiencies."""
    u = np.clip(np.log2(a), low[0], high[0])
    v = np.clip(np.log2(b), low[1], high[1])
    u = (u - (low[0] + high[0]) / 2) / 2
    v = (v - (low[1] + high[1]) / 2) / 2
    features: list[Any] = [1.0, u, v, u * v, u * u, v * v]
    if units is not None:
        features += [np.log2(wave_efficiency(x, a, units, tile)) for tile in TILES]
    return features


def fit_surface(
    x: Array,
    a: Array,
    b: Array,
    y: Array,
    *,
    knots: Array,
    units: int | None,
    ridge: float,
    smooth: float,
) -> Surface:
    """Least squares for the residual y with a ridge on the coefficients and on their change from knot to knot.

    Arguments:
        x, a, b, y: (n,) leading coordinate, the other two, residual log(measured / soft roofline).
        units: of the device, for wave features; None leaves them out.
        ridge, smooth: weights of the two penalties, in units of one measurement.
    """
    low = np.array([np.log2(a).min(), np.log2(b).min()])
    high = np.array([np.log2(a).max(), np.log2(b).max()])
    features = np.stack([np.broadcast_to(f, x.shape) for f in make_features(x, a, b, low, high, units)])
    hats_x = hats(np.log2(x), knots)
    design = np.concatenate([hats_x * f[:, None] for f in features], axis=1)
    count, width = len(features), len(knots)
    change = np.diff(np.eye(width), axis=0)
    bend = change.T @ change
    penalty = np.kron(np.diag(np.r_[0.3, np.ones(count - 1)]), ridge * np.eye(width) + smooth * bend)
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ y)
    coefficients = solution.reshape(count, width)
    return Surface(knots=knots, coefficients=coefficients, low=low, high=high, waves=units is not None)


def hats(lx: Array, knots: Array) -> Array:
    """Weights of the two neighbouring knots of every value: (n, P), rows add up to 1."""
    at = np.clip(np.searchsorted(knots, lx, side="right") - 1, 0, len(knots) - 2)
    w = np.clip((lx - knots[at]) / (knots[at + 1] - knots[at]), 0.0, 1.0)
    out = np.zeros((len(lx), len(knots)))
    rows = np.arange(len(lx))
    out[rows, at] = 1 - w
    out[rows, at + 1] += w
    return out
