"""Two studies side by side: what was asked differently, and which numbers moved beyond their errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .result import TABLES, StudyResult
from .study_file import to_table

SAME = 1e-9
"""Relative difference below which two finite numbers are one: rounding of decimal text, no more."""


def same(x: Any, y: Any) -> bool:
    """Whether two values of a study are one: NaN is NaN, an infinity is itself, and a text, a truth value or nothing at
    all is never a number."""
    if isinstance(x, tuple | list) and isinstance(y, tuple | list):
        return len(x) == len(y) and all(map(same, x, y))
    if isinstance(x, Mapping) and isinstance(y, Mapping):
        return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (x, y)]
    if not all(numbers):
        return bool(type(x) is type(y) and x == y)
    if not (math.isfinite(x) and math.isfinite(y)):
        return bool(x == y or (math.isnan(x) and math.isnan(y)))
    return abs(y - x) <= SAME * max(abs(x), abs(y))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference. `sure` says whether it is more than the errors of both allow; None where no error is known."""

    part: str  # question, environment, quality, speed, decision, or the name of another table
    what: str
    before: str
    after: str
    relative: float | None = None
    sure: bool | None = None


def diff_studies(a: StudyResult, b: StudyResult) -> tuple[Change, ...]:
    """Every difference between two studies: question, environment, answers, losses, times; empty when they agree.

    A row whose main number is the same is compared in its other columns. Of the tables behind the figures, the first
    difference of each is told, and in how many rows there is one.
    """
    main = (*_question(a, b), *_environment(a, b), *_decisions(a, b), *_quality(a, b), *_speed(a, b))
    return (*main, *(change for name in TABLES if name not in _TOLD for change in _table(name, a, b)))


_TOLD = ("decisions", "quality", "speed")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if all(not isinstance(item, Mapping | list) for item in value):
            yield path, value
        else:
            for item in value:
                name = item.get("label") or item.get("name") or f"{item.get('algorithm')}:{item.get('scheme')}"
                yield from _flat(item, f"{path}[{name}]")
    else:
        yield path, value


def _tables(part: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys((*one, *two)):
        if key not in one or key not in two or not same(one[key], two[key]):
            before, after = _texts(*(table[key] if key in table else _ABSENT for table in (one, two)))
            yield Change(part=part, what=key, before=before, after=after)


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _texts(x: Any, y: Any) -> tuple[str, str]:
    """Two different values as different texts."""

    def short(value: Any) -> str:
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value))
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    for say in (short, str, repr):
        if say(x) != say(y):
            return say(x), say(y)
    return f"{x!r} ({type(x).__name__})", f"{y!r} ({type(y).__name__})"


def _columns(part: str, what: str, x: Any, y: Any) -> Iterator[Change]:
    """What differs between two rows, column by column."""
    for field in fields(x):
        before, after = getattr(x, field.name), getattr(y, field.name)
        if not same(before, after):
            texts = _texts(before, after)
            yield Change(part=part, what=f"{field.name} of {what}", before=texts[0], after=texts[1],
                         relative=_relative(before, after))  # fmt: skip


def _relative(x: Any, y: Any) -> float | None:
    """y over x less one, where both are numbers and there is one."""
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in (x, y)) or x == 0:
        return None
    return float(y / x - 1)


def _table(name: str, a: StudyResult, b: StudyResult) -> Iterator[Change]:
    """A table whose rows have no name: its size, or its first difference."""
    one, two = getattr(a, name), getattr(b, name)
    if len(one) != len(two):
        yield Change(part=name, what="rows", before=str(len(one)), after=str(len(two)))
        return
    found = [(i, change) for i, (x, y) in enumerate(zip(one, two, strict=True)) for change in _columns(name, "", x, y)]
    if found:
        at, first = found[0]
        rows = len({i for i, _ in found})
        what = f"{first.what.removesuffix(' of ')} of row {at + 1}; {rows} of {len(one)} rows differ"
        yield replace(first, what=what)


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
        what = " ".join(key)
        if x is None or y is None:
            yield _absent("quality", what, x, y, "loss")
        elif abs(y.loss - x.loss) <= SAME or same(x.loss, y.loss):  # 1e-9 bits per byte are nothing beside a loss of 0
            yield from _columns("quality", what, x, replace(y, loss=x.loss))
        else:
            spread = (x.loss_se**2 + y.loss_se**2) ** 0.5
            finite = math.isfinite(x.loss) and math.isfinite(y.loss)
            texts = _texts(*(round(v, 5) if math.isfinite(v) else v for v in (x.loss, y.loss)))
            yield Change(part="quality", what=f"loss of {what}", before=texts[0], after=texts[1],
                         sure=abs(y.loss - x.loss) > 1.96 * spread if finite else True)  # fmt: skip


def _speed(a: StudyResult, b: StudyResult) -> Iterator[Change]:
    keys = ("model", "device", "scheme", "case", "devices")
    for key, x, y in _pairs(_keyed(a.speed, *keys), _keyed(b.speed, *keys)):
        what = f"{key[3]}: {key[0]} {key[2]} on {key[4]} {key[1]}"
        if x is None or y is None:
            yield _absent("speed", what, x, y, "value")
        elif same(x.value, y.value):
            yield from _columns("speed", what, x, y)
        else:
            texts, finite = _texts(x.value, y.value), math.isfinite(x.value) and math.isfinite(y.value)
            yield Change(part="speed", what=f"{x.measure} of {what}", before=texts[0], after=texts[1],
                         relative=_relative(x.value, y.value),
                         sure=y.low > x.high or x.low > y.high if finite else True)  # fmt: skip


def _absent(part: str, what: str, x: Any, y: Any, column: str) -> Change:
    before, after = ("absent" if row is None else f"{getattr(row, column):.6g}" for row in (x, y))
    return Change(part=part, what=what, before=before, after=after)
