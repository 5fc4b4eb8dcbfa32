"""How far to trust the predictions: their errors on what no fit has seen, and what people claim beside what we get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hwmodels.timing.parameters import calibration_of
from hwmodels.validation.claims import seed_claims
from hwmodels.validation.validate import validate

from .hardware import devices
from .rows import ClaimRow, QualityRow, SpeedRow, TrustPoint, TrustRow
from .spec import StudySpec

AWQ_TABLE_4 = {  # WikiText-2 perplexity of Llama-2-7B, group 128: (16 bit, RTN, GPTQ, AWQ)
    4: (5.47, 5.73, 5.69, 5.60),
    3: (5.47, 6.66, 6.43, 6.24),
}
POINTS_A_GROUP = 150


def trust_tables(layers: bool = True) -> tuple[tuple[TrustRow, ...], tuple[TrustPoint, ...]]:
    """The validation of `hwmodels` on our own measurements; points of large groups are thinned evenly.

    Arguments:
        layers: fit the kernels again without each layer, which takes longest.
    """
    found = validate(None, layers=layers)
    groups = tuple(
        TrustRow(section=g.section, group=g.name, rows=g.rows, error_percent=float(g.mape),
                 required_percent=g.required, met=None if g.passed is None else bool(g.passed),
                 in_band=None if g.coverage is None else float(g.coverage))
        for g in found.groups
    )  # fmt: skip
    points: list[TrustPoint] = []
    for (section, name), table in found.points.groupby(["section", "name"], sort=False):
        pick = np.unique(np.linspace(0, len(table) - 1, min(POINTS_A_GROUP, len(table))).astype(int))
        rows: Any = table.iloc[pick]
        points += [
            TrustPoint(section=str(section), name=str(name), measured_s=float(r.measured_s),
                       predicted_s=float(r.predicted_s), low_s=float(r.low_s), high_s=float(r.high_s))
            for r in rows.itertuples()
        ]  # fmt: skip
    return groups, tuple(points)


def kernel_rows(spec: StudySpec, speed: Sequence[SpeedRow]) -> Iterator[TrustRow]:
    """Errors on shapes left out of the fit, of every kernel that the study's predictions used on its own device."""
    used = sorted({(row.device, row.kernel) for row in speed})
    found = devices(spec)
    for device, kernel in used:
        own = calibration_of(found[device])
        parameters = None if own is None else own.kernels.get(kernel)
        if parameters is None or parameters.kind != "calibrated" or "all" not in parameters.held_out_mape:
            continue
        yield TrustRow(
            section="Kernels that this study used, shapes left out of the fit", group=f"{device} {kernel}",
            rows=parameters.rows, error_percent=100 * parameters.held_out_mape["all"], required_percent=None, met=None,
            in_band=None,
        )  # fmt: skip


def claim_rows(quality: Sequence[QualityRow]) -> Iterator[ClaimRow]:
    """Claims about speed and size as `hwmodels` computes them, and one about quality as measured here."""
    for c in seed_claims():
        yield ClaimRow(
            topic="speed and size", claim=c.text, source="", case=c.case, claimed="", value=float(c.value),
            low=float(c.low), high=float(c.high), unit=c.unit, fidelity=c.fidelity, verdict=c.verdict,
        )  # fmt: skip
    yield from _quality_claims(quality)


def _quality_claims(quality: Sequence[QualityRow]) -> Iterator[ClaimRow]:
    """How much of round-to-nearest's damage GPTQ and AWQ leave, here and in the AWQ paper."""
    mine = {q.method: q for q in quality if q.variant == "full"}
    for bits, (base, rtn, gptq, awq) in AWQ_TABLE_4.items():
        ground = mine.get(f"rtn:w{bits}a16-g128")
        for name, published in (("gptq", gptq), ("awq", awq)):
            row = mine.get(f"{name}:w{bits}a16-g128")
            if ground is None or row is None or ground.loss <= 0:
                continue
            claimed = np.log(published / base) / np.log(rtn / base)
            value = row.loss / ground.loss
            spread = 1.28 * np.hypot(row.loss_se, value * ground.loss_se) / ground.loss  # 80 %
            yield ClaimRow(
                topic="quality", claim=f"{name.upper()} leaves {100 * claimed:.0f} % of the loss of RTN at {bits} bits",
                source="AWQ, arXiv:2306.00978, table 4: Llama-2-7B, WikiText-2, group 128",
                case=f"the measured model, {name.upper()} against RTN, {bits} bits, group 128",
                claimed=f"{claimed:.2f}", value=float(value), low=float(value - spread), high=float(value + spread),
                unit="of RTN's loss", fidelity="measured", verdict="another model and text: the order is what carries",
            )  # fmt: skip
