"""How far to trust each number: what the tags mean, and predictions beside measurements."""

from __future__ import annotations

import numpy as np

from hwmodels.validation.validate import STEPS
from qsim.plots.measured import Compared, comparison_figure

from ..figure import Drawing, Figure, Section
from ..looks import column
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    """What the tags mean, and how many predictions carry which."""
    counts: dict[str, int] = {}
    for row in result.speed:
        counts[row.fidelity] = counts.get(row.fidelity, 0) + 1
    share = ", ".join(f"{100 * n / len(result.speed):.0f} % {tag}" for tag, n in sorted(counts.items()))
    return (
        "calibrated: kernels fitted to measurements of this device. transferred: efficiencies borrowed from the "
        "nearest measured device or assumed, with a wider band. ideal: the datasheet roofline, a lower bound. Of the "
        f"predictions of this study, {share}. Bands are 80 % bands: expect about one in five true values to fall "
        "outside."
    )


def _steps(result: StudyResult) -> Drawing | None:
    campaigns = dict(zip(STEPS.values(), ("first", "second"), strict=True))
    steps = [p for p in result.trust_points if p.section in campaigns]
    if not steps:
        return None
    groups = [
        Compared(label=f"{name}, {campaigns[section]} campaign",
                 measured_s=column(mine, "measured_s"), predicted_s=column(mine, "predicted_s"),
                 low_s=column(mine, "low_s"), high_s=column(mine, "high_s"))
        for section, name in dict.fromkeys((p.section, p.name) for p in steps)
        if (mine := [p for p in steps if (p.section, p.name) == (section, name)])
    ]  # fmt: skip
    m, p = np.concatenate([g.measured_s for g in groups]), np.concatenate([g.predicted_s for g in groups])
    low, high = np.concatenate([g.low_s for g in groups]), np.concatenate([g.high_s for g in groups])
    says = (
        f"{len(m)} whole steps measured on an H200, none of them fitted: mean error "
        f"{100 * np.mean(np.abs(p / m - 1)):.1f} %, {100 * np.mean((m >= low) & (m <= high)):.0f} % inside their 80 % "
        "band. Other devices rest on published kernel tables or on borrowed efficiencies; the tag beside every number "
        "says which."
    )
    return Drawing(title="Predicted against measured steps", says=says,
                   draw=lambda: comparison_figure(groups, both=False))  # fmt: skip


SECTION = Section(name="trust", title="How far to trust each number", short="How far to trust it", order=7, text=_text,
                  template="trust.html")  # fmt: skip
FIGURES = (Figure(name="predicted_measured", section="trust", make=_steps),)
