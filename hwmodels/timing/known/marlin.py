"""Marlin and kernels of its class: weights dequantised in registers beside the tensor cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import KernelFamily
from ..schemes import integer_weight, weight_only, widths

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from ...device.device import Device


def _four(scheme: Scheme) -> bool:
    return weight_only(scheme) and scheme.weight.bits <= 4


def _eight(scheme: Scheme) -> bool:
    return weight_only(scheme) and scheme.weight.bits > 4 and not integer_weight(scheme)


UNPACKING = 14e9
"""Bytes a second and unit of a device above which few tokens take the time of unpacking the weights, not of reading
them. On an H200 (36e9) weights of two and of four bits take the same time. Marlin's published gain on an A100 (19e9),
2.2, is nearer to the 2.6 of an H200's efficiencies than to the 3.1 of those of smaller cards (6e9 to 11e9)."""


def unpacking_bound(device: Device) -> bool:
    """Whether the memory is so fast for each unit that unpacking, not reading, bounds a product of few tokens."""
    return device.memory.bandwidth_bytes_per_s > UNPACKING * (device.compute.units or 1)


def _lenders(device: Device) -> tuple[tuple[str, str], ...]:
    return (("h200", "humming_w4a16_g128"),) if unpacking_bound(device) else (("ampere", "marlin_int4"),)


FAMILIES = (
    KernelFamily(
        name="marlin_int4", title="Marlin-class INT4", compute="bfloat16", weight_bits=4.125, activation_bytes=2,
        like=("trtllm_int4_wo", "cublas_bf16"), engine="Marlin", version="0.1", year=2024, stacks=("marlin-2024",),
        preference=30, fallback=9, runs=_four, stands_in=widths(4), lenders=_lenders,
    ),
    KernelFamily(
        name="marlin_fp8", title="Marlin-class FP8 weight-only", compute="bfloat16", weight_bits=8, activation_bytes=2,
        like=("trtllm_int8_wo", "trtllm_int4_wo"), engine="vLLM", version="0.5", year=2024, stacks=("marlin-2024",),
        preference=30, fallback=9, runs=_eight,
    ),
)  # fmt: skip
