"""Whole requests: a prompt and n new tokens, and the throughput of a batch that the KV cache caps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.notes import Note, pick, without
from qsim.reprs import one_line
from qsim.scheme import Scheme

from .checks import check_count
from .device.device import Device
from .device.load import get_device
from .energy import cost_per_million_tokens
from .predicted import Prediction
from .prediction import predict, resolve_scheme
from .workload.architecture import Architecture, get_architecture
from .workload.footprint import largest_batch


@dataclass(frozen=True, kw_only=True)
class Request:
    """A batch of equal requests, run from prompt to last token.

    As many as the memory holds run at once: their prompts are prefilled together and then decoded together. Where there
    are more requests than that, each place is filled again as soon as it is free, as a serving engine does: a further
    request adds its own prefill and its share of the decode steps. Queues, hosts and arrivals are `hwmodels.serve`'s.

    Attributes:
        model, device, scheme: names. tensor_parallel, profile: as in `Prediction`.
        ttft_s: prefill of the prompts of all that run at first. tpot_s: mean decode step over the growing context.
        latency_s: of a request that runs at first: ttft + (new - 1) * tpot. low_s, high_s: its 80 % band.
        total_s: until the last request is done.
        running_batch: what the memory allows at the full context.
        output_tokens_per_s: generated tokens over total_s, all devices together.
        devices: that the model is spread over, chips of an SRAM part included.
        joule_per_token: energy of those that run at once (prefill and decode steps) for each generated token, with its
            80 % band; None where the power is unknown.
    """

    model: str
    device: str
    scheme: str
    tensor_parallel: int
    profile: str
    batch: int
    prompt: int
    new_tokens: int
    running_batch: int
    ttft_s: float
    tpot_s: float
    latency_s: float
    low_s: float
    high_s: float
    total_s: float
    output_tokens_per_s: float
    fidelity: str
    notes: tuple[str, ...]
    devices: int = 1
    joule_per_token: float | None = None
    joule_per_token_low: float | None = None
    joule_per_token_high: float | None = None

    __repr__ = one_line

    def cost_per_million_tokens(self, price_per_hour: float) -> float:
        """What a million generated tokens cost, their prompts included, in the unit of the price of one device.

        Raises:
            QsimError: a price that is not a positive number.
        """
        tokens = self.batch * self.new_tokens
        return float(cost_per_million_tokens(price_per_hour, self.total_s, tokens, self.devices))


def _check_split(how: Mapping[str, Any]) -> None:
    """Refuse experts that are dealt out: their groups would have batches of their own."""
    if how.get("expert_parallel", 1) != 1:
        raise QsimError(
            f"whole requests are priced with expert_parallel 1: got {how['expert_parallel']!r}; predict a step, or "
            "serve the requests with a deployment"
        )


def predict_request(
    device: str | Path | Device,
    model: str | Path | Architecture | Mapping[str, Any],
    scheme: str | Scheme = "bf16",
    *,
    batch: int = 1,
    prompt: int = 1024,
    new_tokens: int = 256,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    capacity: bool = True,
    **how: Any,
) -> Request:
    """Predict a batch of requests; `how` are the further arguments of `predict`.

    A batch larger than the memory holds at the full context waits for places (`capacity=False` ignores memory).

    Raises:
        ValueError: sizes below 1, or a model that does not fit at all.
    """
    _check_split(how)
    check_count(batch=batch, prompt=prompt, new_tokens=new_tokens, tensor_parallel=how.get("tensor_parallel", 1))
    dev, arch, quant = get_device(device, overrides), get_architecture(model), resolve_scheme(scheme)
    full = prompt + new_tokens
    tp = how.get("tensor_parallel", 1)
    most = largest_batch(dev, arch, quant, context=full, tensor_parallel=tp)
    notes: list[str] = []
    if capacity and most == 0:
        worst = predict(dev, arch, quant, "decode", 1, full, **how)
        raise QsimError(f"{arch.name} with {quant.name or 'this scheme'} {pick(worst.notes, 'does_not_fit')}")
    running = min(batch, most) if capacity else batch
    first = predict(dev, arch, quant, "prefill", running, prompt, **how)
    at = np.unique(np.round(np.linspace(prompt + 1, full, 5))).astype(np.float64)
    steps = predict(dev, arch, quant, "decode", running, at, **how)
    times = [np.broadcast_to(t, at.shape) for t in (steps.time_s, steps.low_s, steps.high_s)]
    mean = [float(np.trapezoid(t, at) / (at[-1] - at[0])) if len(at) > 1 else float(t[0]) for t in times]
    latency = float(first.time_s) + (new_tokens - 1) * mean[0]
    waiting = batch - running
    total = latency
    if waiting:
        own = float(predict(dev, arch, quant, "prefill", 1, prompt, **how).time_s)
        # a step of all places gives each request its share of the time
        total += waiting * (own + (new_tokens - 1) * mean[0] / running)
        holds = f"the KV cache holds {running} of {batch} sequences at {full} tokens"
        notes.append(Note("places", f"{holds}: a place is filled again as soon as it is free"))
        told = f"TTFT and latency are those of the first {running}; the last one starts {total - latency:.4g} s later"
        notes.append(Note("first_places", told))
    if running > 1:
        told = f"TTFT is the prefill of {running} prompts at once: no token comes before all are read"
        notes.append(Note("prompts_at_once", told))
    return Request(
        model=arch.name, device=dev.name, scheme=quant.name or "custom", tensor_parallel=tp, profile=steps.profile,
        batch=batch, prompt=prompt, new_tokens=new_tokens, running_batch=running,
        ttft_s=float(first.time_s), tpot_s=mean[0], latency_s=latency,
        low_s=float(first.low_s) + (new_tokens - 1) * mean[1], high_s=float(first.high_s) + (new_tokens - 1) * mean[2],
        total_s=total, output_tokens_per_s=batch * new_tokens / total, fidelity=steps.fidelity,
        notes=(*notes, *without(steps.notes, "does_not_fit")), devices=tp * steps.chips,
        **_energy(first, steps, at, new_tokens, running),
    )  # fmt: skip


def _energy(first: Prediction, steps: Prediction, at: Any, new_tokens: int, running: int) -> dict[str, float]:
    """Joules for each generated token of those that run at once, and their band."""
    if first.energy is None or steps.energy is None:
        return {}
    out = {}
    for name, side in (("joule_per_token", "energy_j"), ("joule_per_token_low", "low_j"),
                       ("joule_per_token_high", "high_j")):  # fmt: skip
        joules = np.broadcast_to(getattr(steps.energy, side), at.shape)
        step = float(np.trapezoid(joules, at) / (at[-1] - at[0])) if len(at) > 1 else float(joules[0])
        out[name] = (float(getattr(first.energy, side)) + (new_tokens - 1) * step) / (new_tokens * running)
    return out


def throughput(
    device: str | Path | Device,
    model: str | Path | Architecture | Mapping[str, Any],
    scheme: str | Scheme = "bf16",
    *,
    prompt: int = 1024,
    new_tokens: int = 256,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    **how: Any,
) -> Request:
    """The request result at the largest batch that the memory holds (at most 1024).

    Raises:
        QsimError: as `predict_request`.
    """
    _check_split(how)
    check_count(prompt=prompt, new_tokens=new_tokens, tensor_parallel=how.get("tensor_parallel", 1))
    dev, arch, quant = get_device(device, overrides), get_architecture(model), resolve_scheme(scheme)
    tp = how.get("tensor_parallel", 1)
    most = min(1024, largest_batch(dev, arch, quant, context=prompt + new_tokens, tensor_parallel=tp))
    return predict_request(dev, arch, quant, batch=max(1, most), prompt=prompt, new_tokens=new_tokens, **how)
