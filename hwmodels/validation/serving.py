"""Measured serving points against predictions: the exam of `hwmodels.serve`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.errors import QsimError

from ..serving.constants import Constants
from ..serving.points import Point, Scored, Tables, is_dense, score


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Scored points, and how many were left out, by reason."""

    scored: tuple[Scored, ...]
    left_out: Mapping[str, int]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences below the tables."""
        tau, pairs = device_order(self.scored)
        order = f"Devices in the measured order of TPOT at equal workload: Kendall's tau {tau:.2f} over {pairs} pairs"
        alone = {m: device_order([s for s in self.scored if s.point.text("model") == m])
                 for m in sorted({s.point.text("model") for s in self.scored})}  # fmt: skip
        by_model = ", ".join(f"{m} {t:.2f} over {n}" for m, (t, n) in alone.items() if n)
        order += f" ({by_model}); the versions of the engine differ from device to device."
        count = sum(self.left_out.values())
        reasons = ", ".join(f"{reason} ({n})" for reason, n in sorted(self.left_out.items()))
        left = f"Left out: {count} points: {reasons}." if count else "No point was left out."
        return ((order, left) if pairs else (left,))  # fmt: skip


def examine(points: Iterable[Point], known: Sequence[Constants] | None = None) -> Exam:
    """Predict all points; those that are left out are counted by reason."""
    tables, scored, left = Tables(), [], dict[str, int]()
    for point in points:
        reason = point.trap
        if not reason:
            try:
                scored.append(score(point, tables, known))
                continue
            except QsimError as error:
                reason = str(error).partition(":")[0][:80]
        left[reason] = left.get(reason, 0) + 1
    return Exam(scored=tuple(scored), left_out=left)


def exam_rows(exam: Exam) -> list[dict[str, Any]]:
    """The tables of an exam as flat rows; errors in percent."""
    rows = []
    for one in lines(exam.scored):
        section, _, group = one.what.partition(", ")
        row: dict[str, Any] = {"section": f"Serving, {section}", "group": group, "rows": one.count}
        for w in ("tpot", "ttft"):
            row |= {
                f"{w}_percent": 100 * getattr(one, w), f"{w}_p90_percent": 100 * getattr(one, f"{w}_p90"),
                f"{w}_bias": getattr(one, f"{w}_bias"), f"{w}_in_band": getattr(one, f"{w}_held"),
            }  # fmt: skip
        rows.append(row)
    return rows


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the exam's table; errors are fractions.

    Attributes:
        what: the points. count: of them. tpot, tpot_p90, ttft, ttft_p90: median and 90th percentile of |error|.
        tpot_bias, ttft_bias: median of predicted over measured. tpot_held, ttft_held: share in the 80 % band.
    """

    what: str
    count: int
    tpot: float
    tpot_p90: float
    tpot_bias: float
    tpot_held: float
    ttft: float
    ttft_p90: float
    ttft_bias: float
    ttft_held: float


def line(what: str, scored: Sequence[Scored]) -> Line:
    """The errors of some points."""
    token = np.array([s.tpot_ratio for s in scored])
    first = np.array([s.ttft_ratio for s in scored])
    values: dict[str, float] = {}
    for name, ratio, held in (
        ("tpot", token, [s.tpot_held for s in scored]), ("ttft", first, [s.ttft_held for s in scored]),
    ):  # fmt: skip
        wrong = np.abs(ratio - 1)
        values |= {
            name: float(np.median(wrong)), f"{name}_p90": float(np.quantile(wrong, 0.9)),
            f"{name}_bias": float(np.median(ratio)), f"{name}_held": float(np.mean(held)),
        }  # fmt: skip
    return Line(what=what, count=len(scored), **values)


def _range(point: Point) -> str:
    top = next(t for t in (8, 16, 32, 64, 128, 1 << 30) if point.concurrency <= t)
    return f"concurrency up to {top}" if top < 1 << 30 else "concurrency above 128"


GROUPS: tuple[Callable[[Point], str], ...] = (
    lambda p: p.text("device"),
    lambda p: p.text("model"),
    lambda p: p.text("engine"),
    lambda p: p.text("weights"),
    lambda p: f"tensor parallel {p.text('tp') or p.text('decode_tp')}",
    _range,
    lambda p: "protocol known" if p.known else "protocol not known",
    lambda p: p.drafting,
)


def lines(scored: Sequence[Scored]) -> tuple[Line, ...]:
    """The exam's table: dense and mixtures of experts apart, each as a whole and by what the points share."""
    found = []
    parts = (
        ("dense", [s for s in scored if s.point.text("mode") != "disagg" and is_dense(s.point)]),
        ("mixture of experts", [s for s in scored if s.point.text("mode") != "disagg" and not is_dense(s.point)]),
        ("separate workers", [s for s in scored if s.point.text("mode") == "disagg"]),
    )
    for name, part in parts:
        if not part:
            continue
        found.append(line(f"{name}, all", part))
        for by in GROUPS:
            keys = sorted({by(s.point) for s in part}, key=lambda k: (len(k), k))
            if len(keys) > 1:
                found += [line(f"{name}, {key}", [s for s in part if by(s.point) == key]) for key in keys]
    return tuple(found)


def device_order(scored: Sequence[Scored]) -> tuple[float, int]:
    """Kendall's tau of devices by TPOT at equal model, weights, split, lengths and concurrency, and the pairs.

    1 where every pair of devices is in the measured order; NaN where there is no pair.
    """
    same: dict[Any, list[Scored]] = {}
    for s in scored:
        p = s.point
        names = ("model", "weights", "tp", "attention_dp", "moe_ep", "prompt_tokens", "output_tokens", "concurrency")
        same.setdefault((*(p.text(n) for n in names), p.text("engine"), p.text("mode")), []).append(s)
    right = wrong = 0
    for group in same.values():
        for i, one in enumerate(group):
            for other in group[:i]:
                if one.point.text("device") == other.point.text("device"):
                    continue
                measured = one.point.number("tpot_s") - other.point.number("tpot_s")
                if (one.tpot_s - other.tpot_s) * measured > 0:
                    right += 1
                else:
                    wrong += 1
    pairs = right + wrong
    return (float("nan") if not pairs else (right - wrong) / pairs), pairs
