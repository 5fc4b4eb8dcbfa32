"""Kernels that PyTorch calls: cuBLAS, cuBLASLt, tinygemm, grouped products, scaled-dot-product attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..family import VECTOR, AttentionFamily, KernelFamily
from ..schemes import both, fp8, integer_weight, integers, measured_with, plain, weight_kind, weight_only, widths

if TYPE_CHECKING:
    from qsim.scheme import Scheme

FP8 = "float8_e4m3fn"


def _family(name: str, title: str, compute: str, bits: float, act: float, *like: str, **more: Any) -> KernelFamily:
    return KernelFamily(
        name=name, title=title, compute=compute, weight_bits=bits, activation_bytes=act, like=like, engine="PyTorch",
        version="2.11", year=2026, campaign="own-h200", **{"stacks": ("pytorch-2.11",), "preference": 10, **more},
    )  # fmt: skip


def _tensor_fp8(scheme: Scheme) -> bool:
    return fp8(scheme) and weight_kind(scheme) == "tensor"


def _row_fp8(scheme: Scheme) -> bool:
    return fp8(scheme) and weight_kind(scheme) in ("channel", "group")


def _int8(scheme: Scheme) -> bool:
    return integers(scheme) and scheme.weight.bits > 4


def _int4(scheme: Scheme) -> bool:
    return weight_only(scheme) and integer_weight(scheme) and scheme.weight.bits <= 4


FAMILIES = (
    _family("cublas_bf16", "cuBLAS BF16", "bfloat16", 16, 2, "trtllm_bf16", "trtllm13_bf16", "vllm_bf16",
            sixteen_bit=True, runs=plain, fallback=9,
            grouped="torch_grouped_bf16", stacks=("pytorch-2.11", "vllm-2026")),
    _family("cublas_fp8", "cuBLASLt FP8, one scale per tensor", FP8, 8, 1, "trtllm_fp8", runs=_tensor_fp8, fallback=1,
            grouped="torch_grouped_fp8", stacks=("pytorch-2.11", "vllm-2026")),
    _family("cublas_fp8_rowwise", "cuBLASLt FP8, scale per row", FP8, 8, 1, "trtllm_fp8", "cublas_fp8", runs=_row_fp8,
            fallback=1, grouped="torch_grouped_fp8"),
    _family("cublas_int8", "torch._int_mm, int32 output", "int8", 8, 1, "trtllm_sq", output_bytes=4.0, min_m=17,
            runs=_int8, stands_in=widths(4, 8), fallback=1),
    _family("tinygemm_int4", "tinygemm INT4 group 128", VECTOR, 4.25, 2, "trtllm_int4_wo", runs=_int4,
            stands_in=both(widths(4), measured_with(group=128, zero_points=True)), fallback=1),
    _family("torch_grouped_bf16", "torch._grouped_mm, BF16 experts", "bfloat16", 16, 2, "cublas_bf16",
            sixteen_bit=True),
    _family("torch_grouped_fp8", "torch._scaled_grouped_mm, FP8 experts, scale per row", FP8, 8, 1,
            "cublas_fp8_rowwise", "trtllm_fp8"),
)  # fmt: skip

ATTENTION = (
    AttentionFamily(name="sdpa_cudnn", title="PyTorch attention, cuDNN back-end", engine="PyTorch", version="2.11",
                    year=2026, preference=10),
    AttentionFamily(name="sdpa_flash", title="PyTorch attention, flash back-end", engine="PyTorch", version="2.11",
                    year=2026, preference=20),
)  # fmt: skip
