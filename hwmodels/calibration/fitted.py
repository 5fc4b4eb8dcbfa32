"""Fitted parameters as values: of one kernel with its correction and bands, of small kernels, of a whole device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .collectives import Collective
from .grid import Grid
from .neighbours import Neighbours
from .power import LoopPower, PowerLaw
from .surface import Surface, tile_rows

REGIMES = ("small", "medium", "large")


REGIME_EDGES = (16.0, 256.0)
"""M (or the sequence length) up to 16 is small, up to 256 medium, above large; each regime has its own band."""


@dataclass(frozen=True, kw_only=True)
class Borrowed:
    """What another kernel of the same device says of a shape: its grid, with K scaled.

    An FP8 product of length K moves the bytes and issues the instructions of a 16-bit one of length K / 2, so a library
    that picks tiles and splits alike for both leaves the same steps: `k_scale` is then 0.5.
    """

    kernel: str
    k_scale: float
    grid: Grid

    def __call__(self, x: Any, a: Any, b: Any, units: int | None = None) -> Any:
        return self.grid(x, a, np.asarray(b) * self.k_scale, units)


def _has_waves(part: Any) -> bool:
    return (isinstance(part, Surface) and part.waves) or (isinstance(part, Grid) and part.waves is not None)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Soft roofline of a kernel on a device: t = t0 + (C^p + (bytes / (eta_m BW))^p)^(1/p).

    C is F / (eta_c peak) + K tau. Attention adds exp_weight * exponentials / rate to C, and multiplies both by the work
    of whole tiles.

    Attributes:
        t0_s: fixed time of a call.
        eta_compute, eta_memory: reached shares of the dense peak and of the memory bandwidth.
        p: 1 adds the two times, large takes the larger.
        tau_s_per_k: latency of one step along K of a thread block; 0 where it was not fitted.
        exp_weight: share of the time of a softmax's exponentials that is not hidden behind the products.
        floor_s: no call takes less.
        tile_keys: keys of the tile that attention computes whole where the causal mask cuts it, as the fit sees it.
        surface: correction fitted on what is left, None without.
        borrowed: correction taken over from another kernel, None without.
        neighbours: what was left at measured shapes, None where it is not used; all corrections add up.
        band: regime -> (low, high), factors on the time between which 80 % of held-out measurements lie.
            `known`, where neighbours are used: the factors at a shape that was itself measured.
        held_out_mape: regime or "all" -> mean absolute error on shapes left out of the fit, as a fraction.
        rows, shapes: how much it was fitted on.
        kind: "calibrated" for this device, "transferred" from another.
    """

    kernel: str
    t0_s: float
    eta_compute: float
    eta_memory: float
    p: float
    tau_s_per_k: float = 0.0
    exp_weight: float = 0.0
    floor_s: float = 0.0
    tile_keys: float = 128.0
    surface: Surface | Grid | None = None
    borrowed: Borrowed | None = None
    neighbours: Neighbours | None = None
    band: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    held_out_mape: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    shapes: int = 0
    kind: str = "calibrated"
    origin: str = ""

    @cached_property
    def sizes(self) -> NDArray[np.float64]:
        """Values of the first coordinate at which the correction has a corner or a step: those that it was measured at,
        and the whole rows of tiles up to the largest. Empty without a correction."""
        if not self._parts:
            return np.empty(0)
        measured = np.unique(np.concatenate([2.0**knots for _, knots in self._parts]))
        whole = np.round(measured)  # the logarithms are stored with a few digits
        measured = np.unique(np.where(np.abs(measured - whole) < 1e-3 * measured, whole, measured))
        rows = tile_rows(measured[-1]) if any(_has_waves(part) for part, _ in self._parts) else np.empty(0)
        return np.unique(np.concatenate([measured, rows[rows > measured[0]]]))

    @cached_property
    def knot_of_size(self) -> NDArray[np.intp]:
        """Positions in `sizes` of those that were measured."""
        knots = np.concatenate([np.empty(0), *(k for _, k in self._parts)])
        near = np.abs(np.log2(self.sizes)[:, None] - knots).min(axis=1, initial=np.inf) < 1e-3
        return np.flatnonzero(near)

    @cached_property
    def derived(self) -> dict[Any, Parameters]:
        """What was made of these parameters for other kernels and devices, so that each is made once."""
        return {}

    @cached_property
    def _parts(self) -> tuple[tuple[Any, NDArray[np.float64]], ...]:
        """Each correction, with the logarithms of the sizes it was measured at."""
        parts = [p for p in (self.surface, self.borrowed, self.neighbours) if p is not None]
        return tuple((p.grid, p.grid.knots[0]) if isinstance(p, Borrowed) else
                     (p, p.knots[0] if isinstance(p, Grid) else p.knots) for p in parts)  # fmt: skip

    def measured(self, a: Any, b: Any) -> Any:
        """Whether the two other coordinates of a shape (N and K) lie within what the correction was measured on."""
        return self.surface is not None and self.surface.measured(a, b)

    def correction(self, x: Any, a: Any, b: Any, units: int | None = None) -> Any:
        """log(time / soft roofline) of a shape, 0 where nothing was fitted; arguments broadcast."""
        total: Any = 0.0
        for part in (self.surface, self.borrowed):
            if part is not None:
                total = total + part(x, a, b, units)
        return total if self.neighbours is None else total + self.neighbours(x, a, b)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """A kernel of an engine, of balanced and of skewed routing together.

    Attributes:
        roofline: t0, shares of peak and bandwidth, p, correction, bands, errors.
        permute: times that the bytes of tokens and of what stands between the products are moved at the bandwidth.
        active_s, local_s: for each expert that has tokens, and for each of the GPU.
        tile: rows that a product computes together.
        untuned: share of the rows that were left out of the fit and the bands: all sizes of one split of a layer took
            over twice as long, on one device and not on the next, as where a tuner of tiles gives up.
    """

    roofline: Parameters
    permute: float
    active_s: float
    local_s: float
    tile: float
    untuned: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Measured time of an element-wise kernel against the bytes it moves, and what a reduction adds.

    Attributes:
        bytes, time_s: read and written together, and the time of a copy that moves them.
        row, row_s: elements that one block sums, and how much longer that takes than a copy of a few bytes.
        graph_gap_s, eager_gap_s: from one tiny kernel to the next, in a CUDA graph and launched from Python.
    """

    bytes: np.ndarray
    time_s: np.ndarray
    row: np.ndarray
    row_s: np.ndarray
    graph_gap_s: float
    eager_gap_s: float

    def __call__(self, moved: Any) -> Any:
        """Seconds to move `moved` bytes (read and written together); beyond the last point, its rate."""
        moved = np.asarray(moved, dtype=np.float64)
        inside = np.exp(np.interp(np.log(np.maximum(moved, 1.0)), np.log(self.bytes), np.log(self.time_s)))
        return np.where(moved > self.bytes[-1], moved * (self.time_s[-1] / self.bytes[-1]), inside)

    def reduction_s(self, row: Any) -> Any:
        """Seconds that reducing over rows of so many elements adds, 0 for none: the rows themselves run in parallel."""
        row = np.asarray(row, dtype=np.float64)
        return np.where(row > 0, np.interp(row, self.row, self.row_s), 0.0)


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Time of a library's kernel that quantises activations (M, K) with one scale per token: fixed time, time per step
    along K (a block finds the largest value of a row), and traffic at a share of the memory bandwidth."""

    t0_s: float
    tau_s_per_k: float
    eta_memory: float

    def __call__(self, m: Any, k: Any, bandwidth_bytes_per_s: float) -> Any:
        """Seconds; 16-bit values are read, 8-bit ones written. Arguments broadcast."""
        m, k = np.asarray(m, dtype=np.float64), np.asarray(k, dtype=np.float64)
        return self.t0_s + self.tau_s_per_k * k + 3.0 * m * k / (self.eta_memory * bandwidth_bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything fitted for a device: kernels and attention by name, small operators, collectives, the quantisation of
    activations by software stack, the power of the board, fused mixture-of-experts layers, where it came from."""

    name: str
    kernels: Mapping[str, Parameters]
    attention: Mapping[str, Parameters]
    small: Curve | None
    collectives: tuple[Collective, ...]
    provenance: tuple[Mapping[str, Any], ...]
    quantize: Mapping[str, Quantizer] = field(default_factory=dict)
    power: PowerLaw | None = None
    loop_power: Mapping[str, LoopPower] = field(default_factory=dict)
    moe: Mapping[str, Mixture] = field(default_factory=dict)
