"""Two studies side by side: what was asked differently, and which numbers moved beyond their errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .result import StudyResult
from .study_file import to_table

SAME = 1e-9
"""Relative difference below which two numbers are one: rounding of decimal text, no more."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference. `sure` says whether it is more than the errors of both allow; None where no error is known."""

    part: str  # question, environment, quality, speed, decision
    what: str
    before: str
    after: str
    relative: float | None = None
    sure: bool | None = None


def diff_studies(a: StudyResult, b: StudyResult) -> tuple[Change, ...]:
    """Every difference between two studies: question, environment, answers, losses, times; empty when they agree."""
    return (*_question(a, b), *_environment(a, b), *_decisions(a, b), *_quality(a, b), *_speed(a, b))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if all(not isinstance(item, Mapping | list) for item in value):
            yield path, ", ".join(map(str, value))
        else:
            for item in value:
                name = item.get("label") or item.get("name") or f"{item.get('algorithm')}:{item.get('scheme')}"
                yield from _flat(item, f"{path}[{name}]")
    else:
        yield path, str(value)


def _tables(part: str, one: Mapping[str, str], two: Mapping[str, str]) -> Iterator[Change]:
    for key in dict.fromkeys((*one, *two)):
        before, after = one.get(key, "absent"), two.get(key, "absent")
        if before != after:
            yield Change(part=part, what=key, before=before, after=after)


def _question(a: StudyResult, b: StudyResult) -> Iterator[Change]:
    yield from _tables("question", dict(_flat(to_table(a.spec))), dict(_flat(to_table(b.spec))))


def _environment(a: StudyResult, b: StudyResult) -> Iterator[Change]:
    from dataclasses import asdict

    yield from _tables("environment", dict(_flat(asdict(a.environment))), dict(_flat(asdict(b.environment))))
    for name in ("model_sha256", "text_sha256", "calibration_sha256"):
        before, after = getattr(a.measured, name), getattr(b.measured, name)
        if before != after:
            yield Change(part="environment", what=name, before=before[:16], after=after[:16])


def _keyed(rows: Any, *names: str) -> dict[tuple[Any, ...], Any]:
    return {tuple(getattr(row, n) for n in names): row for row in rows}


def _pairs(one: dict[Any, Any], two: dict[Any, Any]) -> Iterator[tuple[Any, Any, Any]]:
    for key in dict.fromkeys((*one, *two)):
        yield key, one.get(key), two.get(key)


def _decisions(a: StudyResult, b: StudyResult) -> Iterator[Change]:
    keys = ("model", "case", "device")
    for key, x, y in _pairs(_keyed(a.decisions, *keys), _keyed(b.decisions, *keys)):
        before, after = ("absent" if d is None else f"{d.method or 'none'} on {d.devices}" for d in (x, y))
        if before != after:
            yield Change(part="decision", what=" ".join(key), before=before, after=after)


def _quality(a: StudyResult, b: StudyResult) -> Iterator[Change]:
    keys = ("method", "variant")
    for key, x, y in _pairs(_keyed(a.quality, *keys), _keyed(b.quality, *keys)):
        if x is None or y is None:
            yield _absent("quality", " ".join(key), x, y, "loss")
        elif abs(y.loss - x.loss) > SAME * max(1.0, abs(x.loss)):
            spread = (x.loss_se**2 + y.loss_se**2) ** 0.5
            yield Change(part="quality", what=f"loss of {' '.join(key)}", before=f"{x.loss:.5f}", after=f"{y.loss:.5f}",
                         sure=abs(y.loss - x.loss) > 1.96 * spread)  # fmt: skip


def _speed(a: StudyResult, b: StudyResult) -> Iterator[Change]:
    keys = ("model", "device", "scheme", "case", "devices")
    for key, x, y in _pairs(_keyed(a.speed, *keys), _keyed(b.speed, *keys)):
        what = f"{key[3]}: {key[0]} {key[2]} on {key[4]} {key[1]}"
        if x is None or y is None:
            yield _absent("speed", what, x, y, "value")
        elif abs(y.value - x.value) > SAME * abs(x.value) or x.fits != y.fits:
            apart = y.low > x.high or x.low > y.high
            yield Change(part="speed", what=f"{x.measure} of {what}", before=f"{x.value:.6g}", after=f"{y.value:.6g}",
                         relative=y.value / x.value - 1, sure=apart)  # fmt: skip


def _absent(part: str, what: str, x: Any, y: Any, column: str) -> Change:
    before, after = ("absent" if row is None else f"{getattr(row, column):.6g}" for row in (x, y))
    return Change(part=part, what=what, before=before, after=after)
