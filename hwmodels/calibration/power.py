"""Power of a device while it runs a kernel: idle, busy, and energy for every byte, weight and operation moved.

The law is P = idle + busy + (bytes e_b + weights e_w + operations e_f) / time, no more than the limit of the board. An
element-wise kernel keeps less of the chip busy, and pays for its bytes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsim.errors import QsimError

from .grid import Grid, grid_text, text_grid

SHARPNESS = 20.0
"""How sharply power meets the limit: 5 % below it, P is 2 % below the law. Boards are throttled by their limit."""
WIDTHS = (16, 8, 4)
"""Bits of the operands that operations are told apart by."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """Power of one board. Energies are joules for each.

    Attributes:
        limit_w: what the board is throttled at. idle_w: with nothing to do.
        busy_w: more than idle while a matrix product or attention runs. byte_j, weight_j: for a byte of memory traffic,
            and for a weight that is read and made an operand, whatever its bits.
        op_j: bits of the operands -> joules for an operation of a product. attention_op_j: for one of attention.
        vector_busy_w, vector_byte_j: of element-wise kernels.
        held_out: kind of rows -> mean absolute error of the power on rows left out, as a fraction; counts: how many.
        band: factors on the power between which 80 % of the measured products and element-wise kernels lie.
        loop_band: the same of attention and grouped products, whose power is known from short loops alone.
        kind: `calibrated` on this device, `transferred` from others by share of the limit.
    """

    limit_w: float
    idle_w: float
    busy_w: float
    byte_j: float
    weight_j: float
    op_j: Mapping[int, float]
    attention_op_j: float
    vector_busy_w: float
    vector_byte_j: float
    band: tuple[float, float]
    loop_band: tuple[float, float]
    held_out: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    kind: str = "calibrated"
    origin: str = ""

    def product_w(self, bytes_per_s: Any, weights_per_s: Any, ops_per_s: Any, bits: int) -> Any:
        """Watts while products run; arguments broadcast."""
        more = self.byte_j * bytes_per_s + self.weight_j * weights_per_s + self.op_j[bits] * ops_per_s
        return self._limited(self.idle_w + self.busy_w + more)

    def attention_w(self, bytes_per_s: Any, elements_per_s: Any, ops_per_s: Any) -> Any:
        """Watts while attention runs: elements of the cache count as weights do."""
        more = self.byte_j * bytes_per_s + self.weight_j * elements_per_s + self.attention_op_j * ops_per_s
        return self._limited(self.idle_w + self.busy_w + more)

    def vector_w(self, bytes_per_s: Any) -> Any:
        """Watts while an element-wise kernel runs."""
        return self._limited(self.idle_w + self.vector_busy_w + self.vector_byte_j * bytes_per_s)

    def _limited(self, watts: Any) -> Any:
        share = np.maximum(np.asarray(watts, dtype=np.float64) / self.limit_w, 1e-6)
        # the same as watts / (1 + share^q)^(1/q), which overflows where the law is far above the limit
        return self.limit_w * (1 + share**-SHARPNESS) ** (-1 / SHARPNESS)


_WATTS = ("limit_w", "idle_w", "busy_w", "vector_busy_w")
_PICOJOULES = ("byte", "weight", "attention_op", "vector_byte")


def _pair(values: Any) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def power_of(table: Mapping[str, Any], origin: str) -> PowerLaw:
    """The value of a `[power]` table.

    Raises:
        QsimError: a key is missing or no number.
    """
    try:
        values: dict[str, Any] = {name: float(table[name]) for name in _WATTS}
        values |= {f"{name}_j": float(table[f"{name}_pj"]) * 1e-12 for name in _PICOJOULES}
        return PowerLaw(
            **values,
            op_j={int(bits): float(pj) * 1e-12 for bits, pj in table["op_pj"].items()},
            band=_pair(table["band_80"]), loop_band=_pair(table["loop_band_80"]),
            held_out=dict(table.get("held_out_mape", {})), counts=dict(table.get("held_out_rows", {})),
            rows=table.get("rows", 0), origin=origin,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise QsimError(
            f"calibration {origin}: [power] must have {', '.join(_WATTS)}, "
            f"{', '.join(f'{name}_pj' for name in _PICOJOULES)}, op_pj, band_80 and loop_band_80 as numbers: {error}"
        ) from error


def power_toml(law: PowerLaw) -> str:
    """The `[power]` table of a value."""
    lines = ["[power]", *(f"{name} = {getattr(law, name):.1f}" for name in _WATTS)]
    lines += [f"{name}_pj = {getattr(law, f'{name}_j') * 1e12:.4g}" for name in _PICOJOULES]
    lines.append("op_pj = { " + ", ".join(f"{bits} = {j * 1e12:.4g}" for bits, j in law.op_j.items()) + " }")
    for name, (low, high) in (("band_80", law.band), ("loop_band_80", law.loop_band)):
        lines.append(f"{name} = [{low:.4g}, {high:.4g}]")
    lines.append("held_out_mape = { " + ", ".join(f'"{k}" = {v:.3g}' for k, v in law.held_out.items()) + " }")
    lines.append("held_out_rows = { " + ", ".join(f'"{k}" = {n}' for k, n in law.counts.items()) + " }")
    return "\n".join([*lines, f"rows = {law.rows}"]) + "\n"


@dataclass(frozen=True, kw_only=True)
class LoopPower:
    """Power that the sensor of a board showed while one product ran over and over, as a table of 2026 holds it.

    Such loops are short, and the sensor averages over about a second: of calls of a few microseconds it shows less than
    the board draws in a long run.

    Attributes:
        log_watts: over log2 of M, N and K.
        held_out_mape, band: mean absolute error, and the factors between which 80 % lie, on shapes left out.
    """

    kernel: str
    log_watts: Grid
    rows: int
    held_out_mape: float
    band: tuple[float, float]


def loop_of(kernel: str, table: Mapping[str, Any], origin: str) -> LoopPower:
    """The value of a `[loop_power.KERNEL]` table.

    Raises:
        QsimError: a key is missing or of the wrong type.
    """
    try:
        return LoopPower(
            kernel=kernel, log_watts=text_grid(table["surface"]), rows=table["rows"],
            held_out_mape=float(table["held_out_mape"]), band=_pair(table["band_80"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise QsimError(
            f"calibration {origin}: loop_power.{kernel} must have surface, rows, held_out_mape and band_80: {error}"
        ) from error


def loop_toml(loop: LoopPower) -> str:
    """The `[loop_power.KERNEL]` table of a value."""
    head = f"loop_power.{loop.kernel}"
    lines = [f"[{head}]", f"rows = {loop.rows}", f"held_out_mape = {loop.held_out_mape:.3g}"]
    lines += [f"band_80 = [{loop.band[0]:.4g}, {loop.band[1]:.4g}]", f"[{head}.surface]", *grid_text(loop.log_watts)]
    return "\n".join(lines) + "\n"
