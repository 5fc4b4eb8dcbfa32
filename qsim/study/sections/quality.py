"""What each method does to the model that was measured: a lesson on mechanisms where that is the embedded one."""

from __future__ import annotations

from qsim.plots.losses import Loss, loss_figure

from ..figure import Drawing, Figure, Section
from ..looks import marks, quality_of, titles
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    """What the quality figures show and what they do not."""
    m = result.measured
    scored = max((q.bytes_scored for q in result.quality), default=0)
    lesson = (
        f"{m.model} teaches mechanisms, not rankings: it has no outliers, and the answers above do not use its losses. "
        if m.model == "tiny" else ""
    )  # fmt: skip
    return lesson + (
        f"Loss is the bits per byte more than 16 bit ({m.base_bits_per_byte:.4f} ± {m.base_bits_per_byte_se:.4f}) on "
        f"{scored:,} bytes of {m.text}, or fewer where they settle on which side of the limit a method lies; its error "
        "is that of the difference, window by window, so it is far smaller than that of either. Numbers are those of "
        "the scheme's own formats, activations and KV cache included. A small model shows what each method does; "
        "neither the size of a loss nor the order of methods need carry over to a large one. The claims at the end of "
        "the page put published losses beside it."
    )


def _loss(result: StudyResult) -> Drawing | None:
    if not result.quality:
        return None
    q, looks, limit = quality_of(result), marks(result.spec.methods, titles(result)), result.spec.quality.max_loss
    rows = [
        Loss(mark=looks[m], loss=row.loss, loss_se=row.loss_se,
                  weights_only=q[m, "weights"].loss if (m, "weights") in q else None)
        for (m, variant), row in q.items() if variant == "full"
    ]  # fmt: skip
    names = titles(result)
    ordered = sorted((r for r in q.values() if r.variant == "full" and not r.method.startswith("none:")),
                     key=lambda r: r.loss)  # fmt: skip
    inside = [r for r in ordered if r.loss + 1.645 * r.loss_se <= limit]
    says = (
        f"{len(inside)} of {len(ordered)} methods stay within {limit:g} bits per byte of 16 bit; "
        f"{names[ordered[0].method]} loses least ({ordered[0].loss:+.4f}), {names[ordered[-1].method]} most "
        f"({ordered[-1].loss:+.3f}). The dashed line is that limit. Short upright bars are the same weights with "
        "activations kept in 16 bit. Losses below 0.002 are drawn on a linear scale, larger ones on a logarithmic one."
    )
    return Drawing(title="What each method loses", says=says,
                   draw=lambda: loss_figure(rows, limit=limit))  # fmt: skip


SECTION = Section(name="quality", title="What each method does to the measured model", short="Lesson: what methods do",
                  order=3.5, text=_text)  # fmt: skip
FIGURES = (Figure(name="quality_loss", section="quality", make=_loss, order=1),)
