"""The answers beside what practitioners recommend: where they differ, with the numbers that decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qsim.evidence.practice import Advice, family_of, practice

from .decide import refused
from .rows import AgreementRow, DecisionRow, ExpectedRow, SpeedRow
from .spec import StudySpec


def agreement_rows(
    spec: StudySpec, speed: Sequence[SpeedRow], expected: Sequence[ExpectedRow], decided: Sequence[DecisionRow]
) -> Iterator[AgreementRow]:
    """One row for every recommendation whose device and case the study has, for its first model.

    Recommendations are for models that fit on one device: what a larger model needs is decided by memory.
    """
    found = {(d.device, d.case): d for d in decided if decided and d.model == decided[0].model}
    names = {d.name: d.title for d in spec.speed.devices if not d.set}
    for advice in practice():
        answer = found.get((names.get(advice.device, ""), advice.case))
        if answer is None or answer.method is None or answer.scheme is None:
            continue
        agrees = family_of(answer.scheme) in advice.families
        yield AgreementRow(
            model=answer.model, device=answer.device, case=answer.case, says=advice.says, source=advice.source,
            answer=answer.title or answer.method, agrees=agrees,
            why="" if agrees else _why(spec, advice, answer, speed, expected),
        )  # fmt: skip


def _why(
    spec: StudySpec, advice: Advice, answer: DecisionRow, speed: Sequence[SpeedRow], expected: Sequence[ExpectedRow]
) -> str:
    """The best of what practitioners name beside the answer, in numbers."""
    assert answer.value is not None
    here = {r.scheme: r for r in speed if (r.model, r.device, r.case, r.devices) ==
            (answer.model, answer.device, answer.case, answer.devices)}  # fmt: skip
    said = []
    for e in expected:
        scheme = e.method.split(":", 1)[1].split("[")[0]
        row = here.get(scheme)
        if row is None or (e.model, e.variant) != (answer.model, row.executed) or e.title is None:
            continue
        if family_of(scheme) not in advice.families:
            continue
        ratio = row.value / answer.value
        said.append((ratio if row.measure == "tokens_per_s" else 1 / ratio, e, row))
    if not said:
        return f"the study has nothing of that kind; {answer.why}"
    allowed = [s for s in said if s[2].fits and not refused(s[1], spec.max_lost)]
    close = [s for s in allowed if s[1].method in answer.equals]
    ratio, e, row = max(close or allowed or said, key=lambda s: s[0])
    beside = "does not fit" if not row.fits else refused(e, spec.max_lost) or (
        f"is {ratio:.2f} times as fast as {answer.title} and loses {e.lost:.1f} % (this {answer.lost:.1f} %); its time "
        f"is {row.fidelity}, this one's {answer.fidelity}"
    )  # fmt: skip
    return f"{e.title} {beside}; {answer.why}"
