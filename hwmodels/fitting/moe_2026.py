"""Fits of the table of fused mixture-of-experts layers of 2026.

A layer is one operator here: routing from given logits, permutation, grouped products, run-time quantisation and the
weighted sum. Every kernel of the newest version of an engine is fitted by itself, balanced and skewed routing together
(they differ by what the experts of the GPU get, `workload.routing`). What the rows say beside that:

* Nemotron's experts have no gate, in all engines: their layers run in two thirds of the time that reading three
  matrices takes (on a B200 at 1.1 to 1.3 times what reading two takes, as the other layers for three).
* CUTLASS on Hopper ran one in seven splits of a layer at 5 to 9 times the time of their neighbours, at all sizes of the
  split, not the same ones with another format, routing or device: what the tuner of tiles did there, no law knows.
* Kernels that keep rows for every expert of the GPU (DeepGEMM) take time for each, with tokens or without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration.fitted import Mixture, Parameters
from ..device.load import get_device
from ..timing.moe import FORMATS, LayerCost, layer_cost, mixture_time
from ..workload.routing import Load, balanced_load, skewed_load
from .field import Field, Part, field_weights, fit_field, hash_shapes, place
from .fit import bands, regime_of
from .tables_2026 import DEVICES

Array = NDArray[np.float64]
STACKS = {"trtllm": "trtllm13", "vllm": "vllm", "sglang": "sglang"}
"""Engine of the table -> first part of a kernel's name, as in `tables_2026`."""
UNGATED = "nongated"
"""TensorRT-LLM's kernel names of layers without a gate; it is CUTLASS."""
NEMOTRON = ((2688, 1856, 6, 128), (2048, 5120, 22, 512), (8192, 5120, 22, 512), (4096, 2688, 22, 512),
            (1024, 2688, 22, 512))  # fmt: skip
"""Layers (hidden, inter, topk, experts) that TensorRT-LLM's rows mark so, which the other engines' do not."""
LEAST_ROWS, LEAST_LAYERS = 60, 2
FOLDS = 5
LAYER = ["hidden", "inter", "topk", "experts"]
SIZES = ["tokens", *LAYER, "moe_tp", "moe_ep"]
TILES = (16.0, 32.0, 64.0, 128.0)
UNTUNED, ALONE = 2.2, 3.0
"""A split of a layer whose rows take so many times the law in the median is left out, and a row that does alone."""
START = (20e-6, 0.6, 0.8, 1.0, 1.0, 50e-9, 10e-9)
LOW = (2e-6, 0.02, 0.1, 0.02, 0.05, 0.1e-9, 0.01e-9)
HIGH = (200e-6, 1.5, 1.2, 33.0, 20.0, 5e-6, 5e-6)
"""t0, shares of peak and bandwidth, p - 1, permute, seconds for each expert with tokens and for each of the GPU."""

FIELD = Field(
    parts=(
        Part(size=0.2, reach={"x": 3.5, "ab": 5.0}),
        Part(size=0.15, reach={"x": 2.0, "b": 4.0}),
        Part(size=0.1, reach={"x": 1.5, "a": 2.0, "b": 2.0}),
    ),
    noise=0.1,
)
"""Over tokens per expert, width and experts with tokens; ab is the width of all of these together, which fills the chip
with tiles."""


@dataclass(frozen=True, kw_only=True)
class MoeRows:
    """Rows of one kernel on one device.

    Attributes:
        cost: tile -> what the layers do, with tiles of so many rows.
        time_s, tokens: (n,). skewed: (n,). layer, split: (n,) number of the layer, and of its split with its routing.
    """

    cost: dict[float, LayerCost]
    time_s: Array
    tokens: Array
    skewed: NDArray[np.bool_]
    layer: NDArray[np.int64]
    split: NDArray[np.int64]
    peak: float
    bandwidth: float

    def coordinates(self, tile: float) -> Array:
        """(3, n) log2 of tokens per expert, width, experts with tokens."""
        cost = self.cost[tile]
        return np.log2(np.stack([cost.load.pairs / cost.load.active, cost.width, cost.load.active]))


def moe_tables(table: Any, device: str) -> Iterator[tuple[str, Any]]:
    """Kernel name, as `trtllm13_moe_nvfp4.cutlass`, and its rows with a column `gated`; kernels with enough of them."""
    import pandas as pd

    mine = table[(table.device == device) & table.dtype.isin(FORMATS)]
    layers = pd.MultiIndex.from_frame(mine[LAYER])
    ungated = (mine.kernel == UNGATED) | ((mine.engine != "trtllm") & layers.isin(NEMOTRON))
    mine = mine.assign(gated=~ungated, kernel=mine.kernel.where(mine.kernel != UNGATED, "cutlass"))
    for (engine, dtype), part in mine.groupby(["engine", "dtype"]):
        newest = max(part.version, key=lambda v: [int(p) for p in v.replace("rc", ".").split(".")])
        for kernel, rows in part[part.version == newest].groupby("kernel"):
            if len(rows) >= LEAST_ROWS and len(rows[LAYER].drop_duplicates()) >= LEAST_LAYERS:
                label = re.sub(r"\W", "_", str(kernel).removeprefix(f"{engine}_"))
                yield f"{STACKS[engine]}_moe_{dtype}.{label}", rows.reset_index(drop=True)


def moe_rows(table: Any, name: str, device: str) -> MoeRows:
    """Rows of one kernel of `moe_tables`."""
    value = get_device(DEVICES[device])
    t = {c: table[c].to_numpy(dtype=np.float64) for c in SIZES}
    dtype = name.partition("_moe_")[2].partition(".")[0]
    peak = value.peak_flop_per_s(FORMATS[dtype].compute)
    assert peak is not None
    skewed = (table.routing != "balanced").to_numpy()
    sizes = {c: t[c] for c in ("tokens", "hidden", "inter", "experts", "moe_tp", "moe_ep")}
    gated = table.gated.to_numpy()
    layer = hash_shapes(table[LAYER].to_numpy())
    return MoeRows(
        cost={tile: layer_cost(dtype, _loads(t, skewed, tile), **sizes, gated=gated) for tile in TILES},
        time_s=table.latency_s.to_numpy(dtype=np.float64), tokens=t["tokens"], skewed=skewed,
        layer=np.unique(layer, return_inverse=True)[1] % FOLDS,
        split=2 * hash_shapes(table[[*LAYER, "moe_tp", "moe_ep"]].to_numpy()) + skewed,
        peak=peak, bandwidth=value.memory.bandwidth_bytes_per_s,
    )  # fmt: skip


def _loads(t: dict[str, Array], skewed: NDArray[np.bool_], tile: float) -> Load:
    even = balanced_load(t["tokens"], t["topk"], t["experts"], t["moe_ep"], tile)
    parts = [np.array(v) for v in (even.pairs, even.active, even.rows)]
    asked = np.stack([t[c] for c in ("tokens", "topk", "experts", "moe_ep")], axis=1)
    for i in np.flatnonzero(skewed):
        one = skewed_load(*(int(v) for v in asked[i]), tile)  # type: ignore[call-arg]
        for part, value in zip(parts, (one.pairs, one.active, one.rows), strict=True):
            part[i] = value
    return Load(pairs=parts[0], active=parts[1], rows=parts[2])


def _take(cost: LayerCost, mask: Any) -> LayerCost:
    """The rows of a cost where the mask is True."""
    names = [name for name in cost.__dataclass_fields__ if name != "load"]
    load = Load(**{name: getattr(cost.load, name)[mask] for name in cost.load.__dataclass_fields__})
    return replace(cost, load=load, **{name: getattr(cost, name)[mask] for name in names})


def _mixture(theta: Array, name: str, tile: float) -> Mixture:
    t0, compute, memory, p, permute, active, local = np.exp(theta)
    roofline = Parameters(kernel=name, t0_s=t0, eta_compute=compute, eta_memory=memory, p=1 + p)
    return Mixture(roofline=roofline, permute=permute, active_s=active, local_s=local, tile=tile)


def _fit_law(rows: MoeRows, mask: NDArray[np.bool_], name: str) -> tuple[Mixture, NDArray[np.bool_]]:
    """The law without a correction by the tile that fits best, and which of the rows it is fitted on."""
    from scipy.optimize import least_squares

    best: tuple[float, Mixture, NDArray[np.bool_]] | None = None
    for tile in TILES:
        kept, theta = mask, np.log(START)
        for _ in range(3):
            cost, time = _take(rows.cost[tile], kept), rows.time_s[kept]

            def misfit(theta: Array, cost: LayerCost = cost, time: Array = time, tile: float = tile) -> Array:
                return np.asarray(np.log(_seconds(_mixture(theta, name, tile), cost, rows) / time))

            found = least_squares(misfit, theta, bounds=(np.log(LOW), np.log(HIGH)), loss="soft_l1", f_scale=0.1)
            theta = found.x
            left = np.log(rows.time_s / _seconds(_mixture(theta, name, tile), rows.cost[tile], rows))
            kept = mask & (_medians(left, rows.split) < np.log(UNTUNED)) & (left < np.log(ALONE))
        missed = float(np.abs(np.expm1(-left[mask])).mean())
        if best is None or missed < best[0]:
            best = (missed, _mixture(theta, name, tile), kept)
    assert best is not None
    return best[1], best[2]


def _seconds(m: Mixture, cost: LayerCost, rows: MoeRows) -> Array:
    return np.asarray(mixture_time(m, cost, rows.peak, rows.bandwidth)[0])


def _medians(values: Array, group: NDArray[np.int64]) -> Array:
    """The median of each row's group."""
    numbers, of = np.unique(group, return_inverse=True)
    return np.array([np.median(values[of == i]) for i in range(len(numbers))])[of]


def _knots(coordinates: Array) -> tuple[Array, Array, Array]:
    octaves = [np.arange(np.floor(c.min()), np.ceil(c.max()) + 1) for c in coordinates]
    return tuple(k if len(k) > 1 else np.array([k[0], k[0] + 1]) for k in octaves)  # type: ignore[return-value]


def _held_out(rows: MoeRows, name: str) -> Array:
    """Prediction of every row by a fit that has not seen its layer."""
    out = np.empty(len(rows.time_s))
    for part in np.unique(rows.layer):
        law, kept = _fit_law(rows, rows.layer != part, name)
        soft = _seconds(law, rows.cost[law.tile], rows)
        coordinates = rows.coordinates(law.tile)
        between = place(coordinates, _knots(coordinates), FIELD).between
        mine, other = np.flatnonzero(kept), np.flatnonzero(rows.layer == part)
        weights = field_weights(between[np.ix_(mine, mine)], np.log(rows.time_s / soft)[mine], FIELD.noise)
        out[other] = soft[other] * np.exp(between[np.ix_(other, mine)] @ weights)
    return out


def fit_mixture(rows: MoeRows, name: str) -> Mixture:
    """Law and correction of all rows, with errors on layers left out and bands of those of them that were tuned."""
    guess = _held_out(rows, name)
    law, kept = _fit_law(rows, np.ones(len(guess), dtype=bool), name)
    coordinates = rows.coordinates(law.tile)
    left = np.log(rows.time_s / _seconds(law, rows.cost[law.tile], rows))
    surface = fit_field(coordinates[:, kept], left[kept], _knots(coordinates), FIELD)
    error = np.abs(guess / rows.time_s - 1)
    regime = regime_of(rows.tokens)
    parts = {"all": np.ones(len(guess), dtype=bool), "balanced": ~rows.skewed, "skewed": rows.skewed, "tuned": kept}
    parts |= {size: regime == i for i, size in enumerate(("small", "medium", "large"))}
    roofline = replace(
        law.roofline, surface=surface, rows=len(guess), shapes=len(np.unique(rows.split)),
        held_out_mape={part: float(error[mine].mean()) for part, mine in parts.items() if mine.any()},
        band=bands(rows.tokens[kept], rows.time_s[kept], guess[kept]),
    )  # fmt: skip
    return replace(law, roofline=roofline, untuned=float(1 - kept.mean()))


def moe(table: Any, device: str) -> dict[str, Mixture]:
    """Every kernel of a device, judged on whole layers (hidden, inter, topk, experts) left out by hash."""
    return {name: fit_mixture(moe_rows(part, name, device), name) for name, part in moe_tables(table, device)}
