"""Time of a fused mixture-of-experts layer on one GPU, by the kernels of 2026 that measured tables hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError, nearest

from ..checks import check_positive
from ..device.device import Device
from ..device.load import get_device
from ..workload.routing import Load, balanced_load, skewed_load, uniform_load
from .kernel import Estimate, band_factors, soft_roofline
from .parameters import calibration_of

if TYPE_CHECKING:
    from ..calibration.fitted import Mixture


@dataclass(frozen=True, kw_only=True)
class MoeFormat:
    """How experts are stored and multiplied: bits per weight with scales, format multiplied in."""

    weight_bits: float
    compute: str


FORMATS = {
    "bf16": MoeFormat(weight_bits=16, compute="bfloat16"),
    "fp8": MoeFormat(weight_bits=8, compute="float8_e4m3fn"),
    "fp8_block": MoeFormat(weight_bits=8.002, compute="float8_e4m3fn"),
    "int4_wo": MoeFormat(weight_bits=4.125, compute="bfloat16"),
    "nvfp4": MoeFormat(weight_bits=4.5, compute="nvfp4"),
    "w4a16_mxfp4": MoeFormat(weight_bits=4.25, compute="bfloat16"),
    "w4a8_mxfp4_mxfp8": MoeFormat(weight_bits=4.25, compute="float8_e4m3fn"),
}
"""`dtype` of the table -> what it is."""
STEP = 0.25
"""Octaves between the tokens at which a layer is priced; in between, linear in the logarithms."""
MOST_OCTAVES = 26


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one GPU does in a layer.

    Attributes:
        load: of its experts. local: how many it has. width: features of the part of one that it has.
        flop: operations of whole tiles; least_flop: those that are needed.
        weight_bytes: of the experts that have tokens, read once. moved_bytes: tokens in and out, and what stands
            between the products, written and read once: what a cache may keep.
    """

    load: Load
    local: Any
    width: Any
    flop: Any
    least_flop: Any
    weight_bytes: Any
    moved_bytes: Any


def layer_cost(
    dtype: str, load: Load, *, tokens: Any, hidden: Any, inter: Any, experts: Any, moe_tp: Any = 1, moe_ep: Any = 1,
    gated: Any = True,
) -> LayerCost:  # fmt: skip
    """Operations and bytes of three matrices (hidden x inter / moe_tp), or two without a gate, for each expert of the
    GPU; arguments broadcast."""
    width = inter / moe_tp
    weights = np.where(gated, 3.0, 2.0) * hidden * width
    return LayerCost(
        load=load, local=experts / moe_ep, width=width, flop=2 * load.rows * weights,
        least_flop=2 * load.pairs * weights, weight_bytes=load.active * weights * FORMATS[dtype].weight_bits / 8,
        moved_bytes=4.0 * tokens * hidden + 4.0 * load.pairs * (hidden + np.where(gated, 2.0, 1.0) * width),
    )  # fmt: skip


def mixture_time(m: Mixture, cost: LayerCost, peak: float, bandwidth: float) -> tuple[Any, Any, Any, Any]:
    """Seconds of a layer, of its arithmetic, of its traffic, and the least that peak and bandwidth allow."""
    p, load = m.roofline, cost.load
    compute = cost.flop / (p.eta_compute * peak)
    memory = cost.weight_bytes / (p.eta_memory * bandwidth) + m.active_s * load.active + m.local_s * cost.local
    time = p.t0_s + m.permute * cost.moved_bytes / bandwidth + soft_roofline(compute, memory, p.p)
    time = time * np.exp(p.correction(load.pairs / load.active, cost.width, load.active))
    floor = np.maximum(cost.least_flop / peak, cost.weight_bytes / bandwidth)
    return np.maximum(time, floor), compute, memory, floor


@lru_cache(maxsize=512)
def _curve(
    m: Mixture, dtype: str, peak: float, bandwidth: float, layer: tuple[float, ...], gated: bool, routing: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """log2 of tokens, and the logarithms there of the time, of arithmetic, of traffic and of the least time: (5, n).
    More tokens never take less time."""
    hidden, inter, topk, experts, tp, ep = layer
    octaves = np.arange(0.0, MOST_OCTAVES + STEP / 2, STEP)
    tokens = np.maximum(np.round(2.0**octaves), 1.0) if routing == "skewed" else 2.0**octaves
    if routing == "skewed":
        drawn = [skewed_load(int(t), int(topk), int(experts), int(ep), m.tile) for t in tokens]
        load = Load(**{name: np.array([getattr(one, name) for one in drawn]) for name in ("pairs", "active", "rows")})
    else:
        load = (uniform_load if routing == "uniform" else balanced_load)(tokens, topk, experts, ep, m.tile)
    cost = layer_cost(
        dtype, load, tokens=tokens, hidden=hidden, inter=inter, experts=experts, moe_tp=tp, moe_ep=ep, gated=gated
    )
    time, *rest = mixture_time(m, cost, peak, bandwidth)
    found = np.broadcast_arrays(np.maximum.accumulate(time), *rest)
    return np.stack([octaves, *(np.log(part) for part in found)])


def moe(
    device: Device | str, tokens: Any, hidden: Any, inter: Any, topk: Any, experts: Any, kernel: str, *,
    moe_tp: Any = 1, moe_ep: Any = 1, skewed: bool = False, uniform: bool = False, gated: bool = True,
) -> Estimate:  # fmt: skip
    """Time of a fused layer on one GPU of the group that shares it, with its band; arguments broadcast.

    Routing from given logits, permutation, products, run-time quantisation and the weighted sum; neither the router nor
    communication. Where an engine chooses among several kernels, the fastest at each size, as its tuner would. The band
    is that of tuned kernels (`Mixture.untuned`).

    Arguments:
        tokens: that enter the layer in the whole expert-parallel group.
        hidden, inter: features of the model, and of one expert before it is split.
        topk, experts: of which each token takes so many.
        kernel: as `vllm_moe_fp8_block`; see `moe_kernels`.
        moe_tp, moe_ep: GPUs that share every expert, and that have experts of their own.
        skewed: routing of a power law (exponent 1.2) instead of a balanced one; the fullest GPU is timed.
        uniform: independent choices of equal chances, which touch fewer experts than balanced routing at few tokens.
        gated: three matrices for each expert; False is two.

    Raises:
        QsimError: a kernel that was not measured on the device (the nearest are listed), sizes that are not positive,
            groups of GPUs that do not divide the experts.
    """
    device = get_device(device)
    check_positive(tokens=tokens, hidden=hidden, inter=inter, topk=topk, experts=experts, moe_tp=moe_tp, moe_ep=moe_ep)
    if skewed and uniform:
        raise QsimError("routing is skewed or uniform: got skewed=True and uniform=True")
    routing = "skewed" if skewed else "uniform" if uniform else "balanced"
    known = mixtures_of(device)
    if kernel not in known:
        if not known:
            raise QsimError(f"no fused mixture of experts was measured on {device.name}: take h200, b200 or another")
        raise QsimError(nearest(f"mixture-of-experts kernel of {device.name}", kernel, known))
    values = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (hidden, inter, topk, experts, moe_tp, moe_ep)))
    if np.any(values[3] % values[5]):
        raise QsimError(
            f"moe_ep must divide the experts, each GPU has as many: got moe_ep={moe_ep!r}, experts={experts!r}"
        )
    dtype = kernel.partition("_moe_")[2]
    peak = device.peak_flop_per_s(FORMATS[dtype].compute)
    assert peak is not None
    rates = (dtype, peak, device.memory.bandwidth_bytes_per_s)
    if values[0].ndim == 0:
        layer = tuple(float(v) for v in values)
        return _fastest(known[kernel], rates, layer, np.asarray(tokens, np.float64), gated, routing)
    every, *split = np.broadcast_arrays(np.asarray(tokens, np.float64), *values)
    layers, of = np.unique(np.stack([v.reshape(-1) for v in split]), axis=1, return_inverse=True)
    names = ("time_s", "low_s", "high_s", "compute_s", "memory_s")
    parts = {name: np.empty(every.shape) for name in names}
    found = None
    for i, layer in enumerate(layers.T):
        mine = of.reshape(every.shape) == i
        found = _fastest(known[kernel], rates, tuple(map(float, layer)), every[mine], gated, routing)
        for name in names:
            parts[name][mine] = getattr(found, name)
    assert found is not None
    return Estimate(**parts, kind=found.kind, origin=found.origin)


def _fastest(
    kernels: tuple[Mixture, ...], rates: tuple[str, float, float], layer: tuple[float, ...], tokens: Any, gated: bool,
    routing: str,
) -> Estimate:  # fmt: skip
    """At each size the fastest of an engine's kernels for one layer."""
    at = np.log2(np.maximum(tokens, 1.0))
    best: dict[str, Any] = {}
    for m in kernels:
        curve = _curve(m, *rates, layer, gated, routing)
        time, compute, memory, floor = (np.exp(np.interp(at, curve[0], part)) for part in curve[1:])
        low, high = band_factors(m.roofline, tokens, None)
        mine = {"time_s": time, "low_s": np.maximum(time * low, floor), "high_s": time * high, "compute_s": compute,
                "memory_s": memory}  # fmt: skip
        faster = True if not best else mine["time_s"] < best["time_s"]
        best = mine if not best else {name: np.where(faster, mine[name], best[name]) for name in mine}
    return Estimate(**best, kind=kernels[0].roofline.kind, origin=kernels[0].roofline.origin)


def moe_time(device: Device | str, *sizes: Any, **how: Any) -> Any:
    """Seconds of a fused mixture-of-experts layer; see `moe`, which gives the band too."""
    time = moe(device, *sizes, **how).time_s
    return time[()] if isinstance(time, np.ndarray) else time


def mixtures_of(device: Device) -> dict[str, tuple[Mixture, ...]]:
    """Engine and format, as `vllm_moe_fp8_block` -> the kernels that the engine has of it on a device."""
    own = calibration_of(device)
    found: dict[str, tuple[Mixture, ...]] = {}
    for name, mixture in {} if own is None else own.moe.items():
        base = name.partition(".")[0]
        found[base] = (*found.get(base, ()), mixture)
    return found


def moe_kernels(device: Device | str) -> tuple[str, ...]:
    """The fused mixture-of-experts kernels that were measured on a device."""
    return tuple(mixtures_of(get_device(device)))
