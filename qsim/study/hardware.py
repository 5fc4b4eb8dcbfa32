"""The speed half: what `hwmodels` predicts for every method, device, target model and case. No formula lives here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

import hwmodels
from hwmodels.breakeven import first_batch, slower_from_batch
from hwmodels.describe import prediction_row, roofs
from hwmodels.device.device import Device
from hwmodels.predicted import Prediction, operator_rows
from hwmodels.timing.profiles import choose_kernel, get_profile
from hwmodels.workload.architecture import Architecture
from hwmodels.workload.footprint import footprint, kv_cache_bytes, largest_batch, model_weight_bytes
from qsim.notes import without
from qsim.scheme import Scheme, get_scheme

from .rows import CapacityRow, CurveRow, FlipRow, OperatorRow, RoofRow, SpeedRow
from .spec import Case, DeviceSpec, Speed, StudySpec

TENSOR_PARALLEL = (1, 2, 4, 8)
SEARCH_TO = 2048
"""Largest batch at which a flip is looked for."""


def devices(spec: StudySpec) -> dict[str, Device]:
    """Title of every device of the study -> the device, with what is changed on it."""
    return {d.title: _named(d) for d in spec.speed.devices}


def _named(device: DeviceSpec) -> Device:
    return replace(hwmodels.get_device(device.name, device.set or None), name=device.title)


def schemes(spec: StudySpec) -> list[str]:
    """Every scheme of the study once, 16 bit first."""
    return list(dict.fromkeys(m.scheme for m in spec.methods))


def executed(device: Device, scheme: str, profile: str) -> str:
    """`full`, or `weights` where the device multiplies dequantised weights and leaves activations in 16 bit."""
    found = get_scheme(scheme)
    if not found.activation.is_quantized:
        return "full"
    return "full" if choose_kernel(device, found, get_profile(profile)).quantizes_activation else "weights"


def weight_bits(architecture: Architecture, scheme: str) -> float:
    """Bits per weight of the linear layers of all blocks, scales and zero points included."""
    head = architecture.parameters - architecture.block_parameters
    return 8 * (model_weight_bytes(architecture, get_scheme(scheme)) - 2 * head) / architecture.block_parameters


IN_THE_TABLES = ("does_not_fit", "places", "means_alone")
"""Notes whose facts are columns of the tables: the study does not say them once more."""

_Noted: TypeAlias = tuple[SpeedRow, tuple[str, ...]]


def speed_rows(spec: StudySpec) -> Iterator[SpeedRow]:
    """Every case for every model, device and scheme, on 1, 2, 4, ... devices until 16 bit fits."""
    return (row for row, _ in _noted_rows(spec))


def speed_table(spec: StudySpec) -> tuple[tuple[SpeedRow, ...], tuple[str, ...]]:
    """The rows of `speed_rows`, and what was assumed or fell back for them, each note once."""
    found = list(_noted_rows(spec))
    notes = dict.fromkeys(note for _, said in found for note in without(said, *IN_THE_TABLES))
    return tuple(row for row, _ in found), tuple(notes)


def _noted_rows(spec: StudySpec) -> Iterator[_Noted]:
    found = devices(spec)
    for model in spec.speed.models:
        arch = hwmodels.get_architecture(model)
        for device in found.values():
            for case in spec.cases:
                for count in TENSOR_PARALLEL:
                    if arch.heads % count or (count > 1 and device.link is None):
                        break
                    rows = [_case(arch, device, scheme, case, count, spec) for scheme in schemes(spec)]
                    yield from rows
                    if all(row.fits for row, _ in rows):
                        break


def _case(arch: Architecture, device: Device, scheme: str, case: Case, count: int, spec: StudySpec) -> _Noted:
    quant = get_scheme(scheme)
    how: dict[str, Any] = {"profile": spec.speed.profile, "tensor_parallel": count}
    if case.phase == "request":
        return _request(arch, device, quant, case, spec.speed, how)
    if case.phase == "serve":
        return _served(arch, device, quant, case, spec.speed, how)
    p = hwmodels.predict(device, arch, quant, case.phase, case.batch, case.context, **how)
    if case.measure == "tokens_per_s":
        tokens = float(p.tokens_per_s * p.time_s)
        value, low, high = tokens / float(p.time_s), tokens / float(p.high_s), tokens / float(p.low_s)
    else:
        value, low, high = float(p.time_s), float(p.low_s), float(p.high_s)
    return _speed_row(p, case, spec.speed, bool(p.fits), case.batch, value, low, high), p.notes


def _request(
    arch: Architecture, device: Device, quant: Scheme, case: Case, speed: Speed, how: dict[str, Any]
) -> _Noted:
    """A batch of requests; its row carries the step in the middle of the answer for bound, MBU and memory."""
    full = case.context + case.new_tokens
    most = largest_batch(device, arch, quant, context=full, tensor_parallel=how["tensor_parallel"])
    fits = most > 0
    args = {"prompt": case.context, "new_tokens": case.new_tokens, **how}
    if not fits:
        r = hwmodels.predict_request(device, arch, quant, batch=max(1, case.batch), capacity=False, **args)
    elif case.batch == 0:
        r = hwmodels.throughput(device, arch, quant, **args)
    else:
        r = hwmodels.predict_request(device, arch, quant, batch=case.batch, **args)
    step = hwmodels.predict(device, arch, quant, "decode", r.running_batch, full - case.new_tokens // 2, **how)
    low, high = (r.output_tokens_per_s * r.latency_s / t for t in (r.high_s, r.low_s))
    price = speed.prices.get(device.name)
    row = _speed_row(step, case, speed, fits, r.running_batch, r.output_tokens_per_s, low, high)
    notes = (*step.notes, *without(r.notes, "does_not_fit")) if row.fits else step.notes
    row = replace(
        row, phase="request", time_s=r.latency_s, low_s=r.low_s, high_s=r.high_s, fidelity=r.fidelity,
        tokens_per_s=r.output_tokens_per_s, notes="; ".join(notes), joule_per_token=r.joule_per_token,
        joule_per_token_low=r.joule_per_token_low, joule_per_token_high=r.joule_per_token_high,
        cost_per_million_tokens=None if price is None else r.cost_per_million_tokens(price),
    )  # fmt: skip
    return row, notes


ENGINE = "vllm"
"""Whose scheduler and host time a served case has."""


def _served(arch: Architecture, device: Device, quant: Scheme, case: Case, speed: Speed, how: dict[str, Any]) -> _Noted:
    """Requests in flight on an engine, in its steady state; the row carries the step in the middle of the answers for
    bound, MBU and memory. A deployment without room for one request has that step's rate, and does not fit."""
    from hwmodels.serving import Deployment, DoesNotFitError, Workload

    step = hwmodels.predict(device, arch, quant, "decode", case.batch, case.context + case.new_tokens // 2, **how)
    load = Workload(concurrency=case.batch, prompt=case.context, output=case.new_tokens, start="steady")
    try:
        s = hwmodels.serve(
            arch, device, quant, workload=load, policy=ENGINE, method="closed_form",
            deployment=Deployment(tensor_parallel=how["tensor_parallel"]), price_per_hour=speed.prices.get(device.name),
        )  # fmt: skip
    except DoesNotFitError:
        rate = float(step.tokens_per_s)
        slow, fast = (rate * float(step.time_s) / float(t) for t in (step.high_s, step.low_s))
        return _speed_row(step, case, speed, False, case.batch, rate, slow, fast), step.notes
    if case.measure == "tokens_per_s":  # of a closed loop, the requests in flight over the latency
        value = s.output_tokens_per_s
        low, high = value / s.latency.high, value / s.latency.low
    else:
        of = s.tpot if case.measure == "tpot" else s.ttft
        value, (low, high) = of.mean, of.band
    row = _speed_row(step, case, speed, True, case.batch, value, low, high)
    joule, energy = s.joules_per_million_tokens, step.energy
    share = None if joule is None or energy is None else joule / 1e6 / float(energy.energy_j)
    row = replace(
        row, phase="serve", time_s=s.tpot.mean, low_s=s.tpot.band[0], high_s=s.tpot.band[1], fidelity=s.step.fidelity,
        kernel=s.step.kernel, tokens_per_s=s.output_tokens_per_s, notes="; ".join(s.notes),
        joule_per_token=None if joule is None else joule / 1e6,
        joule_per_token_low=None if share is None or energy is None else share * float(energy.low_j),
        joule_per_token_high=None if share is None or energy is None else share * float(energy.high_j),
        cost_per_million_tokens=s.cost_per_million_tokens,
    )  # fmt: skip
    return row, s.notes


def _speed_row(
    p: Prediction, case: Case, speed: Speed, fits: bool, batch: int, value: float, low: float, high: float
) -> SpeedRow:
    flat, price = prediction_row(p), speed.prices.get(p.device.name)
    return SpeedRow(
        model=flat["model"], device=flat["device"], scheme=flat["scheme"],
        executed=executed(p.device, flat["scheme"], speed.profile), case=case.name, phase=case.phase, batch=batch,
        context=case.context, devices=p.tensor_parallel, measure=case.measure, value=float(value), low=float(low),
        high=float(high), time_s=flat["time_s"], low_s=flat["low_s"], high_s=flat["high_s"],
        tokens_per_s=flat["tokens_per_s"], fits=fits, bound=flat["bound"], mbu=flat["mbu"], mfu=flat["mfu"],
        kernel=flat["kernel"], fidelity=flat["fidelity"], weights_gbytes=flat["weights_gbytes"],
        kv_cache_gbytes=flat["kv_cache_gbytes"], total_gbytes=flat["total_gbytes"],
        capacity_gbytes=flat["capacity_gbytes"],
        joule_per_token=flat["joule_per_token"], joule_per_token_low=flat["joule_per_token_low"],
        joule_per_token_high=flat["joule_per_token_high"],
        cost_per_million_tokens=None if price is None else float(p.cost_per_million_tokens(price)),
        notes="; ".join(flat["notes"]),
    )  # fmt: skip


def curve_rows(spec: StudySpec) -> Iterator[CurveRow]:
    """Speed-up over 16 bit of one decode step against batch, on one device; the first model only."""
    arch = hwmodels.get_architecture(spec.speed.models[0])
    batches = np.array(spec.speed.batches, np.float64)
    base_scheme, *rest = schemes(spec)
    for title, device in devices(spec).items():
        args: Any = ("decode", batches, spec.speed.context)
        base = hwmodels.predict(device, arch, base_scheme, *args, profile=spec.speed.profile)
        for scheme in (base_scheme, *rest):
            p = hwmodels.predict(device, arch, scheme, *args, profile=spec.speed.profile)
            s = hwmodels.speedup(p, base)
            fits = np.broadcast_to(p.fits, batches.shape)
            for i, batch in enumerate(spec.speed.batches):
                same = scheme == base_scheme
                yield CurveRow(
                    model=arch.name, device=title, scheme=scheme, batch=batch, speedup=float(s.value[i]),
                    low=1.0 if same else float(s.low[i]), high=1.0 if same else float(s.high[i]), fits=bool(fits[i]),
                    tokens_per_s=float(p.tokens_per_s[i]),
                )  # fmt: skip


def flip_rows(spec: StudySpec) -> Iterator[FlipRow]:
    """Where the linear layers of a decode step turn from memory to arithmetic, and where a scheme stops paying off."""
    arch = hwmodels.get_architecture(spec.speed.models[0])
    context, profile = spec.speed.context, spec.speed.profile
    base, *_ = schemes(spec)
    for title, device in devices(spec).items():
        for scheme in schemes(spec):

            def memory_bound(batches: np.ndarray, device: Device = device, scheme: str = scheme) -> Any:
                p = hwmodels.predict(device, arch, scheme, "decode", batches, context, profile=profile)
                mine = [op for op in p.operators if op.kind in ("gemm", "fused")]
                return sum(op.memory_s for op in mine) > sum(op.compute_s for op in mine)

            turn = first_batch(memory_bound, SEARCH_TO)
            gain = None
            if scheme != base:
                gain = slower_from_batch(device, arch, scheme, base, context=context, high=SEARCH_TO, profile=profile)
            yield FlipRow(
                model=arch.name, device=title, scheme=scheme, searched_to=SEARCH_TO,
                compute_bound_from=_flip(turn.value, turn.holds_at_start),
                no_gain_from=None if gain is None else _flip(gain.value, gain.holds_at_start),
            )  # fmt: skip


def _flip(value: float | None, holds_at_start: bool) -> int | None:
    """The batch from which it no longer holds; 1 when it never did."""
    return 1 if not holds_at_start else None if value is None else round(value)


REGIMES = {"decode, batch 1": ("decode", 1), "decode, batch 64": ("decode", 64), "prefill": ("prefill", 1)}
"""What the rooflines show -> phase and batch."""


def roofline_schemes(spec: StudySpec) -> list[str]:
    """16 bit and the smallest weight-only scheme: the two ends that the rooflines compare."""
    all_schemes = schemes(spec)
    arch = hwmodels.get_architecture(spec.speed.models[0])
    small = [s for s in all_schemes[1:] if not get_scheme(s).activation.is_quantized and get_scheme(s).weight.bits >= 4]
    return [all_schemes[0], *([min(small, key=lambda s: weight_bits(arch, s))] if small else all_schemes[1:2])]


def roofline_rows(spec: StudySpec) -> tuple[list[OperatorRow], list[RoofRow]]:
    """The linear layers and attention of three regimes under each device's roofs; the first model only."""
    arch = hwmodels.get_architecture(spec.speed.models[0])
    operators: list[OperatorRow] = []
    ceilings: list[RoofRow] = []
    for title, device in devices(spec).items():
        seen: list[Prediction] = []
        for scheme in schemes(spec):
            for regime, (phase, batch) in REGIMES.items():
                p = hwmodels.predict(device, arch, scheme, phase, batch, spec.speed.context, profile=spec.speed.profile)
                seen.append(p)
                if scheme in roofline_schemes(spec):
                    operators += [
                        OperatorRow(
                            model=arch.name, device=title, scheme=scheme, regime=regime, operator=r["operator"],
                            kind=op.kind, flop_per_byte=r["flop_per_byte"], share=r["share"], bound=r["bound"],
                            flop_per_s=1e9 * r["gflop"] / r["time_s"], fidelity=r["fidelity"],
                        )
                        for r, op in zip(operator_rows(p), p.operators, strict=True)
                        if op.kind in ("gemm", "attention", "fused")
                    ]  # fmt: skip
        for roof in roofs(seen):
            ceilings.append(
                RoofRow(
                    device=title, format=roof["format"],
                    peak_flop_per_s=roof["peak_flop_per_s"], bandwidth_bytes_per_s=roof["bandwidth_bytes_per_s"],
                )
            )  # fmt: skip
    return operators, ceilings


def capacity_rows(spec: StudySpec) -> Iterator[CapacityRow]:
    """What fits: bytes, the fewest devices for one sequence, and the most sequences on one device."""
    context = spec.speed.context
    for model in spec.speed.models:
        arch = hwmodels.get_architecture(model)
        for title, device in devices(spec).items():
            for scheme in schemes(spec):
                quant = get_scheme(scheme)
                needed = None
                for count in TENSOR_PARALLEL:
                    if arch.heads % count or (count > 1 and device.link is None):
                        break
                    if footprint(device, arch, quant, batch=1, context=context, tensor_parallel=count).fits:
                        needed = count
                        break
                yield CapacityRow(
                    model=arch.name, device=title, scheme=scheme, context=context,
                    weights_gbytes=model_weight_bytes(arch, quant) / 1e9,
                    kv_cache_gbytes_per_sequence=kv_cache_bytes(arch, quant, context) / 1e9,
                    capacity_gbytes=device.memory.capacity_bytes / 1e9, devices_needed=needed,
                    largest_batch=largest_batch(device, arch, quant, context=context),
                )  # fmt: skip
