"""The power of a device: the law measured on it, or that of a measured board by share of the limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError

from ..checks import check_positive
from ..device.device import Device
from ..device.load import get_device
from .families import get_family
from .kernel import gemm_time
from .parameters import calibration_named, calibration_of, lenders
from .peaks import priced_format, sixteen_bit

if TYPE_CHECKING:
    from ..calibration.power import PowerLaw

LIMIT = 0.995
"""What a board is throttled at over what its data sheet says: the mean of our loops at the limit is 695 of 700 W."""
MEASURED = ("h200", "b200", "gb200")
"""Calibrations that hold a power law."""
TRANSFER_BAND = (0.62, 1.25)
"""80 % band of a law that another board lends: what the sensor of B200 and GB200 showed over what the law of an H200
says of it, on rows that wait for memory (0.62 to 1.21 and 0.72 to 1.19; `hwmodels.fitting.power.streaming`)."""
FUSED_BAND = (0.5, 1.6)
"""The same for dataflow and SRAM parts, which no measured board is like: a guess."""


def rescaled(law: PowerLaw, of: Device, to: Device, limit_w: float) -> PowerLaw:
    """A law for another board: each part takes the same share of the limit at the board's own peaks."""
    more = limit_w / law.limit_w
    per_byte = more * of.memory.bandwidth_bytes_per_s / to.memory.bandwidth_bytes_per_s
    there, here = (device.peak_flop_per_s(sixteen_bit(device)) for device in (of, to))
    assert there is not None
    assert here is not None
    per_op = more * there / here
    return replace(
        law, limit_w=limit_w, idle_w=more * law.idle_w, busy_w=more * law.busy_w, byte_j=per_byte * law.byte_j,
        weight_j=per_byte * law.weight_j, op_j={bits: per_op * j for bits, j in law.op_j.items()},
        attention_op_j=per_op * law.attention_op_j, vector_busy_w=more * law.vector_busy_w,
        vector_byte_j=per_byte * law.vector_byte_j, kind="transferred",
    )  # fmt: skip


def power_law(device: Device) -> PowerLaw | None:
    """The law of a device; None where its board power is unknown.

    A law measured on the device is `calibrated`; its limit follows an overridden `power.board_w`. Else it is that of
    the nearest measured board by share of the limit, `transferred`; the idle power of the device's own file goes first.
    """
    if device.power is None:
        return None
    limit = LIMIT * device.power.board_w
    own = calibration_of(device)
    if own is not None and own.power is not None:
        law = own.power
        return replace(law, limit_w=limit) if "power.board_w" in device.overrides else law
    name = next((donor for donor in lenders(device) if donor in MEASURED), MEASURED[0])
    table = calibration_named(name)
    assert table is not None
    assert table.power is not None
    law = rescaled(table.power, get_device(name), device, limit)
    band = FUSED_BAND if device.fuses_layers else TRANSFER_BAND
    idle = law.idle_w if device.power.idle_w is None else device.power.idle_w
    return replace(
        law, idle_w=idle, band=band, loop_band=band, held_out={}, counts={}, rows=0, origin=f"{name} by share of power"
    )


def operand_bits(name: str) -> int:
    """16, 8 or 4: bits of the operands of a format, as the energy of an operation is known for them."""
    from qsim.formats import get_format

    if name == "vector":
        return 16
    bits = get_format(name).bits
    return 16 if bits > 8 else 8 if bits > 4 else 4


def gemm_power(device: Device | str, M: Any, N: Any, K: Any, kernel: str = "cublas_bf16") -> Any:
    """Watts of a board that runs y[M,N] = x[M,K] w[N,K]^T over and over; arguments broadcast.

    Of kernels whose loops stand in the tables of 2026 with power (`vllm022_bf16` on an H200, ...) it is what their
    sensor showed; else what the law of the device says of a settled run.

    Raises:
        QsimError: sizes that are not positive, an unknown kernel, or a device without board power.
    """
    device = get_device(device)
    family = get_family(kernel)
    check_positive(M=M, N=N, K=K)
    m, n, k = (np.asarray(v, dtype=np.float64) for v in (M, N, K))
    own = calibration_of(device)
    loops: Mapping[str, Any] = {} if own is None else own.loop_power
    if kernel in loops:
        return np.exp(loops[kernel].log_watts(m, n, k))[()]
    law = power_law(device)
    if law is None:
        raise QsimError(f"{device.name} has no power.board_w: its power is not known")
    time = gemm_time(device, m, n, k, kernel, activation_quantize=False)
    moved = family.weight_bits / 8 * n * k + family.activation_bytes * m * k + family.output_bytes * m * n
    bits = operand_bits(priced_format(device, family, None))
    return law.product_w(moved / time, n * k / time, 2 * m * n * k / time, bits)[()]
