"""Time of a whole prefill or decode step, operator by operator, with a band, memory and energy.

Definitions. TTFT: one prefill of the whole prompt of every sequence of the batch, logits of the last token, no
queueing. TPOT: one decode step; every sequence of the batch gets one token. Tokens/s count generated tokens in decode
and prompt tokens in prefill, over all devices. Bands are 80 % bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError
from qsim.lazy import LazyModule
from qsim.notes import Note
from qsim.scheme import Scheme, get_scheme

from .checks import check_count, check_steps
from .device.device import Device
from .device.load import get_device
from .predicted import Prediction
from .timing.execution import FUSED_P, OperatorTime, Runner
from .timing.families import get_family
from .timing.kernel import DATAFLOW, IDEAL_MISS, soft_roofline
from .timing.profiles import Choice, Profile, choose_kernel, get_profile
from .workload.architecture import Architecture, get_architecture
from .workload.footprint import Footprint, far_tier, footprint, largest_batch, sram_chips, what_would_fit
from .workload.step import step_operators

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")

CORRELATION = 0.1
"""Correlation of the errors of two operators of a step: the mean over pairs of held-out layers of a model, same format
and size (`reports/h200_variation.md`)."""
COMPOSITION = 0.04
"""Half width of the 80 % band of what composing kernels leaves out: the four products of a layer run in turn, against
the sum of each alone (`reports/h200_variation.md`)."""
TRANSFER_CORRELATION = 0.75
"""Correlation of the errors of two transferred operators, which share what the other device or stack does better or
worse: `transfer.shared_error`, each calibrated device predicted from the others (`reports/transfer.md`)."""
ENGINES = (0.86, 1.28)
"""10 % and 90 % quantiles of measured over predicted decode steps of engines whose kernels were not measured, on
devices whose kernels were: `transfer.engine_errors` (`reports/transfer.md`)."""
HOST_BAND = 0.5
"""Half width of the band of a profile's host time, which is an engine's own: no measurement of ours."""


def resolve_scheme(scheme: str | Scheme) -> Scheme:
    """A scheme by name or value; unknown names list the nearest."""
    return get_scheme(scheme)


def predict(
    device: str | Path | Device,
    model: str | Path | Architecture | Mapping[str, Any],
    scheme: str | Scheme = "bf16",
    phase: str = "decode",
    batch: Any = 1,
    context: Any = 2048,
    *,
    seq: Any = None,
    fidelity: str = "calibrated",
    profile: str | Profile = "cuda_graph",
    attention_kernel: str | None = None,
    kernel: str | None = None,
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
    stack: str | None = None,
    strict: bool = False,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
) -> Prediction:
    """Predict one step.

    Arguments:
        device, model, scheme: names or values; a path to a device TOML or a Hugging Face config.json works.
        phase: `prefill` (each of `batch` sequences brings `seq` tokens, default the whole context) or `decode`.
        batch, context: sequences; tokens in the KV cache with the new ones. Arrays broadcast.
        fidelity: `ideal`, `calibrated`, `transferred` (`hwmodels.timing.kernel`).
        profile: execution profile (`hwmodels.timing.profiles`); `attention_kernel` and `kernel` override its choices.
        tensor_parallel: devices that share every layer, joined by the device's link.
        expert_parallel: devices that the experts of a mixture are dealt out to whole. Up to `tensor_parallel` they are
            among these; a multiple of it means as many groups of `tensor_parallel` devices, each with `batch`
            sequences of its own, which exchange tokens by two all-to-alls per layer. Routing is uniform.
        stack: whose kernels run the linear layers: `vllm-2026`, `trtllm-1.x`, `pytorch-2.11`, ... (see
            `kernel_families`), or `best`: the fastest at each size among those measured on the device. None is the
            profile's, or `best`.
        strict: refuse a scheme the device has no arithmetic for, or that the stack has no kernel for, instead of
            pricing the usual fallback.
        overrides: device fields, `{"memory.bandwidth_gbytes_per_s": 6000}` or `["key=value"]`.

    Raises:
        ValueError: unknown names (nearest listed), sizes that are not positive, tensor_parallel that does not
            divide the heads, expert_parallel that does not divide the experts, or, with `strict`, a scheme without a
            path.
    """
    dev = get_device(device, overrides)
    arch = get_architecture(model)
    quant = resolve_scheme(scheme)
    how = get_profile(profile)
    if phase not in ("prefill", "decode"):
        raise QsimError(f"phase must be prefill or decode: got {phase!r}")
    _check_sizes(arch, batch=batch, context=context, seq=seq, tp=tensor_parallel, ep=expert_parallel)
    choice = _kernel_choice(dev, quant, how, kernel, stack, strict)
    notes: list[str] = [*arch.notes, *choice.notes]
    notes += _ragged(arch, quant) + _own_rule(quant)
    notes += _beyond(arch, context) + _exchanged(expert_parallel, tensor_parallel)
    family = get_family(choice.kernel)
    quantizes = choice.quantizes_activation
    ops = list(
        step_operators(
            arch, quant if quantizes or not quant.activation.is_quantized else quant.replace(activation="bfloat16",
                                                                                             compute=None),
            phase, batch=batch, context=context, seq=seq, tensor_parallel=tensor_parallel,
            expert_parallel=expert_parallel,
            output_bytes=family.output_bytes, activation_bytes=family.activation_bytes,
            separate_quantize=quantizes and not family.includes_quantize, unfused_quantize=not how.fuse_quantize,
        )
    )  # fmt: skip
    new = 1 if phase == "decode" else (context if seq is None else seq)
    tokens = np.asarray(batch, np.float64) * new
    runner = Runner(dev, arch, quant, choice, how, fidelity, attention_kernel or how.attention)
    if dev.fuses_layers and fidelity != "ideal":
        rows = runner.fused(ops)
        notes += _assumed(dev, arch, quant, rows, phase, batch, context, tensor_parallel)
    else:
        rows = runner.kernels(ops, phase, batch, context, new)
        if choice.stands_in and fidelity != "ideal":
            notes.append(Note("stands_in", choice.stands_in))
    tag = _weakest(rows)
    time, low, high = _total(rows, how, fidelity, tag)
    split = {"tensor_parallel": tensor_parallel, "expert_parallel": expert_parallel}
    memory = footprint(dev, arch, quant, batch=batch, context=context, tokens=tokens, **split)
    scalar_context = int(np.max(context))
    most = largest_batch(dev, arch, quant, context=scalar_context, **split)
    if not np.all(memory.fits):
        notes.insert(0, _shortage(dev, arch, quant, memory, int(np.max(batch)), scalar_context, tensor_parallel))
    return Prediction(
        device=dev, architecture=arch, scheme=quant, phase=phase, batch=batch, context=context, tokens=tokens,
        tensor_parallel=tensor_parallel, expert_parallel=expert_parallel, profile=how.name, fidelity=tag,
        kernel=_main_kernel(rows, choice),
        time_s=time, low_s=low, high_s=high, operators=tuple(rows), footprint=memory, largest_batch=most,
        notes=tuple(notes),
    )  # fmt: skip


def _assumed(
    dev: Device, arch: Architecture, quant: Scheme, rows: Sequence[OperatorTime], phase: str, batch: Any, context: Any,
    tp: int,
) -> list[Note]:  # fmt: skip
    """What is assumed of a dataflow part, how far the step moves with it, and what a full pipeline gives."""
    whole = sum(np.mean(row.time_s) for row in rows)

    def longer(compute: float, memory: float) -> float:
        """Share of the step that lower efficiencies add."""
        parts = [(row.compute_s, row.memory_s) for row in rows if row.kind == "fused"]
        more = (soft_roofline(c * compute, m * memory, FUSED_P) - soft_roofline(c, m, FUSED_P) for c, m in parts)
        return float(sum(np.mean(v) for v in more) / whole)

    peak, bandwidth = DATAFLOW
    less_peak, less_bandwidth = longer(peak / (peak - 0.1), 1.0), longer(1.0, bandwidth / (bandwidth - 0.1))
    said = f"fused layers: assumed {peak:.0%} of peak and {bandwidth:.0%} of bandwidth, not fitted"
    moves = f"ten points less of peak make the step {less_peak:.0%} longer, of bandwidth {less_bandwidth:.0%}"
    notes = [Note("assumed", f"{said}; {moves}".replace("%", " %"))]
    far, traffic = far_tier(dev), float(np.max(sum(row.traffic_bytes for row in rows if row.kind == "fused")))
    if far is not None and traffic > dev.memory.capacity_bytes:
        behind = (traffic - dev.memory.capacity_bytes) / 1e9
        notes.append(Note("far_tier", f"{behind:.0f} GB of each step come from {far.name}, which holds the rest"))
    if dev.kind != "asic-sram" or phase != "decode" or np.size(batch) != 1 or np.size(context) != 1:
        return notes
    most = largest_batch(dev, arch, quant, context=int(np.max(context)), tensor_parallel=tp)
    flights = max(1, min(arch.layers, most // max(1, int(np.max(batch)))))
    rate = flights * float(np.max(batch)) / float(whole)
    chips = sram_chips(dev, arch, quant)
    told = f"{chips} chips hold the model and {most} sequences; a token crosses all of them, so {flights} such batches"
    notes.append(Note("pipeline", f"{told} at once give {rate:.4g} tokens/s, each at this latency"))
    return notes


def _main_kernel(rows: Sequence[OperatorTime], choice: Choice) -> str:
    """The family that most of the time of the linear layers goes to."""
    if not choice.others:
        return choice.kernel
    spent: dict[str, float] = {}
    for row in rows:
        if row.kind == "gemm" and row.name != "lm_head":
            spent[row.kernel] = spent.get(row.kernel, 0.0) + float(np.mean(row.time_s))
    return max(spent, key=lambda name: spent[name], default=choice.kernel)


def _own_rule(quant: Scheme) -> list[Note]:
    """A note on weights with minima or superblocks: the bytes are exact, the kernel is another one."""
    if not quant.weight.has_own_rule:
        return []
    text = (
        "no kernel that reads minima or superblocks was measured: its bytes are exact, its efficiency is that of a "
        "kernel with one scale per group or row"
    )
    return [Note("own_rule", text)]


def _ragged(arch: Architecture, quant: Scheme) -> list[Note]:
    """A note when groups do not divide a layer: the last group of each of its rows is then shorter, or padded where
    groups form superblocks."""
    whole = quant.weight.superblock
    group = whole or quant.weight.group_size
    if group is None or quant.weight.ragged:
        return []
    odd = sorted({part.k for part in arch.parts if not part.router and part.k % group})
    what, then = ("superblocks", "rows are padded") if whole else ("groups", "last groups are shorter")
    text = f"{what} of {group} do not divide K = {', '.join(map(str, odd))}: {then}"
    return [Note("ragged", text)] if odd else []


def _beyond(arch: Architecture, context: Any) -> list[Note]:
    """What the arithmetic of a step does not know of a context: one longer than the model was made for."""
    longest, made_for = int(np.max(context)), arch.shape.max_positions
    if made_for is None or longest <= made_for:
        return []
    text = f"context {longest} is beyond the {made_for} positions of {arch.name}: priced as if it reached"
    return [Note("beyond_context", text)]


def _exchanged(ep: int, tp: int) -> list[Note]:
    """What is assumed where tokens travel to their experts."""
    if ep <= tp:
        return []
    text = (
        f"{ep // tp} groups of {tp}, each with this batch, exchange tokens by NCCL's all-to-all, measured within one "
        "NVLink domain of up to 8; more devices are priced as if they were in one"
    )
    return [Note("all_to_all", text)]


def _check_sizes(arch: Architecture, *, batch: Any, context: Any, seq: Any, tp: int, ep: int) -> None:
    check_steps(batch=batch, context=context, **({} if seq is None else {"seq": seq}))
    check_count(tensor_parallel=tp, expert_parallel=ep)
    if seq is not None and np.any(np.asarray(seq) > np.asarray(context)):
        raise QsimError(f"seq counts the new tokens of the context: got seq={seq!r} > context={context!r}")
    arch.check_split(tp, ep)


def _kernel_choice(
    dev: Device, quant: Scheme, how: Profile, kernel: str | None, stack: str | None, strict: bool
) -> Choice:
    if kernel is None:
        return choose_kernel(dev, quant, how, stack=stack, strict=strict)
    if stack is not None:
        raise QsimError(f"kernel and stack both name what runs the linear layers: got {kernel!r} and {stack!r}")
    family = get_family(kernel)
    return Choice(kernel=kernel, quantizes_activation=family.activation_bytes == 1 or family.includes_quantize)


def _shortage(
    dev: Device, arch: Architecture, quant: Scheme, memory: Footprint, batch: int, context: int, tp: int
) -> Note:
    missing = float(np.max(memory.shortfall_bytes)) / 1e9
    hint = what_would_fit(dev, arch, quant, batch=batch, context=context, tensor_parallel=tp)
    return Note(
        "does_not_fit",
        f"does not fit: {float(np.max(memory.total_bytes)) / 1e9:.1f} GB on a {memory.capacity_bytes / 1e9:.0f} GB "
        f"device, {missing:.1f} GB short; would fit: {hint}",
    )


def _weakest(rows: Sequence[OperatorTime]) -> str:
    """The weakest tag among the operators that take more than a tenth of the time, in the mean of all points."""
    mean = [float(r.time_s) if np.ndim(r.time_s) == 0 else float(np.mean(r.time_s)) for r in rows]
    least = 0.1 * sum(mean)
    tags = {r.fidelity for r, t in zip(rows, mean, strict=True) if t > least}
    for tag in ("ideal", "transferred", "calibrated"):
        if tag in tags:
            return tag
    return rows[0].fidelity


def _total(rows: Sequence[OperatorTime], how: Profile, fidelity: str, tag: str) -> tuple[Any, Any, Any]:
    """Time of the step and its 80 % band: the operators' own, those of a kind correlated, and what a step adds."""
    time: Any = 0.0 if fidelity == "ideal" else how.host_s
    for row in rows:
        time = time + row.time_s
    if fidelity == "ideal":
        return time, time, time * IDEAL_MISS
    sides = []
    for side in (lambda r: r.time_s - r.low_s, lambda r: r.high_s - r.time_s):
        variance: Any = (COMPOSITION * time) ** 2
        for kind, c in (("calibrated", CORRELATION), ("transferred", TRANSFER_CORRELATION)):
            errors = [side(r) for r in rows if r.fidelity == kind]
            total: Any = sum(errors)
            variance = variance + c * total**2 + (1 - c) * sum(e * e for e in errors)
        sides.append(np.sqrt(variance))
    down, up = sides
    # the host's time was measured with none of the engines
    low, high = time - np.hypot(down, how.host_s * HOST_BAND), time + np.hypot(up, how.host_s * HOST_BAND)
    low = np.maximum(low, 0.05 * time)
    if tag == "transferred" and all(r.kind != "fused" for r in rows):
        # in quadrature, as the two are told apart by the rows that they come from
        low = time * np.exp(-np.hypot(np.log(time / low), np.log(ENGINES[0])))
        high = time * np.exp(np.hypot(np.log(high / time), np.log(ENGINES[1])))
    return time, low, high
