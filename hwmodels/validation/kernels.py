"""Today's kernels against their recordings: fused products, FP8 attention, and Marlin's published gains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.fitted import Quantizer
from ..calibration.store import load_calibration
from ..device.load import get_device
from ..fitting import humming
from ..fitting.fit import coverage, held_out
from ..fitting.fp8_attention import leave_one_out
from ..fitting.marlin import marlin_kernel, marlin_rows
from ..fitting.sources import data_table
from ..timing.families import get_family
from .result import points_of

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = {"humming_w4a16_g128": 5.0, "humming_w4a16_g128_zp": 5.0, "humming_w3a16_g128": 5.0}
OTHERS_REQUIRED = 7.0

Found = tuple[list[dict[str, Any]], "list[pd.DataFrame]"]
"""Arguments of `result.Group`, and the single rows behind them."""


def fused_products() -> Found:
    """The humming families, each layer left out in turn; `layer` adds the quantisation of activations, `product` is
    alone."""
    units, section = get_device("h200").compute.units, "H200 fused products of vLLM 2026, each layer left out in turn"
    bandwidth = get_device("h200").memory.bandwidth_bytes_per_s
    groups, points = [], []
    for fmt, kernel in humming.FORMATS.items():
        rows = humming.humming_rows(fmt)
        guess, fold, _ = held_out(rows, kernel, humming.settings_of(kernel), units)
        for part in ("product", "layer"):
            if part == "layer" and not get_family(kernel).layer_from_16_bit:
                continue
            measured = rows.time_s if part == "product" else humming.humming_rows(fmt, "layer").time_s
            predicted = guess if part == "product" else guess + _quantizer()(rows.x, rows.k, bandwidth)
            error = np.abs(predicted / measured - 1)
            detail = {
                name: 100 * float(error[mine].mean())
                for name, mine in (("M <= 16", rows.x <= 16), ("to 256", (rows.x > 16) & (rows.x <= 256)),
                                   ("above", rows.x > 256))
            }  # fmt: skip
            name = kernel if not get_family(kernel).layer_from_16_bit else f"{kernel}, {part}"
            groups.append(
                {"section": section, "name": name, "rows": len(rows), "mape": 100 * float(error.mean()),
                 "required": REQUIRED.get(kernel, OTHERS_REQUIRED),
                 "coverage": coverage(rows.x, measured, predicted, fold), "detail": detail}
            )  # fmt: skip
            points.append(points_of(section, name, rows.x, measured, predicted))
    return groups, points


def _quantizer() -> Quantizer:
    table = load_calibration("h200")
    assert table is not None
    return table.quantize["vllm-2026"]


def fp8_prefills() -> Found:
    """cuDNN's FP8 attention, each row left out in turn, by head size."""
    section = "H200 FP8 attention of cuDNN (causal prefill), each row left out in turn"
    table, guess = leave_one_out()
    measured, dim, seq = table.median_s.to_numpy(), table.head_dim.to_numpy(), table.seq.to_numpy(float)
    error = 100 * np.abs(guess / measured - 1)
    groups = [
        {"section": section, "name": name, "rows": int(mine.sum()), "mape": float(error[mine].mean()), "required": 7.0,
         "detail": {"2048 tokens and more": float(error[mine & (seq >= 2048)].mean())}}
        for name, mine in (("all", dim > 0), *((f"heads of {size}", dim == size) for size in np.unique(dim)))
    ]  # fmt: skip
    return groups, [points_of(section, "prefill", seq, measured, guess)]


def published_gains(data: Path) -> Found:
    """Marlin on Ampere, each published ratio left out in turn."""
    published = data_table(data, "published")
    fitted, rows = marlin_kernel(published), marlin_rows(published)
    section = "Marlin's published gains over 16 bit, each left out in turn"
    return [
        {"section": section, "name": "marlin_int4 on A10, RTX 3090, A6000, A100", "rows": len(np.unique(rows.shape)),
         "mape": 100 * fitted.held_out_mape["all"]}
    ], []  # fmt: skip
