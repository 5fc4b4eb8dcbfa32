"""Measured times of a user's table that cannot be what they say: a wrong unit, a row twice, faster than the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qsim.errors import QsimError

from ..device.device import Device
from .fit import Rows

if TYPE_CHECKING:
    import pandas as pd

FASTER = 0.9
"""A time may be a tenth below what the peaks allow: clocks above the one that a peak is stated at reach that."""
SLOWER = 300.0
"""No kernel in use takes so many times what the peaks need and a launch; a time in ms or us taken for seconds does."""
LAUNCH_S = 5e-6


def check_plausible(csv: str | Path, device: Device, table: pd.DataFrame, rows: Rows) -> None:
    """Refuse the first row that cannot be right.

    Arguments:
        csv: for the message.
        table: rows of one kernel: kernel, m, n, k, latency_s; its index counts the file's rows from 0.
        rows: the same with their times at the device's peaks.

    Raises:
        QsimError: the row and the rule.
    """
    again = table.duplicated(["kernel", "m", "n", "k", "latency_s"])
    if again.any():
        at = int(np.flatnonzero(again.to_numpy())[0])
        same = (table == table.iloc[at]).all(axis=1).to_numpy()
        first = table.index[int(np.flatnonzero(same)[0])] + 1
        raise QsimError(
            f"{csv}: row {table.index[at] + 1} repeats row {first}, time included, and would count twice: remove it"
        )
    floor = np.maximum(rows.flop_s, rows.memory_s)
    for wrong, rule in (
        (rows.time_s < FASTER * floor, "less than"),
        (rows.time_s > SLOWER * (floor + LAUNCH_S), f"more than {SLOWER:g} times"),
    ):
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            what = "operations" if rows.flop_s[at] > rows.memory_s[at] else "bytes"
            hint = (
                "are times in seconds, and do weights leave the cache between calls?" if rule == "less than"
                else "are times in seconds?"
            )  # fmt: skip
            raise QsimError(
                f"{csv}: row {table.index[at] + 1}: {rows.time_s[at]:.3g} s is {rule} the {floor[at]:.3g} s that "
                f"{device.name} needs for the {what} at their peak: {hint}"
            )
