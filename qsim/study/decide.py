"""When to use what: for each case, model and device the method that is fastest within the quality limit.

The rule, in order. A method is acceptable when the upper end of its loss (loss + 1.64 standard errors, one-sided 95 %)
is within the limit; its loss is that of what the device executes (weights only where it lacks the arithmetic). The
number of devices is the fewest that hold any acceptable method. On those, whatever another method beats for sure (the
80 % band of the speed-up does not hold 1) is left out. Those that remain cannot be told apart by speed: a time that was
measured on the device goes before one that was borrowed from elsewhere, and among the measured (or, without any, among
all) the one with the least loss is the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hwmodels
from qsim.scheme import get_scheme

from .rows import DecisionRow, QualityRow, SpeedRow
from .spec import Method, StudySpec

ONE_SIDED_95 = 1.645


@dataclass(frozen=True, kw_only=True)
class _Timed:
    """What `hwmodels.speedup` compares."""

    time_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True)
class _Option:
    method: Method
    speed: SpeedRow
    quality: QualityRow


def decisions(spec: StudySpec, speed: Sequence[SpeedRow], quality: Sequence[QualityRow]) -> Iterator[DecisionRow]:
    """One answer for each model, case and device, in the order of the study."""
    losses = {(q.method, q.variant): q for q in quality}
    for model in dict.fromkeys(row.model for row in speed):
        for case in spec.cases:
            for device in dict.fromkeys(row.device for row in speed):
                mine = [r for r in speed if (r.model, r.case, r.device) == (model, case.name, device)]
                yield _decide(spec, mine, losses)


def acceptable(row: QualityRow, limit: float) -> bool:
    """Whether the loss is within the limit at one-sided 95 % confidence; 16 bit always is."""
    return row.method.startswith("none:") or row.loss + ONE_SIDED_95 * row.loss_se <= limit


def _decide(spec: StudySpec, rows: Sequence[SpeedRow], losses: Mapping[tuple[str, str], QualityRow]) -> DecisionRow:
    limit = spec.quality.max_loss
    head = rows[0]
    for count in sorted({r.devices for r in rows}):
        by_scheme = {r.scheme: r for r in rows if r.devices == count}
        options = [
            _Option(m, by_scheme[m.scheme], losses[m.name, by_scheme[m.scheme].executed])
            for m in spec.methods
            if m.scheme in by_scheme and (m.name, by_scheme[m.scheme].executed) in losses
        ]
        good = [o for o in options if o.speed.fits and acceptable(o.quality, limit)]
        if good:
            return _answer(good, by_scheme[spec.methods[0].scheme])
    most = max(r.devices for r in rows)
    return DecisionRow(
        model=head.model, case=head.case, device=head.device, devices=most, method=None, scheme=None, equals=(),
        measure=head.measure, value=None, low=None, high=None, speedup=None, speedup_low=None, speedup_high=None,
        loss=None, loss_se=None, fidelity="",
        why=f"nothing that loses at most {limit:g} bits per byte fits on up to {most} device{'s' * (most > 1)}",
    )  # fmt: skip


def _answer(good: Sequence[_Option], base: SpeedRow) -> DecisionRow:
    best = min(good, key=lambda o: _timed(o.speed).time_s)
    equal = [o for o in good if not any(_sure(p.speed, o.speed) for p in good)]
    # no method is better than 16 bit: a loss below 0 is chance, and 16 bit stays where nothing is faster for sure
    chosen = min(
        equal,
        key=lambda o: (
            o.speed.fidelity == "transferred", max(o.quality.loss, 0.0), o.method.algorithm != "none",
            _timed(o.speed).time_s,
        ),
    )  # fmt: skip
    gain: Any = None
    if base.fits and chosen.speed.scheme != base.scheme:
        gain = hwmodels.speedup(_timed(chosen.speed), _timed(base))  # type: ignore[arg-type]
    return DecisionRow(
        model=chosen.speed.model, case=chosen.speed.case, device=chosen.speed.device, devices=chosen.speed.devices,
        method=chosen.method.name, scheme=chosen.method.scheme,
        equals=tuple(o.method.name for o in equal if o is not chosen), measure=chosen.speed.measure,
        value=chosen.speed.value, low=chosen.speed.low, high=chosen.speed.high,
        speedup=None if gain is None else float(gain.value), speedup_low=None if gain is None else float(gain.low),
        speedup_high=None if gain is None else float(gain.high), loss=chosen.quality.loss,
        loss_se=chosen.quality.loss_se, fidelity=chosen.speed.fidelity, why=_why(chosen, base, best),
    )  # fmt: skip


def _timed(row: SpeedRow) -> _Timed:
    """Seconds, or seconds per token of a rate."""
    if row.measure == "tokens_per_s":
        return _Timed(time_s=1 / row.value, low_s=1 / row.high, high_s=1 / row.low)
    return _Timed(time_s=row.value, low_s=row.low, high_s=row.high)


def _sure(fast: SpeedRow, slow: SpeedRow) -> bool:
    """Whether `fast` is faster for sure: the band of the speed-up does not hold 1. One kernel with equal bytes is not
    faster than itself."""
    if (fast.scheme, fast.devices) == (slow.scheme, slow.devices) or _timed(fast).time_s >= _timed(slow).time_s:
        return False
    return bool(hwmodels.speedup(_timed(fast), _timed(slow)).sign_sure)  # type: ignore[arg-type]


def _why(chosen: _Option, base: SpeedRow, best: _Option) -> str:
    row = chosen.speed
    parts = []
    if not base.fits:
        parts.append(f"16 bit would need {base.total_gbytes:.0f} GB on each device of {base.capacity_gbytes:.0f} GB")
    if chosen.method.algorithm == "none":
        parts.append("nothing is faster for sure")
    else:
        ratio = base.weights_gbytes / row.weights_gbytes
        words = {
            "memory": f"bound by memory: weights are {ratio:.1f} times smaller",
            "compute": "bound by arithmetic"
            + (
                ": its products run at a higher rate"
                if get_scheme(row.scheme).activation.is_quantized and row.executed == "full"
                else ""
            ),
            "overhead": f"bound by fixed times of kernels; weights are {ratio:.1f} times smaller",
        }
        parts.append(words[row.bound])
    if row.batch > base.batch and row.phase == "request":
        parts.append(f"{row.batch} sequences fit instead of {base.batch}")
    if row.executed == "weights":
        parts.append("activations stay in 16 bit: the device has no such product")
    if best.method.name != chosen.method.name and best.speed.scheme != chosen.speed.scheme:
        parts.append(f"{best.method.title} may be faster, within the bands")
    return "; ".join(parts)
