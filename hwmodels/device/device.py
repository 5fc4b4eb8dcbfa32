"""A device: what it can compute and move, as frozen values in SI units.

Numbers come from one TOML a device (`hwmodels/devices/*.toml`): the unit is in every key, dense peaks only, and every
number names its source. What a device cannot do is absent, never 0 or infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qsim.reprs import one_line


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One dense matrix peak.

    Attributes:
        input: format of the operands (`bfloat16`, `float8_e4m3fn`, `int8`, ...).
        accumulate: format of the accumulator the peak is stated for.
        flop_per_s: dense rate, one multiply-add counted as two operations.
        instruction: the tensor-core instruction that reaches it, by its name in `qsim.tensorcore`; None where the
            vendor publishes none.
        flop_per_clock_per_unit: dense operations a unit does in a clock, None where the vendor states no such rate.
        clock_hz: the clock the peak is stated at; None where unknown.
        source: document and table.
    """

    input: str
    accumulate: str
    flop_per_s: float
    instruction: str | None = None
    flop_per_clock_per_unit: float | None = None
    clock_hz: float | None = None
    source: str = ""

    __repr__ = one_line


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The arithmetic of a device: matrix peaks, vector rate, exponentials, and how many units share them."""

    units: int | None
    peaks: tuple[Peak, ...]
    vector_flop_per_s: float | None = None
    exp_per_clock_per_unit: float | None = None

    __repr__ = one_line

    def peak(self, input_format: str, accumulate: str | None = None) -> Peak | None:
        """The dense peak for operands of `input_format`, or None when the device has no such path.

        Without `accumulate`, the first one listed: device files list the accumulator that inference kernels use.
        """
        for peak in self.peaks:
            if peak.input == input_format and accumulate in (None, peak.accumulate):
                return peak
        return None

    @property
    def exp_per_s(self) -> float | None:
        """Exponentials per second at the clock of the first peak, None when unknown; softmax is made of them."""
        clock = self.peaks[0].clock_hz if self.peaks else None
        if self.units is None or self.exp_per_clock_per_unit is None or clock is None:
            return None
        return self.units * self.exp_per_clock_per_unit * clock

    @property
    def formats(self) -> tuple[str, ...]:
        """Operand formats with a dense peak, in the order of the file."""
        return tuple(dict.fromkeys(peak.input for peak in self.peaks))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One tier of memory, nearest to the arithmetic first."""

    name: str
    capacity_bytes: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class OnChip:
    """L2 or SRAM in front of the memory; the bandwidth is None where none is published."""

    name: str
    capacity_bytes: float
    bandwidth_bytes_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Link:
    """What joins one chip to the next: bandwidth in each direction, and latency of one message."""

    name: str
    bandwidth_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, kw_only=True)
class Power:
    """Board power and, where published or calibrated, the share that does not depend on work."""

    board_w: float
    idle_w: float | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Device:
    """One accelerator (one chip, card or socket).

    Attributes:
        name: file name of its TOML.
        title: name in print.
        kind: `gpu`, `asic-dataflow` (fused layers), `asic-sram` (weights in on-chip memory of many chips), `asic`,
            `cpu`.
        compute, memory, on_chip, link, power: see the classes. `memory` is the tier that holds the weights;
            `on_chip` the L2 or SRAM in front of it, None when unknown; `tiers` all tiers, nearest first.
        calibration: name of the fitted kernel parameters, None when there are none.
        transfer_from: device whose fitted efficiencies are borrowed when it has none of its own.
        compute_from: device whose shares of the peak are borrowed instead, where the power of the other's board keeps
            it from its peak and this one's does not.
        layer_overhead_s: fused-layer dataflow: fixed time per decoder layer, None for kernel-by-kernel devices.
        hop_latency_s: SRAM pipelines: time from chip to chip per token.
        fuses_layers: True when intermediate activations of a layer never leave the chip.
        sources: key path -> document; every number of the file has one.
        overrides: key paths changed from the file by the caller, for the record.
        file: name of the TOML, for messages.
        table: what the TOML holds, with the overrides; read-only. `load.get_device` makes changed devices from it.
    """

    name: str
    title: str
    kind: str
    vendor: str
    compute: Compute
    memory: Memory
    on_chip: OnChip | None = None
    tiers: tuple[Memory | OnChip, ...] = ()
    link: Link | None = None
    power: Power | None = None
    calibration: str | None = None
    transfer_from: str | None = None
    compute_from: str | None = None
    fuses_layers: bool = False
    layer_overhead_s: float | None = None
    hop_latency_s: float | None = None
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    notes: str = ""
    file: str = ""
    table: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False, compare=False)

    def __repr__(self) -> str:
        memory = f"{self.memory.capacity_bytes / 1e9:g} GB at {self.memory.bandwidth_bytes_per_s / 1e9:g} GB/s"
        first = self.compute.peaks[0] if self.compute.peaks else None
        peak = "" if first is None else f", {first.input} {first.flop_per_s / 1e12:g} TFLOP/s dense"
        changed = f", changed: {', '.join(self.overrides)}" if self.overrides else ""
        return f"Device({self.name}: {self.kind}, {memory}{peak}{changed})"

    def peak_flop_per_s(self, input_format: str, accumulate: str | None = None) -> float | None:
        """Dense peak for operands of `input_format` in FLOP/s (integer operations likewise), None when absent."""
        peak = self.compute.peak(input_format, accumulate)
        return None if peak is None else peak.flop_per_s

    def ridge_flop_per_byte(self, input_format: str) -> float | None:
        """Arithmetic intensity at which memory time equals compute time; None without such a peak."""
        peak = self.peak_flop_per_s(input_format)
        return None if peak is None else peak / self.memory.bandwidth_bytes_per_s

    @property
    def instructions(self) -> dict[str, str]:
        """Tensor-core instruction by operand format, where the device names one."""
        named: dict[str, str] = {}
        for peak in self.compute.peaks:
            if peak.instruction is not None:
                named.setdefault(peak.input, peak.instruction)
        return named
