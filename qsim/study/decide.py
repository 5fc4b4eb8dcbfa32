"""When to use what: for each case, model and device the checkpoint that a careful engineer would serve.

The rule, in order.

1. A method is a candidate when an inference engine serves it (where the study has none of these, all are), the loss of
   what the device executes is known, at most `max_lost` percent of an average score (its middle value) is lost, and it
   is not fragile: no collapse of its kind was published for the model's class, unless the model itself was measured
   with this project. 16 bit always is one. FP8 caches are candidates where the device multiplies FP8.
2. The number of devices is the fewest that hold any candidate.
3. What another candidate beats is left out: one that is faster for sure (the 80 % band of the speed-up does not hold
   1), and by a tenth at least where it loses more for sure. Those that remain cannot be told apart.
4. Among them, times that were measured on the device go before borrowed ones; then what loses more for sure than
   another one is left out unless it is a tenth faster. A loss is larger for sure when the bands do not meet and the
   difference is more than half a percent, the noise of an average score; smaller differences are none.
5. Of the rest the fastest is the answer, or, within three percent of it, what is simplest to serve. Methods that give
   the same numbers and lose the same within their errors share the answer: `AWQ/GPTQ INT4 g128`.

A quick study measures on little text. Where it measured the target and its error decides whether a method is within the
limit, and that decides the answer, it says that it cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hwmodels
from qsim.scheme import get_scheme

from .hardware import devices, executed
from .method import Method
from .rows import DecisionRow, ExpectedRow, SpeedRow
from .spec import StudySpec

NOISE_PERCENT = 0.5
"""Difference of two losses, in percent of an average score, below which they are equal whatever their bands say."""
WORTH = 1.1
"""Speed-up that pays for a loss that is larger for sure, yet within the limit."""
AS_FAST = 1.03
"""Ratio of two times below which the simpler one is taken."""


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
    quality: ExpectedRow

    @property
    def title(self) -> str:
        return self.method.title


def decisions(
    spec: StudySpec, speed: Sequence[SpeedRow], expected: Sequence[ExpectedRow], *, quick: bool = False
) -> Iterator[DecisionRow]:
    """One answer for each model, case and device, in the order of the study."""
    losses = {(e.model, e.method, e.variant): e for e in expected}
    without_fp8 = {
        title for title, device in devices(spec).items()
        if executed(device, "fp8-rowwise", spec.speed.profile) == "weights"
    }  # fmt: skip
    for model in dict.fromkeys(row.model for row in speed):
        for case in spec.cases:
            for device in dict.fromkeys(row.device for row in speed):
                mine = [r for r in speed if (r.model, r.case, r.device) == (model, case.name, device)]
                yield _decide(spec, mine, losses, fp8=device not in without_fp8, quick=quick)


def refused(option: ExpectedRow, limit: float, *, upper: bool = False) -> str:
    """Why a method is no candidate; empty where it is one.

    Arguments:
        limit: percent of an average score that may be lost.
        upper: ask for the upper end of the band, not the middle.
    """
    if option.basis == "exact":
        return ""
    if option.collapse is not None and option.collapse >= 0.5:
        return "most likely destroys the model"
    if option.lost is None:
        return "what it loses is unknown"
    if option.fragile:
        return "a collapse of its kind is published for this class of model"
    lost = option.lost_high if upper and option.basis == "measured" else option.lost
    assert lost is not None
    return f"loses {option.lost:.1f} %, over the limit of {limit:g} %" if lost > limit else ""


def _decide(
    spec: StudySpec, rows: Sequence[SpeedRow], losses: Mapping[tuple[str, str, str], ExpectedRow], *, fp8: bool,
    quick: bool,
) -> DecisionRow:  # fmt: skip
    names = {e.method for e in losses.values() if e.title is not None}
    some = any(not name.startswith("none:") for name in names)
    for count in sorted({r.devices for r in rows}):
        by_scheme = {r.scheme: r for r in rows if r.devices == count}
        options = [
            _Option(m, by_scheme[m.scheme], losses[key])
            for m in spec.methods
            if m.scheme in by_scheme and (m.name in names or not some)
            and (key := (rows[0].model, m.name, by_scheme[m.scheme].executed)) in losses
            and (fp8 or not _fp8_cache(m.scheme))
        ]  # fmt: skip
        fitting = [o for o in options if o.speed.fits]
        good = [o for o in fitting if not refused(o.quality, spec.max_lost)]
        if not good:
            continue
        base = by_scheme[spec.methods[0].scheme]
        chosen, equal = _choose(good)
        if quick:
            sure = [o for o in fitting if not refused(o.quality, spec.max_lost, upper=True)]
            maybe = [o for o in fitting if o in good or _may_pass(o.quality, spec.max_lost)]
            others = {_choose(found)[0].method.name for found in (sure, maybe) if found}
            if others != {chosen.method.name} or not sure:
                return _cannot_tell(rows[0], chosen, spec)
        return _answer(spec, chosen, equal, base, [o for o in fitting if o not in good])
    most = max(r.devices for r in rows)
    return _none(rows[0], most, f"nothing that loses at most {spec.max_lost:g} % of a score fits on up to {most} "
                                f"device{'s' * (most > 1)}")  # fmt: skip


def _fp8_cache(scheme: str) -> bool:
    return get_scheme(scheme).kv_cache.is_quantized


def _may_pass(e: ExpectedRow, limit: float) -> bool:
    return e.basis == "measured" and e.lost_low is not None and e.lost_low <= limit


def _choose(good: Sequence[_Option]) -> tuple[_Option, list[_Option]]:
    """The answer, and all that cannot be told apart from the best."""
    equal = [o for o in good if not any(_beats(p, o) for p in good)]
    measured = [o for o in equal if o.speed.fidelity != "transferred"] or equal
    kept = [
        o for o in measured if not any(_loses_more(o.quality, p.quality) and _faster(o, p) < WORTH for p in measured)
    ]
    fastest = min(_timed(o.speed).time_s for o in kept)
    close = [o for o in kept if _timed(o.speed).time_s <= AS_FAST * fastest]
    return min(close, key=lambda o: (o.quality.effort, _timed(o.speed).time_s)), equal


def _beats(p: _Option, o: _Option) -> bool:
    return _sure(p.speed, o.speed) and not (_loses_more(p.quality, o.quality) and _faster(p, o) < WORTH)


def _faster(a: _Option, b: _Option) -> float:
    """How many times `a` is as fast as `b`, bands aside."""
    return _timed(b.speed).time_s / _timed(a.speed).time_s


def _loses_more(a: ExpectedRow, b: ExpectedRow) -> bool:
    """Whether `a` loses more than `b` for sure."""
    assert a.lost is not None
    assert b.lost is not None
    assert a.lost_low is not None
    assert b.lost_high is not None
    return a.lost_low > b.lost_high and a.lost - b.lost > NOISE_PERCENT


def _none(head: SpeedRow, devices: int, why: str) -> DecisionRow:
    return DecisionRow(
        model=head.model, case=head.case, device=head.device, devices=devices, method=None, title=None, scheme=None,
        equals=(), excluded=(), measure=head.measure, value=None, low=None, high=None, speedup=None, speedup_low=None,
        speedup_high=None, lost=None, lost_low=None, lost_high=None, basis="", collapse=None, fidelity="", why=why,
    )  # fmt: skip


def _cannot_tell(head: SpeedRow, chosen: _Option, spec: StudySpec) -> DecisionRow:
    return _none(
        head, chosen.speed.devices,
        f"cannot tell: the errors of a quick study decide whether {chosen.title} and others "
        f"lose at most {spec.max_lost:g} %; run it without --quick",
    )  # fmt: skip


def _answer(
    spec: StudySpec, chosen: _Option, equal: Sequence[_Option], base: SpeedRow, out: Sequence[_Option]
) -> DecisionRow:
    gain: Any = None
    if base.fits and chosen.speed.scheme != base.scheme:
        gain = hwmodels.speedup(_timed(chosen.speed), _timed(base))  # type: ignore[arg-type]
    q = chosen.quality
    alike = [o for o in equal if o.speed.scheme == chosen.speed.scheme and o.quality.effort == q.effort
             and not _loses_more(o.quality, q)]  # fmt: skip
    return DecisionRow(
        model=chosen.speed.model, case=chosen.speed.case, device=chosen.speed.device, devices=chosen.speed.devices,
        method=chosen.method.name, title=_shared_title([o.title for o in alike]),
        scheme=chosen.method.scheme,
        equals=tuple(o.method.name for o in equal if o is not chosen),
        excluded=tuple(f"{o.title} {refused(o.quality, spec.max_lost)}" for o in out), measure=chosen.speed.measure,
        value=chosen.speed.value, low=chosen.speed.low, high=chosen.speed.high,
        speedup=None if gain is None else float(gain.value), speedup_low=None if gain is None else float(gain.low),
        speedup_high=None if gain is None else float(gain.high), lost=q.lost, lost_low=q.lost_low,
        lost_high=q.lost_high, basis=q.basis, collapse=q.collapse, fidelity=chosen.speed.fidelity,
        why=_why(chosen, base, equal),
    )  # fmt: skip


def _shared_title(titles: Sequence[str]) -> str:
    """`GPTQ INT4 g128` and `AWQ INT4 g128` as `AWQ/GPTQ INT4 g128`."""
    heads = sorted({title.split(" ", 1)[0] for title in titles})
    tails = {title.partition(" ")[2] for title in titles}
    return f"{'/'.join(heads)} {tails.pop()}".strip() if len(tails) == 1 else titles[0]


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


def _why(chosen: _Option, base: SpeedRow, equal: Sequence[_Option]) -> str:
    row, parts = chosen.speed, []
    if not base.fits:
        parts.append(f"16 bit would need {base.total_gbytes:.0f} GB on each device of {base.capacity_gbytes:.0f} GB")
    if chosen.method.algorithm == "none":
        parts.append("nothing within the limit is likely to be faster")
    else:
        parts.append(_cause(row, base))
    if row.batch > base.batch and row.phase == "request":
        parts.append(f"{row.batch} sequences fit instead of {base.batch}")
    if row.executed == "weights":
        parts.append("activations stay in 16 bit: the device has no such product")
    best = min(equal, key=lambda o: _timed(o.speed).time_s)
    if best.speed.scheme != row.scheme and _faster(best, chosen) > AS_FAST:
        parts.append(f"{best.title} may be {_faster(best, chosen):.2f} times as fast: {_passed(chosen, best)}")
    return "; ".join(parts)


def _cause(row: SpeedRow, base: SpeedRow) -> str:
    """What dominates the time, and what the method changes of it."""
    weights, cache = base.weights_gbytes / row.weights_gbytes, base.kv_cache_gbytes
    if row.bound == "compute":
        faster = get_scheme(row.scheme).activation.is_quantized and row.executed == "full"
        return "arithmetic dominates" + (": its products run at a higher rate" if faster else "")
    if row.bound == "overhead":
        return f"fixed times of kernels dominate; weights are {weights:.1f} times smaller"
    if cache > base.weights_gbytes:
        smaller = _fp8_cache(row.scheme)
        return (f"the cache dominates: {cache:.0f} GB in 16 bit beside {base.weights_gbytes:.0f} GB of weights"
                + ("; FP8 halves it" if smaller else ""))  # fmt: skip
    if row.kv_cache_gbytes > row.weights_gbytes:
        return f"the cache dominates: {row.kv_cache_gbytes:.0f} GB beside {row.weights_gbytes:.0f} GB of weights"
    return f"weights dominate: {weights:.1f} times smaller"


def _passed(chosen: _Option, best: _Option) -> str:
    """Why the faster one was passed over."""
    if best.speed.fidelity == "transferred" and chosen.speed.fidelity != "transferred":
        return "its kernel was measured on another device, this one's here, and the bands overlap"
    return f"it loses {best.quality.lost:.1f} %, this {chosen.quality.lost:.1f} %"
