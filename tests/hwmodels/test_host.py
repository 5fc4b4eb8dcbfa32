"""This computer as a device. Timings are made small here; the command takes about a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

import hwmodels
from hwmodels.fitting.host import (
    HostMeasurement,
    best_time,
    host_device_toml,
    host_speedups,
    measure_bandwidth,
    measure_gemm,
)


def _measured() -> HostMeasurement:
    kernels = (
        {"scheme": "fp32", "M": 1, "N": 4096, "K": 4096, "bytes": 4 * 4096**2, "seconds": 4 * 4096**2 / 20e9},
        {"scheme": "w4a16-g128", "M": 1, "N": 4096, "K": 4096, "bytes": 8_716_288, "seconds": 0.6e-3},
    )
    return HostMeasurement(
        processor='A "CPU"', threads=2, memory_bytes=8e9, cache_bytes=32e6, bandwidth_bytes_per_s=20e9,
        float32_flop_per_s=2e11, kernels=kernels,
    )  # fmt: skip


def test_the_host_file_is_a_device(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text(host_device_toml(_measured()))
    device = hwmodels.get_device(path)
    assert device.memory.bandwidth_bytes_per_s == 20e9
    p = hwmodels.predict(device, "llama-3.2-1b", "w4a16-g128", "decode", 1, 128)
    assert float(p.time_s) > 0.05  # 1.2e9 weights, half of them in 16 bit, at 20 GB/s
    assert p.fidelity == "transferred"


def test_speedups_stand_beside_what_bytes_allow() -> None:
    (row,) = host_speedups(_measured())
    assert row["measured"] == pytest.approx(5.592, rel=1e-3)
    assert row["predicted"] == pytest.approx(4 * 4096**2 / 8_716_288, rel=1e-3)


def test_measuring_gives_plausible_rates() -> None:
    assert 1e8 < measure_bandwidth(1 << 24) < 1e13
    assert 1e8 < measure_gemm(128) < 1e15
    assert best_time(lambda: None, least_s=0.001) < 1e-3
