"""Energy and price of a step: the power of the board while each operator runs, times its time.

Watts are idle power, what a busy chip draws, and joules for bytes, weights and operations
(`hwmodels.calibration.power`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError, nearest
from qsim.reprs import one_line

from .checks import check_positive
from .device.device import Device
from .timing.execution import OperatorTime
from .timing.power import FUSED_BAND, operand_bits, power_law

if TYPE_CHECKING:
    from .calibration.power import PowerLaw


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy of a step on all its devices, with its 80 % band.

    Attributes:
        energy_j, low_j, high_j: joules. power_w: in the mean over the step, of one device.
        fidelity: `calibrated` where the power of the device was measured, else `transferred`.
        origin: the calibration behind it, or the board whose law is scaled.
    """

    energy_j: Any
    low_j: Any
    high_j: Any
    power_w: Any
    fidelity: str
    origin: str

    __repr__ = one_line


def step_energy(
    device: Device, operators: Sequence[OperatorTime], time: tuple[Any, Any, Any], chips: int = 1
) -> Energy | None:
    """Energy of a step; None where the power of the board is unknown.

    The bands of the operators' powers add up, as errors of one law are shared; with the band of the time they combine
    as independent errors of the logarithm.

    Arguments:
        operators: of one device; their rates are those of all `chips` of a part that is made of several.
        time: of the step, and its band.
    """
    law = power_law(device)
    if law is None:
        return None
    time_s, fast_s, slow_s = time
    total: Any = 0.0
    low: Any = 0.0
    high: Any = 0.0
    busy: Any = 0.0
    for op in operators:
        joules = operator_w(law, op, chips) * op.time_s
        down, up = _band(law, op)
        total, low, high, busy = total + joules, low + joules * down, high + joules * up, busy + op.time_s
    waiting = law.idle_w * np.maximum(time_s - busy, 0.0)
    total, low, high = total + waiting, low + waiting, high + waiting
    below = np.hypot(np.log(total / low), np.log(time_s / fast_s))
    above = np.hypot(np.log(high / total), np.log(slow_s / time_s))
    return Energy(
        energy_j=chips * total, low_j=chips * total * np.exp(-below), high_j=chips * total * np.exp(above),
        power_w=total / time_s, fidelity=law.kind, origin=law.origin,
    )  # fmt: skip


def operator_w(law: PowerLaw, op: OperatorTime, chips: int = 1) -> Any:
    """Watts of one board while an operator runs."""
    seconds = np.maximum(op.time_s, 1e-12) * chips
    moved, weights, ops = op.traffic_bytes / seconds, op.weights / seconds, op.flop / seconds
    if op.kind == "attention":
        return law.attention_w(moved, weights, ops)
    if op.kind in ("gemm", "fused"):
        return law.product_w(moved, weights, ops, min(operand_bits(name) for name in op.formats))
    return law.vector_w(moved)


def _band(law: PowerLaw, op: OperatorTime) -> tuple[float, float]:
    if op.kind == "fused":
        return FUSED_BAND
    loops = op.kind == "attention" or (op.kind == "gemm" and op.shape is None)
    return law.loop_band if loops else law.band


def cost_per_million_tokens(price_per_hour: float, seconds: Any, tokens: Any, devices: int) -> Any:
    """What a million tokens cost, in the unit of the price.

    Arguments:
        price_per_hour: of one device, above 0. seconds: that `tokens` tokens take on all `devices`.

    Raises:
        QsimError: a price that is not a positive number.
    """
    check_positive(price_per_hour=price_per_hour)
    return price_per_hour * devices / 3600 * seconds / tokens * 1e6


def prices_of(texts: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Device -> price per hour, of texts such as `2.5` (for all) or `h200=3.5`.

    Raises:
        QsimError: not a positive number, a device that is not among `names`, a price given twice, or a device without
            one.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if equals and name not in names:
            raise QsimError(f"--price {text}: {nearest('device', name, names)}")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 < value < 1e9:
            raise QsimError(f"--price must be a price per hour, 2.5 or NAME=2.5, above 0: got {text!r}")
        for one in (name,) if equals else names:
            if one in found:
                raise QsimError(f"--price gives {one} two prices: give each device one")
            found[one] = value
    missing = [name for name in names if texts and name not in found]
    if missing:
        raise QsimError(f"--price gives no price for {missing[0]}: add --price {missing[0]}=PER_HOUR")
    return found


def price_of(prices: float | Mapping[str, float], name: str) -> float:
    """The price per hour of a device, of one price for all or a price for each.

    Raises:
        QsimError: there is none for the device.
    """
    if not isinstance(prices, Mapping):
        return prices
    if name not in prices:
        raise QsimError(f"there is no price for {name}: prices are known for {', '.join(prices) or 'no device'}")
    return prices[name]
