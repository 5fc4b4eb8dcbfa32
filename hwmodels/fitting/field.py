"""A Gaussian field over the three sizes of a problem, fitted to what a roofline leaves and read off on a grid.

Libraries choose tiles, splits and kernels by the shape. What that does to the time is partly a matter of one size (a
tile fits N), partly of two (waves of tiles: M and N; split-K: N and K), partly of the bytes of the weight (what the
cache keeps). The field is a sum of such parts, each with its own reach in every direction; least squares with that
prior (Gaussian-process regression: Rasmussen and Williams 2006, equation 2.23) tells them apart and carries them to
shapes that were not measured. The reaches were chosen once, on shapes left out of the fit, and are the same for every
table of a kind.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration.grid import Grid, Knots
from ..calibration.surface import Array, hats

DIRECTIONS: dict[str, tuple[float, float, float]] = {
    "x": (1, 0, 0), "a": (0, 1, 0), "b": (0, 0, 1), "ab": (0, 1, 1), "xa": (1, 1, 0),
}  # fmt: skip
"""Direction -> weights of the three coordinates. Of a product x, a, b are M, N, K: ab is the weight, xa the output."""


ROBUST_ROUNDS, OUTLIER = 1, 1.0
"""How often measurements are weighed anew, and how many standard deviations one must be missed by to count for less, as
in Huber's regression (median of several seconds' loops: single rows stand out by a factor of two)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a field.

    Attributes:
        size: standard deviation, in logarithms of time.
        reach: direction -> distance in log2 over which the part stays alike (its covariance falls by e); it does not
            vary along directions that are absent.
    """

    size: float
    reach: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Field:
    """Prior of a field: its parts, and the standard deviation of one measurement."""

    parts: tuple[Part, ...]
    noise: float

    def covariance(self, one: Array, other: Array) -> Array:
        """(n, m) covariance of the field at (3, n) and (3, m) coordinates; float32, as the noise of a measurement is
        far above what that rounds off."""
        total: Any = np.zeros((one.shape[1], other.shape[1]), dtype=np.float32)
        for part in self.parts:
            away = np.zeros_like(total)
            for name, reach in part.reach.items():
                u, v = ((np.array(DIRECTIONS[name]) @ c / reach).astype(np.float32) for c in (one, other))
                away -= np.abs(u[:, None] - v)
            total += part.size**2 * np.exp(away, out=away)
        return total


def hash_shapes(shape: Any) -> NDArray[np.int64]:
    """A number for the shape of each row, by a hash: the same in every table and on every machine.

    A row is left out of a fit with all rows whose number has the same remainder.

    Arguments:
        shape: (n, d) whole numbers that name the shape.
    """
    rows, of = np.unique(np.asarray(shape, dtype=np.int64), axis=0, return_inverse=True)
    number = np.array([zlib.crc32(",".join(map(str, row)).encode()) for row in rows.tolist()], dtype=np.int64)
    return np.asarray(number[of.reshape(-1)])


def field_weights(between: Array, left: Array, noise: float) -> Array:
    """(n,) weights whose product with a point's covariances is the field's mean there.

    Arguments:
        between: (n, n) covariance of the field between the measurements.
        left: (n,) what is left of the logarithms of the times.
    """
    from scipy.linalg import cho_factor, cho_solve

    variance = np.full(len(left), noise**2, dtype=between.dtype)
    weights = np.zeros_like(variance)
    for _ in range(1 + ROBUST_ROUNDS):
        gram = between.copy()
        gram[np.diag_indices(len(left))] += variance
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        weights = np.asarray(cho_solve(factor, left.astype(between.dtype)))
        missed = np.abs(variance * weights)
        variance = noise**2 * np.maximum(1.0, missed / (OUTLIER * noise))
    return weights


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Measurements on a grid: a measurement between knots is the mean of the corners around it, as the grid joins them.

    Attributes:
        share: (n, c) sparse: how much of a measurement each corner makes up.
        corners: (3, c) log2 of the corners that make up any.
        between: (n, n) covariance of the field between the measurements.
    """

    share: Any
    corners: Array
    between: Array


def place(coordinates: Array, knots: Knots, field: Field) -> Placed:
    """Measurements at (3, n) coordinates in log2 on the grid of `knots`."""
    from scipy.sparse import csr_array

    n = coordinates.shape[1]
    sides = [hats(np.clip(c, k[0], k[-1]), k) for c, k in zip(coordinates, knots, strict=True)]
    full = csr_array(np.einsum("np,nq->npq", sides[0], sides[1]).reshape(n, -1))
    rows, pairs, values = [], [], []
    for r in range(len(knots[2])):
        part = (full * sides[2][:, r : r + 1]).tocoo()
        rows.append(part.row)
        pairs.append(part.col * len(knots[2]) + r)
        values.append(part.data)
    used, of = np.unique(np.concatenate(pairs), return_inverse=True)
    share = csr_array((np.concatenate(values), (np.concatenate(rows), of)), shape=(n, len(used)))
    share.eliminate_zeros()
    corners = _corners(knots)[:, used]
    between = share @ (share @ field.covariance(corners, corners)).T
    return Placed(share=share, corners=corners, between=np.asarray(between, dtype=np.float32))


def _corners(knots: Knots) -> Array:
    return np.stack([c.reshape(-1) for c in np.meshgrid(*knots, indexing="ij")])


def fit_field(coordinates: Array, left: Array, knots: Knots, field: Field) -> Grid:
    """The field given what is left, (n,), at (3, n) coordinates in log2: its mean at the corners of a grid."""
    placed = place(coordinates, knots, field)
    weights = placed.share.T @ field_weights(placed.between, left, field.noise)
    corners = _corners(knots)
    values = np.concatenate(
        [field.covariance(corners[:, i : i + 1024], placed.corners) @ weights for i in range(0, corners.shape[1], 1024)]
    )
    return Grid(knots=knots, values=values.astype(np.float64).reshape([len(k) for k in knots]))
