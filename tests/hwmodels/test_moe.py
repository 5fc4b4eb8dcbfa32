"""Fused mixtures of experts: times of measured kernels by size and split, and what a step takes of them."""

from __future__ import annotations

import numpy as np
import pytest

import hwmodels
from hwmodels.timing.moe import layer_cost, moe
from qsim.errors import QsimError

DEEPSEEK = {"hidden": 7168, "inter": 2048, "topk": 8, "experts": 256}


def test_a_layer_never_takes_less_than_its_weights_and_more_tokens_never_take_less_time() -> None:
    tokens = np.array([1, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
    for device in ("h200", "b200"):
        for kernel in hwmodels.moe_kernels(device):
            est = moe(device, tokens, *DEEPSEEK.values(), kernel)
            cost = layer_cost(kernel.partition("_moe_")[2], tokens=tokens.astype(float), **DEEPSEEK)
            least = cost.traffic_bytes / hwmodels.get_device(device).memory.bandwidth_bytes_per_s
            assert (est.time_s >= least).all(), kernel
            assert (est.low_s <= est.time_s).all()
            assert (est.time_s <= est.high_s).all()


def test_a_measured_layer_has_the_time_that_was_measured() -> None:
    # TensorRT-LLM 1.3.0rc20 on a B200, FP8 blocks, balanced routing over 16 GPUs, as the table of 2026 has it
    found = hwmodels.moe_time("b200", [64, 512, 8192], *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_ep=16)
    np.testing.assert_allclose(found, [0.153e-3, 0.162e-3, 0.292e-3], rtol=0.1)  # the error of the fit


def test_experts_that_are_split_over_gpus_take_less_time_on_each() -> None:
    times = [
        hwmodels.moe_time("b200", 256, *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_tp=tp, moe_ep=ep)
        for tp, ep in ((1, 1), (1, 8), (8, 1))
    ]
    assert times[1] < times[0]
    assert times[2] < times[0]


def test_skewed_routing_has_times_of_its_own() -> None:
    even, skewed = (
        hwmodels.moe_time("h200", 4096, *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_ep=16, skewed=s)
        for s in (False, True)
    )
    assert skewed > even


def test_a_step_of_a_mixture_takes_the_fused_kernel_of_its_engine() -> None:
    p = hwmodels.predict(
        "b200", "deepseek-v3", "fp8-block128", "decode", 1024, 2048, tensor_parallel=8, stack="trtllm-1.x"
    )
    rows = {op.name: op for op in p.operators}
    experts = [rows["gate_up"], rows["down"]]
    assert {op.fidelity for op in experts} == {"calibrated"}
    layer = moe("b200", 1024, *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_tp=8).time_s
    assert sum(op.time_s for op in experts) == pytest.approx(float(layer) * experts[0].calls, rel=1e-9)
    assert not [name for name in rows if name.endswith("combine")]  # the weighted sum is in the kernel


def test_few_tokens_read_the_experts_that_uniform_routing_touches_and_not_one_each() -> None:
    """Of 256 experts, 32 tokens with 8 each touch 163 in the mean, not all: the balanced table reads more."""
    how = {"tensor_parallel": 8, "stack": "trtllm-1.x"}

    def experts_s(tokens: int) -> float:
        p = hwmodels.predict("b200", "deepseek-v3", "fp8-block128", "decode", tokens, 2048, **how)
        return sum(float(op.time_s) / op.calls for op in p.operators if op.name in ("gate_up", "down"))

    def balanced_s(tokens: float) -> float:
        layer = moe("b200", tokens, *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_tp=8)
        return float(layer.time_s)

    touched = 256 * (1 - (1 - 8 / 256) ** 32)
    assert experts_s(32) == pytest.approx(balanced_s(touched / 8), rel=1e-9)
    assert experts_s(32) < 0.8 * balanced_s(32)
    assert experts_s(1) == pytest.approx(balanced_s(1), rel=1e-9)
    times = [experts_s(t) for t in (1, 4, 16, 64, 256, 1024)]
    assert times == sorted(times)


def test_a_kernel_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(QsimError, match="trtllm13_moe_fp8_block"):
        hwmodels.moe_time("b200", 1, *DEEPSEEK.values(), "trtllm13_moe_fp8_blocks")
    with pytest.raises(QsimError, match="no fused mixture of experts was measured on a10"):
        hwmodels.moe_time("a10", 1, *DEEPSEEK.values(), "trtllm13_moe_bf16")
    assert hwmodels.moe_kernels("a10") == ()
    with pytest.raises(QsimError, match="tokens must be positive"):
        hwmodels.moe_time("b200", 0, *DEEPSEEK.values(), "trtllm13_moe_fp8_block")
