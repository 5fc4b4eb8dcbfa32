"""The peak that a kernel is priced against: which format it multiplies in on a device, and that format's rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim.errors import QsimError

from .family import VECTOR, AttentionFamily, KernelFamily

if TYPE_CHECKING:
    from ..device.device import Device

SIXTEEN_BIT = ("bfloat16", "float16")


def sixteen_bit(device: Device) -> str:
    """The format that attention and 16-bit products run in on a device: bfloat16, or float16 where that is all it has.

    Raises:
        QsimError: the device has neither.
    """
    for name in SIXTEEN_BIT:
        if device.compute.peak(name) is not None:
            return name
    raise QsimError(
        f"{device.name} has no 16-bit peak, which attention and lm_head run at: it has "
        f"{', '.join(device.compute.formats)}; add compute.peaks.bfloat16.dense_tflops"
    )


def format_peak(device: Device, name: str) -> float:
    """Operations a second of a device in a format, or of its vector units for `vector`.

    Raises:
        QsimError: the device has no such peak.
    """
    if name == VECTOR:
        # a device without a published vector rate: a fifteenth of its 16-bit matrix rate, as on Hopper (66.9 of 989.4)
        return device.compute.vector_flop_per_s or format_peak(device, sixteen_bit(device)) / 15
    peak = device.peak_flop_per_s(name)
    if peak is None:
        raise QsimError(f"{device.name} has no {name} peak: it has {', '.join(device.compute.formats)}")
    return peak


def attention_format(device: Device, family: AttentionFamily | None) -> str:
    """The format whose peak attention is priced against: of a kernel by name, else the 16-bit one.

    Raises:
        QsimError: the device has no such peak.
    """
    if family is None or not family.compute:
        return sixteen_bit(device)
    if device.compute.peak(family.compute) is None:
        raise QsimError(
            f"{device.name} has no {family.compute} peak, which {family.name} multiplies in; it has "
            f"{', '.join(device.compute.formats)}"
        )
    return family.compute


def priced_format(device: Device, family: KernelFamily, compute: str | None, fidelity: str = "calibrated") -> str:
    """The format whose peak a family is priced against on a device: an operand format, or `vector`.

    The datasheet roofline knows no kernel that dequantises on the vector units: there it is the 16-bit peak.

    Raises:
        QsimError: the device has no such peak.
    """
    name = compute or family.compute
    if name == VECTOR:
        return sixteen_bit(device) if fidelity == "ideal" else VECTOR
    if name in SIXTEEN_BIT:
        return sixteen_bit(device)
    if device.compute.peak(name) is None:
        raise QsimError(
            f"{device.name} has no {name} peak, which {family.name} multiplies in; it has "
            f"{', '.join(device.compute.formats)}"
        )
    return name


def kernel_peak(device: Device, family: KernelFamily, compute: str | None, fidelity: str = "calibrated") -> float:
    """Operations a second that a family is priced against on a device; see `priced_format`."""
    return format_peak(device, priced_format(device, family, compute, fidelity))
