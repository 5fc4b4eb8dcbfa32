"""Pricing the operators of a step: kernel by kernel, or fused layers on dataflow parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.reprs import one_line

from ..device.device import Device
from ..workload.architecture import Architecture
from ..workload.footprint import far_tier, sram_chips
from ..workload.operators import Operator
from .attention_kernel import attention
from .collectives import ROUNDS, collective
from .families import get_attention, get_family, grouped_family
from .grouped import grouped
from .kernel import DATAFLOW, Estimate, gemm, launch_gap_s, small, soft_roofline
from .moe import mixtures_of, moe
from .parameters import TRANSFER_BAND, calibration_of
from .peaks import attention_format, format_peak, priced_format, sixteen_bit
from .profiles import Choice, Profile

if TYPE_CHECKING:
    from qsim.scheme import Scheme

FUSED_P = 4.0
"""How sharply the two limits of a fused layer meet: assumed."""
MEASURED_LAUNCHES = (0.8, 1.2)
HOSTS_AT_LARGE = (5 / 6.42, 10 / 6.42)
"""Eager kernels follow each other at 5 to 10 us on published hosts; 6.42 us was measured on ours."""


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """One row of the operator table; times are of all calls of the step.

    Attributes:
        kernel, generation: the family that is timed, and its engine, version and year; where the fastest of several was
            taken at each of many sizes, all of them, joined by " or ".
        shape: M, N and K of one call of a matrix product that is not grouped, else None.
        formats: what is multiplied: operand formats as in a device file, or `vector`; empty where nothing is.
        peak_flop_per_s: rate that no run of this operator beats. Where several formats are multiplied it is the rate of
            their mix: all operations over the sum of each format's operations at its own peak. 0 without a product.
        bandwidth_bytes_per_s: of the memory behind it; of all chips that work at once on an SRAM part.
        weights: elements that are read to be multiplied: weights of a product, cached keys and values of attention.
    """

    name: str
    kind: str
    calls: float
    time_s: Any
    low_s: Any
    high_s: Any
    flop: Any
    traffic_bytes: Any
    compute_s: Any
    memory_s: Any
    fidelity: str
    kernel: str = ""
    generation: str = ""
    shape: tuple[Any, float, float] | None = None
    formats: tuple[str, ...] = ()
    peak_flop_per_s: float = 0.0
    bandwidth_bytes_per_s: float = 0.0
    weights: Any = 0.0

    __repr__ = one_line

    @property
    def bound(self) -> Any:
        """`compute` or `memory`; `overhead` when neither explains half of the time."""
        useful = np.maximum(self.compute_s, self.memory_s)
        limit = np.where(self.compute_s > self.memory_s, "compute", "memory")
        return np.where(useful < 0.5 * self.time_s, "overhead", limit)[()]

    @property
    def intensity(self) -> Any:
        return self.flop / self.traffic_bytes


_TIMES = ("time_s", "low_s", "high_s", "compute_s", "memory_s")
Timed = tuple[Estimate, tuple[str, ...]]
"""An estimate and the families that it is of."""


def _faster(one: Timed, other: Estimate, kernel: str) -> Timed:
    """At every size the faster of two estimates; the weaker tag where both are used."""
    est, families = one
    better = np.asarray(other.time_s < est.time_s)
    if not better.any():
        return one
    if better.all():
        return other, (kernel,)
    pick = {name: np.where(better, getattr(other, name), getattr(est, name)) for name in _TIMES}
    weaker = est if est.kind == "transferred" else other
    return Estimate(**pick, kind=weaker.kind, origin=weaker.origin), (*families, kernel)


MANY = 4096
"""Points from which on equal sizes are looked for."""


class Alike:
    """Which points of a step are alike in a size: tokens, bytes, rows. What was found for one is tried on the next."""

    def __init__(self) -> None:
        self._known: list[tuple[Any, Any]] = []

    def __call__(self, values: Any) -> tuple[Any, Any] | None:
        """The different values of an array, and which of them each is; None where there are few points or few alike."""
        if values.size <= MANY:
            return None
        for first, at in self._known:
            if at.shape == values.shape:
                different = values.reshape(-1)[first]
                if np.array_equal(different[at], values):
                    return different, at
        different, first, at = np.unique(values, return_index=True, return_inverse=True)
        if different.size >= values.size // 4:
            return None
        self._known.append((first, at.reshape(values.shape)))
        return different, self._known[-1][1]


def _elements(op: Operator) -> Any:
    """Elements of one call that are read to be multiplied."""
    if op.kind == "gemm":
        return float(op.n) * op.k * (1.0 if op.groups is None else op.groups)
    return op.cost.cached


@dataclass(frozen=True)
class Runner:
    """Prices operators; products of one family in one call."""

    device: Device
    arch: Architecture
    scheme: Scheme
    choice: Choice
    profile: Profile
    fidelity: str
    attention_kernel: str | None

    def kernels(self, ops: Sequence[Operator], phase: str, batch: Any, context: Any, new: Any) -> list[OperatorTime]:
        """Every operator as a kernel of its own."""
        found: dict[int, Timed] = {}
        alike = Alike()
        for head in (False, True):
            at = [i for i, op in enumerate(ops) if op.kind == "gemm" and op.head == head and op.groups is None]
            if at:
                found.update(zip(at, self._products([ops[i] for i in at], head, alike), strict=True))
        rows = []
        layers: dict[Any, Timed | None] = {}
        for i, op in enumerate(ops):
            families = self._families(op)
            fused = self._fused_experts(op, layers)
            if fused is not None:
                if op.experts["share"]:
                    rows.append(self._row(op, *fused))
                continue
            if op.kind == "attention":
                est = attention(
                    self.device, phase, batch, context, kernel=self.attention_kernel, fidelity=self.fidelity,
                    new=None if phase == "decode" else new, **op.attention,
                )  # fmt: skip
            elif op.kind == "small":
                est = self._small(op, alike)
            elif op.kind in ROUNDS:
                est = collective(self.device, op.kind, op.cost.traffic_bytes, op.devices)
            elif op.groups is not None:
                est = grouped(
                    self.device, op.m, op.n, op.k, op.groups, self.choice.kernel, weight_bytes=op.weight_bytes,
                    fidelity=self.fidelity, compute=self.choice.compute,
                )  # fmt: skip
            else:
                est, families = found[i]
            rows.append(self._row(op, self._as_run(op, est, families), families))
        return rows

    def _as_run(self, op: Operator, est: Estimate, families: Sequence[str]) -> Estimate:
        """The estimate, `transferred` where its kernel was measured in another stack or with another host."""
        own = calibration_of(self.device)
        host = own is not None and own.small is not None
        if est.kind != "calibrated" or op.kind == "small" or self.profile.measured(est.origin, host):
            return est
        half = TRANSFER_BAND[op.kind == "attention" or get_family(families[0]).sixteen_bit]
        return replace(
            est, kind="transferred", low_s=np.minimum(est.low_s, est.time_s * (1 - half)),
            high_s=np.maximum(est.high_s, est.time_s * (1 + half)),
        )  # fmt: skip

    def _launch_band(self) -> tuple[float, float]:
        """Factors on the launch time: of this host where it was measured, else of hosts at large."""
        own = calibration_of(self.device)
        return MEASURED_LAUNCHES if own is not None and own.small is not None else HOSTS_AT_LARGE

    def _moved(self, op: Operator) -> Any:
        """Bytes of an element-wise kernel; what it reads twice counts when the chip cannot hold it between."""
        chip = self.device.on_chip
        if chip is None or self.fidelity == "ideal":
            return op.cost.traffic_bytes
        return op.cost.traffic_bytes + np.where(op.reread_bytes > chip.capacity_bytes, op.reread_bytes, 0.0)

    def _fused_experts(self, op: Operator, layers: dict[Any, Timed | None]) -> Timed | None:
        """The operator's share of a kernel that does all of the routed experts: the fastest of the families' engines
        that was measured on the device; None without one. Activation and weighted sum are in the two products.

        `layers` holds the whole kernel of each layer that was asked for: its operators share one.
        """
        if not op.experts or self.fidelity != "calibrated" or self.choice.stands_in:
            return None
        layer = {name: value for name, value in op.experts.items() if name != "share"}
        key = tuple(id(value) if name == "tokens" else value for name, value in layer.items())
        if key not in layers:
            layers[key] = self._experts(layer)
        found = layers[key]
        if found is None:
            return None
        share = op.experts["share"]
        parts = {name: getattr(found[0], name) * share for name in _TIMES}
        return replace(found[0], **parts), found[1]

    def _experts(self, layer: Mapping[str, Any]) -> Timed | None:
        """The fastest fused kernel of a layer of experts, of which uniform routing touches some; None where none was
        measured."""
        known = mixtures_of(self.device)
        found: Timed | None = None
        for family in (self.choice.kernel, *(name for name, _ in self.choice.others)):
            kernel = "_moe_".join(family.split("_", 1))
            if kernel not in known:
                continue
            est = moe(self.device, kernel=kernel, uniform=True, **layer)
            found = (est, (family,)) if found is None else _faster(found, est, family)
        return found

    def _small(self, op: Operator, alike: Alike) -> Estimate:
        """An element-wise kernel; of many points with few amounts of bytes, each amount once."""
        moved = np.asarray(self._moved(op))
        found = alike(moved)
        if found is None:
            return small(self.device, moved, row=op.row, fidelity=self.fidelity)
        amounts, at = found
        est = small(self.device, amounts, row=op.row, fidelity=self.fidelity)
        return replace(est, **{name: getattr(est, name)[at] for name in _TIMES})

    def _products(self, ops: Sequence[Operator], head: bool, alike: Alike) -> list[Timed]:
        """The products of a family, or at every size the fastest of several, with the families that are used."""
        if head:
            return [(est, ("cublas_bf16",)) for est in self._of_family(ops, "cublas_bf16", {}, alike)]
        how = {"stands_in": bool(self.choice.stands_in)}
        first = self._of_family(ops, self.choice.kernel, {**how, "compute": self.choice.compute}, alike)
        found: list[Timed] = [(est, (self.choice.kernel,)) for est in first]
        if self.fidelity != "calibrated":
            return found
        for kernel, compute in self.choice.others:
            other = self._of_family(ops, kernel, {"compute": compute}, alike)
            found = [_faster(one, est, kernel) for one, est in zip(found, other, strict=True)]
        return found

    def _of_family(self, ops: Sequence[Operator], kernel: str, how: dict[str, Any], alike: Alike) -> list[Estimate]:
        """One call for all products of a family: N, K and weight bytes along a leading axis."""
        m = np.stack(np.broadcast_arrays(*(np.asarray(op.m, np.float64) for op in ops)))
        wide = (len(ops), *([1] * (m.ndim - 1)))
        n = np.array([op.n for op in ops], np.float64).reshape(wide)
        k = np.array([op.k for op in ops], np.float64).reshape(wide)
        w = np.array([float(op.weight_bytes) for op in ops]).reshape(wide)
        how = {"fidelity": self.fidelity, **how}
        # weights that depend on the batch are priced point by point
        same = n.size == w.size == len(ops) and m[0].size > MANY and all(np.array_equal(m[0], row) for row in m[1:])
        points = alike(m[0]) if same else None
        if points is not None:
            unique, inverse = points
            flat = (len(ops), 1)
            est = gemm(
                self.device, unique[None], n.reshape(flat), k.reshape(flat), kernel, weight_bytes=w.reshape(flat), **how
            )
            take = lambda v, i: np.broadcast_to(v, (len(ops), unique.size))[i][inverse]  # noqa: E731
        else:
            est = gemm(self.device, m, n, k, kernel, weight_bytes=w, **how)
            take = lambda v, i: np.broadcast_to(v, m.shape)[i]  # noqa: E731
        return [
            Estimate(
                time_s=take(est.time_s, i), low_s=take(est.low_s, i), high_s=take(est.high_s, i),
                compute_s=take(est.compute_s, i), memory_s=take(est.memory_s, i), kind=est.kind, origin=est.origin,
            )
            for i in range(len(ops))
        ]  # fmt: skip

    def _row(self, op: Operator, est: Estimate, families: Sequence[str] = ()) -> OperatorTime:
        time, low, high = est.time_s, est.low_s, est.high_s
        if self.fidelity != "ideal":
            further = self.profile.further_launches(op.role or op.name, op.row > 0) if op.kind == "small" else 0
            if further:
                gap = further * launch_gap_s(self.device)
                time, low, high = time + gap, low + gap * 0.75, high + gap * 1.25
            launches = self.profile.small_kernels if op.kind == "small" else 1.0
            if launches != 1.0:
                time, low, high = time * launches, low * launches, high * launches
            if self.profile.launch_s:
                least, (fast, slow) = self.profile.launch_s * launches, self._launch_band()
                time, low, high = np.maximum(time, least), np.maximum(low, least * fast), np.maximum(high, least * slow)
                low, high = np.minimum(low, time), np.maximum(high, time)
        fmt = self._format(op, families)
        return OperatorTime(
            name=op.name, kind=op.kind, calls=op.calls, time_s=time * op.calls, low_s=low * op.calls,
            high_s=high * op.calls, flop=op.cost.flop * op.calls, traffic_bytes=op.cost.traffic_bytes * op.calls,
            compute_s=est.compute_s * op.calls, memory_s=est.memory_s * op.calls, fidelity=est.kind,
            kernel=" or ".join(families), generation=self._generation(op, families),
            shape=(op.m, op.n, op.k) if op.kind == "gemm" and op.groups is None else None,
            formats=() if fmt is None else (fmt,),
            peak_flop_per_s=0.0 if fmt is None else format_peak(self.device, fmt),
            bandwidth_bytes_per_s=self.device.memory.bandwidth_bytes_per_s, weights=_elements(op) * op.calls,
        )  # fmt: skip

    def _format(self, op: Operator, families: Sequence[str]) -> str | None:
        """What the peak is of that an operator is priced against; None where nothing is multiplied."""
        if op.kind not in ("gemm", "attention"):
            return None
        if op.kind == "attention":
            named = self.attention_kernel
            return attention_format(self.device, None if named is None else get_attention(named))
        if op.head:
            return sixteen_bit(self.device)
        kernels = {self.choice.kernel: self.choice.compute, **dict(self.choice.others)}
        formats = [
            priced_format(self.device, get_family(name), kernels.get(name, self.choice.compute), self.fidelity)
            for name in families
        ]
        return max(formats, key=lambda name: format_peak(self.device, name))

    def _families(self, op: Operator) -> tuple[str, ...]:
        if op.kind == "gemm":
            return (grouped_family(self.choice.kernel) or self.choice.kernel,)
        return (self.attention_kernel,) if op.kind == "attention" and self.attention_kernel else ()

    def _generation(self, op: Operator, families: Sequence[str]) -> str:
        known = [get_attention(name) if op.kind == "attention" else get_family(name) for name in families]
        return " or ".join(dict.fromkeys(family.generation for family in known))

    def fused(self, ops: Sequence[Operator]) -> list[OperatorTime]:
        """Dataflow: a layer is one kernel. Weights and cache move, activations stay; overhead is per layer.

        An SRAM part holds the weights over many chips: its bandwidth and arithmetic are those of the chips that work on
        a layer, and a token crosses all chips.
        """
        dev, family = self.device, get_family(self.choice.kernel)
        inside = priced_format(dev, family, self.choice.compute, "ideal")  # dequantised weights: no vector products
        chips = sram_chips(dev, self.arch, self.scheme) if dev.kind == "asic-sram" else 1
        share = max(1.0, chips / self.arch.layers)
        bandwidth = dev.memory.bandwidth_bytes_per_s * share
        far, left = far_tier(dev), dev.memory.capacity_bytes
        rows = []
        for head in (False, True):
            mine = [op for op in ops if op.kind in ("gemm", "attention") and (op.name == "lm_head") == head]
            calls = 1.0 if head else float(self.arch.layers)
            work: dict[str, Any] = {}
            for op in mine:
                fmt = sixteen_bit(dev) if op.kind == "attention" or op.head else inside
                work[fmt] = work.get(fmt, 0.0) + op.cost.flop * op.calls
            flop = sum(work.values())
            least = sum(part / (format_peak(dev, fmt) * share) for fmt, part in work.items())
            traffic = sum((op.weight_bytes if op.kind == "gemm" else op.cost.traffic_bytes) * op.calls for op in mine)
            t_c = least / DATAFLOW[0]
            t_m = traffic / (DATAFLOW[1] * bandwidth)
            if far is not None:  # what the nearer memory does not hold comes from the one behind it, as fast as that is
                behind = np.maximum(traffic - left, 0.0)
                left = np.maximum(left - traffic, 0.0)
                t_m = t_m + behind / (DATAFLOW[1] * far.bandwidth_bytes_per_s)
            time = soft_roofline(t_c, t_m, FUSED_P) + calls * (dev.layer_overhead_s or 0.0)
            if dev.hop_latency_s and not head:
                time = time + chips * dev.hop_latency_s
            rows.append(
                OperatorTime(
                    name="lm_head" if head else "fused layers", kind="fused", calls=calls, time_s=time,
                    low_s=time * 0.6, high_s=time * 1.4, flop=flop, traffic_bytes=traffic, fidelity="transferred",
                    kernel="dataflow", compute_s=t_c, memory_s=t_m, formats=tuple(work), peak_flop_per_s=flop / least,
                    bandwidth_bytes_per_s=bandwidth, weights=sum(_elements(op) * op.calls for op in mine),
                )
            )  # fmt: skip
        for op in ops:
            if op.kind in ROUNDS:
                rows.append(self._row(op, collective(dev, op.kind, op.cost.traffic_bytes, op.devices)))
        return rows
