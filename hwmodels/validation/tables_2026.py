"""Errors of what was fitted to the measured tables of 2026, as the calibration files say them: they were found at the
fit, on shapes left out of it, and need no table to print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.fitted import Calibration, Parameters
from ..calibration.store import load_calibration
from ..device.load import get_device
from ..fitting.sources import data_table
from ..fitting.tables_2026 import DEVICES, TABLES, mine, roughness
from ..timing.parameters import TRANSFER_BANDS
from .transfer import CALIBRATED, device_errors

PRODUCTS = {"bf16": 5.0, "fp8": 5.0, "fp8_static": 5.0, "fp8_block": 5.0, "nvfp4": 8.0}
"""Kernel -> required mean error in percent."""
ATTENTION = {"prefill": 6.0, "decode": 8.0}
COLLECTIVES = 10.0
ROUGH = "roughness over K"
MOE = 12.0
MIXTURES = "Fused mixtures of experts of 2026, whole layers (hidden, inter, topk, experts) left out by hash"
TRANSFER = 15.0


def _calibrations() -> Iterator[tuple[str, Calibration]]:
    for name in CALIBRATED:
        table = load_calibration(str(get_device(name).calibration))
        assert table is not None
        yield name, table


def _of_2026(table: Calibration, found: Parameters) -> bool:
    return any(p["file"] == found.origin and p.get("year") == 2026 and "engine" in p for p in table.provenance)


def _roughness(data: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(Device, kernel) -> percent, where the folder holds the table of products of 2026."""
    if not (data / "measured_gemm_2026.csv").is_file():
        return {}
    table = data_table(data, "measured_gemm_2026")
    return {
        (DEVICES[which.device], f"{which.stack}_{kernel}"): {ROUGH: 100 * roughness(table, which, str(kernel))}
        for which in TABLES for kernel in mine(table, which).kernel.unique()
    }  # fmt: skip


def table_errors(data: Path | None = None) -> list[dict[str, Any]]:
    """Fields of `result.Group`: a line for every product kernel, and for every phase of attention and library of
    collectives of a device.

    Attention is taken together over an engine's head sizes, caches and windows, weighed by rows; latent attention and
    many query heads per KV head stand apart, without a required figure.

    Arguments:
        data: the folder of the tables, to tell how rough the times of each product kernel are; None leaves that out.
    """
    out: list[dict[str, Any]] = []
    rough = {} if data is None else _roughness(data)
    for device, table in _calibrations():
        for name, p in table.kernels.items():
            if _of_2026(table, p):
                kernel = name.partition("_")[2]
                out.append(
                    {"section": "Products of 2026, shapes (N, K) left out by hash", "name": f"{device} {name}",
                     "rows": p.rows, "mape": 100 * p.held_out_mape["all"], "required": PRODUCTS[kernel],
                     "detail": {k: 100 * v for k, v in p.held_out_mape.items()} | rough.get((device, name), {})}
                )  # fmt: skip
    for device, table in _calibrations():
        parts: dict[tuple[str, str, str], list[Parameters]] = {}
        for name, p in table.attention.items():
            if _of_2026(table, p):
                case, _, phase = name.partition(".")
                kind = " latent" if "_mla" in case else ""
                parts.setdefault((case.partition("_")[0], phase, kind), []).append(p)
        for (stack, phase, kind), found in parts.items():
            rows = sum(p.rows for p in found)
            error = sum(p.rows * p.held_out_mape["all"] for p in found) / rows
            out.append(
                {"section": "Attention of 2026, head counts left out by hash",
                 "name": f"{device} {stack}{kind} {phase}",
                 "rows": rows, "mape": 100 * error, "required": None if kind else ATTENTION.get(phase)}
            )  # fmt: skip
    for device, table in _calibrations():
        out += [
            {"section": MIXTURES, "name": f"{device} {name}", "rows": m.roofline.rows,
             "mape": 100 * m.roofline.held_out_mape["all"], "required": MOE,
             "detail": {k: 100 * v for k, v in m.roofline.held_out_mape.items()} | {"left out": 100 * m.untuned}}
            for name, m in table.moe.items()
        ]  # fmt: skip
    for device, table in _calibrations():
        for library in dict.fromkeys(c.library for c in table.collectives):
            curves = [c for c in table.collectives if c.library == library]
            out.append(
                {"section": "Collectives of 2026, every size left out in turn", "name": f"{device} {library}",
                 "rows": sum(len(c.message_bytes) for c in curves), "required": COLLECTIVES,
                 "mape": 100 * float(np.mean([c.held_out_mape for c in curves]))}
            )  # fmt: skip
    return out


def transfer_errors() -> list[dict[str, Any]]:
    """Fields of `result.Group`: each calibrated device predicted from the others, with the median error and the share
    of times inside the band in use."""
    errors = device_errors()
    keys = zip(errors.across, errors.sixteen_bit, errors.regime, strict=True)
    limits = np.array([TRANSFER_BANDS[str(separate), bool(wide)][str(regime)] for separate, wide, regime in keys])
    inside = (errors.ratio >= limits[:, 0]) & (errors.ratio <= limits[:, 1])
    return [
        {"section": "Each calibrated device predicted from the others", "name": str(device), "rows": len(mine),
         "mape": 100 * float(np.median(np.abs(mine.ratio - 1))), "required": TRANSFER,
         "coverage": float(inside[mine.index].mean()), "statistic": "median error"}
        for device, mine in errors.groupby("device")
    ]  # fmt: skip
