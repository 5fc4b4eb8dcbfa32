"""`serve`: what the users of a deployment see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.notes import Note
from qsim.scheme import Scheme

from ..checks import check_not_negative
from ..device.device import Device
from ..device.load import get_device
from ..prediction import resolve_scheme
from ..workload.architecture import Architecture, get_architecture
from .closed import closed_form, places_of
from .constants import Constants, constants_for, settled
from .deployment import Deployment
from .disaggregated import NOT_HELD, serve_apart
from .events import Run, simulate
from .policy import EnginePolicy, get_policy
from .steps import StepTable, tabulate
from .workload import Workload

Array = np.ndarray[Any, np.dtype[np.float64]]


class DoesNotFitError(QsimError):
    """Weights, or the cache of one request, that a deployment has no room for."""


METHODS = ("simulate", "closed_form")
LEAST = {"p90": 10, "p99": 100}
"""Requests that a percentile needs: one beyond it."""
MOST_ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A quantity over the requests, in seconds.

    Attributes:
        mean, p50, p90, p99: over the requests; a percentile is None where there are too few requests for it, or where
            the closed form gave the mean alone.
        low, high: factors of the 80 % band of each of them.
    """

    mean: float
    p50: float | None
    p90: float | None
    p99: float | None
    low: float
    high: float

    @property
    def band(self) -> tuple[float, float]:
        """The 80 % band of the mean."""
        return self.mean * self.low, self.mean * self.high


@dataclass(frozen=True, kw_only=True)
class Served:
    """Result of `serve`.

    Attributes:
        model, device, scheme, policy, deployment, workload: as asked for. method: `simulate` or `closed_form`.
        ttft, tpot, latency: seconds to the first token, from token to token, and to the last one, with bands.
        output_tokens_per_s: generated, by all devices together.
        requests_per_s: served. capacity_per_s: what the deployment can serve at most, of such requests.
        mean_rows: decode rows of a step of one engine, in the mean. steps: of one engine.
        kv_occupancy: the fullest that the cache was, as a share; None of the closed form.
        preemptions: requests that were put back for want of blocks.
        timeline: (points, 4) seconds, running sequences, waiting ones, share of the cache, of one engine.
        limit: what holds the throughput: `memory`, `requests`, `budget`, `arrivals`.
        gpus: all devices. power_w: of all of them, that of a decode step; None where unknown.
        price_per_hour: of one device, None where none was given.
        step: the table of one engine's steps. constants: of the engine. notes: what was assumed.
    """

    model: str
    device: str
    scheme: str
    policy: EnginePolicy
    deployment: Deployment
    workload: Workload
    method: str
    ttft: Spread
    tpot: Spread
    latency: Spread
    output_tokens_per_s: float
    requests_per_s: float
    capacity_per_s: float
    mean_rows: float
    steps: int
    kv_occupancy: float | None
    preemptions: int
    timeline: Array
    limit: str
    gpus: int
    power_w: float | None
    price_per_hour: float | None
    step: StepTable
    constants: Constants
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        what = f"{self.model} {self.scheme}, {self.policy.name} on {self.gpus} x {self.device}"
        load = self.workload
        sent = f"{load.prompt} in, {load.output} out"
        how = (
            "a trace" if load.trace else f"{load.concurrency} in flight" if load.concurrency else f"{load.rate_per_s}/s"
        )
        means = f"ttft={self.ttft.mean:.3g} s, tpot={self.tpot.mean * 1e3:.3g} ms"
        return f"Served({what}, {how}, {sent}: {means}, {self.output_tokens_per_s:.4g} tokens/s)"

    @property
    def tokens_per_s_per_user(self) -> float:
        """Generated tokens per second that one user sees after the first: 1 / TPOT."""
        return 1.0 / self.tpot.mean

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Generated tokens per second over the devices."""
        return self.output_tokens_per_s / self.gpus

    @property
    def joules_per_million_tokens(self) -> float | None:
        """Energy of a million generated tokens: power over the throughput."""
        return None if self.power_w is None else self.power_w / self.output_tokens_per_s * 1e6

    @property
    def cost_per_million_tokens(self) -> float | None:
        """Price of a million generated tokens, in the unit of the price."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour * self.gpus / 3600.0 / self.output_tokens_per_s * 1e6


def _spread(values: Array, band: tuple[float, float], count: int) -> Spread:
    points = {
        name: float(np.percentile(values, share)) if count >= LEAST.get(name, 1) else None
        for name, share in (("p50", 50), ("p90", 90), ("p99", 99))
    }
    return Spread(mean=float(values.mean()), low=band[0], high=band[1], **points)


def _mean_alone(value: float, band: tuple[float, float]) -> Spread:
    return Spread(mean=value, p50=None, p90=None, p99=None, low=band[0], high=band[1])


def serve(
    model: str | Path | Architecture | Mapping[str, Any],
    device: str | Path | Device,
    scheme: str | Scheme = "bf16",
    *,
    workload: Workload,
    policy: str | EnginePolicy = "vllm",
    deployment: Deployment | None = None,
    method: str = "simulate",
    quantized: str = "all",
    price_per_hour: float | None = None,
    constants: Sequence[Constants] | None = None,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
) -> Served:
    """Serve a workload with an engine on a deployment.

    Arguments:
        model, device, scheme: names or values, as in `predict`.
        method: `simulate` runs the engine's steps; `closed_form` gives means of the steady state.
        quantized: which layers follow the scheme: `all`, those of MLPs and experts (`mlp`), or routed `experts` alone,
            as many published 4-bit checkpoints have it; the others are in 16 bit.
        price_per_hour: of one device, in any unit.
        constants: of engines, instead of the shipped ones (`read_constants`).

    Raises:
        QsimError: unknown names; weights or one request that do not fit; arrivals above what the deployment can serve,
            with that rate.
    """
    plan = Deployment() if deployment is None else deployment
    how = get_policy(policy)
    drafting = how.speculation
    if method not in METHODS:
        raise QsimError(f"method must be simulate or closed_form: got {method!r}")
    if price_per_hour is not None:
        check_not_negative(price_per_hour=price_per_hour)
    dev, arch, quant = get_device(device, overrides), get_architecture(model), resolve_scheme(scheme)
    if plan.prefill is not None and method == "simulate":
        method = "closed_form"
    engines = plan.replicas * plan.pipeline_parallel * plan.attention_data_parallel
    flight = None if workload.concurrency is None else max(1, math.ceil(workload.concurrency / engines))
    rows = min(how.max_sequences, MOST_ROWS)
    told = () if drafting is None else (Note(
        "speculation",
        f"{drafting}: {drafting.gained:.3g} tokens from a step in the mean; the acceptance is given, not predicted",
    ),)  # fmt: skip
    table = tabulate(dev, arch, quant, how, plan, rows=rows, context=workload.longest, quantized=quantized)
    table = replace(table, notes=(*table.notes, *told))
    check_fits(arch, dev, quant, table, workload, plan)
    found = constants_for(how, table.generation, None if constants is None else tuple(constants))
    found = settled(found, table.mixtures, table.fidelity, table.low, table.high)
    capacity = _capacity(table, how, found, workload) * engines
    offered = workload.offered_per_s
    if offered is not None and offered > capacity:
        raise QsimError(
            f"{offered:.4g} requests arrive per second and {plan.label} of {dev.name} can serve {capacity:.4g}: the "
            "queue grows without end; lower the rate or take more replicas"
        )
    common: dict[str, Any] = {
        "model": arch.name, "device": dev.name, "scheme": quant.name or "custom", "policy": how, "deployment": plan,
        "workload": workload, "method": method, "capacity_per_s": capacity, "gpus": plan.gpus, "step": table,
        "power_w": None if table.power_w is None else table.power_w * plan.gpus / plan.engine_gpus,
        "price_per_hour": price_per_hour, "constants": found,
    }  # fmt: skip
    if plan.prefill is not None:
        reader = tabulate(
            dev, arch, quant, replace(how, speculation=None), plan.prefill, rows=64, context=workload.longest,
            quantized=quantized,
        )  # fmt: skip
        return _apart(reader, workload, how, plan, table, found, common)
    if method == "closed_form":
        return _steady(workload, how, table, found, engines, flight, common)
    run = simulate(table, workload, how, found, in_flight=flight, share=engines)
    return _simulated(run, workload, how, table, found, engines, common)


def check_fits(
    arch: Architecture, device: Device, scheme: Scheme, table: StepTable, workload: Workload, plan: Deployment
) -> None:
    """Refuse weights, or one request, that the deployment cannot hold.

    Raises:
        DoesNotFitError: with the bytes or tokens that are missing.
    """
    if table.kv_tokens < 1:
        raise DoesNotFitError(
            f"{arch.name} with {scheme.name or 'this scheme'} does not fit {plan.label} of {device.name}: its weights "
            f"are {table.weights_bytes / 1e9:.1f} GB of each device's {table.capacity_bytes / 1e9:.0f} GB, which "
            "leaves no room for a KV cache; take more devices for each engine or a smaller scheme"
        )
    if workload.longest + 32 > table.kv_tokens:
        raise DoesNotFitError(
            f"a request of {workload.longest:.0f} tokens does not fit {plan.label} of {device.name}: its KV cache "
            f"holds {table.kv_tokens:.0f}; take more devices for each engine, a smaller scheme or shorter requests"
        )


def _capacity(table: StepTable, policy: EnginePolicy, constants: Constants, workload: Workload) -> float:
    """Requests a second that one engine serves with all its places taken."""
    places = places_of(table, policy, workload.mean_prompt, workload.mean_output)
    full = closed_form(
        table, policy, constants, prompt=workload.mean_prompt, output=workload.mean_output, concurrency=float(places),
        prefix_hit=workload.prefix_hit,
    )  # fmt: skip
    return float(full.requests_per_s)


def _limit(workload: Workload, table: StepTable, policy: EnginePolicy, flight: float, prompt_share: float) -> str:
    places = float(places_of(table, policy, workload.mean_prompt, workload.mean_output))
    if flight > places:
        return "memory" if places < policy.max_sequences else "sequences"
    if prompt_share > 0.9:
        return "budget"
    return "requests" if workload.concurrency is not None else "arrivals"


def _steady(
    workload: Workload, policy: EnginePolicy, table: StepTable, constants: Constants, engines: int, flight: int | None,
    common: dict[str, Any],
) -> Served:  # fmt: skip
    offered = workload.offered_per_s
    if flight is None and offered is None:
        raise QsimError("closed_form needs a concurrency or a rate; this trace has requests at one time only")
    waves = None if flight is None or workload.start == "steady" else workload.count / (workload.concurrency or 1)
    if flight is not None:
        load: dict[str, Any] = {"concurrency": float(flight)}
    else:
        load = {"rate_per_s": (offered or 0.0) / engines}
    found = closed_form(
        table, policy, constants, prompt=workload.mean_prompt, output=workload.mean_output,
        prefix_hit=workload.prefix_hit, waves=waves, **load,
    )  # fmt: skip
    token, first, sent = float(found.tpot_s), float(found.ttft_s), float(found.requests_per_s) * engines
    latency = first + (workload.mean_output - 1) * token
    rows = float(found.rows)
    note = Note("means_alone", "the closed form gives means of the steady state: no percentiles and no timeline")
    return Served(
        **common, ttft=_mean_alone(first, constants.ttft), tpot=_mean_alone(token, constants.tpot),
        latency=_mean_alone(latency, _mixed(constants, first, latency)), requests_per_s=sent,
        output_tokens_per_s=sent * workload.mean_output, mean_rows=rows, steps=0, kv_occupancy=None, preemptions=0,
        timeline=np.zeros((0, 4)), notes=(*table.notes, note),
        limit=_limit(workload, table, policy, flight or rows, float(found.prompt_share)),
    )  # fmt: skip


def _mixed(constants: Constants, first: float, latency: float) -> tuple[float, float]:
    """Band of the whole latency, from those of its two parts, whose errors share their kernels."""
    share = min(1.0, first / latency)
    return tuple(share * a + (1 - share) * b for a, b in zip(constants.ttft, constants.tpot, strict=True))  # type: ignore[return-value]


def _simulated(
    run: Run, workload: Workload, policy: EnginePolicy, table: StepTable, constants: Constants, engines: int,
    common: dict[str, Any],
) -> Served:  # fmt: skip
    count = int(run.counted.sum())
    notes = list(table.notes)
    for name, least in LEAST.items():
        if count < least:
            notes.append(Note("too_few", f"{name} needs {least} requests and the run has {count}: it is left out"))
    if run.preemptions:
        again = run.preemptions - run.copied
        ways = ((run.copied, "times copied back"), (again, "computed again"))
        told = " and ".join(f"{count} {way}" for count, way in ways if count)
        notes.append(Note("preempted", f"{run.preemptions} times a request was put back for want of KV blocks: {told}"))
    if engines > 1:
        notes.append(Note("one_engine", f"one of {engines} equal groups of sequences was simulated, with its share"))
    first, latency = run.ttft_s, run.latency_s
    tokens = run.tpot_s if run.tpot_s.size else np.array([float(run.latency_s.mean())])
    line = run.timeline.copy()
    line[:, 3] /= table.kv_tokens
    flight = float(workload.concurrency or 0) / engines if workload.concurrency else float(line[:, 1:3].sum(1).mean())
    return Served(
        **common, ttft=_spread(first, constants.ttft, count), tpot=_spread(tokens, constants.tpot, count),
        latency=_spread(latency, _mixed(constants, float(first.mean()), float(latency.mean())), count),
        output_tokens_per_s=run.output_tokens_per_s * engines,
        requests_per_s=run.output.size / run.span_s * engines, mean_rows=run.mean_rows, steps=run.steps,
        kv_occupancy=float(min(1.0, line[:, 3].max(initial=0.0))), preemptions=run.preemptions, timeline=line,
        limit=_limit(workload, table, policy, flight, run.prompt_share), notes=tuple(notes),
    )  # fmt: skip


def _apart(
    reader: StepTable, workload: Workload, policy: EnginePolicy, plan: Deployment, table: StepTable,
    constants: Constants, common: dict[str, Any],
) -> Served:  # fmt: skip
    """Prefill and decode workers apart."""
    found = serve_apart(reader, table, workload, policy, constants, plan)
    if found.limit == "prefill" and workload.offered_per_s is not None and found.utilisation >= 1:
        raise QsimError(
            f"{workload.offered_per_s:.4g} requests arrive per second and the prefill workers can read "
            f"{found.prefill_per_s:.4g}: lower the rate or take more of them"
        )
    latency = found.ttft_s + (workload.mean_output - 1) * found.tpot_s
    common["capacity_per_s"] = min(common["capacity_per_s"], found.prefill_per_s)
    note = Note("means_alone", "separate workers are served in closed form: means of the steady state, no percentiles")
    return Served(
        **common, ttft=_mean_alone(found.ttft_s, constants.ttft), tpot=_mean_alone(found.tpot_s, constants.tpot),
        latency=_mean_alone(latency, _mixed(constants, found.ttft_s, latency)), requests_per_s=found.requests_per_s,
        output_tokens_per_s=found.requests_per_s * workload.mean_output, mean_rows=found.rows, steps=0,
        kv_occupancy=None, preemptions=0, timeline=np.zeros((0, 4)), limit=found.limit,
        notes=(*table.notes, note, NOT_HELD),
    )  # fmt: skip
