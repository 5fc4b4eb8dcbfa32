"""A correction of the soft roofline on a grid: piecewise linear in the logarithm of all three sizes of a problem.

Libraries choose tiles, splits and whole kernels by the shape, so what a roofline leaves is full of steps that no low
polynomial follows. A grid of corner values follows them where shapes are measured densely; penalties on the change
from corner to corner carry it over the gaps. Outside the knots the correction stays what it is at the edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .surface import EDGE, TILES, Array, hats, wave_efficiency

Knots = tuple[Array, Array, Array]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Corner values of log(time / soft roofline).

    Attributes:
        knots: log2 of the three coordinates, increasing: (P,), (Q,), (R,); M, N, K of a product.
        values: (P, Q, R).
        waves: (tiles, P), coefficient of log2 of each wave efficiency at the knots of the first coordinate; None
            without.
    """

    knots: Knots
    values: Array
    waves: Array | None = None

    def measured(self, a: Any, b: Any) -> Any:
        """Whether the two other coordinates lie within what was measured."""
        inside: Any = True
        for value, knots in zip((a, b), self.knots[1:], strict=True):
            at = np.log2(value)
            inside = inside & (knots[0] - EDGE <= at) & (at <= knots[-1] + EDGE)
        return inside

    def __call__(self, x: Any, a: Any, b: Any, units: int | None = None) -> Any:
        """log(time / soft roofline) at the three coordinates (plain values, they broadcast)."""
        at, weight = zip(*(_cell(v, k) for v, k in zip((x, a, b), self.knots, strict=True)), strict=True)
        (i, j, k), (u, v, w) = at, weight
        table = self.values
        low = (table[i, j, k] * (1 - v) + table[i, j + 1, k] * v) * (1 - w)
        low = low + (table[i, j, k + 1] * (1 - v) + table[i, j + 1, k + 1] * v) * w
        high = (table[i + 1, j, k] * (1 - v) + table[i + 1, j + 1, k] * v) * (1 - w)
        high = high + (table[i + 1, j, k + 1] * (1 - v) + table[i + 1, j + 1, k + 1] * v) * w
        total = low * (1 - u) + high * u
        if self.waves is not None and units is not None:
            for row, tile in zip(self.waves, TILES, strict=True):
                total = total + (row[i] * (1 - u) + row[i + 1] * u) * np.log2(wave_efficiency(x, a, units, tile))
        return total


def _cell(value: Any, knots: Array) -> tuple[Any, Any]:
    """The knot to the left and how far to the next one."""
    at = np.clip(np.log2(np.maximum(value, 1e-300)), knots[0], knots[-1])
    left = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    return left, (at - knots[left]) / (knots[left + 1] - knots[left])


def fit_grid(
    x: Array, a: Array, b: Array, y: Array, *, knots: Knots, units: int | None, smooth: float, ridge: float
) -> Grid:
    """Least squares for the residual y = log(measured / soft roofline), (n,).

    Arguments:
        x, a, b: (n,) coordinates.
        knots: of the three coordinates, log2.
        units: of the device, for wave features; None leaves them out.
        smooth: weight of the squared slopes between neighbouring corners, in units of one measurement.
        ridge: weight of the squared values.
    """
    sides = [hats(np.clip(np.log2(v), k[0], k[-1]), k) for v, k in zip((x, a, b), knots, strict=True)]
    size = tuple(len(k) for k in knots)
    design = np.einsum("np,nq,nr->npqr", *sides).reshape(len(y), -1)
    slopes = [_slope_penalty(k) for k in knots]
    one = [np.eye(n) for n in size]
    penalty = ridge * np.eye(design.shape[1])
    for axis in range(3):
        factors = [slopes[i] if i == axis else one[i] for i in range(3)]
        penalty += smooth * np.kron(np.kron(factors[0], factors[1]), factors[2])
    if units is not None:
        waves = [sides[0] * np.log2(wave_efficiency(x, a, units, tile))[:, None] for tile in TILES]
        design = np.concatenate([design, *waves], axis=1)
        count = len(penalty)
        grown = np.zeros((design.shape[1], design.shape[1]))
        grown[:count, :count] = penalty
        for t in range(len(TILES)):
            at = slice(count + t * size[0], count + (t + 1) * size[0])
            grown[at, at] = np.eye(size[0]) + slopes[0]
        penalty = grown
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ y)
    count = size[0] * size[1] * size[2]
    return Grid(
        knots=knots,
        values=solution[:count].reshape(size),
        waves=solution[count:].reshape(len(TILES), size[0]) if units is not None else None,
    )


GRID_UNIT = 0.01
"""What the whole numbers of a stored grid count: a corner is off by half of it at most, far less than a measurement,
and most have two digits."""


def text_grid(table: Mapping[str, Any]) -> Grid:
    """A grid without waves from the TOML table of `grid_text`."""
    knots = tuple(np.log2(np.array(table[f"sizes_{axis}"], dtype=np.float64)) for axis in "xab")
    values = np.array(table["values"].split(), dtype=np.float64) * table["unit"]
    return Grid(knots=knots, values=values.reshape([len(k) for k in knots]))  # type: ignore[arg-type]


def grid_text(g: Grid) -> list[str]:
    """Lines of TOML: the sizes, and the corners in one text of multiples of `GRID_UNIT`, which TOML readers take in at
    once, a line for each first size."""
    sizes = zip("xab", g.knots, strict=True)
    rows = np.rint(g.values.reshape(g.values.shape[0], -1) / GRID_UNIT).astype(int).tolist()
    return [
        *(f"sizes_{axis} = [{', '.join(f'{2.0**v:.6g}' for v in knots)}]" for axis, knots in sizes),
        f"unit = {GRID_UNIT}", 'values = """', *(" ".join(map(str, row)) for row in rows), '"""',
    ]  # fmt: skip


def _slope_penalty(knots: Array) -> Array:
    change = np.diff(np.eye(len(knots)), axis=0) / np.sqrt(np.diff(knots))[:, None]
    return np.asarray(change.T @ change)
