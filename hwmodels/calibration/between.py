"""Between the sizes that a kernel was measured at: what its time may do there.

A correction is fitted at measured sizes (M of a product, the length of a sequence). From one to the next it is joined
linearly in the logarithm, plus steps where a further row of tiles begins. Such a step can point down: the fit knows at
which size a kernel had been faster, not where in between it became so. A fall is therefore predicted only from one
measured size to the next, evenly, and only where it was measured: with this kernel, on this device, at a shape between
the measured ones. Elsewhere no size takes less time than a smaller one, as a caller could always pad.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .surface import Array

if TYPE_CHECKING:
    from .fitted import Parameters

AFTER = 1 + 1e-9
"""Just above a size: the next row of tiles has begun."""


def corrected(
    p: Parameters, soft: Any, soft_at: Callable[[Array], Any], size: Any, a: Any, b: Any, units: int | None, falls: Any,
    key: tuple[Any, ...] | None = None,
) -> Any:  # fmt: skip
    """Soft-roofline times with the correction of `p`, monotone in the size but for measured falls.

    Arguments:
        soft: times to correct; broadcasts with `size`, `a` and `b`.
        soft_at: the same at other sizes (S,), along a last axis.
        size, a, b: coordinates of the correction.
        units: of the device.
        falls: whether falls were measured at (a, b).
        key: all that `soft_at` depends on, to keep what is the same for every size of these shapes; None keeps nothing.
    """
    sizes, knots = p.sizes, p.knot_of_size
    last = max(1, int(np.searchsorted(sizes[knots], np.max(size))))  # what lies beyond says nothing of smaller sizes
    knots = knots[: last + 1]
    sizes = sizes[: knots[-1] + 1]
    a, b = np.broadcast_arrays(np.asarray(a, np.float64), np.asarray(b, np.float64))
    make = lambda: _tables(p, sizes, knots, a[..., None], b[..., None], soft_at, units, falls)  # noqa: E731
    if key is None or a.size > KEPT:
        shape, tables = make()
    else:
        shape, tables = _kept(_Asked((id(p), last, a.tobytes(), b.tobytes(), a.shape, units, *key), p, make))

    lx, edges = np.log2(np.maximum(size, 1e-300)), shape.edges
    piece = np.asarray(np.searchsorted(edges, lx - 1e-12, side="left"))
    inner = np.minimum(np.maximum(piece, 1), len(edges) - 1)
    share = np.minimum(np.maximum((lx - edges[inner - 1]) / (edges[inner] - edges[inner - 1]), 0.0), 1.0)
    apart = max(0, piece.ndim - (tables.ndim - 2))  # axes of the sizes that the shapes lack
    left, right, low, high = pick(tables.reshape(4, *[1] * apart, *tables.shape[1:]), piece)
    return np.minimum(np.maximum(soft * np.exp(left * (1 - share) + right * share), low), high)


KEPT = 64
"""Shapes at most of which the tables are kept: a model has a dozen, a sweep over shapes has no use for it."""


@dataclass(frozen=True, eq=False)
class _Asked:
    """A question with what answers it; equal where the keys are. `alive` keeps the object whose identity is in it."""

    key: tuple[Any, ...]
    alive: Any
    make: Callable[[], Any]

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key


@lru_cache(maxsize=1024)
def _kept(asked: _Asked) -> Any:
    return asked.make()


def _tables(
    p: Parameters, sizes: Array, knots: Any, a: Any, b: Any, soft_at: Callable[[Array], Any], units: int | None,
    falls: Any,
) -> tuple[_Shape, Array]:  # fmt: skip
    """Where the sizes lie, and what `_pieces` says of each shape (a, b)."""
    at = np.asarray(p.correction(sizes, a, b, units))
    steps = len(p.knot_of_size) < len(p.sizes)
    after = np.asarray(p.correction(sizes * AFTER, a, b, units)) if steps else at
    soft_there = soft_at(sizes)
    times, peaks = soft_there * np.exp(at), soft_there * np.exp(np.maximum(at, after))
    at, after, times, peaks = np.broadcast_arrays(at, after, times, peaks)
    shape = _shape(sizes.tobytes(), knots.tobytes())
    return shape, _pieces(shape, knots, at, after, times, peaks, np.asarray(falls)[..., None])


def pick(table: Array, index: Any) -> Any:
    """The entry `index` of the last axis of a table (..., S); the index broadcasts with the other axes."""
    width = table.shape[-1]
    rows = np.arange(0, table.size, width).reshape(table.shape[:-1])
    return np.ascontiguousarray(table).reshape(-1)[rows + index]


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Where the sizes of a kernel lie: log2 of them, (S,); the measured size at or below each, but the last of these,
    as a position among them, (S,); and the share of the way from there to the next one, (S,)."""

    edges: Array
    below: Any
    share: Array


@lru_cache(maxsize=1024)
def _shape(sizes: bytes, knots: bytes) -> _Shape:
    edges, at = np.log2(np.frombuffer(sizes)), np.frombuffer(knots, dtype=np.intp)
    below = np.clip(np.searchsorted(at, np.arange(len(edges)), side="right") - 1, 0, len(at) - 2)
    begin, end = edges[at[below]], edges[at[below + 1]]
    return _Shape(edges=edges, below=below, share=(edges - begin) / (end - begin))


def _pieces(shape: _Shape, knots: Any, at: Array, after: Array, times: Array, peaks: Array, falls: Any) -> Array:
    """Correction at both ends of every piece, and the least and largest time in it: (4, ..., S + 1).

    `times` are those at the sizes, `peaks` the larger of these and of the times just after. Within a piece the
    logarithm of the time is convex (the soft roofline is, the correction is linear): it is largest at an end.

    Piece 0 lies up to the first of the S sizes, piece S beyond the last; there the correction stays what it is at the
    edge.
    """
    out = np.empty((4, *at.shape[:-1], at.shape[-1] + 1))
    left, right, low, high = out
    left[..., 0], left[..., 1:-1], left[..., -1] = at[..., 0], after[..., :-1], at[..., -1]
    right[..., :-1], right[..., -1] = at, at[..., -1]
    low[..., 0], low[..., 1:], high[...] = 0.0, np.maximum.accumulate(peaks, axis=-1), np.inf
    if not np.any(falls):
        return out
    inner, of = slice(1, -1), shape.below[:-1]
    begin, end = times[..., knots[of]], times[..., knots[of + 1]]  # at the measured sizes around each inner piece
    falling = falls & (end < begin)
    known = at[..., knots]
    even = known[..., shape.below] * (1 - shape.share) + known[..., shape.below + 1] * shape.share
    so_far = np.empty_like(peaks)
    for first, stop in itertools.pairwise([*knots.tolist(), at.shape[-1]]):
        so_far[..., first:stop] = np.maximum.accumulate(peaks[..., first:stop], axis=-1)
    rising = np.minimum(np.maximum(so_far[..., :-1], begin), end)
    left[..., inner] = np.where(falling, even[..., :-1], left[..., inner])
    right[..., inner] = np.where(falling, even[..., 1:], right[..., inner])
    low[..., inner] = np.where(falls, np.where(falling, end, rising), low[..., inner])
    low[..., -1] = np.where(falls[..., 0], times[..., -1], low[..., -1])
    high[..., inner] = np.where(falls, np.maximum(begin, end), np.inf)
    return out
