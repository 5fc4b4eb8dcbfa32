"""What a model occupies on a device, and the largest batch that fits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.families import Attention, Experts, Latent, Mixer, Mlp, Recurrent
from qsim.reprs import one_line
from qsim.scheme import Scheme

from ..checks import check_positive
from ..device.device import Memory
from .architecture import Architecture, get_architecture
from .operators import _kv_bytes, weight_nbytes

if TYPE_CHECKING:
    from ..device.device import Device

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

    __repr__ = one_line

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
    total = 0
    for part in architecture.parts:
        total += part.count * (2 * part.n * part.k if part.router else weight_nbytes(scheme, part.n, part.k))
    rest = architecture.parameters - architecture.block_parameters
    return float(total + 2 * rest)


def _device_weight_bytes(architecture: Architecture, scheme: Scheme, tp: int, ep: int = 1) -> float:
    """Bytes of weights on each device. Latent attention: the projection to latent vectors is on every device, and a
    quantised expansion is there twice, the second time in 16 bit for `absorb`. Where experts are dealt out to more than
    `tp` devices, each has its part of the routed ones and all of the shared ones."""
    share = model_weight_bytes(architecture, scheme) / tp
    for mlp, count in architecture.shape.mlps:
        if isinstance(mlp, Experts) and ep > tp:
            routed = mlp.experts * _mlp_bytes(scheme, mlp.latent or mlp.inputs, mlp.width, mlp.gated)
            shared = _mlp_bytes(scheme, mlp.inputs, mlp.shared, mlp.gated) if mlp.shared else 0
            share = share + count * (routed * (1 / ep - 1 / tp) + shared * (1 - 1 / tp))
    for _, mixer, count in architecture.mixers:
        if isinstance(mixer, Latent):
            shapes = {item.name: (item.n, item.k) for item in mixer.linears}
            replicated = sum(weight_nbytes(scheme, *shapes[name]) for name in ("qkv_a", "kv_a") if name in shapes)
            n, k = shapes["kv_b"]
            absorbed = 2 * n * k / tp if scheme.weight.is_quantized else 0.0
            share = share + count * (replicated * (1 - 1 / tp) + absorbed)
    return share


def _mlp_bytes(scheme: Scheme, inputs: int, width: int, gated: bool) -> int:
    """Bytes of the weights of one expert."""
    return (2 if gated else 1) * weight_nbytes(scheme, width, inputs) + weight_nbytes(scheme, inputs, width)


def kv_bytes_per_token(architecture: Architecture, scheme: Scheme) -> float:
    """Bytes that one token adds to the KV cache over all layers, with scales, beyond every window and chunk."""
    total = 0.0
    for mixer, count in architecture.shape.mixers:
        if mixer.window is None and mixer.cache_widths:
            total = total + _cache_row_bytes(mixer, count, scheme)
    return total


def _cache_row_bytes(mixer: Mixer, layers: int, scheme: Scheme) -> float:
    """Bytes that one cached token takes in layers of one kind, with scales."""
    widths = mixer.cache_widths
    if len(set(widths)) == 1:  # K and V are alike: whole numbers first, so that the product is rounded once
        return layers * sum(widths) * _kv_bytes(scheme, widths[0])
    return sum(layers * width * _kv_bytes(scheme, width) for width in widths)


def _cache_bytes(architecture: Architecture, scheme: Scheme, context: Any, batch: Any, tp: int) -> Any:
    """Bytes of the KV cache on each of `tp` devices."""
    total: Any = 0.0
    for mixer, count in architecture.shape.mixers:
        if mixer.cache_widths:
            kept = context if mixer.window is None else np.minimum(context, mixer.window)
            shards = min(tp, mixer.kv_heads) if isinstance(mixer, Attention) else 1
            total = total + np.asarray(batch, np.float64) * kept * _cache_row_bytes(mixer, count, scheme) / shards
    return total


def kv_cache_bytes(
    architecture: str | Path | Mapping[str, Any] | Architecture, scheme: str | Scheme, context: Any, batch: Any = 1
) -> Any:
    """Bytes of the KV cache (or of latent vectors) of `batch` sequences of `context` tokens, with scales.

    Arguments:
        architecture, scheme: names or values, as in `predict`.
        context, batch: tokens of each sequence, and sequences. Arrays broadcast.

    A layer with a window or chunk keeps min(context, window) tokens; one that shares another's cache keeps none. The
    state of recurrent layers does not grow and is not in it: see `state_bytes`.

    Raises:
        QsimError: unknown names, or sizes that are not positive.
    """
    from qsim.scheme import get_scheme

    check_positive(context=context, batch=batch)
    total = _cache_bytes(get_architecture(architecture), get_scheme(scheme), np.asarray(context, np.float64), batch, 1)
    return float(total) if np.ndim(total) == 0 else total


def state_bytes(architecture: str | Path | Mapping[str, Any] | Architecture, batch: Any = 1) -> Any:
    """Bytes of the state of recurrent layers of `batch` sequences at 16 bit, whatever their length; a convolution
    keeps its kernel's columns but one."""
    return get_architecture(architecture).shape.state_bytes * batch


def footprint(
    device: Device,
    architecture: Architecture,
    scheme: Scheme,
    *,
    batch: Any,
    context: Any,
    tokens: Any = None,
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
) -> Footprint:
    """Memory of a step on each of `tensor_parallel` devices; `tokens` are those in flight (default the batch). A part
    with a further tier of memory has its capacity too. `expert_parallel` as in `predict`."""
    a, tp = architecture, tensor_parallel
    tokens = batch if tokens is None else tokens
    parts = [part for _, part, _ in (*a.mlps, *a.mixers)]
    width = 6 * a.hidden + max((_inner_width(part) for part in parts), default=0)
    far = far_tier(device)
    capacity = device.memory.capacity_bytes + (0.0 if far is None else far.capacity_bytes)
    chips = sram_chips(device, architecture, scheme) if device.kind == "asic-sram" else 1
    state = a.shape.state_bytes * np.asarray(batch) / tp
    return Footprint(
        weights_bytes=_device_weight_bytes(a, scheme, tp, expert_parallel) / chips,
        kv_cache_bytes=(_cache_bytes(a, scheme, context, batch, tp) + state) / chips,
        activations_bytes=np.asarray(tokens, np.float64) * width * 2.0 / tp / chips,
        reserve_bytes=0.0 if chips > 1 else min(RESERVE_BYTES, 0.1 * device.memory.capacity_bytes),
        capacity_bytes=capacity,
    )


def _inner_width(part: Mlp | Experts | Mixer) -> int:
    """Elements of a token between the products of a part, as far as they count beside the hidden state."""
    if isinstance(part, Recurrent):
        return 2 * part.linears[-1].k
    if isinstance(part, Attention | Latent):
        return 0
    per_token = part.per_token if isinstance(part, Experts) else 1
    return (3 if part.gated else 2) * part.width * per_token


def far_tier(device: Device) -> Memory | None:
    """The memory behind the one that holds the weights, which takes what does not fit there; None without one."""
    last = device.tiers[-1] if device.tiers else None
    return last if isinstance(last, Memory) and last != device.memory else None


def sram_chips(device: Device, architecture: Architecture, scheme: Scheme) -> int:
    """Chips of an SRAM-only part that hold the weights, a tenth of each left for activations and cache."""
    return max(1, math.ceil(model_weight_bytes(architecture, scheme) / (0.9 * device.memory.capacity_bytes)))


def largest_batch(
    device: Device, architecture: Architecture, scheme: Scheme, *, context: int, tensor_parallel: int = 1,
    expert_parallel: int = 1,
) -> int:  # fmt: skip
    """The largest decode batch that fits at this context; 0 when not even one sequence does."""
    split = {"tensor_parallel": tensor_parallel, "expert_parallel": expert_parallel}
    one = footprint(device, architecture, scheme, batch=1, context=context, **split)
    free = one.capacity_bytes - one.weights_bytes - one.reserve_bytes
    each = one.kv_cache_bytes + one.activations_bytes
    return max(0, int(free // each))


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
