"""Kernel families: what a matrix-product kernel reads, computes and writes, and which family runs a scheme.

A family is the part of a kernel that does not depend on the device: the format it multiplies in, the bytes of its
operands, and whether the run-time quantisation of the activation is inside its time. How fast it is on a device is
calibration, in `hwmodels/calibration/*.toml`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from qsim.errors import QsimError

VECTOR = "vector"
"""Compute format of a kernel that is bound by the vector units, not by the tensor cores."""


@dataclass(frozen=True, kw_only=True)
class KernelFamily:
    """One family.

    Attributes:
        compute: operand format of the product, as in a device file, or `vector`.
        weight_bits: bits per weight with scales and zero points, where the caller gives no exact byte count.
        activation_bytes, output_bytes: per element read and written.
        includes_quantize: the run-time quantisation of the activation is part of the measured time.
        like: families whose efficiencies are borrowed, nearest first, where this one is not calibrated.
        min_m: least M that the library takes.
        sixteen_bit: weights and activations are 16 bit; transferred predictions then have the narrower band.
    """

    name: str
    title: str
    compute: str
    weight_bits: float
    activation_bytes: float
    output_bytes: float = 2.0
    includes_quantize: bool = False
    like: tuple[str, ...] = ()
    sixteen_bit: bool = False
    min_m: int = 1


def _family(name: str, title: str, compute: str, bits: float, act: float, *like: str, **more: Any) -> KernelFamily:
    return KernelFamily(
        name=name, title=title, compute=compute, weight_bits=bits, activation_bytes=act, like=like, **more
    )


FAMILIES: dict[str, KernelFamily] = {
    f.name: f
    for f in (
        _family("cublas_bf16", "cuBLAS BF16", "bfloat16", 16, 2, "trtllm_bf16", sixteen_bit=True),
        _family("trtllm_bf16", "BF16 in TensorRT-LLM", "bfloat16", 16, 2, "cublas_bf16", sixteen_bit=True),
        _family("cublas_fp8", "cuBLASLt FP8, one scale per tensor", "float8_e4m3fn", 8, 1, "trtllm_fp8"),
        _family("cublas_fp8_rowwise", "cuBLASLt FP8, scale per row", "float8_e4m3fn", 8, 1, "trtllm_fp8", "cublas_fp8"),
        _family(
            "trtllm_fp8", "FP8 with quantisation of the activation (TensorRT-LLM)", "float8_e4m3fn", 8, 4, "cublas_fp8",
            includes_quantize=True,
        ),
        _family(
            "trtllm_fp8_block", "FP8, 128x128 weight blocks (TensorRT-LLM)", "float8_e4m3fn", 8.002, 2, "trtllm_fp8",
            includes_quantize=True,
        ),
        _family("cublas_int8", "torch._int_mm, int32 output", "int8", 8, 1, "trtllm_sq", output_bytes=4.0, min_m=17),
        _family("trtllm_sq", "SmoothQuant W8A8 plugin (TensorRT-LLM)", "int8", 8, 1, "cublas_int8"),
        _family("tinygemm_int4", "tinygemm INT4 group 128 (PyTorch)", VECTOR, 4.25, 2, "trtllm_int4_wo"),
        _family("trtllm_int4_wo", "INT4 per-channel plugin (TensorRT-LLM)", "bfloat16", 4, 2, "marlin_int4"),
        _family("trtllm_int8_wo", "INT8 per-channel plugin (TensorRT-LLM)", "bfloat16", 8, 2, "trtllm_int4_wo"),
        _family("marlin_int4", "Marlin-class INT4", "bfloat16", 4.125, 2, "trtllm_int4_wo", "cublas_bf16"),
        _family("marlin_fp8", "Marlin-class FP8 weight-only", "bfloat16", 8, 2, "trtllm_int8_wo", "trtllm_int4_wo"),
        _family("native_fp4", "native 4-bit float product", "float4_e2m1fn", 4.5, 0.5625, "cublas_fp8", "trtllm_fp8"),
        _family("native_mxfp8", "native MXFP8 product", "mxfp8_e4m3", 8.25, 1.03, "cublas_fp8", "trtllm_fp8"),
        _family("torch_grouped_bf16", "torch._grouped_mm, BF16 experts", "bfloat16", 16, 2, "cublas_bf16",
                sixteen_bit=True),
        _family("torch_grouped_fp8", "torch._scaled_grouped_mm, FP8 experts, scale per row", "float8_e4m3fn", 8, 1,
                "cublas_fp8_rowwise", "trtllm_fp8"),
        _family("w4a8", "4-bit weights, INT8 product", "int8", 4.125, 1, "cublas_int8", "trtllm_sq"),
    )
}  # fmt: skip


def get_family(name: str) -> KernelFamily:
    """The kernel family of that name.

    Raises:
        ValueError: unknown name; the nearest are listed.
    """
    family = FAMILIES.get(name)
    if family is None:
        near = difflib.get_close_matches(name, [*FAMILIES, "ideal"], n=3, cutoff=0.3)
        raise QsimError(f"unknown kernel {name!r}: the nearest are {', '.join(near) or ', '.join(FAMILIES)}")
    return family
