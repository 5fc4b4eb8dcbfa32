"""What was not measured together is not called calibrated, and its band says how far it may be off."""

from __future__ import annotations

import numpy as np
import pytest

import hwmodels
from hwmodels.prediction import TRANSFER_CORRELATION
from hwmodels.timing.kernel import gemm
from hwmodels.timing.parameters import TRANSFER_BANDS, kernel_parameters
from hwmodels.timing.profiles import PROFILES
from hwmodels.validation.transfer import device_errors, shared_error

QWEN3_4B = {
    "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("device", "model", "scheme", "context", "profile", "measured_ms"),
    [
        ("rtx-4090", QWEN3_4B, "bf16", 192, "cuda_graph", 10.5),
        ("rtx-4090", QWEN3_4B, "bf16", 4160, "cuda_graph", 10.9),
        ("rtx-4090", "llama-2-7b", "bf16", 128, "torch_compile", 15.4),
        ("a100", "qwen3-14b", "w4a16-g128", 16100, "eager", 20.9),
        ("a100", "qwen3-30b-a3b", "bf16", 2112, "serving", 9.9),
        ("a100", "llama-2-7b", "w8a16-channel", 128, "torch_compile", 6.30),
    ],
)
def test_decode_steps_of_others_lie_in_the_band_and_are_not_called_calibrated(
    device: str, model: object, scheme: str, context: int, profile: str, measured_ms: float
) -> None:
    """Steps that users measured at batch 1, on devices or in engines that our calibrations do not hold."""
    p = hwmodels.predict(device, model, scheme, "decode", 1, context, profile=profile)  # type: ignore[arg-type]
    assert p.fidelity == "transferred"
    assert 1e3 * float(p.low_s) < measured_ms < 1e3 * float(p.high_s)


def test_a_board_takes_its_memory_from_its_generation_and_its_arithmetic_from_one_with_power_to_spare() -> None:
    """An RTX 4090 reads as an L40S does, and reaches more of its halved peak than that one of its whole."""
    measured = [(QWEN3_4B, 192, "cuda_graph", 10.5), (QWEN3_4B, 2112, "cuda_graph", 10.8),
                (QWEN3_4B, 4160, "cuda_graph", 10.9), ("llama-2-7b", 128, "torch_compile", 15.4)]  # fmt: skip
    ratios = [
        1e3 * float(hwmodels.predict("rtx-4090", model, "bf16", "decode", 1, context, profile=profile).time_s) / ms
        for model, context, profile, ms in measured
    ]
    assert 0.95 < min(ratios) <= max(ratios) < 1.10
    assert min(ratios) < 1 < max(ratios)
    card, donor = hwmodels.get_device("rtx-4090"), hwmodels.get_device("l40s")
    own, memory = (kernel_parameters(d, "cublas_bf16", "calibrated") for d in (card, donor))
    assert (own.eta_memory, own.t0_s) == (memory.eta_memory, memory.t0_s)
    assert own.eta_compute > memory.eta_compute
    prefill = hwmodels.predict("rtx-4090", "llama-3-8b", "bf16", "prefill", 1, 2048)
    assert prefill.mfu > 0.7  # published: 0.78 to 0.85


def tag(device: str, profile: str, scheme: str = "bf16") -> str:
    return hwmodels.predict(device, "llama-3-8b", scheme, profile=profile).fidelity


def test_a_kernel_of_another_stack_stands_in_and_is_tagged() -> None:
    """Device, family, format and profile: calibrated needs all four."""
    assert tag("h200", "torch_compile") == tag("h200", "eager") == tag("h200", "cuda_graph") == "calibrated"
    assert tag("a100", "trtllm") == tag("a100", "cuda_graph") == "calibrated"
    assert tag("a100", "torch_compile") == tag("a100", "eager") == tag("a100", "serving") == "transferred"
    assert tag("h200", "trtllm") == "calibrated"  # its TensorRT-LLM tables
    assert tag("h200", "torch_compile", "w8a16-channel") == "transferred"  # only TensorRT-LLM's kernel was measured
    for profile in PROFILES:
        assert tag("rtx-4090", profile) == "transferred"


def test_a_transferred_step_is_less_sure_than_a_calibrated_one() -> None:
    width = lambda p: float(np.log(p.high_s / p.low_s))  # noqa: E731
    same = [hwmodels.predict("a100", "llama-3-8b", "bf16", profile=p) for p in ("trtllm", "torch_compile")]
    assert float(same[0].time_s) == pytest.approx(float(same[1].time_s), rel=0.1)
    assert width(same[1]) > 3 * width(same[0])


def test_launches_on_an_unknown_host_have_a_wide_band() -> None:
    own, other = (hwmodels.predict(d, "llama-3.2-1b", "bf16", profile="eager") for d in ("h200", "h100"))
    norm = [next(op for op in p.operators if op.name == "norm_qkv") for p in (own, other)]
    assert float(norm[0].time_s) == pytest.approx(float(norm[1].time_s))  # the launch, not the kernel
    assert float(norm[0].high_s / norm[0].time_s) == pytest.approx(1.2)
    assert float(norm[1].high_s / norm[1].time_s) == pytest.approx(10 / 6.42)
    assert float(norm[1].low_s / norm[1].time_s) == pytest.approx(5 / 6.42)


def test_the_bands_are_what_each_calibrated_device_predicted_from_the_others_gives() -> None:
    errors = device_errors()
    assert shared_error(errors) == pytest.approx(TRANSFER_CORRELATION, abs=0.005)
    for (separate, sixteen_bit, regime), mine in errors.groupby(["across", "sixteen_bit", "regime"]):
        low, high = TRANSFER_BANDS[separate, sixteen_bit][regime]
        inside = ((mine.ratio >= low) & (mine.ratio <= high)).mean()
        assert 0.75 <= inside <= 0.85, (separate, sixteen_bit, regime)
    for device, mine in errors.groupby("device"):
        assert np.median(np.abs(mine.ratio - 1)) <= 0.15, device
    other = gemm("gb300", 4096, 4096, 4096, "vllm022_nvfp4", fidelity="transferred")
    assert other.origin == "vllm022_nvfp4 on b200"
    assert float(other.high_s / other.time_s) == pytest.approx(TRANSFER_BANDS["boards", False]["large"][1])
