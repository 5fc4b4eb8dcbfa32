"""Experts in one grouped kernel: cost, calibration, and what carries over where none was measured."""

from __future__ import annotations

import numpy as np
import pytest

import hwmodels
from hwmodels.calibration.store import load_calibration
from hwmodels.device.load import get_device
from hwmodels.fitting import sources
from hwmodels.fitting.build import own_grouped
from hwmodels.timing.grouped import grouped
from hwmodels.workload.operators import gemm_cost, grouped_cost


def test_a_group_of_one_is_a_product() -> None:
    one = gemm_cost(48, 512, 1024, weight_bytes=1e6, activation_bytes=2.0)
    same = grouped_cost(48, 512, 1024, 1, weight_bytes=1e6, operand=2.0, output=2.0)
    assert (one.flop, one.traffic_bytes) == (same.flop, same.traffic_bytes)
    many = grouped_cost(48, 512, 1024, 7, weight_bytes=7e6, operand=2.0, output=2.0)
    assert (many.flop, many.traffic_bytes) == (7 * one.flop, 7 * one.traffic_bytes)


@pytest.mark.parametrize("device", ["h100-sxm", "h200"])
def test_the_shipped_calibration_is_the_fit(device: str) -> None:
    shipped = load_calibration(device.removesuffix("-sxm"))
    assert shipped is not None
    for name, fitted in own_grouped(device).items():
        found = shipped.kernels[name]
        for field in ("t0_s", "eta_compute", "eta_memory"):
            assert getattr(found, field) == pytest.approx(getattr(fitted, field), rel=1e-3)


def test_the_estimate_is_the_fitted_law() -> None:
    """`grouped` and the fit's own prediction of our rows are one formula."""
    from hwmodels.fitting.fit import predict_rows

    shipped = load_calibration("h200")
    assert shipped is not None
    rows, table = sources.grouped_rows("h200", "bf16"), sources.own_table("gemm_grouped")
    t = table[(table.fmt == "bf16") & table.device.str.contains("H200")]
    est = grouped(
        get_device("h200"), rows.x, t.N.to_numpy(), t.K.to_numpy(), t.active.to_numpy(), "cublas_bf16",
        weight_bytes=2.0 * (t.active * t.N * t.K).to_numpy(),
    )  # fmt: skip
    floor = np.maximum(rows.memory_s, 0)
    want = np.maximum(predict_rows(rows, shipped.kernels["torch_grouped_bf16"], None), floor)
    np.testing.assert_allclose(est.time_s, want, rtol=1e-12)
    assert est.kind == "calibrated"
    assert np.mean(np.abs(est.time_s / rows.time_s - 1)) < 0.10
    inside = (est.low_s <= rows.time_s) & (rows.time_s <= est.high_s)
    assert inside.mean() > 0.75


def test_where_no_grouped_kernel_was_measured() -> None:
    """4-bit experts: one large product's efficiency, as `transferred`; another device: the H100's, likewise."""
    sizes = (4.0, 4096, 7168, 100.0)
    four = grouped(get_device("h200"), *sizes, "tinygemm_int4", weight_bytes=100 * 4096 * 7168 * 0.52)
    assert four.kind == "transferred"
    assert four.low_s < four.time_s < four.high_s
    ampere = grouped(get_device("a100-sxm-80gb"), *sizes, "cublas_bf16", weight_bytes=100 * 4096 * 7168 * 2.0)
    assert ampere.kind == "transferred"
    floor = 100 * 4096 * 7168 * 2.0 / get_device("a100-sxm-80gb").memory.bandwidth_bytes_per_s
    assert floor < ampere.time_s < 2 * floor


def test_ideal_is_the_datasheet() -> None:
    device = get_device("h200")
    est = grouped(device, 2.0, 4096, 7168, 8.0, weight_bytes=8 * 4096 * 7168 * 2.0, fidelity="ideal")
    traffic = 8 * 4096 * 7168 * 2.0 + 8 * 2 * 2.0 * (4096 + 7168)
    assert est.time_s == pytest.approx(traffic / device.memory.bandwidth_bytes_per_s, rel=1e-12)


def test_a_mixture_reads_the_experts_that_its_tokens_choose() -> None:
    """The predicted step grows with the number of experts read, until all are."""
    time = [float(hwmodels.predict("h100-sxm", "mixtral-8x7b", "bf16", "decode", b, 512).time_s) for b in (1, 4, 64)]
    assert 1.8 < time[1] / time[0] < 2.8
    assert 3.0 < time[2] / time[0] < 4.5


@pytest.mark.parametrize("m", [0, -1.0, float("nan"), np.array([4.0, 0.0])])
def test_rows_that_are_not_positive_are_refused(m) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="M must be positive"):
        grouped(get_device("h200"), m, 128, 128, 4, weight_bytes=1e6)
