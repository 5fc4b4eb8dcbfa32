"""What every report states about the machine it ran on, and how it times."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_features() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return "unknown"
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "neon")
    return " ".join(f for f in wanted if f in flags)


def describe(*packages: str) -> list[str]:
    """Lines for the head of a report: processor, cores, versions, command."""
    import os

    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} absent")
    return [
        f"Machine: {cpu_name()}, {os.cpu_count()} cores ({cpu_features()}), {platform.system()}",
        f"Versions: Python {platform.python_version()}, {', '.join(versions)}",
        f"Command: python {' '.join(sys.argv)}",
    ]


def times(work: Callable[[], object], *, repeat: int = 15, warmup: int = 2) -> tuple[float, float]:
    """Best and median wall time of `work` in seconds."""
    for _ in range(warmup):
        work()
    samples = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return min(samples), statistics.median(samples)


def quiet_check() -> float:
    """How far a fixed piece of work varies now: median over best of a short loop. Near 1 on a quiet machine."""
    total = 0

    def spin() -> None:
        nonlocal total
        for i in range(200_000):
            total += i

    best, median = times(spin, repeat=9, warmup=1)
    return median / best
