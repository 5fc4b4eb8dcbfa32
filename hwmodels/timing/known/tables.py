"""Kernels of vLLM, SGLang and TensorRT-LLM as the measured tables of 2026 hold them, one family for each engine's
generation and format. Engines differ on the same shape even where they call the same library."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..family import AttentionFamily, KernelFamily
from ..schemes import block_weight, fp8, plain, weight_kind

if TYPE_CHECKING:
    from qsim.scheme import Scheme

GENERATIONS = (
    ("trtllm13", "TensorRT-LLM", "1.3.0rc20", "trtllm-1.x"),
    ("vllm", "vLLM", "0.24.0, on A100 0.14.0", "vllm-2026"),
    ("sglang", "SGLang", "0.5.14, on A100 and B300 0.5.10", "sglang-2026"),
    ("vllm022", "vLLM", "0.22.0", "vllm-2026"),
    ("trtllm13rc17", "TensorRT-LLM", "1.3.0rc17", "trtllm-1.x"),
    ("trtllm13rc10", "TensorRT-LLM", "1.3.0rc10", "trtllm-1.x"),
    ("trtllm12", "TensorRT-LLM", "1.2.0rc5", "trtllm-1.x"),
)
"""First part of a kernel's name, engine, version, and the stack that runs it; the newest first."""


def _fp8_dynamic(scheme: Scheme) -> bool:
    return fp8(scheme) and weight_kind(scheme) != "block" and scheme.activation.dynamic


def _fp8_static(scheme: Scheme) -> bool:
    return fp8(scheme) and weight_kind(scheme) != "block" and not scheme.activation.dynamic


def _fp8_block(scheme: Scheme) -> bool:
    return fp8(scheme) and weight_kind(scheme) == "block"


def _nvfp4(scheme: Scheme) -> bool:
    return block_weight(scheme) and scheme.activation.is_quantized and scheme.weight.format.name == "nvfp4"


def _per_tensor(scheme: Scheme) -> str:
    if weight_kind(scheme) == "tensor":
        return ""
    return "FP8 was measured with one scale per tensor: priced with the efficiencies of that kernel"


_RUNS: dict[str, tuple[str, str, float, Callable[[Scheme], bool], Callable[[Scheme], str] | None, tuple[str, ...]]] = {
    "bf16": ("BF16", "bfloat16", 16.0, plain, None, ("trtllm_bf16", "cublas_bf16")),
    "fp8": ("FP8, one scale per tensor", "float8_e4m3fn", 8.0, _fp8_dynamic, _per_tensor, ("trtllm_fp8",)),
    "fp8_static": ("FP8, static scales", "float8_e4m3fn", 8.0, _fp8_static, _per_tensor, ("trtllm_fp8",)),
    "fp8_block": ("FP8, 128x128 weight blocks", "float8_e4m3fn", 8.002, _fp8_block, None, ("trtllm_fp8_block",)),
    "nvfp4": ("NVFP4 weights and activations", "nvfp4", 4.5, _nvfp4, None, ("trtllm13_nvfp4", "trtllm_fp8")),
}
"""Kernel of the tables -> title, format multiplied in, bits per weight, schemes, what it was measured with instead, and
whose efficiencies it borrows. The 16-bit x is read and quantised in the measured time, and its codes stay in the L2: 2
bytes per element in all of them."""

# superseded versions: priced where they are asked for by name
_OLD = {"trtllm12", "trtllm13rc10", "trtllm13rc17", "vllm022"}

FAMILIES = tuple(
    KernelFamily(
        name=f"{prefix}_{kernel}", title=f"{title} in {engine} {version.partition(',')[0]}", compute=compute,
        weight_bits=bits, activation_bytes=2.0, engine=engine, version=version, year=2026, stacks=(stack,),
        includes_quantize=kernel != "bf16", sixteen_bit=kernel == "bf16", runs=None if prefix in _OLD else runs,
        stands_in=stands_in,
        like=tuple(name for name in like if name != f"{prefix}_{kernel}"),
        preference=60, campaign="aiconfigurator-2026",
        grouped={"bf16": "torch_grouped_bf16", "nvfp4": ""}.get(kernel, "torch_grouped_fp8"),
    )
    for prefix, engine, version, stack in GENERATIONS
    for kernel, (title, compute, bits, runs, stands_in, like) in _RUNS.items()
)  # fmt: skip

_PLAIN: dict[str, Any] = {}
_FP8: dict[str, Any] = {"compute": "float8_e4m3fn", "phases": ("prefill",), "chosen": False}
ATTENTION = tuple(
    AttentionFamily(
        name=f"{prefix}{suffix}", title=f"{engine} {version.partition(',')[0]} attention{words}", engine=engine,
        version=version, year=2026, preference=60, variants=True, splits_wide=engine == "TensorRT-LLM", **how,
    )
    for prefix, engine, version, _ in GENERATIONS
    if prefix in ("trtllm13", "vllm", "sglang", "vllm022")
    for suffix, words, how in (("", "", _PLAIN), ("_qkv8", " in FP8", _FP8))
    if prefix in ("trtllm13", "sglang") or not suffix
)  # fmt: skip
