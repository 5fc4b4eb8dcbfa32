"""Products that a tensor core does in the narrow format itself; none of them was measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import KernelFamily
from ..schemes import block_weight, integers, widths

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from ...device.device import Device

FP4 = "float4_e2m1fn"
TODAY = ("vllm-2026", "trtllm-1.x")


def _block_four(scheme: Scheme) -> bool:
    return block_weight(scheme) and scheme.activation.is_quantized and scheme.weight.bits <= 4


def _block_eight(scheme: Scheme) -> bool:
    return block_weight(scheme) and scheme.activation.is_quantized and scheme.weight.bits > 4


def _own_format(device: Device, scheme: Scheme) -> str | None:
    name = scheme.weight.format.name
    return name if name in device.compute.formats else None


def _own_or_fp4(device: Device, scheme: Scheme) -> str | None:
    return _own_format(device, scheme) or (FP4 if FP4 in device.compute.formats else None)


def _int4_weight(scheme: Scheme) -> bool:
    return integers(scheme) and scheme.weight.bits <= 4


def _int4_or_int8(device: Device, scheme: Scheme) -> str | None:
    """INT8, which 4-bit operands are widened to; INT4 only on a parametric device, as no library of today uses it."""
    has = device.compute.formats
    if scheme.activation.bits <= 4 and "int4" in has and device.vendor == "parametric":
        return "int4"
    return "int8" if "int8" in has else None


FAMILIES = (
    KernelFamily(
        name="native_fp4", title="native 4-bit float product", compute=FP4, weight_bits=4.5, activation_bytes=0.5625,
        like=("trtllm13_nvfp4", "cublas_fp8", "trtllm_fp8"), runs=_block_four, formats=_own_or_fp4, fallback=30,
        stacks=TODAY,
    ),
    KernelFamily(
        name="native_mxfp8", title="native MXFP8 product", compute="mxfp8_e4m3", weight_bits=8.25,
        activation_bytes=1.03, like=("cublas_fp8", "trtllm_fp8"), runs=_block_eight, formats=_own_format,
        stacks=TODAY,
    ),
    KernelFamily(
        name="w4a8", title="4-bit weights, INT8 product", compute="int8", weight_bits=4.125, activation_bytes=1,
        like=("cublas_int8", "trtllm_sq"), runs=_int4_weight, stands_in=widths(4), formats=_int4_or_int8,
    ),
)  # fmt: skip
