"""Time of attention over a KV cache, in prefill and in decode, with its band."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsim.errors import QsimError

from ..calibration.between import pick
from ..calibration.grid import Grid
from ..checks import check_not_negative, check_positive, check_steps
from ..device.device import Device
from ..device.load import get_device
from ..workload.operators import Cost, attention_cost
from .families import get_attention
from .kernel import Estimate, estimate, ideal
from .parameters import (
    TRANSFER_BAND,
    attention_parameters,
    attention_variant,
    check_fidelity,
    generic,
    measured_attention,
    transferred,
)
from .peaks import attention_format, format_peak

WIDE_GROUP = 32
FLASH_MLA = (660 / 989.4, 3000 / 3350)
"""Shares of peak and bandwidth that FlashMLA reaches in decode on an H800 SXM5, whose 16-bit peak and memory are those
of an H100 SXM (github.com/deepseek-ai/FlashMLA, README: up to 660 TFLOPS, 3000 GB/s)."""


def check_heads(q_heads: Any, kv_heads: Any) -> None:
    """Refuse head counts of which the KV heads do not divide the query heads (arrays broadcast)."""
    q, kv = np.broadcast_arrays(np.asarray(q_heads, np.float64), np.asarray(kv_heads, np.float64))
    wrong = q % kv != 0
    if wrong.any():
        raise QsimError(
            f"kv_heads must divide q_heads, each KV head serves as many query heads: got q_heads={q[wrong][0]:g}, "
            f"kv_heads={kv[wrong][0]:g}"
        )


def attention(
    device: Device | str,
    phase: str,
    batch: Any,
    seq: Any,
    q_heads: Any,
    kv_heads: Any,
    head_dim: Any = 128,
    kernel: str | None = None,
    *,
    fidelity: str = "calibrated",
    value_dim: Any = None,
    shared_kv: bool = False,
    kv_bytes_per_element: float = 2.0,
    new: Any = None,
    window: int | None = None,
    chunked: bool = False,
) -> Estimate:
    """Time of attention over a KV cache, with its band.

    Arguments:
        phase: `prefill` (seq causal tokens) or `decode` (one query, seq tokens in the cache with the new one).
        kernel: one of `hwmodels.kernel_families`, such as `sdpa_cudnn` or `cudnn_fp8`; None takes the device's own.
        new: queries of a prefill that continues a cache of `seq` tokens; None means all of them.
        value_dim, shared_kv, window, chunked: see `operators.attention_cost`. A case that was not measured on the
            device (`parameters.attention_variant` names those that may have been) is `transferred`; latent attention
            then has the efficiencies that FlashMLA publishes.

    Raises:
        ValueError: an unknown phase or kernel, sizes that are not positive, heads that do not divide.
    """
    device = get_device(device)
    check_fidelity(fidelity)
    check_positive(batch=batch, seq=seq, q_heads=q_heads, kv_heads=kv_heads, head_dim=head_dim,
                   kv_bytes_per_element=kv_bytes_per_element)  # fmt: skip
    if window is not None:
        check_positive(window=window)
    if value_dim is not None:
        check_not_negative(value_dim=value_dim)  # 0 where only scores are formed
    check_heads(q_heads, kv_heads)
    if new is not None:
        check_steps(new=new)
        if phase == "prefill" and np.any(np.asarray(new) > np.asarray(seq)):
            raise QsimError(
                f"new counts the queries of a prefill, the last of the seq tokens: got new={new!r} > seq={seq!r}"
            )
    batch, seq, q, kv = (np.asarray(v, dtype=np.float64) for v in (batch, seq, q_heads, kv_heads))
    sizes = {"head_dim": head_dim, "value_dim": value_dim, "shared_kv": shared_kv,
             "kv_bytes_per_element": kv_bytes_per_element, "window": window, "chunked": chunked}  # fmt: skip
    family = None if kernel is None else get_attention(kernel)
    peak = format_peak(device, attention_format(device, family))
    if family is not None:
        sizes["activation_bytes"] = family.element_bytes
    if fidelity == "ideal":
        cost = attention_cost(phase, batch=batch, context=seq, q_heads=q, kv_heads=kv, seq=new, **sizes)
        return ideal(cost, peak, device)
    wide = phase == "decode" and bool(np.all(q > WIDE_GROUP * kv))
    variant = attention_variant(kv_bytes_per_element, head_dim, window, value_dim, shared_kv)
    exact = measured_attention(device, phase, kernel, variant, wide) if fidelity == "calibrated" else None
    p = attention_parameters(device, phase, kernel, fidelity, wide, head_dim) if exact is None else exact
    if exact is None:
        if shared_kv:
            p = generic("flash_mla", FLASH_MLA)
        elif value_dim is not None or (window is not None and phase == "prefill"):
            p = transferred(p, p.origin or p.kernel)
    if window is not None and phase == "decode" and exact is None:
        seq = np.minimum(seq, window)
    heads = q if phase == "prefill" else kv

    def at(batch: Any, seq: Any, q: Any, kv: Any, heads: Any, new: Any) -> Estimate:
        """The estimate; it rises with the context where no fall was measured (see `estimate`)."""
        cost = attention_cost(phase, batch=batch, context=seq, q_heads=q, kv_heads=kv, seq=new, **sizes)

        def cost_at(contexts: Any) -> Cost:
            queries = None if new is None else np.minimum(new[..., None], contexts)
            return attention_cost(
                phase, batch=batch[..., None], context=contexts, q_heads=q[..., None], kv_heads=kv[..., None],
                seq=queries, **sizes,
            )  # fmt: skip

        return estimate(device, cost, peak, p, seq, (seq, batch * heads, q / kv), cost_at=cost_at)

    new = None if new is None else np.asarray(new, dtype=np.float64)
    found = at(batch, seq, q, kv, heads, new)
    if p.kind == "calibrated" and exact is None and variant != "" and not (family and family.head_sizes):
        half = TRANSFER_BAND[True]  # fitted on heads of 128 and a 16-bit cache, without a window
        return replace(
            found, kind="transferred", origin=f"{p.origin}, another case",
            low_s=np.minimum(found.low_s, found.time_s * (1 - half)),
            high_s=np.maximum(found.high_s, found.time_s * (1 + half)),
        )  # fmt: skip
    if p.kind != "transferred" or not isinstance(p.surface, Grid):
        return found
    # on another device the fall from one measured batch to the next is not known either: as for the context
    knots = p.surface.knots[1]
    wider = {name: np.asarray(v)[..., None] for name, v in {"seq": seq, "q": q, "kv": kv, "heads": heads}.items()}
    smaller = at(2.0**knots / wider["heads"], **wider, new=None if new is None else new[..., None])
    least = np.maximum.accumulate(smaller.time_s, axis=-1)
    so_far = np.concatenate([np.zeros_like(least[..., :1]), least], axis=-1)
    least = pick(so_far, np.searchsorted(knots, np.log2(batch * heads), side="right"))
    up = np.maximum(least / found.time_s, 1.0)
    return replace(found, time_s=found.time_s * up, low_s=found.low_s * up, high_s=found.high_s * up)


def attention_time(
    device: Device | str,
    phase: str,
    batch: Any,
    seq: Any,
    q_heads: Any,
    kv_heads: Any,
    head_dim: Any = 128,
    kernel: str | None = None,
    **more: Any,
) -> Any:
    """Seconds of attention; see `attention`, which gives the band too."""
    time = attention(device, phase, batch, seq, q_heads, kv_heads, head_dim, kernel, **more).time_s
    return time[()] if isinstance(time, np.ndarray) else time
