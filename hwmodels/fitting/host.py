"""This computer as a device: measured bandwidth and matrix peak, and what a decode step's weights cost on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class HostMeasurement:
    """What was measured: read bandwidth (bytes/s), float32 matrix rate (FLOP/s), and fused kernels.

    `kernels` rows: scheme, M, N, K, bytes (what must move), seconds.
    """

    processor: str
    threads: int
    memory_bytes: float
    cache_bytes: float
    bandwidth_bytes_per_s: float
    float32_flop_per_s: float
    kernels: tuple[dict[str, Any], ...] = ()


def best_time(call: Callable[[], Any], *, least_s: float = 0.3, least_runs: int = 5) -> float:
    """Best of several runs of a call, seconds; the first is not counted."""
    call()
    best, start, runs = np.inf, time.perf_counter(), 0
    while runs < least_runs or time.perf_counter() - start < least_s:
        begin = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - begin)
        runs += 1
    return float(best)


def measure_bandwidth(nbytes: int = 1 << 29, threads: int | None = None) -> float:
    """Read bandwidth in bytes/s: all threads sum their share of one array, larger than most caches."""
    from concurrent.futures import ThreadPoolExecutor

    count = threads or os.cpu_count() or 1
    data = np.ones(nbytes // 8)
    parts = np.array_split(data, count)
    with ThreadPoolExecutor(count) as pool:
        return nbytes / best_time(lambda: list(pool.map(np.add.reduce, parts)), least_s=0.5)


def measure_gemm(size: int = 2048) -> float:
    """Float32 matrix rate in FLOP/s through NumPy's BLAS."""
    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    return 2.0 * size**3 / best_time(lambda: a @ b, least_s=0.5)


def measure_gemv(shapes: Sequence[tuple[int, int]], rotate_bytes: float = 1e9) -> list[dict[str, Any]]:
    """Float32 products with one row through NumPy: the unquantised decode that fused kernels are held against."""
    rows = []
    for n, k in shapes:
        copies = max(1, min(32, int(rotate_bytes / (4 * n * k))))
        weights = [np.ones((n, k), np.float32) for _ in range(copies)]
        x = np.ones(k, np.float32)
        seconds = best_time(lambda weights=weights, x=x: [w @ x for w in weights]) / copies  # type: ignore[misc]
        rows.append({"scheme": "fp32", "M": 1, "N": n, "K": k, "bytes": 4 * n * k, "seconds": seconds})
    return rows


def _memory_bytes() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return 8e9


def _cache_bytes() -> float:
    """Last-level cache from sysfs; 32 MB where it is not told."""
    best = 0.0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        scale = {"K": 1024, "M": 1024**2}.get(text[-1:], 1)
        digits = text.rstrip("KM")
        best = max(best, float(digits) * scale) if digits.isdigit() else best
    return best or 32e6


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measure_host(
    kernels: Sequence[dict[str, Any]] = (), *, shapes: Sequence[tuple[int, int]] = ((4096, 4096), (11008, 4096))
) -> HostMeasurement:
    """Measure this computer; `kernels` are rows of fused kernels timed by the caller, added to the float32 ones."""
    return HostMeasurement(
        processor=_processor(),
        threads=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        cache_bytes=_cache_bytes(),
        bandwidth_bytes_per_s=measure_bandwidth(),
        float32_flop_per_s=measure_gemm(),
        kernels=(*measure_gemv(shapes), *kernels),
    )


def host_device_toml(m: HostMeasurement) -> str:
    """The measured computer as a device file, ready for `--device host.toml`.

    The products of every format are priced at the measured float32 rate: a portable kernel dequantises and
    multiplies.
    """
    rate = m.float32_flop_per_s / 1e12
    source = f"measured here with {m.threads} threads"
    clean = m.processor.replace('"', "'")
    peaks = "".join(
        f'\n[compute.peaks.{name}]\naccumulate = "float32"\ndense_tflops = {rate:.4g}\n'
        f'source = "{source}, float32 BLAS"\n'
        for name in ("bfloat16", "float16", "int8", "float8_e4m3fn")
    )
    return (
        f'title = "{clean}"\nvendor = "host"\nkind = "cpu"\n\n[compute]\nunits = {m.threads}\n'
        f"vector_tflops = {rate:.4g}\n"
        f'{peaks}\n[memory]\nname = "RAM"\ncapacity_gbytes = {m.memory_bytes / 1e9:.4g}\n'
        f'bandwidth_gbytes_per_s = {m.bandwidth_bytes_per_s / 1e9:.4g}\n\n[on_chip]\nname = "last-level cache"\n'
        f"capacity_mbytes = {m.cache_bytes / 1e6:.4g}\n\n[sources]\n"
        f'"memory.bandwidth_gbytes_per_s" = "{source}: sum of 512 MB"\n"memory.capacity_gbytes" = "operating system"\n'
        f'"compute.units" = "threads"\n"on_chip.capacity_mbytes" = "operating system"\n'
        f'"compute.vector_tflops" = "{source}"\n'
    )


def host_speedups(m: HostMeasurement) -> list[dict[str, Any]]:
    """Measured and predicted speed-up of every fused kernel over the float32 product of the same shape.

    Predicted: both move their bytes at the measured bandwidth or multiply at the measured rate, whichever is longer. A
    kernel can be measured above it where the float32 product of BLAS does not reach that bandwidth itself.
    """
    base = {(r["M"], r["N"], r["K"]): r for r in m.kernels if r["scheme"] == "fp32"}
    out = []
    for r in m.kernels:
        other = base.get((r["M"], r["N"], r["K"]))
        if r["scheme"] == "fp32" or other is None:
            continue
        flop = 2.0 * r["M"] * r["N"] * r["K"]
        limit = [max(x["bytes"] / m.bandwidth_bytes_per_s, flop / m.float32_flop_per_s) for x in (other, r)]
        out.append(
            {"scheme": r["scheme"], "M": r["M"], "N": r["N"], "K": r["K"], "measured": other["seconds"] / r["seconds"],
             "predicted": limit[0] / limit[1], "gbytes_per_s": r["bytes"] / r["seconds"] / 1e9}
        )  # fmt: skip
    return out
