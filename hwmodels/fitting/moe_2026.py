"""Rows of the table of fused mixture-of-experts layers of 2026: which kernels stand in it, and what they do.

A layer is one operator here: routing from given logits, permutation, both grouped products, run-time quantisation and
the weighted sum. Engines choose among several kernels by the number of tokens: of each format the newest version of an
engine counts with the fastest of its kernels at each size, as an engine's tuner would pick.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..calibration.fitted import Parameters
from ..device.load import get_device
from ..timing.moe import FORMATS, layer_cost
from .field import Field, Part, hash_shapes
from .fit import Rows, Settings, fit_and_judge
from .tables_2026 import DEVICES

STACKS = {"trtllm": "trtllm13", "vllm": "vllm", "sglang": "sglang"}
"""Engine of the table -> first part of a kernel's name, as in `tables_2026`."""
UNGATED = "nongated"
LEAST_ROWS = 60
SIZES = ["tokens", "hidden", "inter", "topk", "experts", "moe_tp", "moe_ep"]

FIELD = Field(
    parts=(
        Part(size=0.3, reach={"x": 4.0, "a": 4.0, "b": 4.0}),
        Part(size=0.15, reach={"x": 1.5, "a": 3.0, "b": 3.0}),
        Part(size=0.1, reach={"x": 1.0, "a": 0.7, "b": 2.0}),
    ),
    noise=0.1,
)


def moe_tables(table: Any, device: str) -> Iterator[tuple[str, Any]]:
    """Kernel name and its rows, balanced ones and skewed ones apart, for kernels with enough of them."""
    mine = table[(table.device == device) & (table.kernel != UNGATED)]
    for (engine, dtype, routing), part in mine.groupby(["engine", "dtype", "routing"]):
        if dtype not in FORMATS:
            continue
        newest = max(part.version, key=lambda v: [int(p) for p in v.replace("rc", ".").split(".")])
        part = part[part.version == newest]
        part = part.loc[part.groupby(SIZES).latency_s.idxmin()].reset_index(drop=True)
        if len(part) >= LEAST_ROWS:
            yield f"{STACKS[engine]}_moe_{dtype}" + ("" if routing == "balanced" else "_skewed"), part


def moe_rows(table: Any, name: str, device: str) -> Rows:
    """Rows of one kernel: x is the tokens, a the weights of a matrix of one expert, b the experts of the GPU."""
    value = get_device(DEVICES[device])
    t = {c: table[c].to_numpy(dtype=np.float64) for c in (*SIZES, "latency_s")}
    dtype = name.removesuffix("_skewed").partition("_moe_")[2]
    cost = layer_cost(dtype, **{c: t[c] for c in SIZES})
    peak = value.peak_flop_per_s(FORMATS[dtype].compute)
    assert peak is not None
    nothing = np.zeros(len(table))
    return Rows(
        x=t["tokens"], a=t["hidden"] * t["inter"] / t["moe_tp"], b=t["experts"] / t["moe_ep"], k=nothing,
        exp_s=nothing, known=nothing, flop_s=cost.flop / peak,
        memory_s=cost.traffic_bytes / value.memory.bandwidth_bytes_per_s, time_s=t["latency_s"],
        shape=hash_shapes(table[["hidden", "inter", "topk", "experts"]].to_numpy()),
    )  # fmt: skip


def moe_settings(rows: Rows) -> Settings:
    """A grid of the measured token counts and octaves of the widths and of the experts."""
    octaves = [np.arange(np.floor(np.log2(v.min())), np.ceil(np.log2(v.max())) + 1) for v in (rows.a, rows.b)]
    knots = (np.log2(np.unique(rows.x)), *(k if len(k) > 1 else np.array([k[0], k[0] + 1]) for k in octaves))
    return Settings(knots=knots, field=FIELD, waves=False, tau=False)  # type: ignore[arg-type]


def moe(table: Any, device: str) -> dict[str, Parameters]:
    """Every kernel of a device, judged on whole layers (hidden, inter, topk, experts) left out by hash."""
    out = {}
    for name, part in moe_tables(table, device):
        rows = moe_rows(part, name, device)
        if len(np.unique(rows.shape)) > 2:
            out[name] = fit_and_judge(rows, name, moe_settings(rows), None)
    return out
