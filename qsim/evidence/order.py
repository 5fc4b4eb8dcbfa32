"""Numbers in order: more bits and finer scales never lose more, whatever evidence each of them happens to have.

One model has a published loss for groups of 128 and only kin for groups of 32; another has scores for 8 bits and
perplexities for 4. Left alone, such answers can stand in the wrong order. So what is not a fact of the model itself
(`near`, `law`) is held between what coarser and finer numbers lose on the same model by the same method. Published and
measured losses are facts, and are never moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from .expectation import Expectation
from .law import BASES
from .precision import Precision

_BITS = (3, 4, 8)
_REGIONS = ("g32", "g64", "g128", "channel")
_GGUF = ("q2_k", "q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "q8_0")
_CACHE = {"int2": 2, "int3": 3, "int4": 4, "int8": 8, "fp8": 8}
_RANK: dict[str, int] = {name: i for i, name in enumerate(BASES)}
MOVED = ("near", "law")
"""Bases of expectations that are held in order."""


def coarser(p: Precision) -> tuple[Precision, ...]:
    """Numbers with fewer bits, or scales that cover more, and nothing finer; empty where no order is known."""
    return tuple(q for q in _chain(p) if q != p and _no_finer(q, p))


def finer(p: Precision) -> tuple[Precision, ...]:
    """Numbers with more bits, or scales that cover less, and nothing coarser."""
    return tuple(q for q in _chain(p) if q != p and _no_finer(p, q))


def _chain(p: Precision) -> list[Precision]:
    """Numbers of the same kind."""
    if p.weight == "none" and p.activation == "none":
        return [replace(p, kv=kv) for kv in _CACHE] if p.kv in _CACHE else []
    if p.activation != "none":
        return []
    if p.weight in _GGUF:
        return [replace(p, weight=name) for name in _GGUF]
    if _size(p) is None:
        return []
    return [replace(p, weight=f"int{bits}", region=region) for bits in _BITS for region in _REGIONS]


def _size(p: Precision) -> float | None:
    """Weights that share a scale, of integer weights whose scales are one per row or group."""
    if not p.weight.startswith("int"):
        return None
    return math.inf if p.region == "channel" else p.group


def _no_finer(a: Precision, b: Precision) -> bool:
    """Whether `a`, of the same kind as `b`, is in nothing finer."""
    if a.weight == "none":
        return _CACHE[a.kv] < _CACHE[b.kv]
    if a.weight in _GGUF:
        return _GGUF.index(a.weight) <= _GGUF.index(b.weight)
    one, two = _size(a), _size(b)
    return one is not None and two is not None and (a.bits or 0) <= (b.bits or 0) and one >= two


def held(
    e: Expectation, p: Precision, above: Iterable[Expectation], below: Iterable[Expectation]
) -> Expectation:  # fmt: skip
    """An expectation held in order.

    Arguments:
        p: its numbers.
        above: what coarser numbers lose: it loses no more than those that stand on something as good.
        below: what finer numbers lose: it loses no less than those that stand on something better, or as good where `p`
            is in groups that are rarely used and hold nothing else in order.
    """
    rank = _RANK[e.basis]
    tops = [o for o in above if o.known and _RANK[o.basis] <= rank]
    floors = [o for o in below if o.known and _RANK[o.basis] < rank + (p not in _chain(p))]
    out, said = e, []
    for name in ("value", "lost"):
        least, most = (tuple(getattr(o, name) for o in part) for part in (floors, tops))
        band = [getattr(out, key) for key in (name, *(f"{'' if name == 'value' else 'lost_'}{end}" for end in (
            "low", "high")))]  # fmt: skip
        at = max([min([band[0], *most]), *least])
        if at != band[0]:
            keys = (name, "low", "high") if name == "value" else (name, "lost_low", "lost_high")
            out = replace(out, **dict(zip(keys, (at, min(band[1], at), max(band[2], at)), strict=True)))
            said.append("as coarser numbers lose no more" if at < band[0] else "as finer numbers lose no less")
    if not said:
        return e
    return replace(out, note="; ".join(n for n in dict.fromkeys((out.note, *said)) if n), **_points(out, e))  # type: ignore[arg-type]


def _points(out: Expectation, before: Expectation) -> dict[str, float]:
    """Points move with the percent of the score that is lost."""
    if before.points is None or not before.lost or out.lost == before.lost or out.lost is None:
        return {}
    assert before.points_low is not None
    assert before.points_high is not None
    at = before.points * out.lost / before.lost
    return {"points": at, "points_low": min(before.points_low, at), "points_high": max(before.points_high, at)}
