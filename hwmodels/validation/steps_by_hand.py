"""Llama-3-70B in 4 bit at one token, summed by hand from measured products: what a step's prediction must come to."""

from __future__ import annotations

from typing import Any

from ..fitting.sources import own_table
from ..prediction import predict

CASE = {"batch": 1, "context": 2048}
SCHEMES = {"w4a16-g128": "w4a16_g128_zp", "w4a16-g128-sym": "w4a16_g128"}
"""Scheme -> `fmt` of the recordings."""


def by_hand() -> list[dict[str, Any]]:
    """For each scheme: milliseconds of the four products of all layers as measured and as predicted, of the rest of the
    step, and of the step."""
    table = own_table("gemm_zero_points")
    out = []
    for scheme, fmt in SCHEMES.items():
        rows = table[(table.fmt == fmt) & (table.M == 1) & table.layer.str.startswith("l70b.")]
        p = predict("h200", "llama-3-70b", scheme, "decode", CASE["batch"], CASE["context"])
        products = sum(float(op.time_s) for op in p.operators if op.name in ("qkv", "o", "gate_up", "down"))
        rest = float(p.time_s) - products
        out.append(
            {"scheme": scheme, "layers": {r.layer.removeprefix("l70b."): 1e6 * r.median_s for r in rows.itertuples()},
             "measured_ms": 1e3 * p.architecture.layers * float(rows.median_s.sum()), "products_ms": 1e3 * products,
             "rest_ms": 1e3 * rest, "step_ms": 1e3 * float(p.time_s), "low_ms": 1e3 * float(p.low_s),
             "high_ms": 1e3 * float(p.high_s)}
        )  # fmt: skip
    return out
