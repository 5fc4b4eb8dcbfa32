"""Fused mixtures of experts: times of measured kernels by size and split, and what a step takes of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import hwmodels
from hwmodels.calibration.fitted import Mixture, Parameters
from hwmodels.fitting.moe_2026 import fit_mixture, moe_rows
from hwmodels.timing.collectives import collective
from hwmodels.timing.moe import layer_cost, mixture_time, mixtures_of, moe
from hwmodels.workload.routing import balanced_load, skewed_load
from qsim.errors import QsimError

DEEPSEEK = {"hidden": 7168, "inter": 2048, "topk": 8, "experts": 256}


def test_a_layer_never_takes_less_than_its_weights_and_more_tokens_never_take_less_time() -> None:
    tokens = np.array([1, 4, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
    for device in ("h200", "b200"):
        for kernel in hwmodels.moe_kernels(device):
            est = moe(device, tokens, *DEEPSEEK.values(), kernel)
            load = balanced_load(tokens, DEEPSEEK["topk"], DEEPSEEK["experts"], 1, 128)
            sizes = {name: DEEPSEEK[name] for name in ("hidden", "inter", "experts")}
            cost = layer_cost(kernel.partition("_moe_")[2], load, tokens=tokens, **sizes)
            least = cost.weight_bytes / hwmodels.get_device(device).memory.bandwidth_bytes_per_s
            assert (est.low_s >= least * (1 - 1e-9)).all(), kernel
            assert (np.diff(est.time_s) >= 0).all(), kernel
            assert (est.low_s <= est.time_s).all()
            assert (est.time_s <= est.high_s).all()


def test_a_measured_layer_has_the_time_that_was_measured() -> None:
    # TensorRT-LLM 1.3.0rc20 on a B200, FP8 blocks, balanced routing over 16 GPUs, as the table of 2026 has it
    found = hwmodels.moe_time("b200", [64, 512, 8192], *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_ep=16)
    np.testing.assert_allclose(found, [0.153e-3, 0.162e-3, 0.292e-3], rtol=0.12)  # what is required of mixtures


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


def test_skewed_routing_fills_the_fullest_gpu_and_leaves_experts_without_tokens() -> None:
    for tokens in (4, 64, 4096):
        even = balanced_load(tokens, 8, 256, 16, 64)
        skewed = skewed_load(tokens, 8, 256, 16, 64)
        assert skewed.pairs > even.pairs
        assert skewed.pairs <= tokens * 8
        assert 1 <= skewed.active <= 16
        assert skewed.rows >= skewed.pairs
        alone = skewed_load(tokens, 8, 256, 1, 64)
        assert alone.pairs == pytest.approx(tokens * 8)  # one GPU has them all
        assert alone.active < balanced_load(tokens, 8, 256, 1, 64).active + 1e-9


def test_experts_without_a_gate_take_less_time_than_three_matrices() -> None:
    gated, two = (
        hwmodels.moe_time("b200", 64, *DEEPSEEK.values(), "trtllm13_moe_nvfp4", gated=g) for g in (True, False)
    )
    assert two == pytest.approx(2 / 3 * gated, rel=0.15)  # both read their weights


def test_an_engine_with_several_kernels_takes_the_fastest_of_them_at_each_size() -> None:
    kernels = mixtures_of(hwmodels.get_device("b200"))["trtllm13_moe_nvfp4"]
    assert {m.roofline.kernel.partition(".")[2] for m in kernels} == {"cutlass", "min_latency"}
    for tokens in (1, 16, 8192):
        alone = {m.roofline.kernel: _alone(m, tokens) for m in kernels}
        assert max(alone.values()) > 1.1 * min(alone.values())
        found = moe("b200", tokens, *DEEPSEEK.values(), "trtllm13_moe_nvfp4").time_s
        assert found == pytest.approx(min(alone.values()), rel=0.01)


def _alone(m: Mixture, tokens: int) -> float:
    """The time by one kernel of an engine."""
    load = balanced_load(tokens, DEEPSEEK["topk"], DEEPSEEK["experts"], 1, m.tile)
    sizes = {name: DEEPSEEK[name] for name in ("hidden", "inter", "experts")}
    device = hwmodels.get_device("b200")
    peak = device.peak_flop_per_s("nvfp4")
    assert peak is not None
    cost = layer_cost("nvfp4", load, tokens=tokens, **sizes)
    return float(mixture_time(m, cost, peak, device.memory.bandwidth_bytes_per_s)[0])


def test_a_split_that_a_tuner_gave_up_on_does_not_move_the_fit() -> None:
    tokens = np.array([1, 8, 64, 256, 1024, 8192])
    rows = [
        (*layer, t, 1, ep, "balanced", True)
        for layer in ((4096, 2048, 8, 64), (7168, 2048, 8, 256), (2048, 1024, 4, 32)) for ep in (1, 2, 4, 8)
        for t in tokens
    ]  # fmt: skip
    names = ["hidden", "inter", "topk", "experts", "tokens", "moe_tp", "moe_ep", "routing", "gated"]
    table = pd.DataFrame(rows, columns=names).assign(dtype="bf16", latency_s=1.0)
    name = "vllm_moe_bf16.triton"
    shape = moe_rows(table, name, "H200")
    law = Mixture(
        roofline=Parameters(kernel=name, t0_s=3e-5, eta_compute=0.6, eta_memory=0.8, p=3.0), permute=1.0,
        active_s=5e-8, local_s=1e-9, tile=64.0,
    )  # fmt: skip
    true = mixture_time(law, shape.cost[64.0], shape.peak, shape.bandwidth)[0]
    slow = ((table.hidden == 4096) & (table.moe_ep == 4)).to_numpy()
    found = fit_mixture(moe_rows(table.assign(latency_s=np.where(slow, 6.0, 1.0) * true), name, "H200"), name)
    assert found.untuned == pytest.approx(slow.mean())
    assert found.roofline.held_out_mape["tuned"] < 0.03  # the law is recovered from the others
    assert found.roofline.held_out_mape["all"] > 0.05
    assert max(high for _, high in found.roofline.band.values()) < 1.2


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
    assert experts_s(32) == pytest.approx(balanced_s(touched / 8), rel=0.1)  # as many experts, fuller ones
    assert experts_s(32) < 0.8 * balanced_s(32)
    uniform = moe("b200", 32, *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_tp=8, uniform=True)
    assert experts_s(32) == pytest.approx(float(uniform.time_s), rel=1e-9)
    assert experts_s(1) == pytest.approx(balanced_s(1), rel=1e-9)
    times = [experts_s(t) for t in (1, 4, 16, 64, 256, 1024)]
    assert times == sorted(times)


def test_a_kernel_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(QsimError, match="trtllm13_moe_fp8_block"):
        hwmodels.moe_time("b200", 1, *DEEPSEEK.values(), "trtllm13_moe_fp8_blocks")
    with pytest.raises(QsimError, match="no fused mixture of experts was measured on a10"):
        hwmodels.moe_time("a10", 1, *DEEPSEEK.values(), "trtllm13_moe_bf16")
    assert hwmodels.moe_kernels("a10") == ()
    with pytest.raises(QsimError, match="skewed or uniform"):
        hwmodels.moe_time("b200", 1, *DEEPSEEK.values(), "trtllm13_moe_fp8_block", skewed=True, uniform=True)
    with pytest.raises(QsimError, match="tokens must be positive"):
        hwmodels.moe_time("b200", 0, *DEEPSEEK.values(), "trtllm13_moe_fp8_block")


def test_experts_dealt_out_within_a_group_cost_what_their_kernel_takes_of_that_split() -> None:
    how = {"tensor_parallel": 8, "stack": "trtllm-1.x"}
    p = hwmodels.predict("b200", "deepseek-v3", "fp8-block128", "decode", 64, 2048, expert_parallel=8, **how)
    rows = {op.name: op for op in p.operators}
    layer = moe("b200", 64, *DEEPSEEK.values(), "trtllm13_moe_fp8_block", moe_ep=8, uniform=True).time_s
    total = sum(op.time_s for op in p.operators if op.name in ("gate_up", "down") and op.fidelity == "calibrated")
    assert total == pytest.approx(float(layer) * rows["gate_up"].calls, rel=1e-9)
    assert not {"dispatch", "collect"} & set(rows)  # the all-reduce sums what the experts of each device add
    split = hwmodels.predict("b200", "deepseek-v3", "fp8-block128", "decode", 64, 2048, **how)
    assert p.footprint.weights_bytes == pytest.approx(split.footprint.weights_bytes)
    assert p.tokens_per_s * p.time_s == pytest.approx(64)


def test_groups_beyond_tensor_parallel_exchange_tokens_by_measured_all_to_alls() -> None:
    how = {"stack": "trtllm-1.x", "scheme": "fp8-block128", "batch": 16, "context": 2048}
    p = hwmodels.predict("h200", "deepseek-v3", expert_parallel=8, **how)
    rows = {op.name: op for op in p.operators}
    reached = 8 * (1 - (7 / 8) ** 8)  # devices that a token with 8 experts of equal chances has one on
    there = collective(hwmodels.get_device("h200"), "alltoall", 16 * reached * 7168 * 2.0, 8).time_s
    assert rows["collect"].time_s == pytest.approx(float(there) * rows["collect"].calls)
    assert rows["dispatch"].time_s <= rows["collect"].time_s  # a byte there, two back
    assert "all_reduce_o" not in rows
    assert p.devices == 8
    assert p.tokens_per_s * p.time_s == pytest.approx(8 * 16)
    assert any(note.code == "all_to_all" for note in p.notes)
    alone = hwmodels.predict("h200", "deepseek-v3", **how)
    assert p.energy_j > 4 * alone.energy_j / 8
    # seven eighths of the routed experts are elsewhere
    routed = 58 * 256 * 3 * 7168 * 2048
    assert alone.footprint.weights_bytes - p.footprint.weights_bytes == pytest.approx(7 / 8 * routed, rel=0.01)
    both = hwmodels.predict("h200", "deepseek-v3", tensor_parallel=2, expert_parallel=8, **how)
    assert {"dispatch", "collect", "gather", "all_reduce_o"} <= {op.name for op in both.operators}
    assert both.tokens_per_s * both.time_s == pytest.approx(4 * 16)


@pytest.mark.parametrize(
    ("model", "tp", "ep", "says"),
    [
        ("llama-3-8b", 1, 2, "has no experts"), ("deepseek-v3", 1, 3, "must divide the 256 experts"),
        ("deepseek-v3", 8, 0, "expert_parallel must be at least 1"), ("mixtral-8x7b", 1, 16, "divide the 8 experts"),
    ],
)  # fmt: skip
def test_an_expert_parallel_that_cannot_be_is_refused(model: str, tp: int, ep: int, says: str) -> None:
    with pytest.raises(QsimError, match=says):
        hwmodels.predict("h200", model, tensor_parallel=tp, expert_parallel=ep)


def test_whole_requests_say_that_they_do_not_deal_experts_out() -> None:
    with pytest.raises(QsimError, match="priced with expert_parallel 1"):
        hwmodels.predict_request("h200", "mixtral-8x7b", "bf16", expert_parallel=2)
