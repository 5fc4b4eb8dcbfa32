"""Time of a whole prefill or decode step, operator by operator, with a band, memory and energy.

Definitions. TTFT: one prefill of the whole prompt of every sequence of the batch, logits of the last token, no
queueing. TPOT: one decode step; every sequence of the batch gets one token. Tokens/s count generated tokens in decode
and prompt tokens in prefill, over all devices. Bands are 80 % bands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError
from qsim.lazy import LazyModule
from qsim.notes import Note
from qsim.scheme import Scheme, get_scheme
from qsim.tables import Table

from .checks import check_count, check_steps
from .device.device import Device
from .device.load import get_device
from .energy import Energy, cost_per_million_tokens, step_energy
from .evidence import Point
from .evidence import evidence as nearest_measured
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


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Result of `predict`. Times are seconds; with array arguments they are arrays.

    Attributes:
        time_s, low_s, high_s: the step, and the 80 % band.
        operators: the table, in the order of execution.
        fidelity: the weakest tag among the operators that matter (> 10 % of the time).
        kernel, notes: kernel family of the linear layers; what was assumed or fell back (`qsim.notes.Note`: programs
            read the code, people the text).
        footprint, fits, largest_batch: memory of each device; the batch is at this context.
    """

    device: Device
    architecture: Architecture
    scheme: Scheme
    phase: str
    batch: Any
    context: Any
    tokens: Any
    tensor_parallel: int
    profile: str
    fidelity: str
    kernel: str
    time_s: Any
    low_s: Any
    high_s: Any
    operators: tuple[OperatorTime, ...]
    footprint: Footprint
    largest_batch: int
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        what = f"{self.architecture.name} {self.scheme.name} on {self.device.name}, {self.phase}"
        if np.ndim(self.time_s):
            return f"Prediction({what}, time_s of shape {np.shape(self.time_s)}, {self.fidelity})"
        band = f"{float(self.low_s):.4g} to {float(self.high_s):.4g}"
        return f"Prediction({what}, time_s={float(self.time_s):.4g} (80 % band {band}), {self.fidelity})"

    def to_frame(self) -> pd.DataFrame:
        """The operator table: one row for each operator, in the order of execution.

        Columns: operator, calls, time_s, low_s, high_s (the 80 % band), share (of the step), gflop, mbytes,
        flop_per_byte, bound, kernel, fidelity.

        Raises:
            QsimError: the prediction was made for arrays of batches or contexts, which have no single table; see
                `hwmodels.sweep`.
        """
        if np.ndim(self.time_s):
            raise QsimError(
                f"a prediction of shape {np.shape(self.time_s)} has no single operator table: predict one batch and "
                "context, or tabulate many with hwmodels.sweep"
            )
        return pd.DataFrame(operator_rows(self))

    def evidence(self, operator: str, count: int = 5) -> Table[Point]:
        """The measured products nearest to an operator; see `hwmodels.evidence`.

        Raises:
            QsimError: arrays of batches or contexts, or an operator that is no matrix product of the step.
        """
        return nearest_measured(self.operators, operator, count)

    @cached_property
    def energy(self) -> Energy | None:
        """Energy of the step on all devices, with its band (`hwmodels.energy`); None where the power is unknown."""
        found = step_energy(self.device, self.operators, (self.time_s, self.low_s, self.high_s), self.chips)
        if found is None or self.tensor_parallel == 1:
            return found
        tp = self.tensor_parallel
        return replace(found, energy_j=tp * found.energy_j, low_j=tp * found.low_j, high_j=tp * found.high_j)

    @property
    def energy_j(self) -> Any:
        """Joules of the step on all devices, None where the power is unknown."""
        return None if self.energy is None else self.energy.energy_j

    @property
    def joule_per_token(self) -> Any:
        """Energy of a generated (decode) or prompt (prefill) token, None where the power is unknown."""
        return None if self.energy is None else self.energy.energy_j / (self.tokens_per_s * self.time_s)

    def cost_per_million_tokens(self, price_per_hour: float) -> Any:
        """What a million generated (decode) or prompt (prefill) tokens cost on this step, in the unit of the price.

        Arguments:
            price_per_hour: of one device; all that the model is spread over are paid for.

        Raises:
            QsimError: a price that is not a positive number.
        """
        devices = self.tensor_parallel * self.chips
        return cost_per_million_tokens(price_per_hour, self.time_s, self.tokens_per_s * self.time_s, devices)

    @property
    def chips(self) -> int:
        """Chips that hold the model where it is kept in the SRAM of many; else 1."""
        return sram_chips(self.device, self.architecture, self.scheme) if self.device.kind == "asic-sram" else 1

    @property
    def fits(self) -> Any:
        return self.footprint.fits

    @property
    def tokens_per_s(self) -> Any:
        """Generated tokens (decode) or prompt tokens (prefill) a second, all devices together."""
        return (self.batch if self.phase == "decode" else self.tokens) / self.time_s

    @property
    def ttft_s(self) -> Any:
        """Time to first token: the prefill; None for a decode step."""
        return self.time_s if self.phase == "prefill" else None

    @property
    def tpot_s(self) -> Any:
        """Time per output token: the decode step; None for a prefill."""
        return self.time_s if self.phase == "decode" else None

    @property
    def bound(self) -> str:
        """What most of the time is bound by: `memory`, `compute` or `overhead` (scalar predictions)."""
        share: dict[str, float] = {}
        for op in self.operators:
            share[str(op.bound)] = share.get(str(op.bound), 0.0) + float(np.mean(op.time_s))
        return max(share, key=lambda key: share[key])

    @property
    def mbu(self) -> Any:
        """Model bandwidth utilisation: the time that the bytes of products and attention need at the memory's peak, as
        a share of the step. At most 1."""
        least = sum(op.traffic_bytes / op.bandwidth_bytes_per_s for op in self.operators if op.formats)
        return least / self.time_s

    @property
    def mfu(self) -> Any:
        """Model FLOP utilisation: the time that the operations of products and attention need, each at the dense peak
        of the format that it multiplies in, as a share of the step. At most 1.

        A step of one format has the usual value, operations over time over peak. In a step that mixes formats (FP8
        layers, 16-bit attention) no single peak can be reached, so every operator is held against its own: the sum of
        operations / peak of each, over the time. Weight-only schemes multiply in 16 bit, and a kernel that does so on
        the vector units is held against those. Element-wise operators count as time, not as operations.
        """
        least = sum(op.flop / op.peak_flop_per_s for op in self.operators if op.formats)
        return least / self.time_s


def operator_rows(prediction: Prediction) -> list[dict[str, Any]]:
    """The operator table of a prediction with scalar arguments."""
    total = float(prediction.time_s)
    return [
        {
            "operator": op.name,
            "calls": int(op.calls),
            "time_s": float(op.time_s),
            "low_s": float(op.low_s),
            "high_s": float(op.high_s),
            "share": float(op.time_s) / total,
            "gflop": float(op.flop) / 1e9,
            "mbytes": float(op.traffic_bytes) / 1e6,
            "flop_per_byte": float(op.intensity),
            "bound": str(op.bound),
            "kernel": op.kernel,
            "generation": op.generation,
            "format": "+".join(op.formats),
            "fidelity": op.fidelity,
        }
        for op in prediction.operators
    ]


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Ratio of two times with an 80 % band; `sign_sure` when the band does not hold 1."""

    value: Any
    low: Any
    high: Any

    @property
    def sign_sure(self) -> Any:
        return (self.low > 1) | (self.high < 1)


def speedup(of: Prediction, over: Prediction) -> Speedup:
    """How many times faster `of` is than `over`; the two bands combine as independent errors of the logarithm.

    On one device the two errors share causes, so the band is wider than it need be: over 103 pairs of measured H200
    steps they correlate by 0.3 to 0.5, and the band holds nine of ten measured ratios instead of eight. It stays so
    because no other device has measured pairs to take a correlation from: a gain called sure is sure.
    """
    value = over.time_s / of.time_s
    down = np.hypot(np.log(over.time_s / over.low_s), np.log(of.high_s / of.time_s))
    up = np.hypot(np.log(over.high_s / over.time_s), np.log(of.time_s / of.low_s))
    return Speedup(value=value, low=value * np.exp(-down), high=value * np.exp(up))


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
        stack: whose kernels run the linear layers: `vllm-2026`, `trtllm-1.x`, `pytorch-2.11`, ... (see
            `kernel_families`), or `best`: the fastest at each size among those measured on the device. None is the
            profile's, or `best`.
        strict: refuse a scheme the device has no arithmetic for, or that the stack has no kernel for, instead of
            pricing the usual fallback.
        overrides: device fields, `{"memory.bandwidth_gbytes_per_s": 6000}` or `["key=value"]`.

    Raises:
        ValueError: unknown names (nearest listed), sizes that are not positive, tensor_parallel that does not
            divide the heads, or, with `strict`, a scheme without a path.
    """
    dev = get_device(device, overrides)
    arch = get_architecture(model)
    quant = resolve_scheme(scheme)
    how = get_profile(profile)
    if phase not in ("prefill", "decode"):
        raise QsimError(f"phase must be prefill or decode: got {phase!r}")
    _check_sizes(arch, batch=batch, context=context, seq=seq, tensor_parallel=tensor_parallel)
    choice = _kernel_choice(dev, quant, how, kernel, stack, strict)
    notes: list[str] = [*arch.notes, *choice.notes]
    notes += _ragged(arch, quant) + _own_rule(quant)
    notes += _beyond(arch, context)
    family = get_family(choice.kernel)
    quantizes = choice.quantizes_activation
    ops = list(
        step_operators(
            arch, quant if quantizes or not quant.activation.is_quantized else quant.replace(activation="bfloat16",
                                                                                             compute=None),
            phase, batch=batch, context=context, seq=seq, tensor_parallel=tensor_parallel,
            output_bytes=family.output_bytes, activation_bytes=family.activation_bytes,
            separate_quantize=quantizes and not family.includes_quantize, unfused_quantize=not how.fuse_quantize,
        )
    )  # fmt: skip
    new = 1 if phase == "decode" else (context if seq is None else seq)
    tokens = np.asarray(batch, np.float64) * new
    runner = Runner(dev, arch, quant, choice, how, fidelity, attention_kernel or how.attention, tensor_parallel)
    if dev.fuses_layers and fidelity != "ideal":
        rows = runner.fused(ops)
        notes += _assumed(dev, arch, quant, rows, phase, batch, context, tensor_parallel)
    else:
        rows = runner.kernels(ops, phase, batch, context, new)
        if choice.stands_in and fidelity != "ideal":
            notes.append(Note("stands_in", choice.stands_in))
    tag = _weakest(rows)
    time, low, high = _total(rows, how, fidelity, tag)
    memory = footprint(dev, arch, quant, batch=batch, context=context, tokens=tokens, tensor_parallel=tensor_parallel)
    scalar_context = int(np.max(context))
    most = largest_batch(dev, arch, quant, context=scalar_context, tensor_parallel=tensor_parallel)
    if not np.all(memory.fits):
        notes.insert(0, _shortage(dev, arch, quant, memory, int(np.max(batch)), scalar_context, tensor_parallel))
    return Prediction(
        device=dev, architecture=arch, scheme=quant, phase=phase, batch=batch, context=context, tokens=tokens,
        tensor_parallel=tensor_parallel, profile=how.name, fidelity=tag, kernel=_main_kernel(rows, choice),
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


def _check_sizes(arch: Architecture, *, batch: Any, context: Any, seq: Any, tensor_parallel: int) -> None:
    check_steps(batch=batch, context=context, **({} if seq is None else {"seq": seq}))
    check_count(tensor_parallel=tensor_parallel)
    if seq is not None and np.any(np.asarray(seq) > np.asarray(context)):
        raise QsimError(f"seq counts the new tokens of the context: got seq={seq!r} > context={context!r}")
    arch.check_split(tensor_parallel)


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
