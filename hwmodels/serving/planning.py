"""`plan`: the fewest devices, or the least money, that serve a load within limits on TTFT and TPOT."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import Scheme

from ..checks import check_positive
from ..device.device import Device
from ..device.load import get_device
from ..prediction import resolve_scheme
from ..workload.architecture import Architecture, get_architecture
from .closed import closed_form, places_of
from .constants import Constants, constants_for, settled
from .deployment import Deployment
from .disaggregated import NOT_HELD, serve_apart
from .policy import EnginePolicy, get_policy
from .steps import StepTable, tabulate
from .workload import Workload

WIDTHS = (1, 2, 4, 8)
LOADS = np.concatenate([np.linspace(0.02, 0.5, 13), np.linspace(0.52, 0.98, 24)])
"""Shares of an engine's capacity at which it is looked at."""
CHANGES = (0.8, 1.25)
"""By what the load, the limits and the prices are changed for the sensitivity."""
MOST_WORKERS = 512


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is asked for: a load, and limits on the means. Seconds, tokens, requests per second."""

    ttft_s: float
    tpot_s: float
    rate_per_s: float
    prompt: float
    output: float


@dataclass(frozen=True, kw_only=True)
class Option:
    """A deployment that serves the load within the limits.

    Attributes:
        device, scheme, deployment: what serves. gpus: all devices.
        ttft_s, tpot_s: predicted means at the load. capacity_per_s: requests per second within the limits.
        price_per_hour: of all devices, None without a price; cost_per_million: of a million generated tokens.
        sure: the upper ends of the 80 % bands are within the limits too; never for separate prefill workers, whose
            bands are not known.
        notes: of the prediction.
    """

    device: str
    scheme: str
    deployment: Deployment
    gpus: int
    ttft_s: float
    tpot_s: float
    capacity_per_s: float
    price_per_hour: float | None
    cost_per_million: float | None
    sure: bool
    notes: tuple[str, ...] = ()

    @property
    def apart(self) -> bool:
        """Whether prefill and decode run on separate workers, which no measurement holds."""
        return self.deployment.prefill is not None

    @property
    def key(self) -> tuple[float, float, float]:
        """What options of a kind are ordered by: money, devices, then the slower token."""
        return (self.price_per_hour or 0.0, float(self.gpus), self.tpot_s)

    @property
    def rank(self) -> tuple[bool, tuple[float, float, float]]:
        """What all options are ordered by: kinds that measurements hold come first, whatever the others promise."""
        return (self.apart, self.key)


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One concurrency of one deployment: generated tokens per second that a user sees, and of each device."""

    device: str
    scheme: str
    deployment: Deployment
    concurrency: int
    tokens_per_s_per_user: float
    tokens_per_s_per_gpu: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """The winner after one change. `what` says it; `winner` is None where nothing serves the load any more."""

    what: str
    winner: Option | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Result of `plan`.

    Attributes:
        options: the best of each device, scheme and kind of deployment; the cheapest first of those that measurements
            hold, then those with separate prefill workers.
        missed: (device, scheme, why) of those that cannot serve the load.
        frontier: for each device and scheme, the deployments that none other beats in both rates.
        sensitivity: the winner when the load, a limit, a price or the predicted times change.
    """

    model: str
    policy: EnginePolicy
    goal: Goal
    options: tuple[Option, ...]
    missed: tuple[tuple[str, str, str], ...]
    frontier: tuple[FrontierPoint, ...]
    sensitivity: tuple[Change, ...]

    @property
    def best(self) -> Option:
        """The cheapest, or that with the fewest devices; separate prefill workers only where nothing else serves."""
        return self.options[0]

    @property
    def promised(self) -> Option | None:
        """The best with separate prefill workers where it would be cheaper than `best`, if its prediction held."""
        found = [o for o in self.options if o.apart and o.key < self.best.key]
        return min(found, key=lambda o: o.key) if found and not self.best.apart else None


@dataclass(frozen=True)
class _Engine:
    """One engine of a device, scheme and width, ready to be asked."""

    device: Device
    scheme: Scheme
    deployment: Deployment
    table: StepTable
    constants: Constants


def plan(
    model: str | Path | Architecture | Mapping[str, Any],
    *,
    ttft_s: float,
    tpot_s: float,
    rate_per_s: float,
    prompt: float = 1024,
    output: float = 256,
    devices: Sequence[str | Path | Device] = (),
    schemes: Sequence[str | Scheme] = ("bf16", "fp8", "w4a16-g128"),
    prices: Mapping[str, float] | None = None,
    widths: Sequence[int] = WIDTHS,
    policy: str | EnginePolicy = "vllm",
    separate: bool = True,
    constants: Sequence[Constants] | None = None,
) -> Plan:
    """Search devices, schemes, parallel widths and separate prefill workers for the cheapest that serve a load.

    Arguments:
        ttft_s, tpot_s: limits on the means. rate_per_s: requests per second, a Poisson process.
        prompt, output: mean tokens.
        devices: names or values; none means those with a price.
        prices: of an hour of a device, by its name; without any the fewest devices win.
        widths: tensor-parallel sizes to try.
        separate: also try prefill and decode on separate workers, of equal width.

    Raises:
        QsimError: no device, an unknown name, a limit or load that is not positive, or nothing that serves the load,
            with the reasons.
    """
    check_positive(ttft_s=ttft_s, tpot_s=tpot_s, rate_per_s=rate_per_s, prompt=prompt, output=output)
    arch, how = get_architecture(model), get_policy(policy)
    paid = {get_device(name).name: float(value) for name, value in (prices or {}).items()}
    if paid:
        check_positive(**{f"the price of {name}": value for name, value in paid.items()})
    chips = [get_device(d) for d in (devices or tuple(paid))]
    if not chips:
        raise QsimError("a plan needs devices to choose from: name some, or give prices by device")
    unpaid = [d.name for d in chips if paid and d.name not in paid]
    if unpaid:
        raise QsimError(f"{unpaid[0]} has no price: give one for each device, or none at all")
    goal = Goal(ttft_s=ttft_s, tpot_s=tpot_s, rate_per_s=rate_per_s, prompt=float(prompt), output=float(output))
    known = None if constants is None else tuple(constants)
    engines, missed = [], []
    for chip in chips:
        for scheme in map(resolve_scheme, schemes):
            found, why = _engines(chip, arch, scheme, how, goal, widths, known)
            engines += found
            missed += [] if found else [(chip.name, scheme.name or "custom", why)]
    options = _options(engines, goal, how, paid, separate)
    served = {(o.device, o.scheme) for o in options}
    for one in {(e.device.name, e.scheme.name or "custom"): e for e in engines}.values():
        name = (one.device.name, one.scheme.name or "custom")
        if name not in served:
            missed.append((*name, _reason(one, goal, how)))
    if not options:
        told = "; ".join(f"{device} {scheme}: {why}" for device, scheme, why in missed[:4])
        raise QsimError(f"nothing serves {arch.name} within {ttft_s:g} s and {tpot_s * 1e3:g} ms: {told}")
    return Plan(
        model=arch.name, policy=how, goal=goal, options=tuple(options), missed=tuple(missed),
        frontier=tuple(_frontier(engines, goal, how)),
        sensitivity=tuple(_sensitivity(engines, goal, how, paid, separate)),
    )  # fmt: skip


def _engines(
    chip: Device, arch: Architecture, scheme: Scheme, how: EnginePolicy, goal: Goal, widths: Sequence[int],
    known: tuple[Constants, ...] | None,
) -> tuple[list[_Engine], str]:  # fmt: skip
    found, why = [], "no width was tried"
    for tp in widths:
        deployment = Deployment(tensor_parallel=tp)
        try:
            table = tabulate(
                chip, arch, scheme, how, deployment, rows=min(how.max_sequences, 1024),
                context=goal.prompt + goal.output,
            )  # fmt: skip
        except QsimError as error:
            why = str(error)
            continue
        if table.kv_tokens < goal.prompt + goal.output + how.block_tokens:
            why = f"weights or one request do not fit {tp} of them"
            continue
        of_engine = constants_for(how, table.generation, known)
        of_engine = settled(of_engine, table.mixtures, table.fidelity, table.low, table.high)
        found.append(_Engine(chip, scheme, deployment, table, of_engine))
    return found, why


def _loads(engine: _Engine, goal: Goal, how: EnginePolicy) -> tuple[Any, Any, Any]:
    """Requests a second, TTFT and TPOT of one engine at the loads that are looked at."""
    args: dict[str, Any] = {"prompt": goal.prompt, "output": goal.output}
    places = float(places_of(engine.table, how, goal.prompt, goal.output))
    most = float(closed_form(engine.table, how, engine.constants, concurrency=places, **args).requests_per_s)
    found = closed_form(engine.table, how, engine.constants, rate_per_s=most * LOADS, **args)
    # no engine can be asked to wait for a place: beyond nine tenths of its places the queue decides
    return most * LOADS, np.where(found.rows < 0.9 * places, found.ttft_s, np.inf), found.tpot_s


def _options(
    engines: Sequence[_Engine], goal: Goal, how: EnginePolicy, paid: Mapping[str, float], separate: bool,
    slower: float = 1.0,
) -> list[Option]:  # fmt: skip
    """The best option of each device, scheme and kind of deployment, in the order of `Option.rank`."""
    best: dict[tuple[str, str, bool], Option] = {}
    for engine in engines:
        ways = [_together(engine, goal, how, paid, slower)]
        ways += [_apart(engine, goal, how, paid, slower)] if separate else []
        for option in ways:
            if option is None:
                continue
            key = (option.device, option.scheme, option.apart)
            if key not in best or option.key < best[key].key:
                best[key] = option
    return sorted(best.values(), key=lambda o: o.rank)


def _together(
    engine: _Engine, goal: Goal, how: EnginePolicy, paid: Mapping[str, float], slower: float
) -> Option | None:
    rates, first, token = _loads(engine, goal, how)
    fits = (first * slower <= goal.ttft_s) & (token * slower <= goal.tpot_s)
    if not fits.any():
        return None
    most = float(rates[fits].max())
    replicas = math.ceil(goal.rate_per_s / most)
    deployment = replace(engine.deployment, replicas=replicas)
    at = goal.rate_per_s / replicas
    ttft, tpot = (float(np.interp(at, rates[fits], v[fits])) * slower for v in (first, token))
    return _option(engine, deployment, goal, paid, ttft, tpot, most * replicas)


def _apart(engine: _Engine, goal: Goal, how: EnginePolicy, paid: Mapping[str, float], slower: float) -> Option | None:
    """Prefill and decode workers of the engine's width: the fewest of each that hold both limits."""
    workload = Workload(rate_per_s=goal.rate_per_s, prompt=goal.prompt, output=goal.output)
    readers, writers = _fewest(engine, workload, how, goal)
    while readers + writers <= MOST_WORKERS:
        deployment = replace(engine.deployment, replicas=writers, prefill=replace(engine.deployment, replicas=readers))
        found = serve_apart(engine.table, engine.table, workload, how, engine.constants, deployment)
        if found.utilisation * slower >= 0.98 or found.ttft_s * slower > goal.ttft_s:
            alone = found.utilisation < 0.05
            if alone:
                return None
            readers += 1
        elif found.limit == "memory" or found.tpot_s * slower > goal.tpot_s:
            if found.rows <= 1.0:
                return None
            writers += 1
        else:
            return _option(
                engine, deployment, goal, paid, found.ttft_s * slower, found.tpot_s * slower, found.prefill_per_s
            )
    return None


def _fewest(engine: _Engine, workload: Workload, how: EnginePolicy, goal: Goal) -> tuple[int, int]:
    """Workers below which neither the rate nor the cache can be enough: where the search begins."""
    one = replace(engine.deployment, replicas=1, prefill=engine.deployment)
    found = serve_apart(engine.table, engine.table, workload, how, engine.constants, one)
    places = float(places_of(engine.table, how, goal.prompt, goal.output))
    least = float(closed_form(
        engine.table, how, engine.constants, prompt=1.0, output=goal.output, concurrency=1.0
    ).tpot_s)  # fmt: skip
    held = goal.rate_per_s * goal.output * min(least, goal.tpot_s)
    return max(1, math.floor(goal.rate_per_s / found.prefill_per_s)), max(1, math.floor(held / places))


def _option(
    engine: _Engine, deployment: Deployment, goal: Goal, paid: Mapping[str, float], ttft_s: float, tpot_s: float,
    capacity: float,
) -> Option:  # fmt: skip
    hourly = paid.get(engine.device.name)
    total = None if hourly is None else hourly * deployment.gpus
    c, apart = engine.constants, deployment.prefill is not None
    return Option(
        device=engine.device.name, scheme=engine.scheme.name or "custom", deployment=deployment, gpus=deployment.gpus,
        ttft_s=ttft_s, tpot_s=tpot_s, capacity_per_s=capacity, price_per_hour=total,
        cost_per_million=None if total is None else total / 3600.0 / (goal.rate_per_s * goal.output) * 1e6,
        sure=not apart and ttft_s * c.ttft[1] <= goal.ttft_s and tpot_s * c.tpot[1] <= goal.tpot_s,
        notes=(*engine.table.notes, NOT_HELD) if apart else engine.table.notes,
    )  # fmt: skip


def _reason(engine: _Engine, goal: Goal, how: EnginePolicy) -> str:
    """Why an engine serves nothing within the limits."""
    _, first, token = _loads(engine, goal, how)
    parts = []
    if token.min() > goal.tpot_s:
        parts.append(f"a token takes {token.min() * 1e3:.3g} ms even at the least load")
    if first.min() > goal.ttft_s:
        parts.append(f"the first token takes {first.min():.3g} s even at the least load")
    return " and ".join(parts) or "no load meets both limits"


def _frontier(engines: Sequence[_Engine], goal: Goal, how: EnginePolicy) -> Iterator[FrontierPoint]:
    groups: dict[tuple[str, str], list[FrontierPoint]] = {}
    for engine in engines:
        most = min(512.0, float(places_of(engine.table, how, goal.prompt, goal.output)))
        flights = np.unique(np.round(np.geomspace(1.0, most, 24)))
        found = closed_form(
            engine.table, how, engine.constants, prompt=goal.prompt, output=goal.output, concurrency=flights
        )
        gpus = engine.deployment.gpus
        for c, token, sent in zip(flights, found.tpot_s, found.requests_per_s, strict=True):
            groups.setdefault((engine.device.name, engine.scheme.name or "custom"), []).append(FrontierPoint(
                device=engine.device.name, scheme=engine.scheme.name or "custom", deployment=engine.deployment,
                concurrency=int(c), tokens_per_s_per_user=float(1 / token),
                tokens_per_s_per_gpu=float(sent * goal.output / gpus),
            ))  # fmt: skip
    for points in groups.values():
        best = 0.0
        kept = []
        for p in sorted(points, key=lambda p: -p.tokens_per_s_per_user):
            if p.tokens_per_s_per_gpu > best:
                best = p.tokens_per_s_per_gpu
                kept.append(p)
        yield from kept


def _sensitivity(
    engines: Sequence[_Engine], goal: Goal, how: EnginePolicy, paid: Mapping[str, float], separate: bool
) -> Iterator[Change]:
    def winner(goal: Goal, paid: Mapping[str, float], slower: float = 1.0) -> Option | None:
        found = _options(engines, goal, how, paid, separate, slower)
        return found[0] if found else None

    for name, field in (("load", "rate_per_s"), ("limit on TTFT", "ttft_s"), ("limit on TPOT", "tpot_s")):
        for factor in CHANGES:
            changed: dict[str, Any] = {field: getattr(goal, field) * factor}
            yield Change(what=f"{name} x {factor:g}", winner=winner(replace(goal, **changed), paid))
    for device in paid if len(paid) > 1 else ():
        for factor in CHANGES:
            moved = {**paid, device: paid[device] * factor}
            yield Change(what=f"price of {device} x {factor:g}", winner=winner(goal, moved))
    for factor in (0.9, 1.1):
        yield Change(what=f"all predicted times x {factor:g}", winner=winner(goal, paid, factor))
