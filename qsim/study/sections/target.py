"""Quality against speed on the target model: what each method is expected to lose, and what it gains for it."""

from __future__ import annotations

from qsim.plots.names import and_list, chip_title, model_title
from qsim.plots.tradeoff import Tradeoff, tradeoff_figure

from ..figure import Drawing, Figure, Section
from ..looks import case_rows, expected_of, first_model, marks, titles
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    if not result.expected:
        return ""
    counts: dict[str, int] = {}
    for e in result.expected:
        if e.model == first_model(result) and e.variant == "full" and e.basis != "exact":
            counts[e.basis] = counts.get(e.basis, 0) + 1
    said = and_list([f"{count} {basis}" for basis, count in counts.items()] or ["nothing"])
    return (
        "What a method loses on a target is expected from published losses of that model and of models near it, as "
        "percent of an average 16-bit score, with an 80 % band: perplexity and scores joined. Its badge says what it "
        "stands on: measured (here, on that model), published (the same model and numbers), near (the same generation "
        f"of models), law (fitted over models), unknown. For {model_title(first_model(result))}: {said}. "
        "qsim evidence MODEL prints the rows with their sources."
    )


def _tradeoff(result: StudyResult) -> Drawing | None:
    if not result.expected:
        return None
    case = next((c for c in result.spec.cases if c.phase == "decode"), None)
    if case is None:
        return None
    q, looks, model = expected_of(result), marks(result.spec.methods, titles(result)), first_model(result)
    data: dict[str, list[Tradeoff]] = {}
    unknown: set[str] = set()
    for r in case_rows(result, case.name, model):
        if not r.fits:
            continue
        for m in (m for m in result.spec.methods if m.scheme == r.scheme):
            e = q.get((model, m.name, r.executed))
            if e is None or e.lost is None or e.lost_low is None or e.lost_high is None:
                unknown.add(titles(result)[m.name])
                continue
            rate, low, high = (r.tokens_per_s * r.time_s / t for t in (r.time_s, r.high_s, r.low_s))
            data.setdefault(chip_title(r.device), []).append(
                Tradeoff(mark=looks[m.name], loss=e.lost, loss_low=e.lost_low, loss_high=e.lost_high, rate=rate,
                         low=low, high=high)
            )  # fmt: skip
    if not data:
        return None
    limit = result.spec.max_lost
    says = (
        "Up is faster, left is better; bars are 80 % bands of both. The grey line joins what nothing beats in both, "
        f"the grey area loses more than the limit of {limit:g} % of a score. {_choice(result, case.name, model)}"
        + (f" Not drawn, as nothing is known of their loss: {and_list(sorted(unknown))}." if unknown else "")
    )
    return Drawing(says=says,
        title=f"Quality against speed: {model_title(model)}, batch {case.batch}, {case.context} tokens",
        draw=lambda: tradeoff_figure(data, limit=limit, ylabel="tokens/s"),
    )  # fmt: skip


def _choice(result: StudyResult, case: str, model: str) -> str:
    chosen: dict[str, list[str]] = {}
    for d in result.decisions:
        if (d.case, d.model) == (case, model) and d.title:
            chosen.setdefault(d.title, []).append(d.device)
    parts = [f"{name} on {and_list(devices)}" for name, devices in chosen.items()]
    return f"The answer is {and_list(parts)}." if parts else ""


SECTION = Section(name="target", title="Quality against speed", order=2, text=_text, template="target.html")
FIGURES = (Figure(name="quality_speed", section="target", make=_tradeoff, order=1),)
