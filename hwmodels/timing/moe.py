"""Time of a fused mixture-of-experts layer on one GPU, by the kernels of 2026 that measured tables hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.errors import QsimError, nearest

from ..checks import check_positive
from ..device.device import Device
from ..device.load import get_device
from .kernel import Estimate, estimate
from .parameters import calibration_of

TILE = 128.0
"""Rows of the tile that a grouped product computes whole: half of one for each expert is empty in the mean."""


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


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one GPU does in a layer: operations of whole tiles, bytes, and pairs of a token and one of its experts."""

    flop: Any
    traffic_bytes: Any
    pairs: Any
    tile_work: float = 1.0
    exp: float = 0.0


def layer_cost(
    dtype: str, *, tokens: Any, hidden: Any, inter: Any, topk: Any, experts: Any, moe_tp: Any = 1, moe_ep: Any = 1
) -> LayerCost:
    """Operations and bytes of three matrices (hidden x inter / moe_tp) for each expert of the GPU; arguments broadcast.

    With balanced routing min(experts, tokens topk) experts have tokens; each of a GPU's reads its weights once.
    """
    local = experts / moe_ep
    pairs = tokens * topk / moe_ep
    active = np.minimum(local, np.maximum(pairs, 1.0))
    width = inter / moe_tp
    weights = 3 * hidden * width
    moved = active * weights * FORMATS[dtype].weight_bits / 8
    moved = moved + 4.0 * tokens * hidden + 4.0 * pairs * (hidden + 2 * width)
    return LayerCost(flop=2 * (pairs + active * TILE / 2) * weights, traffic_bytes=moved, pairs=pairs)


def moe(
    device: Device | str, tokens: Any, hidden: Any, inter: Any, topk: Any, experts: Any, kernel: str, *,
    moe_tp: Any = 1, moe_ep: Any = 1, skewed: bool = False,
) -> Estimate:  # fmt: skip
    """Time of a fused layer on one GPU of the group that shares it, with its band; arguments broadcast.

    Routing from given logits, permutation, gated products, run-time quantisation and the weighted sum; neither the
    router nor communication.

    Arguments:
        tokens: that enter the layer in the whole expert-parallel group.
        hidden, inter: features of the model, and of one expert before it is split.
        topk, experts: of which each token takes so many.
        kernel: as `vllm_moe_fp8_block`; see `moe_kernels`.
        moe_tp, moe_ep: GPUs that share every expert, and that have experts of their own.
        skewed: routing of a power law (exponent 1.2) instead of a balanced one.

    Raises:
        QsimError: a kernel that was not measured on the device (the nearest are listed), sizes that are not positive.
    """
    device = get_device(device)
    check_positive(tokens=tokens, hidden=hidden, inter=inter, topk=topk, experts=experts, moe_tp=moe_tp, moe_ep=moe_ep)
    own = calibration_of(device)
    known = {} if own is None else own.moe
    if kernel not in known:
        if not known:
            raise QsimError(f"no fused mixture of experts was measured on {device.name}: take h200, b200 or another")
        raise QsimError(nearest(f"mixture-of-experts kernel of {device.name}", kernel, known))
    p = known.get(f"{kernel}_skewed", known[kernel]) if skewed else known[kernel]
    sizes = [np.asarray(v, dtype=np.float64) for v in (tokens, hidden, inter, topk, experts, moe_tp, moe_ep)]
    names = ("tokens", "hidden", "inter", "topk", "experts", "moe_tp", "moe_ep")
    given = dict(zip(names, np.broadcast_arrays(*sizes), strict=True))
    dtype = kernel.partition("_moe_")[2]
    peak = device.peak_flop_per_s(FORMATS[dtype].compute)
    assert peak is not None
    cost = layer_cost(dtype, **given)

    def cost_at(tokens: Any) -> Any:
        wide = {name: v[..., None] for name, v in given.items() if name != "tokens"}
        return layer_cost(dtype, tokens=tokens, **wide)

    surface = (given["tokens"], given["hidden"] * given["inter"] / given["moe_tp"], given["experts"] / given["moe_ep"])
    return estimate(device, cost, peak, p, given["tokens"], surface, cost_at=cost_at)  # type: ignore[arg-type]


def moe_time(device: Device | str, *sizes: Any, **how: Any) -> Any:
    """Seconds of a fused mixture-of-experts layer; see `moe`, which gives the band too."""
    time = moe(device, *sizes, **how).time_s
    return time[()] if isinstance(time, np.ndarray) else time


def moe_kernels(device: Device | str) -> tuple[str, ...]:
    """The fused mixture-of-experts kernels that were measured on a device."""
    own = calibration_of(get_device(device))
    return () if own is None else tuple(name for name in own.moe if not name.endswith("_skewed"))
