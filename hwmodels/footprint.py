"""What a model occupies on a device, and the largest batch that fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .operators import _kv_bytes, weight_nbytes

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from .architecture import Architecture
    from .device import Device

RESERVE_BYTES = 3.5e9
"""Held back on a GPU for the context, libraries and workspaces; a part with less than 32 GB keeps a tenth instead."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on each device. `weights` holds lm_head, embedding and norms too, in 16 bit."""

    weights_bytes: float
    kv_cache_bytes: Any
    activations_bytes: Any
    reserve_bytes: float
    capacity_bytes: float

    @property
    def total_bytes(self) -> Any:
        return self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.reserve_bytes

    @property
    def fits(self) -> Any:
        return self.total_bytes <= self.capacity_bytes

    @property
    def shortfall_bytes(self) -> Any:
        """Bytes missing, 0 when it fits."""
        return np.maximum(self.total_bytes - self.capacity_bytes, 0.0)


def model_weight_bytes(architecture: Architecture, scheme: Scheme) -> float:
    """Bytes of all weights: linear layers of the blocks as the scheme packs them, everything else in 16 bit."""
    counts, total = architecture.linear_counts, 0
    for name, (n, k) in architecture.linear_shapes.items():
        total += counts[name] * (2 * n * k if name == "router" else weight_nbytes(scheme, n, k))
    rest = architecture.parameters - architecture.block_parameters
    return float(total + 2 * rest)


def _device_weight_bytes(architecture: Architecture, scheme: Scheme, tp: int) -> float:
    """Bytes of weights on each device. Latent attention: the projection to latent vectors is on every device, and a
    quantised expansion is there twice, the second time in 16 bit for `absorb`."""
    a, share = architecture, model_weight_bytes(architecture, scheme) / tp
    if not a.is_latent:
        return share
    shapes = a.linear_shapes
    replicated = sum(weight_nbytes(scheme, *shapes[name]) for name in ("qkv_a", "kv_a") if name in shapes)
    n, k = shapes["kv_b"]
    absorbed = 2 * n * k / tp if scheme.weight.is_quantized else 0.0
    return share + a.layers * (replicated * (1 - 1 / tp) + absorbed)


def kv_bytes_per_token(architecture: Architecture, scheme: Scheme) -> float:
    """Bytes that one token adds to the KV cache over all layers, with scales."""
    return architecture.kv_elements_per_token * _kv_bytes(scheme, architecture)


def footprint(
    device: Device,
    architecture: Architecture,
    scheme: Scheme,
    *,
    batch: Any,
    context: Any,
    tokens: Any = None,
    tensor_parallel: int = 1,
) -> Footprint:
    """Memory of a step on each of `tensor_parallel` devices; `tokens` are those in flight (default the batch)."""
    a, tp = architecture, tensor_parallel
    tokens = batch if tokens is None else tokens
    width = 6 * a.hidden + (3 if a.gated else 2) * max(a.ffn * a.experts_per_token, a.dense_ffn)
    shards = 1 if a.is_latent else min(tp, a.kv_heads)
    capacity = device.memory.capacity_bytes
    chips = sram_chips(device, architecture, scheme) if device.kind == "asic-sram" else 1
    return Footprint(
        weights_bytes=_device_weight_bytes(a, scheme, tp) / chips,
        kv_cache_bytes=np.asarray(batch, np.float64) * context * kv_bytes_per_token(a, scheme) / shards / chips,
        activations_bytes=np.asarray(tokens, np.float64) * width * 2.0 / tp / chips,
        reserve_bytes=0.0 if chips > 1 else min(RESERVE_BYTES, 0.1 * capacity),
        capacity_bytes=capacity,
    )


def sram_chips(device: Device, architecture: Architecture, scheme: Scheme) -> int:
    """Chips of an SRAM-only part that hold the weights, a tenth of each left for activations and cache."""
    return max(1, math.ceil(model_weight_bytes(architecture, scheme) / (0.9 * device.memory.capacity_bytes)))


def largest_batch(
    device: Device, architecture: Architecture, scheme: Scheme, *, context: int, tensor_parallel: int = 1
) -> int:
    """The largest decode batch that fits at this context; 0 when not even one sequence does."""
    one = footprint(device, architecture, scheme, batch=1, context=context, tensor_parallel=tensor_parallel)
    free = one.capacity_bytes - one.weights_bytes - one.reserve_bytes
    return max(0, int(free // (one.kv_cache_bytes + one.activations_bytes)))


def what_would_fit(
    device: Device, architecture: Architecture, scheme: Scheme, *, batch: int, context: int, tensor_parallel: int = 1
) -> str:
    """Words on what to change when a model does not fit: batch, devices, or a smaller scheme."""
    from qsim.scheme import get_scheme

    hints = []
    most = largest_batch(device, architecture, scheme, context=context, tensor_parallel=tensor_parallel)
    if most:
        hints.append(f"batch {most}")
    for tp in (2, 4, 8, 16):
        if tp > tensor_parallel and architecture.heads % tp == 0 and device.link is not None:
            if footprint(device, architecture, scheme, batch=batch, context=context, tensor_parallel=tp).fits:
                hints.append(f"tensor_parallel {tp}")
                break
    for name in ("fp8-tensor", "w4a16-g128"):
        smaller = get_scheme(name)
        here = footprint(device, architecture, smaller, batch=batch, context=context, tensor_parallel=tensor_parallel)
        if here.fits and model_weight_bytes(architecture, smaller) < model_weight_bytes(architecture, scheme):
            hints.append(f"scheme {name}")
            break
    return ", or ".join(hints) or "nothing tried here: a larger device is needed"
