"""Errors of the power of boards, as the calibration files say them: they were found at the fit, on rows left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.store import load_calibration
from ..device.load import get_device
from ..fitting.sources import data_table
from ..fitting.tables_2026 import DEVICES, TABLES, mine, roughness
from ..timing.power import MEASURED
from .tables_2026 import ROUGH

REQUIRED = 8.0
LOOPS = "Power that the sensor shows of one product's loop, shapes (N, K) left out by hash"
ROUGH_LONG, LONG_S = "of calls of 0.1 ms and more", 1e-4
"""The sensor averages over about a second: of short calls it shows what ran before as well."""
LAW = "Power law of an H200, each of our loops left out in turn"
OTHERS = "Power laws on the tables' rows that wait for memory; their sensor alone differs by a quarter on equal work"


def _roughness(data: Path | None) -> dict[tuple[str, str], dict[str, float]]:
    """(Device, kernel) -> percent, where the folder holds the table of products of 2026."""
    if data is None or not (data / "measured_gemm_2026.csv").is_file():
        return {}
    table = data_table(data, "measured_gemm_2026")
    table = table[table.power_w.notna()]
    found = {}
    for which in (which for which in TABLES if get_device(DEVICES[which.device]).calibration in MEASURED):
        for kernel in mine(table, which).kernel.unique():
            parts = {ROUGH: table, ROUGH_LONG: table[table.latency_s >= LONG_S]}
            values = {name: roughness(part, which, kernel, "power_w") for name, part in parts.items()}
            known = {name: 100 * value for name, value in values.items() if np.isfinite(value)}
            found[str(DEVICES[which.device]), f"{which.stack}_{kernel}"] = known
    return found


def power_errors(data: Path | None = None) -> list[dict[str, Any]]:
    """Fields of `result.Group`: kinds of loops that laws were judged on, and kernels with a field of their own.

    Arguments:
        data: the folder of the tables, to tell how rough the power of each kernel is; None leaves that out.
    """
    out: list[dict[str, Any]] = []
    rough = _roughness(data)
    for name in MEASURED:
        table = load_calibration(name)
        assert table is not None
        assert table.power is not None
        for kind, error in table.power.held_out.items():
            own = not kind.startswith("tables: ")
            out.append(
                {"section": LAW if own else OTHERS, "name": f"{name} {kind.removeprefix('tables: ')}",
                 "rows": table.power.counts[kind], "mape": 100 * error, "required": REQUIRED if own else None}
            )  # fmt: skip
    for name in MEASURED:
        table = load_calibration(name)
        assert table is not None
        out += [
            {"section": LOOPS, "name": f"{name} {loop.kernel}", "rows": loop.rows, "mape": 100 * loop.held_out_mape,
             "required": REQUIRED, "detail": rough.get((name, loop.kernel), {})}
            for loop in table.loop_power.values()
        ]  # fmt: skip
    return sorted(out, key=lambda entry: [LAW, OTHERS, LOOPS].index(entry["section"]))
