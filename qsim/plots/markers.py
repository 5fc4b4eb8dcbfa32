"""Markers that fall on one another: those of one kind become one marker, others are drawn side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A marker on a panel: where (pixels), how large (radius in pixels), what it names, and the series it belongs to.

    `share` is the part of the time that its area stands for; `series` is None for what several series have in common.
    """

    x: float
    y: float
    radius: float
    names: tuple[str, ...]
    series: str | None
    share: float
    moved: bool = False


def gathered(spots: Sequence[Spot], smallest: float, largest: float) -> list[Spot]:
    """Spots of which none hides another, largest first.

    1. A name at one place in several series stays once, of no series.
    2. Markers of one series that would hide each other become one, which has all their names and the sum of shares.
    3. Markers of different series that would hide each other are moved apart sideways (`moved`).

    Arguments:
        smallest, largest: radii in pixels of a share of 0 and of 1; areas are proportional to shares in between.
    """
    left = _common(spots, smallest)
    merged = True
    while merged:
        merged = False
        left.sort(key=lambda s: (-s.share, s.names))
        for i, a in enumerate(left):
            j = next((j for j in range(i + 1, len(left)) if _hides(a, left[j])), None)
            if j is not None:
                left[i] = _together(a, left.pop(j), smallest, largest)
                merged = True
                break
    return _apart(left)


def radius(share: float, smallest: float, largest: float) -> float:
    """The radius of a marker whose area is proportional to a share; what is below `smallest` has that radius."""
    return max(smallest, largest * math.sqrt(share))


def _distance(a: Spot, b: Spot) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def _common(spots: Sequence[Spot], near: float) -> list[Spot]:
    """Spots with one of those that carry the same names at the same place, whatever their series."""
    out: list[Spot] = []
    for spot in spots:
        same = next((i for i, o in enumerate(out) if o.names == spot.names and _distance(o, spot) < near / 2), None)
        if same is None:
            out.append(spot)
        elif out[same].series != spot.series:
            out[same] = replace(out[same], series=None, share=max(out[same].share, spot.share),
                                radius=max(out[same].radius, spot.radius))  # fmt: skip
    return out


def _hides(a: Spot, b: Spot) -> bool:
    return a.series == b.series and _distance(a, b) < 0.8 * max(a.radius, b.radius)


def _together(a: Spot, b: Spot, smallest: float, largest: float) -> Spot:
    total = a.share + b.share
    weight = a.share / total if total > 0 else 0.5
    return Spot(x=weight * a.x + (1 - weight) * b.x, y=weight * a.y + (1 - weight) * b.y, share=total,
                radius=radius(total, smallest, largest), names=(*a.names, *b.names), series=a.series)  # fmt: skip


def _apart(spots: Sequence[Spot]) -> list[Spot]:
    """Move a marker sideways until it hides no larger one by more than half."""
    out: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (-s.radius, s.names)):
        step, moved = 0, spot
        while any(_covers(other, moved) for other in out) and step < 24:
            step += 1
            side = 1 if step % 2 else -1
            moved = replace(spot, x=spot.x + side * ((step + 1) // 2) * 0.5 * spot.radius, moved=True)
        out.append(moved)
    return out


def _covers(larger: Spot, smaller: Spot) -> bool:
    """Whether the smaller marker, drawn later, covers too much of the larger: more than its half, or its middle."""
    distance = _distance(larger, smaller)
    if smaller.radius < 0.6 * larger.radius:
        return distance < 0.25 * larger.radius and smaller.radius > 0.5 * larger.radius
    return distance < 0.55 * (larger.radius + smaller.radius)
