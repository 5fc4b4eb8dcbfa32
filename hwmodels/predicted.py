"""The prediction of a step as a value: time with a band, operators, energy, shares of the peaks; the ratio of two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError
from qsim.lazy import LazyModule
from qsim.reprs import one_line
from qsim.scheme import Scheme
from qsim.tables import Table

from .device.device import Device
from .energy import Energy, cost_per_million_tokens, step_energy
from .evidence import Point
from .evidence import evidence as nearest_measured
from .timing.execution import OperatorTime
from .workload.architecture import Architecture
from .workload.footprint import Footprint, sram_chips

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Result of `predict`. Times are seconds; with array arguments they are arrays.

    Attributes:
        time_s, low_s, high_s: the step, and the 80 % band.
        operators: the table, in the order of execution.
        fidelity: the weakest tag among the operators that matter (> 10 % of the time).
        kernel, notes: kernel family of the linear layers; what was assumed or fell back (`qsim.notes.Note`: programs
            read the code, people the text).
        batch, tokens: of each group of `tensor_parallel` devices.
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
    expert_parallel: int
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
        n = self.devices
        if found is None or n == 1:
            return found
        return replace(found, energy_j=n * found.energy_j, low_j=n * found.low_j, high_j=n * found.high_j)

    @property
    def devices(self) -> int:
        """Devices that the step runs on: those of a group, or all that experts are dealt out to."""
        return max(self.tensor_parallel, self.expert_parallel)

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
        devices = self.devices * self.chips
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
        groups = self.devices // self.tensor_parallel
        return groups * (self.batch if self.phase == "decode" else self.tokens) / self.time_s

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

    __repr__ = one_line

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
