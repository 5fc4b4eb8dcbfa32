"""The measured tables of 2026 (`measured_*_2026.csv`) as rows to fit: which tables there are, what their kernels do.

Engines that call the same library differ by 5 to 40 % on one shape, and versions of an engine by several: every table
of a device, an engine and a version is a calibration of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..device.device import Device
from ..device.load import get_device
from ..timing.families import get_family
from .field import Field, Part, hash_shapes
from .fit import Rows, Settings, gemm_rows

CITATION = (
    "ai-dynamo/aiconfigurator, commit 095f58a51c4ca8e61b66ec108d86f223f8d559ce, Apache-2.0; about 70 % of its shapes"
)

DEVICES = {
    "A100-SXM": "a100-sxm-80gb", "L40S": "l40s", "H100-SXM": "h100-sxm", "H200": "h200", "B200": "b200", "B300": "b300",
    "GB200": "gb200", "GB300": "gb300", "RTX-PRO-6000": "rtx-pro-6000",
}  # fmt: skip
"""Device of the tables -> device file."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that one version of an engine gave on one device; `stack` begins the names of its kernels."""

    device: str
    engine: str
    version: str
    stack: str


TABLES = tuple(
    Table(device=device, engine=engine, version=version, stack=stack)
    for device, engine, version, stack in (
        ("A100-SXM", "sglang", "0.5.10", "sglang"),
        ("A100-SXM", "vllm", "0.14.0", "vllm"),
        ("L40S", "trtllm", "1.3.0rc20", "trtllm13"),
        ("L40S", "vllm", "0.24.0", "vllm"),
        ("L40S", "sglang", "0.5.14", "sglang"),
        ("H100-SXM", "vllm", "0.24.0", "vllm"),
        ("H100-SXM", "sglang", "0.5.14", "sglang"),
        ("H100-SXM", "trtllm", "1.3.0rc20", "trtllm13"),
        ("H200", "vllm", "0.24.0", "vllm"),
        ("H200", "vllm", "0.22.0", "vllm022"),
        ("H200", "sglang", "0.5.14", "sglang"),
        ("H200", "trtllm", "1.3.0rc20", "trtllm13"),
        ("B200", "trtllm", "1.3.0rc20", "trtllm13"),
        ("B200", "trtllm", "1.2.0rc5", "trtllm12"),
        ("B200", "vllm", "0.24.0", "vllm"),
        ("B200", "vllm", "0.22.0", "vllm022"),
        ("B200", "sglang", "0.5.14", "sglang"),
        ("B300", "trtllm", "1.3.0rc20", "trtllm13"),
        ("B300", "vllm", "0.24.0", "vllm"),
        ("B300", "sglang", "0.5.10", "sglang"),
        ("GB200", "trtllm", "1.3.0rc20", "trtllm13"),
        ("GB200", "trtllm", "1.3.0rc17", "trtllm13rc17"),
        ("GB200", "vllm", "0.24.0", "vllm"),
        ("GB200", "vllm", "0.22.0", "vllm022"),
        ("GB200", "sglang", "0.5.14", "sglang"),
        ("GB300", "trtllm", "1.3.0rc20", "trtllm13"),
        ("GB300", "trtllm", "1.3.0rc10", "trtllm13rc10"),
        ("GB300", "vllm", "0.24.0", "vllm"),
        ("GB300", "sglang", "0.5.14", "sglang"),
        ("RTX-PRO-6000", "trtllm", "1.3.0rc20", "trtllm13"),
        ("RTX-PRO-6000", "vllm", "0.24.0", "vllm"),
        ("RTX-PRO-6000", "sglang", "0.5.14", "sglang"),
    )
)

GEMM_FIELD = Field(
    parts=(
        Part(size=0.195, reach={"x": 4.0, "a": 2.3, "b": 6.5}),
        Part(size=0.094, reach={"x": 0.56, "a": 0.38, "b": 2.0}),
        Part(size=0.051, reach={"x": 0.6, "a": 0.04, "b": 1.0}),
        Part(size=0.08, reach={"x": 2.1, "ab": 1.0}),
        Part(size=0.085, reach={"x": 1.5, "a": 1.5, "b": 10.0, "xa": 1.6}),
    ),
    noise=0.07,
)


def mine(table: Any, which: Table) -> Any:
    """The rows of one engine and version on one device."""
    return table[
        (table.device == which.device) & (table.engine == which.engine) & (table.version == which.version)
    ].reset_index(drop=True)


def product_rows(table: Any, which: Table, kernel: str) -> Rows:
    """Rows of a kernel of the product table; (N, K) is the shape."""
    t = mine(table, which)
    t = t[t.kernel == kernel]
    rows = gemm_rows(device_of(which), get_family(f"{which.stack}_{kernel}"), t.m, t.n, t.k, t.latency_s)
    return replace(rows, shape=hash_shapes(t[["n", "k"]].to_numpy()))


def product_settings(rows: Rows) -> Settings:
    """A grid whose knots are all measured sizes."""
    knots = tuple(np.log2(np.unique(v)) for v in (rows.x, rows.a, rows.b))
    return Settings(knots=knots, field=GEMM_FIELD, waves=False)  # type: ignore[arg-type]


def device_of(which: Table) -> Device:
    """The device that a table was measured on."""
    return get_device(DEVICES[which.device])


def least_calls(table: Any) -> dict[str, float]:
    """Device -> microseconds of the fastest 16-bit product of at most 16 x 1024 x 1024, the median of its engines and
    versions: `timing.kernel.LEAST_CALL_US`."""
    short = table[(table.kernel == "bf16") & (table.m <= 16) & (table.n <= 1024) & (table.k <= 1024)]
    best = short.groupby(["device", "engine", "version"]).latency_s.min().groupby("device").median()
    return {str(device): 1e6 * float(seconds) for device, seconds in best.items()}


def roughness(table: Any, which: Table, kernel: str, column: str = "latency_s") -> float:
    """How rough a kernel's times are (or its power, by another column): the mean over its rows of how far the logarithm
    of one lies from the line through the rows with the next smaller and larger K, at the same M and N. No smooth law
    misses rows left out by less."""
    t = mine(table, which)
    found = []
    for _, part in t[t.kernel == kernel].sort_values("k").groupby(["m", "n"]):
        x, y = np.log(part.k.to_numpy(float)), np.log(part[column].to_numpy(float))
        if len(y) > 2:
            share = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
            found.append(np.abs(y[1:-1] - y[:-2] * (1 - share) - y[2:] * share))
    return float(np.concatenate(found).mean()) if found else float("nan")
