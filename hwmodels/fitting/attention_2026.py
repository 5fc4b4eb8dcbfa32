"""Rows of the attention table of 2026: which kernels stand in it, and what they read and multiply.

A kernel is named `<stack><formats><heads>.<phase>`: formats `_kv8` for an FP8 cache with 16-bit products and `_qkv8`
for both in FP8; heads `_d64` for a head size of 64, `_w128` with a window of 128 tokens, `_mla` for latent attention.
Phase is `prefill`, `decode`, or `decode_wide` for more than 32 query heads per KV head in TensorRT-LLM, where it is
another kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..device.device import Device
from ..workload.operators import Cost, attention_cost
from .field import Field, Part, hash_shapes
from .fit import Rows, Settings
from .tables_2026 import Table, mine

WIDE_GROUP = 32
LEAST_ROWS = 60
LATENT = {"head_dim": 576, "value_dim": 512, "shared_kv": True}
EXPANDED = {"head_dim": 192, "value_dim": 128}
"""Latent attention in decode reads 512 + 64 numbers per token; in prefill engines expand them to heads of 128 + 64
(DeepSeek-V3)."""

LEFT_OUT = {("B200", "trtllm12"), ("GB300", "trtllm13rc10"), ("GB200", "trtllm13rc17"), ("GB200", "vllm022")}
"""Older tables that a newer one stands beside: the grouped decode rows of the first and third are faster than memory in
places, those of the second disagree with themselves by a fifth."""

PREFILL_FIELD = Field(
    parts=(
        Part(size=0.2, reach={"x": 5.0, "a": 4.0, "b": 6.0, "xa": 25.0}),
        Part(size=0.24, reach={"x": 5.2, "a": 14.0, "xa": 0.53}),
        Part(size=0.046, reach={"x": 0.87, "a": 0.29, "b": 1.65}),
        Part(size=0.052, reach={"b": 3.2, "ab": 1.14}),
    ),
    noise=0.08,
)
DECODE_FIELD = Field(
    parts=(
        Part(size=0.2, reach={"x": 3.7, "a": 2.2, "b": 5.0}),
        Part(size=0.18, reach={"x": 3.6, "a": 16.0, "b": 21.0, "xa": 0.29}),
        Part(size=0.049, reach={"b": 0.91, "ab": 2.4}),
        Part(size=0.03, reach={"x": 1.1, "a": 1.1, "b": 0.3}),
    ),
    noise=0.063,
)


def attention_tables(table: Any, which: Table) -> dict[str, Any]:
    """Kernel name -> its rows, for kernels with enough of them."""
    rows = mine(table, which)
    if (which.device, which.stack) in LEFT_OUT:
        return {}
    rows = rows[~_cached(rows, which.device)]
    wide = (rows.phase == "generation") & (rows.q_heads > WIDE_GROUP * rows.kv_heads) & (which.engine == "trtllm")
    out = {}
    for (phase, attn, kv, head_dim, window, far), part in rows.groupby(
        ["phase", "attn", "kv", "head_dim", "window", wide]
    ):
        name = which.stack + {("bf16", "fp8"): "_kv8", ("fp8", "fp8"): "_qkv8"}.get((attn, kv), "")
        name += "_mla" if phase.endswith("_mla") else "_d64" if head_dim == 64 else ""
        name += f"_w{window}" if window else ""
        name += ".prefill" if phase.startswith("context") else ".decode_wide" if far else ".decode"
        if len(part) >= LEAST_ROWS:
            out[name] = part
    return out


def _cached(rows: Any, device: str) -> Any:
    """Decode rows on L40S and RTX PRO 6000 whose K and V lie in the large L2 between calls, as a decoder's never do."""
    if device not in ("L40S", "RTX-PRO-6000"):
        return np.zeros(len(rows), dtype=bool)
    latent = rows.phase.str.endswith("_mla")
    width = np.where(latent, 576, 2 * rows.kv_heads * rows.head_dim) * np.where(rows.kv == "fp8", 1, 2)
    tokens = np.where(rows.window > 0, np.minimum(rows.seq, rows.window.clip(lower=1)), rows.seq)
    stored = 1.0 * rows.batch * tokens * width
    limit = np.where(rows.q_heads == rows.kv_heads, 400e6, 100e6)
    return rows.phase.str.startswith("generation") & (stored > 2e6) & (stored < limit)


def cost_of(table: Any) -> tuple[str, Cost]:
    """Phase and cost of rows of one kernel."""
    first = table.iloc[0]
    batch, seq, q, kv = (table[c].to_numpy(dtype=np.float64) for c in ("batch", "seq", "q_heads", "kv_heads"))
    phase = "prefill" if first.phase.startswith("context") else "decode"
    how: dict[str, Any] = {"head_dim": int(first.head_dim), "window": int(first.window) or None}
    if first.phase.endswith("_mla"):
        how = dict(LATENT if phase == "decode" else EXPANDED)
        kv = np.ones_like(q) if phase == "decode" else q
    bytes_per_element = 1.0 if first.kv == "fp8" else 2.0
    cost = attention_cost(
        phase, batch=batch, context=seq, q_heads=q, kv_heads=kv, kv_bytes_per_element=bytes_per_element, **how
    )
    return phase, cost


def attention_rows(table: Any, device: Device) -> Rows:
    """Rows of one kernel: x is the sequence, a batch * heads (KV heads in decode), b query heads per KV head."""
    phase, cost = cost_of(table)
    batch, seq, q, kv = (table[c].to_numpy(dtype=np.float64) for c in ("batch", "seq", "q_heads", "kv_heads"))
    latent = bool(table.phase.iloc[0].endswith("_mla"))
    if latent and phase == "prefill":
        kv = q
    peak = device.peak_flop_per_s("float8_e4m3fn" if table.attn.iloc[0] == "fp8" else "bfloat16")
    assert peak is not None
    shape = hash_shapes(np.stack([q, batch] if latent else [q, kv], axis=1))
    nothing = np.zeros(len(seq))
    return Rows(
        x=seq, a=batch * (q if phase == "prefill" else kv), b=q / kv, k=nothing, exp_s=nothing, known=nothing,
        flop_s=cost.flop * cost.tile_work / peak, memory_s=cost.traffic_bytes / device.memory.bandwidth_bytes_per_s,
        time_s=table.latency_s.to_numpy(dtype=np.float64), shape=shape,
    )  # fmt: skip


def attention_settings(rows: Rows, phase: str) -> Settings:
    """A grid: every measured sequence, octaves of batch * heads and of the group."""
    knots = tuple(_two(v) for v in (np.log2(np.unique(rows.x)), _octaves(rows.a), _octaves(rows.b)))
    field = PREFILL_FIELD if phase == "prefill" else DECODE_FIELD
    return Settings(tau=False, waves=False, knots=knots, field=field)  # type: ignore[arg-type]


def _octaves(values: Any) -> Any:
    low, high = np.floor(np.log2(values.min())), np.ceil(np.log2(values.max()))
    return np.arange(low, high + 1)


def _two(knots: Any) -> Any:
    return knots if len(knots) > 1 else np.array([knots[0], knots[0] + 1.0])
