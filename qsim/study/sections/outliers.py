"""Outliers: those of the measured model, and what methods lose where it is given those of published ones."""

from __future__ import annotations

from qsim.plots.losses import QualityPoint, quality_figure
from qsim.plots.names import and_list

from ..figure import Drawing, Figure, Section
from ..looks import titles
from ..result import StudyResult

LARGE = 0.05
"""Share of the 16-bit bits per byte from which a loss is called large."""


def _text(result: StudyResult) -> str:
    """What was looked at, and what the profiles are."""
    if not result.verdicts:
        return ""
    keeps = [v.title for v in result.verdicts if v.answer == "keeps"]
    others = [f"{v.title} {v.answer} ({v.why})" for v in result.verdicts if v.answer != "keeps"]
    text = f"Outliers of {result.measured.model}, from the inputs and weights of every layer. "
    if keeps:
        text += f"Nothing stands out for {and_list(keeps)}. "
    text += f"{'; '.join(others)}. " if others else ""
    if result.profiles:
        text += (
            "A small model has next to no outliers. So it is also given those of published models, by factors that "
            "change nothing of what it computes in 16 bit: channels as in OPT-13B, a massive start token as in "
            "Llama-2-7B, wide rows of the first blocks' weights as in Llama-3-70B. What reads an enlarged channel has "
            "smaller weights here, so rounding weights costs more than in those models. qsim outliers MODEL says what "
            "a model has."
        )
    return text


def _profiles(result: StudyResult) -> Drawing | None:
    if not result.profiles:
        return None
    from qsim.methods.registry import METHODS

    names = titles(result)
    labels = {
        m.name: METHODS[m.algorithm].title if m.algorithm in METHODS else m.algorithm for m in result.spec.methods
    }
    points = [
        QualityPoint(section=row.profile, name=names[row.method], method=labels[row.method], loss=row.loss,
                     error=row.loss_se)
        for row in result.profiles
    ]  # fmt: skip
    parts = []
    for profile in dict.fromkeys(row.profile for row in result.profiles):
        bad = [names[r.method] for r in result.profiles if r.profile == profile
               and r.loss - 2 * r.loss_se > LARGE * r.base_bits_per_byte]  # fmt: skip
        parts.append(f"{profile}: {and_list(bad) if bad else 'none'}")
    says = (
        f"These methods lose more than {LARGE:.0%} of the 16-bit bits per byte. {'; '.join(parts)}. Scored on "
        f"{result.profiles[0].bytes_scored:,} bytes."
    )
    return Drawing(title="What methods lose where a model has outliers", says=says,
                   draw=lambda: quality_figure(points))  # fmt: skip


SECTION = Section(name="outliers", title="Outliers, and what they break", short="Outliers", order=4.5, text=_text,
                  template="outliers.html")  # fmt: skip
FIGURES = (Figure(name="outlier_profiles", section="outliers", make=_profiles),)
