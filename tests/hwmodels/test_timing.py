"""Kernel times: limits of the soft roofline, the speed of light, bands, anchors of the measurements."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import hwmodels
from hwmodels.fitting.tables_2026 import least_calls
from hwmodels.limits import roofline
from hwmodels.timing.attention_kernel import attention
from hwmodels.timing.families import FAMILIES
from hwmodels.timing.kernel import gemm, gemm_time, launch_gap_s, small, soft_roofline
from hwmodels.timing.parameters import kernel_parameters
from hwmodels.workload.operators import attention_cost

M = 2 ** np.arange(14)


def test_the_roofline_is_the_larger_of_two_times() -> None:
    r = roofline(1e12, 1e9, 1e15, 1e12)
    assert (r.compute_s, r.memory_s, r.time_s, r.bound) == (1e-3, 1e-3, 1e-3, "memory")
    assert hwmodels.roofline(2e12, 1e9, 1e15, 1e12).bound == "compute"


def test_soft_roofline_between_sum_and_maximum() -> None:
    assert soft_roofline(3.0, 4.0, 1.0) == 7.0
    assert soft_roofline(3.0, 4.0, 2.0) == 5.0
    assert soft_roofline(3.0, 4.0, 200.0) == pytest.approx(4.0)


@pytest.mark.parametrize("device", ["a100", "h100", "h200", "l40s", "rtx-4090"])
@pytest.mark.parametrize("kernel", ["cublas_bf16", "trtllm_int4_wo", "trtllm_sq", "cublas_fp8", "tinygemm_int4"])
def test_nothing_beats_the_speed_of_light(device: str, kernel: str) -> None:
    if kernel == "cublas_fp8" and device == "a100":
        return
    ideal = gemm(device, M, 14336, 4096, kernel, fidelity="ideal")
    real = gemm(device, M, 14336, 4096, kernel)
    assert np.all(real.time_s >= ideal.time_s * (1 - 1e-9))
    assert np.all(real.low_s <= real.time_s)
    assert np.all(real.time_s <= real.high_s)


def test_element_wise_kernels_that_were_not_measured_have_an_h200s_curve_at_their_own_bandwidth_and_latency() -> None:
    own = small(hwmodels.get_device("h200"), 8192.0, row=4096)
    assert own.kind == "calibrated"
    for name, share in (("b200", 2.47 / 3.33), ("a100", 4.09 / 3.33), ("h100", 3.30 / 3.33)):
        device = hwmodels.get_device(name)
        few, many = (small(device, size, row=4096) for size in (8192.0, 2e9))
        assert few.kind == "transferred"
        assert float(few.time_s / own.time_s) == pytest.approx(share, rel=0.05)
        assert launch_gap_s(device) == pytest.approx(share * launch_gap_s(hwmodels.get_device("h200")), rel=0.01)
        reached = small(hwmodels.get_device("h200"), 2e9).memory_s / small(hwmodels.get_device("h200"), 2e9).time_s
        assert float(many.memory_s / many.time_s) == pytest.approx(float(reached), rel=0.02)
        assert few.low_s < few.time_s < few.high_s
    assert small(hwmodels.get_device("rtx-4090"), 8192.0).time_s < own.time_s  # Ada, as the L40S


def test_the_least_time_of_a_kernel_is_that_of_the_shortest_products_of_each_engine() -> None:
    rows = [("B200", e, "1", "bf16", m, n, 512, t) for e, t in (("x", 3e-6), ("y", 2e-6), ("z", 9e-6))
            for m, n in ((1, 512), (16, 1024))]  # fmt: skip
    rows += [("B200", "x", "1", "bf16", 1, 2048, 512, 1e-7), ("B200", "x", "1", "fp8", 1, 512, 512, 1e-7)]
    names = ["device", "engine", "version", "kernel", "m", "n", "k", "latency_s"]
    assert least_calls(pd.DataFrame(rows, columns=names)) == {"B200": pytest.approx(3.0)}


def test_fidelity_is_tagged() -> None:
    assert gemm("h200", 1, 4096, 4096, "tinygemm_int4").kind == "calibrated"
    assert gemm("h100", 1, 4096, 4096, "tinygemm_int4").kind == "transferred"
    assert gemm("mi300x", 1, 4096, 4096).kind == "transferred"
    assert gemm("b200", 1, 4096, 4096).kind == "calibrated"
    assert gemm("b200", 1, 4096, 4096, "cublas_fp8").kind == "transferred"
    assert gemm("h200", 1, 4096, 4096, fidelity="ideal").kind == "ideal"
    assert gemm("h200", 1, 4096, 4096, fidelity="transferred").kind == "transferred"
    assert "h100" in kernel_parameters(hwmodels.get_device("h200"), "cublas_bf16", "transferred").origin


def test_uncalibrated_bands_are_wide() -> None:
    bf16, int4 = gemm("mi300x", 16, 4096, 4096), gemm("mi300x", 16, 4096, 4096, "marlin_int4")
    assert bf16.high_s / bf16.time_s == pytest.approx(1.25)
    assert int4.high_s / int4.time_s == pytest.approx(1.40)


def test_more_bandwidth_is_never_slower() -> None:
    times = [
        float(gemm_time(hwmodels.get_device("h100", {"memory.bandwidth_gbytes_per_s": bw}), 8, 8192, 8192))
        for bw in (1000, 2000, 4000, 8000)
    ]
    assert times == sorted(times, reverse=True)


def test_more_tokens_cost_more_over_octaves() -> None:
    for kernel in ("cublas_bf16", "cublas_fp8", "tinygemm_int4"):
        t = gemm_time("h200", M, 28672, 4096, kernel)
        assert np.all(t[3:] > 0.9 * t[:-3])
        assert t[-1] > 20 * t[0] or kernel != "cublas_bf16"


@pytest.mark.parametrize(
    ("kernel", "m", "speedup"),
    [("cublas_fp8", 1, 1.72), ("cublas_fp8", 8192, 1.92), ("cublas_fp8_rowwise", 1, 0.94),
     ("cublas_fp8_rowwise", 1024, 1.93), ("cublas_int8", 256, 0.91), ("tinygemm_int4", 1, 1.73),
     ("tinygemm_int4", 16, 0.46), ("tinygemm_int4", 128, 0.07)],
)  # fmt: skip
def test_measured_speedups_over_bf16_on_an_h200(kernel: str, m: int, speedup: float) -> None:
    """Geometric mean over the five Llama-3-8B layers, as measured."""
    n = np.array([6144, 4096, 28672, 4096, 128256])
    k = np.array([4096, 4096, 4096, 14336, 4096])
    ratio = np.exp(np.mean(np.log(gemm_time("h200", m, n, k) / gemm_time("h200", m, n, k, kernel))))
    assert ratio == pytest.approx(speedup, rel=0.12)


def test_activation_quantisation_can_be_added() -> None:
    bare = gemm_time("h200", 16, 4096, 4096, "cublas_fp8_rowwise")
    with_it = gemm_time("h200", 16, 4096, 4096, "cublas_fp8_rowwise", activation_quantize=True)
    assert 1e-6 < with_it - bare < 4e-6
    inside = gemm_time("h100", 16, 4096, 4096, "trtllm_fp8", activation_quantize=True)
    assert inside == gemm_time("h100", 16, 4096, 4096, "trtllm_fp8")


def test_decode_attention_is_memory_bound_and_near_what_cudnn_does() -> None:
    est = attention("h200", "decode", 64, 8192, 32, 8, 128, "sdpa_cudnn")
    assert float(est.memory_s) > float(est.compute_s)
    assert float(est.time_s) == pytest.approx(0.000469, rel=0.05)
    assert float(attention("h200", "decode", 64, 8192, 32, 8, 128, "sdpa_flash").time_s) > 1.5 * float(est.time_s)


def test_attention_floor() -> None:
    cost = attention_cost("prefill", batch=1, context=8192, q_heads=32, kv_heads=8, head_dim=128)
    assert hwmodels.attention_time("h100", "prefill", 1, 8192, 32, 8) >= cost.flop / 989.4e12


def test_small_kernels_have_a_floor_and_a_rate() -> None:
    device = hwmodels.get_device("h200")
    assert 1e-6 < float(small(device, 1e4).time_s) < 3e-6
    assert float(small(device, 1e9).time_s) == pytest.approx(1e9 / 4.17e12, rel=0.05)


def test_arguments_broadcast() -> None:
    grid = gemm_time("h200", M[:, None], np.array([4096, 8192]), 4096)
    assert grid.shape == (14, 2)
    assert grid[3, 1] == pytest.approx(gemm_time("h200", 8, 8192, 4096), rel=1e-12)  # sums in another order


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: gemm_time("h200", 0, 4096, 4096), "M must be positive"),
        (lambda: gemm_time("h200", 1, 4096, 4096, "cublas_fp9"), "cublas_fp8"),
        (lambda: gemm_time("a100", 1, 4096, 4096, "cublas_fp8"), "no float8_e4m3fn peak"),
        (lambda: gemm_time("h200", 1, 4096, 4096, fidelity="exact"), "fidelity must be one of"),
        (lambda: hwmodels.attention_time("h200", "decoding", 1, 1, 1, 1), "prefill or decode"),
        (lambda: hwmodels.attention_time("h200", "decode", 1, -5, 1, 1), "seq must be positive"),
        (lambda: hwmodels.attention_time("h200", "decode", 1, 5, 1, 1, kernel="flash"), "unknown attention kernel"),
    ],
)
def test_bad_input(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=says):
        call()


def test_families_have_titles() -> None:
    assert all(f.title and f.weight_bits > 0 for f in FAMILIES.values())
