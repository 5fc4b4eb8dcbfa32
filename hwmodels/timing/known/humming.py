"""humming-kernels: the fused quantised products that vLLM calls since autumn 2026."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..family import KernelFamily
from ..schemes import fp8, fp8_activation, integer_weight, integers, measured_with, weight_kind, weight_only
from .marlin import unpacking_bound

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from ...device.device import Device

BF16, FP8, INT8 = "bfloat16", "float8_e4m3fn", "int8"
Question = Callable[["Scheme"], bool]


def _nvidia(compute: str) -> Callable[[Device, Scheme], str | None]:
    """The library compiles for NVIDIA's chips alone, from Turing on."""

    def formats(device: Device, _scheme: Scheme) -> str | None:
        able = compute == BF16 or compute in device.compute.formats
        return compute if device.vendor == "NVIDIA" and able else None

    return formats


def _lenders(name: str) -> Callable[[Device], tuple[tuple[str, str], ...]]:
    """The same kernel on an H200 where unpacking the weights bounds few tokens, else Marlin's published rates."""
    return lambda device: (("h200", name),) if unpacking_bound(device) else (("ampere", "marlin_int4"),)


def _family(name: str, title: str, compute: str, bits: float, runs: Question, *like: str, **more: Any) -> KernelFamily:
    return KernelFamily(
        name=f"humming_{name}", title=f"{title} (humming)", compute=compute, weight_bits=bits, runs=runs, like=like,
        lenders=_lenders(f"humming_{name}") if compute == BF16 else None,
        activation_bytes=2 if compute == BF16 else 1, formats=_nvidia(compute), layer_from_16_bit=compute != BF16,
        engine="vLLM/humming", version="0.1.20", year=2026, campaign="own-h200", stacks=("vllm-2026",),
        **{"preference": 5, "fallback": 20, **more},
    )  # fmt: skip


def _integer_weights(bits: int, symmetric: bool | None = None) -> Question:
    def runs(scheme: Scheme) -> bool:
        w = scheme.weight
        alike = symmetric is None or w.symmetric == symmetric
        return weight_only(scheme) and integer_weight(scheme) and w.bits == bits and alike

    return runs


def _block_weights(name: str) -> Question:
    return lambda scheme: weight_only(scheme) and scheme.weight.format.name == name


def _int4_fp8(scheme: Scheme) -> bool:
    return integer_weight(scheme) and scheme.weight.bits == 4 and fp8_activation(scheme)


def _int4_int8(scheme: Scheme) -> bool:
    return integers(scheme) and scheme.weight.bits == 4 and scheme.activation.bits == 8


def _mxfp4_fp8(scheme: Scheme) -> bool:
    return scheme.weight.format.name == "mxfp4" and fp8_activation(scheme)


def _token_scales(scheme: Scheme) -> bool:
    a = scheme.activation
    return a.dynamic and a.granularity is not None and a.granularity.kind == "token"


def _rowwise_fp8(scheme: Scheme) -> bool:
    return fp8(scheme) and weight_kind(scheme) == "channel" and _token_scales(scheme)


def _rowwise_int8(scheme: Scheme) -> bool:
    return integers(scheme) and scheme.weight.bits == 8 and weight_kind(scheme) == "channel" and _token_scales(scheme)


def _other_scales(scheme: Scheme) -> str:
    if _token_scales(scheme):
        return ""
    return "activations were measured with one scale per token only: priced with the efficiencies of those"


INT4 = "marlin_int4"
G128 = measured_with(group=128)
FAMILIES = (
    _family("w4a16_g128", "INT4 weights in groups of 128", BF16, 4.125, _integer_weights(4, True), INT4,
            stands_in=G128),
    _family("w4a16_g128_zp", "INT4 weights with zero points in groups of 128", BF16, 4.15625,
            _integer_weights(4, False), "humming_w4a16_g128", INT4,
            stands_in=measured_with(group=128, zero_points=True)),
    _family("w3a16_g128", "INT3 weights in groups of 128", BF16, 3.125, _integer_weights(3), "humming_w4a16_g128", INT4,
            stands_in=G128),
    _family("w2a16_g128", "INT2 weights in groups of 128", BF16, 2.125, _integer_weights(2), "humming_w3a16_g128", INT4,
            stands_in=G128),
    _family("w8a16", "INT8 weights, one scale per channel", BF16, 8, _integer_weights(8), "trtllm_int8_wo", INT4,
            stands_in=measured_with(kind="channel")),
    _family("mxfp4_a16", "MXFP4 weights", BF16, 4.25, _block_weights("mxfp4"), "humming_w4a16_g128", INT4),
    _family("nvfp4_a16", "NVFP4 weights", BF16, 4.5, _block_weights("nvfp4"), "humming_mxfp4_a16", INT4),
    _family("w4a8_fp8", "INT4 weights, FP8 activations", FP8, 4.125, _int4_fp8, "cublas_fp8", "trtllm_fp8",
            stands_in=G128),
    _family("mxfp4_fp8", "MXFP4 weights, FP8 activations", FP8, 4.25, _mxfp4_fp8, "humming_w4a8_fp8", "cublas_fp8",
            stands_in=_other_scales),
    _family("w4a8_int8", "INT4 weights, INT8 activations", INT8, 4.125, _int4_int8, "trtllm_sq", "cublas_int8",
            stands_in=G128),
    _family("w8a8_fp8", "FP8 weights and activations, scales per row", FP8, 8, _rowwise_fp8, "cublas_fp8_rowwise",
            "trtllm_fp8", fallback=0, grouped="torch_grouped_fp8"),
    _family("w8a8_int8", "INT8 weights and activations, scales per row", INT8, 8, _rowwise_int8, "trtllm_sq",
            "cublas_int8", fallback=0),
)  # fmt: skip
