"""The measured tables that calibrations are fitted on, as rows: our own, and the published ones of a data folder."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError

from ..calibration.fitted import Borrowed
from ..calibration.grid import Grid
from ..calibration.store import load_calibration
from ..device.device import Device
from ..device.load import get_device
from ..timing.families import get_family
from ..workload.operators import grouped_cost
from .fit import Rows, Settings, gemm_rows

OWN_FORMATS = {
    "bf16": "cublas_bf16",
    "fp8": "cublas_fp8",
    "fp8_row": "cublas_fp8_rowwise",
    "int8": "cublas_int8",
    "int4": "tinygemm_int4",
}
"""`fmt` of our tables -> kernel family."""

OWN_GROUPED = {"bf16": "torch_grouped_bf16", "fp8_rowwise": "torch_grouped_fp8"}
"""`fmt` of `gemm_grouped.csv` -> kernel family."""
GROUPED_DEVICES = {"h100-sxm": "H100", "h200": "H200"}

TABLE_DEVICES = {"A100-SXM": "a100-sxm-80gb", "L40S": "l40s", "H100-SXM": "h100-sxm", "H200": "h200"}
TABLE_KERNELS = {
    "bf16": "trtllm_bf16",
    "fp8": "trtllm_fp8",
    "fp8_block": "trtllm_fp8_block",
    "int4_wo": "trtllm_int4_wo",
    "int8_wo": "trtllm_int8_wo",
    "sq": "trtllm_sq",
}
"""`kernel` of the published table -> kernel family."""

TABLE_CITATION = (
    "ai-dynamo/aiconfigurator, commit 095f58a51c4ca8e61b66ec108d86f223f8d559ce, Apache-2.0: measured with "
    "TensorRT-LLM; a random subset of its shapes"
)

GROUPED_SETTINGS = Settings(ridge=(), tau=False, folds=99)
RIDGES = (0.1, 0.3, 1.0, 3.0)
_OWN = Settings(ridge=RIDGES, neighbours=True, folds=99)
OWN_SETTINGS = {kernel: replace(_OWN, tau=kernel != "tinygemm_int4") for kernel in OWN_FORMATS.values()}
OWN_SHAPES = {"cublas_bf16": ("trtllm_bf16", 1.0), "cublas_fp8": ("trtllm_bf16", 0.5)}
"""Our kernel -> the kernel of the published H200 table that comes from the same library (cuBLASLt), and the scale of K:
what that table says of a shape is taken over, and only the rest is fitted on our rows."""

_SIZES = np.log2([1024.0, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384])


def table_settings(rows: Rows) -> Settings:
    """A grid: every measured M, and knots of N and K half an octave apart."""
    wide = np.append(_SIZES, 16.0) if rows.a.max() > 2**14 else _SIZES
    return Settings(knots=(_measured(rows.x), wide, _SIZES))


def exp_weight(phase: str) -> float:
    """How much of the exponentials' time a prefill does not hide, as fitted in `calibration.flash`; decode reads."""
    shipped = load_calibration("h100")
    return shipped.attention["fa3.prefill"].exp_weight if shipped is not None and phase == "prefill" else 0.0


def attention_settings(rows: Rows, phase: str) -> Settings:
    """A grid: every measured sequence, octaves of batch * heads and of the group."""
    groups = np.unique([*_octaves(rows.b), np.log2(rows.b.max())])
    groups = groups if len(groups) > 1 else np.array([0.0, 1.0])
    knots = (_measured(rows.x), _octaves(rows.a), groups)
    return Settings(tau=False, waves=False, exp_weight=exp_weight(phase), knots=knots)


def _measured(values: Any) -> Any:
    return np.unique(np.round(np.log2(values), 6))


def _octaves(values: Any) -> Any:
    return np.arange(np.floor(np.log2(values.min())), np.ceil(np.log2(values.max())) + 1)


def own_table(name: str) -> Any:
    """One of our measured tables (`gemm`, `gemm_unseen`, `attention`, ...) as a DataFrame."""
    import pandas as pd

    with resources.as_file(resources.files("hwmodels") / "measurements" / f"{name}.csv") as path:
        return pd.read_csv(path)


def data_table(folder: str | Path, name: str) -> Any:
    """A table of the data folder.

    Raises:
        ValueError: the folder does not hold it.
    """
    import pandas as pd

    path = Path(folder) / f"{name}.csv"
    if not os.path.isfile(path):
        raise QsimError(f"{path} does not exist: --data names the folder with {name}.csv")
    return pd.read_csv(path)


def grouped_rows(device: str, fmt: str) -> Rows:
    """Our grouped products of one device; the rows of a model are held out together."""
    table, value, family = own_table("gemm_grouped"), get_device(device), get_family(OWN_GROUPED[fmt])
    t = table[(table.fmt == fmt) & table.device.str.contains(GROUPED_DEVICES[device])]
    m, active, n, k = (v.to_numpy(float) for v in (t.tokens * t.chosen / t.active, t.active, t.N, t.K))
    weight = active * n * (k * family.weight_bits / 8 + (4 if fmt == "fp8_rowwise" else 0))  # and a scale per row
    cost = grouped_cost(
        m, n, k, active, weight_bytes=weight, operand=family.activation_bytes, output=family.output_bytes
    )
    peak = value.peak_flop_per_s(family.compute)
    assert peak is not None
    return Rows(
        x=m, a=n * active, b=k, k=k, time_s=t.median_s.to_numpy(), shape=np.unique(t.model, return_inverse=True)[1],
        flop_s=cost.flop * cost.tile_work / peak, memory_s=cost.traffic_bytes / value.memory.bandwidth_bytes_per_s,
        known=np.zeros(len(t)), exp_s=np.zeros(len(t)),
    )  # fmt: skip


def own_gemm_rows(fmt: str, table: str = "gemm_settled") -> tuple[Rows, Any]:
    """Our rows of a format and their table: `gemm_settled`, which fits use, or another that holds products.

    Rows marked `after_load` are left out: for a tenth of a second after a power-limited load the clock is still low.
    """
    mine = own_table(table)
    mine = mine[mine.fmt == fmt]
    if "after_load" in mine:
        mine = mine[mine.after_load == 0].assign(median_s=mine.median_us * 1e-6)
    mine = mine.reset_index(drop=True)
    device = get_device("h200")
    family = get_family(OWN_FORMATS[fmt])
    rows = gemm_rows(device, family, mine.M, mine.N, mine.K, mine.median_s)
    known = own_shape(family.name)
    if known is not None:
        rows = replace(rows, known=known(rows.x, rows.a, rows.b, device.compute.units))
    return rows, mine


def repeat_band(fmt: str) -> tuple[float, float]:
    """Factors between which 80 % of repeated measurements of a layer lie, in another process or on another machine."""
    table = own_table("gemm_settled")
    mine = table[(table.fmt == fmt) & (table.after_load == 0)]
    again = mine.run.str.startswith("repeat")
    key = ["N", "K", "M"]
    ratio = mine[again].groupby(key).median_us.mean() / mine[~again].groupby(key).median_us.mean()
    low, high = np.quantile(ratio.dropna(), [0.1, 0.9])
    return float(low), float(high)


def own_shape(kernel: str) -> Borrowed | None:
    """What one of our kernels takes over from the published table, by the calibration that ships."""
    if kernel not in OWN_SHAPES:
        return None
    donor, scale = OWN_SHAPES[kernel]
    shipped = load_calibration("h200")
    grid = shipped.kernels[donor].surface if shipped is not None else None
    assert isinstance(grid, Grid)
    return Borrowed(kernel=donor, k_scale=scale, grid=grid)


def table_gemm_rows(table: Any, device: str, kernel: str) -> Rows:
    """Rows of the published product table of one device and kernel (names as in the table)."""
    mine = table[(table.device == device) & (table.kernel == kernel)]
    value = get_device(TABLE_DEVICES[device])
    return gemm_rows(value, get_family(TABLE_KERNELS[kernel]), mine.m, mine.n, mine.k, mine.latency_s)


def attention_rows(device: Device, phase: str, table: Any) -> Rows:
    """Rows of an attention table (`batch, seq, q_heads, kv_heads` and a time); bf16 queries and cache, heads of 128."""
    from ..workload.operators import attention_cost

    time = (table.latency_s if "latency_s" in table else table.median_s).to_numpy(dtype=np.float64)
    batch, seq, q, kv = (table[c].to_numpy(dtype=np.float64) for c in ("batch", "seq", "q_heads", "kv_heads"))
    head_dim = table.head_dim.to_numpy(dtype=np.float64) if "head_dim" in table else 128.0
    cost = attention_cost(phase, batch=batch, context=seq, q_heads=q, kv_heads=kv, head_dim=head_dim)
    peak = device.peak_flop_per_s("bfloat16")
    assert peak is not None
    _, shape = np.unique(np.stack([q, kv]), axis=1, return_inverse=True)
    return Rows(
        x=seq, a=batch * (q if phase == "prefill" else kv), b=q / kv, k=np.zeros_like(seq), time_s=time,
        shape=shape.reshape(-1), flop_s=cost.flop * cost.tile_work / peak,
        exp_s=cost.exp * cost.tile_work / (device.compute.exp_per_s or np.inf),
        memory_s=cost.traffic_bytes / device.memory.bandwidth_bytes_per_s,
        known=np.zeros(len(seq)),
    )  # fmt: skip


def table_attention(table: Any, device: str, phase: str) -> Any:
    """The usable rows of the published attention table.

    Left out, as its README advises: A100 decode with grouped heads (faster than memory in places), and L40S decode
    whose K and V lie in the L2 between calls (2 MB to 100 MB, or to 400 MB without
    grouping), which a decoder never has.
    """
    mine = table[(table.device == device) & (table.phase == ("context" if phase == "prefill" else "generation"))]
    if phase == "prefill":
        return mine
    if device == "A100-SXM":
        return mine[mine.q_heads == mine.kv_heads]
    if device == "L40S":
        kv_bytes = 4.0 * mine.batch * mine.seq * mine.kv_heads * 128
        limit = np.where(mine.q_heads == mine.kv_heads, 400e6, 100e6)
        return mine[(kv_bytes < 2e6) | (kv_bytes > limit)]
    return mine
