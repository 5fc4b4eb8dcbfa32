"""Errors of the power of boards, as the calibration files say them: they were found at the fit, on rows left out."""

from __future__ import annotations

from typing import Any

from ..calibration.store import load_calibration
from ..timing.power import MEASURED

REQUIRED = 8.0
LOOPS = "Power that the sensor shows of one product's loop, shapes (N, K) left out by hash"
LAW = "Power law of an H200, each of our loops left out in turn"
OTHERS = "Power laws on the tables' rows that wait for memory; their sensor alone differs by a quarter on equal work"


def power_errors() -> list[dict[str, Any]]:
    """Fields of `result.Group`: kinds of loops that laws were judged on, and kernels with a field of their own."""
    out: list[dict[str, Any]] = []
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
             "required": REQUIRED}
            for loop in table.loop_power.values()
        ]  # fmt: skip
    return sorted(out, key=lambda entry: [LAW, OTHERS, LOOPS].index(entry["section"]))
