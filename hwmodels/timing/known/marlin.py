"""Marlin and kernels of its class: weights dequantised in registers beside the tensor cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import KernelFamily
from ..schemes import integer_weight, weight_only

if TYPE_CHECKING:
    from qsim.scheme import Scheme


def _four(scheme: Scheme) -> bool:
    return weight_only(scheme) and scheme.weight.bits <= 4


def _measured_bits(scheme: Scheme) -> bool:
    return not integer_weight(scheme) or scheme.weight.bits == 4


def _eight(scheme: Scheme) -> bool:
    return weight_only(scheme) and scheme.weight.bits > 4 and not integer_weight(scheme)


FAMILIES = (
    KernelFamily(
        name="marlin_int4", title="Marlin-class INT4", compute="bfloat16", weight_bits=4.125, activation_bytes=2,
        like=("trtllm_int4_wo", "cublas_bf16"), engine="Marlin", version="0.1", year=2024, stack="marlin-2024",
        preference=30, fallback=9, runs=_four, exact=_measured_bits,
    ),
    KernelFamily(
        name="marlin_fp8", title="Marlin-class FP8 weight-only", compute="bfloat16", weight_bits=8, activation_bytes=2,
        like=("trtllm_int8_wo", "trtllm_int4_wo"), engine="vLLM", version="0.5", year=2024, stack="marlin-2024",
        preference=30, fallback=9, runs=_eight,
    ),
)  # fmt: skip
