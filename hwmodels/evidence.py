"""The evidence behind a number: the measured products nearest to an operator of a prediction, and what the law adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError, nearest
from qsim.tables import Table

from .device.device import Device
from .fitting import humming, sources
from .timing.execution import OperatorTime
from .timing.kernel import gemm
from .timing.parameters import calibration_named, kernel_parameters

if TYPE_CHECKING:
    import pandas as pd

MEASURED_ON = "h200"
"""The device of all recordings that ship with this package."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured product near an operator.

    Attributes:
        device, family, m, n, k: what was measured.
        measured_s, law_s: its time, and the law's at the same sizes.
        octaves: how far its sizes are: the root of the summed squares of log2 of the ratios of M, N and K.
    """

    device: str
    family: str
    m: int
    n: int
    k: int
    measured_s: float
    law_s: float
    octaves: float


def evidence(operators: Sequence[OperatorTime], operator: str, count: int = 5) -> Table[Point]:
    """The measured products nearest to an operator, the nearest first.

    Arguments:
        operators: the table of a prediction of one batch and context.
        operator: a matrix product of its operator table, such as `gate_up`.
        count: most rows.

    Returns:
        One row per measured product: device, family, M, N, K, measured and predicted microseconds, error of the law in
        percent, and distance in octaves. Iterating gives `Point`s. No rows where none of the recordings that ship hold
        the family; `basis` says what the law rests on then.

    Raises:
        QsimError: arrays of batches or contexts, or an operator that is no matrix product of the step.
    """
    row = _operator(operators, operator)
    points = [] if row.shape is None else _nearest(row.kernel, row.shape, count)
    return Table(
        columns=("device", "family", "M", "N", "K", "measured us", "law us", "error %", "octaves away"),
        rows=tuple(
            (p.device, p.family, p.m, p.n, p.k, round(1e6 * p.measured_s, 2), round(1e6 * p.law_s, 2),
             round(100 * (p.law_s / p.measured_s - 1), 1), round(p.octaves, 2))
            for p in points
        ),
        values=tuple(points),
    )  # fmt: skip


def basis(device: Device, operators: Sequence[OperatorTime], operator: str) -> str:
    """In a sentence, what the time of an operator rests on: family, generation, fit and where it was made."""
    row = _operator(operators, operator)
    used = kernel_parameters(device, row.kernel)
    error = used.held_out_mape.get("all")
    shapes = f", fitted on {used.shapes} shapes" if used.shapes else ""
    off = "" if error is None else f", {100 * error:.1f} % off on shapes left out"
    where = used.origin if used.kind == "transferred" else f"{used.origin}: {_source(device, used.origin)}"
    return f"{row.kernel}, {row.generation}: {used.kind} ({where}){shapes}{off}"


def _source(device: Device, origin: str) -> str:
    table = calibration_named(device.calibration)
    files = () if table is None else table.provenance
    return next((str(f.get("source", "")) for f in files if f.get("file") == origin), "of the user")


def _operator(operators: Sequence[OperatorTime], operator: str) -> OperatorTime:
    products = {row.name: row for row in operators if row.kind == "gemm"}
    if operator not in products:
        raise QsimError(nearest("matrix product of this step", operator, products))
    row = products[operator]
    if np.ndim(row.time_s):
        raise QsimError("evidence is for one batch and context: predict them alone")
    return row


def _nearest(kernel: str, shape: tuple[Any, float, float], count: int) -> list[Point]:
    table = measured_products(kernel)
    if table is None:
        return []
    sizes = table[["M", "N", "K"]].to_numpy(float)
    far = np.sqrt((np.log2(sizes / np.array([float(v) for v in shape])) ** 2).sum(axis=1))
    near = np.column_stack([sizes, table.median_s.to_numpy(float), far])[np.argsort(far, kind="stable")[:count]]
    law = np.asarray(gemm(MEASURED_ON, near[:, 0], near[:, 1], near[:, 2], kernel).time_s)
    return [
        Point(device=MEASURED_ON, family=kernel, m=int(m), n=int(n), k=int(k), measured_s=measured_s, law_s=law_s,
              octaves=octaves)
        for (m, n, k, measured_s, octaves), law_s in zip(near.tolist(), law.tolist(), strict=True)
    ]  # fmt: skip


def measured_products(kernel: str) -> pd.DataFrame | None:
    """M, N, K and median_s of the products of a family in the recordings that ship, None where they hold none."""
    fused = {family: fmt for fmt, family in humming.FORMATS.items()}
    own = {family: fmt for fmt, family in sources.OWN_FORMATS.items()}
    if kernel not in fused and kernel not in own:
        return None
    table: Any = humming.recorded(fused[kernel]) if kernel in fused else sources.own_gemm_rows(own[kernel])[1]
    found: pd.DataFrame = table.groupby(["M", "N", "K"], as_index=False).median_s.mean()
    return found
