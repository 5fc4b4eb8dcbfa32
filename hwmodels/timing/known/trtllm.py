"""Kernels of TensorRT-LLM, as the published tables hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..family import AttentionFamily, KernelFamily
from ..schemes import both, fp8, integer_weight, integers, measured_with, plain, weight_kind, weight_only, widths

if TYPE_CHECKING:
    from qsim.scheme import Scheme

FP8 = "float8_e4m3fn"


def _family(name: str, title: str, compute: str, bits: float, act: float, *like: str, **more: Any) -> KernelFamily:
    return KernelFamily(
        name=name, title=title, compute=compute, weight_bits=bits, activation_bytes=act, like=like,
        engine="TensorRT-LLM", version="1.0 to 1.3", year=2025, campaign="aiconfigurator-2025",
        stacks=("trtllm-1.x",), preference=20, **more,
    )  # fmt: skip


def _block_fp8(scheme: Scheme) -> bool:
    return fp8(scheme) and weight_kind(scheme) == "block"


def _dynamic_fp8(scheme: Scheme) -> bool:
    """The plugin's time contains a quantisation that a static scale fuses away."""
    return fp8(scheme) and weight_kind(scheme) != "block" and scheme.activation.dynamic


def _int8(scheme: Scheme) -> bool:
    return integers(scheme) and scheme.weight.bits > 4


def _int4_weight(scheme: Scheme) -> bool:
    return weight_only(scheme) and integer_weight(scheme) and scheme.weight.bits <= 4


def _int8_weight(scheme: Scheme) -> bool:
    return weight_only(scheme) and integer_weight(scheme) and scheme.weight.bits > 4


def _channel(scheme: Scheme) -> bool:
    return weight_kind(scheme) == "channel"


CHANNEL = measured_with(kind="channel", zero_points=True)
"""The group-wise plugin has another name, and the tables do not hold it; one zero point per channel is next to
nothing."""
FAMILIES = (
    _family("trtllm_bf16", "BF16 in TensorRT-LLM", "bfloat16", 16, 2, "cublas_bf16", sixteen_bit=True, runs=plain,
            fallback=2, grouped="torch_grouped_bf16"),
    _family("trtllm_fp8", "FP8 with quantisation of the activation (TensorRT-LLM)", FP8, 8, 4, "cublas_fp8",
            includes_quantize=True, runs=_dynamic_fp8, fallback=9, grouped="torch_grouped_fp8"),
    _family("trtllm_fp8_block", "FP8, 128x128 weight blocks (TensorRT-LLM)", FP8, 8.002, 2, "trtllm_fp8",
            includes_quantize=True, runs=_block_fp8, grouped="torch_grouped_fp8"),
    _family("trtllm_sq", "SmoothQuant W8A8 plugin (TensorRT-LLM)", "int8", 8, 1, "cublas_int8", runs=_int8,
            stands_in=widths(4, 8), fallback=9),
    _family("trtllm_int4_wo", "INT4 per-channel plugin (TensorRT-LLM)", "bfloat16", 4, 2, "marlin_int4",
            runs=_int4_weight, stands_in=both(widths(4), CHANNEL), fits=_channel, fallback=2),
    _family("trtllm_int8_wo", "INT8 per-channel plugin (TensorRT-LLM)", "bfloat16", 8, 2, "trtllm_int4_wo",
            runs=_int8_weight, stands_in=both(widths(4, 8), CHANNEL), fits=_channel, fallback=9),
)  # fmt: skip

ATTENTION = (
    AttentionFamily(name="trtllm", title="TensorRT-LLM attention", engine="TensorRT-LLM", version="1.0 to 1.3",
                    year=2025, preference=30, newer=("trtllm13",)),
)  # fmt: skip
