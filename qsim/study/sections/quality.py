"""Quality against speed: what each method loses, and what it gains for it."""

from __future__ import annotations

from qsim.plots.losses import Loss, loss_figure
from qsim.plots.names import and_list, model_title
from qsim.plots.tradeoff import Tradeoff, tradeoff_figure

from ..figure import Drawing, Figure, Section
from ..looks import case_rows, first_model, marks, quality_of, titles
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    """What the quality figures show and what they do not."""
    m = result.measured
    scored = max((q.bytes_scored for q in result.quality), default=0)
    return (
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


def _tradeoff(result: StudyResult) -> Drawing | None:
    if not result.quality:
        return None
    case = next((c for c in result.spec.cases if c.phase == "decode"), None)
    if case is None:
        return None
    q, looks, model = quality_of(result), marks(result.spec.methods, titles(result)), first_model(result)
    data: dict[str, list[Tradeoff]] = {}
    for r in case_rows(result, case.name, model):
        if not r.fits:
            continue
        for m in (m for m in result.spec.methods if m.scheme == r.scheme and (m.name, r.executed) in q):
            row = q[m.name, r.executed]
            rate, low, high = (r.tokens_per_s * r.time_s / t for t in (r.time_s, r.high_s, r.low_s))
            data.setdefault(r.device, []).append(
                Tradeoff(mark=looks[m.name], loss=row.loss, loss_se=row.loss_se, rate=rate, low=low, high=high)
            )
    if not data:
        return None
    best = _sentence_of_choice(result, case.name, model)
    says = (
        "Up is faster, left is better; the grey line joins what nothing beats in both, the grey area loses more than "
        f"the limit of {result.spec.quality.max_loss:g} bits per byte. {best}"
    )
    return Drawing(says=says,
        title=f"Quality against speed: {model_title(model)}, batch {case.batch}, {case.context} tokens",
        draw=lambda: tradeoff_figure(data, limit=result.spec.quality.max_loss, ylabel="tokens/s"),
    )  # fmt: skip


def _sentence_of_choice(result: StudyResult, case: str, model: str) -> str:
    names = titles(result)
    chosen: dict[str, list[str]] = {}
    for d in result.decisions:
        if (d.case, d.model) == (case, model) and d.method:
            chosen.setdefault(names[d.method], []).append(d.device)
    parts = [f"{name} on {and_list(devices)}" for name, devices in chosen.items()]
    return f"Within the limit the answer is {and_list(parts)}." if parts else ""


SECTION = Section(name="quality", title="Quality against speed", order=2, text=_text)
FIGURES = (
    Figure(name="quality_loss", section="quality", make=_loss, order=1),
    Figure(name="quality_speed", section="quality", make=_tradeoff, order=2),
)
