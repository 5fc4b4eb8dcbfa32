"""A correction from measured neighbours: near a measured shape, what the fit left there is taken into account.

Kriging: what is left is a Gaussian field over log N and log K, and a measurement of it has noise. Shapes with the
same N have the same tiles and waves, so N counts for nearness more than K does. Far from all measured shapes the
correction is 0; at one of them it is nearly what was left there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .surface import Array

WIDTH = (0.2, 0.5)
"""Standard deviations of nearness in log2 of N and K: a seventh in N, 1.4 times in K."""
NOISE = 0.1
"""Variance of a measurement's noise over that of the field."""
CHUNK = 1 << 15


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """What a fit left at measured shapes, as weights.

    Attributes:
        shapes: (S, 2), log2 of N and K.
        knots: log2 of M, increasing, (P,).
        weights: (S, P): log(time / fit) of a shape is their sum, each times the nearness of its shape.
    """

    shapes: Array
    knots: Array
    weights: Array

    def __call__(self, x: Any, a: Any, b: Any) -> Any:
        """log(time / fit) at M, N and K (plain values, they broadcast)."""
        a, b = np.broadcast_arrays(np.log2(np.asarray(a, np.float64)), np.log2(np.asarray(b, np.float64)))
        flat = np.stack([a.reshape(-1), b.reshape(-1)], axis=1)
        found = np.concatenate([self._at_knots(flat[i : i + CHUNK]) for i in range(0, len(flat), CHUNK)])
        lx = np.clip(np.log2(np.maximum(x, 1e-300)), self.knots[0], self.knots[-1])
        shape = np.broadcast_shapes(np.shape(lx), a.shape)
        table = np.broadcast_to(found.reshape(*a.shape, len(self.knots)), (*shape, len(self.knots)))
        left = np.clip(np.searchsorted(self.knots, lx, side="right") - 1, 0, len(self.knots) - 2)
        share = (lx - self.knots[left]) / (self.knots[left + 1] - self.knots[left])
        at = np.broadcast_to(left, shape)[..., None]
        low, high = (np.take_along_axis(table, at + i, axis=-1)[..., 0] for i in (0, 1))
        return low * (1 - share) + high * share

    def known(self, a: Any, b: Any) -> Any:
        """Nearness of the nearest measured shape: 1 at one, 0 far away."""
        a, b = np.broadcast_arrays(np.log2(np.asarray(a, np.float64)), np.log2(np.asarray(b, np.float64)))
        flat = np.stack([a.reshape(-1), b.reshape(-1)], axis=1)
        parts = [_nearness(flat[i : i + CHUNK], self.shapes).max(axis=1) for i in range(0, len(flat), CHUNK)]
        return np.concatenate(parts).reshape(a.shape)

    def _at_knots(self, points: Array) -> Array:
        """(n, P) corrections at (n, 2) shapes."""
        return np.asarray(_nearness(points, self.shapes) @ self.weights)


def _nearness(points: Array, shapes: Array) -> Array:
    """(n, S): 1 at a shape itself, towards 0 away from it."""
    far = ((points[:, None, :] - shapes) / np.array(WIDTH)) ** 2
    return np.asarray(np.exp(-0.5 * far.sum(axis=2)))


def find_neighbours(x: Array, a: Array, b: Array, left: Array) -> Neighbours:
    """The table of what is left, (n,), at every measured shape; a size that a shape lacks is interpolated over M."""
    lx = np.round(np.log2(x), 6).astype(np.float64)
    knots = np.unique(lx)
    shapes, of = np.unique(np.stack([np.log2(a), np.log2(b)], axis=1), axis=0, return_inverse=True)
    table = np.empty((len(shapes), len(knots)))
    for i in range(len(shapes)):
        mine = of.reshape(-1) == i
        sizes, size = np.unique(lx[mine], return_inverse=True)
        mean = np.bincount(size, left[mine]) / np.bincount(size)
        table[i] = np.interp(knots, sizes, mean)
    noisy = _nearness(shapes, shapes) + NOISE * np.eye(len(shapes))
    weights = np.asarray(np.linalg.solve(noisy, table), dtype=np.float64)
    return Neighbours(shapes=shapes, knots=knots, weights=weights)
