"""Paths of operators under a roof: an arrow from the first value to the last, with values along the longest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from .labels import Taken, Wanted, together
from .style import GREY

if TYPE_CHECKING:
    from .roofline import Point, _Look

NEAR = 7.0
"""Paths that stay within this many points of one another are drawn as one, with both names."""


@dataclass(frozen=True, kw_only=True)
class _Way:
    """An operator's path: its points, where they are in pixels, and whether several series share it."""

    points: tuple[Point, ...]
    at: Any
    shared: bool = False

    @property
    def share(self) -> float:
        return max(p.share for p in self.points)

    @property
    def length(self) -> float:
        return float(np.hypot(*np.diff(self.at, axis=0).T).sum())


def draw_paths(axes: Axes, points: Sequence[Point], look: _Look, taken: Taken, moves: str) -> list[Wanted]:
    """Draw the paths of a panel; returns the names to place, values along the longest path last."""
    pixels = axes.figure.dpi / 72  # type: ignore[union-attr]
    found: dict[tuple[str, ...], list[Point]] = {}
    for p in points:
        found.setdefault((p.device, p.case, "" if moves == "scheme" else p.scheme, p.operator), []).append(p)
    series: dict[tuple[str, ...], list[_Way]] = {}
    for key, way in _common(axes, found, 2 * pixels).items():
        series.setdefault(("shared",) if way.shared else key[:-1], []).append(way)
    kept = [pair for ways in series.values() for pair in _kept(ways, NEAR * pixels)]
    names = [_draw(axes, way, operators, look, taken, pixels, moves) for way, operators in kept]
    if moves == "batch":
        _across(axes, found, look, pixels)
    for way, operators in kept:
        _dots(axes, way, operators, look, taken, pixels)
    longest, _ = max(kept, key=lambda pair: (not pair[0].shared, pair[0].length))
    return names + _values(longest, look, moves)


def _across(axes: Axes, found: dict[tuple[str, ...], list[Point]], look: _Look, pixels: float) -> None:
    """Dotted arrows from the first scheme to the last at one batch, for the operator with the most time that moves."""
    for device, case in dict.fromkeys(key[:2] for key in found):
        mine = {key: way for key, way in found.items() if key[:2] == (device, case)}
        schemes = list(dict.fromkeys(key[2] for key in mine))
        pairs = [(mine[device, case, schemes[0], op], mine[device, case, schemes[-1], op])
                 for op in dict.fromkeys(key[3] for key in mine)
                 if (device, case, schemes[0], op) in mine and (device, case, schemes[-1], op) in mine]  # fmt: skip
        pairs = [(a, b) for a, b in pairs if len(a) == len(b) and _moves(axes, a[0], b[0]) > 4 * look.size * pixels]
        if len(schemes) < 2 or not pairs:
            continue
        start, end = max(pairs, key=lambda pair: max(p.share for p in pair[0]))
        for i in _chosen(len(start)):
            axes.annotate("", (end[i].intensity, end[i].flop_per_s / 1e12), zorder=2.5, label="_across",
                          xytext=(start[i].intensity, start[i].flop_per_s / 1e12),
                          arrowprops={"arrowstyle": "-|>", "color": "#777777", "linestyle": (0, (1, 1.5)),
                                      "linewidth": 0.9 * look.scale, "shrinkA": 1.1 * look.size,
                                      "shrinkB": 1.1 * look.size, "mutation_scale": 7 * look.scale})  # fmt: skip


def _moves(axes: Axes, a: Point, b: Point) -> float:
    """How far apart two points are, in pixels."""
    ends = axes.transData.transform([(p.intensity, p.flop_per_s / 1e12) for p in (a, b)])
    return float(np.hypot(*(ends[1] - ends[0])))


def _chosen(count: int) -> list[int]:
    """The values along a path that are named: the first, the last and some between."""
    return sorted({0, count - 1, *range(0, count, max(1, count // 4))})


def _common(axes: Axes, found: dict[tuple[str, ...], list[Point]], near: float) -> dict[tuple[str, ...], _Way]:
    """Paths, those of one operator that several schemes share once."""
    out: dict[tuple[str, ...], _Way] = {}
    for key, way in found.items():
        at = axes.transData.transform([(p.intensity, p.flop_per_s / 1e12) for p in way])
        alike = (k for k in out if (k[:2], k[-1]) == (key[:2], key[-1]))
        same = next((k for k in alike if _apart(out[k].at, at) < near), None)
        if same is None:
            out[key] = _Way(points=tuple(way), at=at)
        else:
            out[same] = replace(out[same], shared=True)
    return out


def _apart(a: Any, b: Any) -> float:
    """Mean distance of two paths, value by value."""
    return float(np.hypot(*(a - b).T).mean()) if len(a) == len(b) else float("inf")


def _kept(ways: Sequence[_Way], near: float) -> list[tuple[_Way, list[str]]]:
    """The paths to draw, each with the operators that it stands for, most of the time first."""
    kept: list[tuple[_Way, list[str]]] = []
    for way in sorted(ways, key=lambda w: -w.share):
        same = next((names for other, names in kept if _apart(other.at, way.at) < near), None)
        if same is not None:
            same.append(way.points[0].operator)
        else:
            kept.append((way, [way.points[0].operator]))
    return kept


def _draw(
    axes: Axes, path: _Way, operators: Sequence[str], look: _Look, taken: Taken, pixels: float, moves: str
) -> Wanted:
    """The line, its arrow and the markers that tell values apart; returns the name to place."""
    way, at = path.points, path.at
    x = np.array([p.intensity for p in way])
    y = np.array([p.flop_per_s for p in way]) / 1e12
    color = GREY if path.shared else look.colors[look.key(way[0])]
    size = look.size
    still = path.length < 2 * size * pixels
    if not still:
        axes.plot(x, y, color=color, linewidth=1.3 * look.scale, zorder=3, label="_path", scalex=False, scaley=False)
        last = max(i for i in range(len(at) - 1) if float(np.hypot(*(at[-1] - at[i]))) > 1.5 * size * pixels)
        axes.annotate("", (x[-1], y[-1]), xytext=(x[last], y[last]), zorder=3, label="_arrow",
                      arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 1.1 * size,
                                  "linewidth": 0, "mutation_scale": 10 * look.scale})  # fmt: skip
        taken.lines += [(*at[i], *at[i + 1]) for i in range(len(at) - 1)]
    drawn = [0] if still else range(len(way)) if moves == "scheme" else (0, len(way) - 1)
    for i in drawn:
        scheme = None if path.shared or still else way[i].scheme
        _mark(axes, path, i, taken, look.marker(operators[:1], scheme, color, size), size * pixels)
    return Wanted(text=together(operators), x=float(x[-1]), y=float(y[-1]), radius=1.2 * size, color=color)


def _dots(axes: Axes, path: _Way, operators: Sequence[str], look: _Look, taken: Taken, pixels: float) -> None:
    """Small markers of the values between the ends, where there is room."""
    size = 0.45 * look.size
    color = GREY if path.shared else look.colors[look.key(path.points[0])]
    if path.length > 2 * look.size * pixels:
        for i in range(1, len(path.points) - 1):
            scheme = None if path.shared else path.points[i].scheme
            _mark(axes, path, i, taken, look.marker(operators[:1], scheme, color, size), size * pixels)


def _mark(
    axes: Axes, path: _Way, i: int, taken: Taken, style: dict[str, Any], radius: float
) -> None:  # fmt: skip
    """Draw the marker of a value; where paths meet, one marker stands for all."""
    (x, y), point = path.at[i], path.points[i]
    if any(float(np.hypot(cx - x, cy - y)) < 0.6 * max(radius, r / 1.2) for cx, cy, r in taken.circles):
        return
    axes.plot(
        [point.intensity], [point.flop_per_s / 1e12], zorder=4, label="_marker", scalex=False, scaley=False, **style
    )
    taken.circles.append((float(x), float(y), 1.2 * radius))


def _values(path: _Way, look: _Look, moves: str) -> list[Wanted]:
    """The values along a path: the first, the last and some between."""
    way = path.points
    color = GREY if path.shared else look.colors[look.key(way[0])]
    chosen = _chosen(len(way))
    return [
        Wanted(text=f"{moves} {way[i].at}" if moves == "batch" and not i else way[i].at, x=way[i].intensity,
               y=way[i].flop_per_s / 1e12, radius=1.2 * look.size, color=color, fontsize=7.2, value=True)
        for i in chosen
    ]  # fmt: skip
