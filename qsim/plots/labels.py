"""Names beside what they name, on a figure that is laid out: none over another, over a marker or off the panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

_ANGLES = tuple(math.radians(a) for a in (0, 180, 45, 135, 315, 225, 90, 270, 22, 158, 338, 202, 68, 112, 292, 248))
_REACH = (1.0, 6.0, 14.0, 24.0, 36.0, 50.0, 68.0, 90.0)
"""How far from the edge of its marker a name may stand, in points at a font of 9 points; tried from the nearest."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A name to place: what it says, the data point it belongs to, the radius of the marker there in points.

    `value`: it is one of several values along a path, which says enough without it.
    """

    text: str
    x: float
    y: float
    radius: float
    color: str = "#222222"
    fontsize: float = 8.0
    value: bool = False


@dataclass
class Taken:
    """What a panel holds already, in pixels: boxes that nothing may cover, circles of markers, lines to keep off."""

    boxes: list[Bbox] = field(default_factory=list)
    circles: list[tuple[float, float, float]] = field(default_factory=list)
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)


def place(axes: Axes, wanted: Sequence[Wanted], taken: Taken) -> list[Wanted]:
    """Write the names that find a place, in order, with a thin line where one stands apart from its marker.

    Arguments:
        axes: a panel of a figure that is laid out (`layout.settle`), limits and scales final.
        taken: what is there; placed names and their lines are added.

    Returns:
        The names that found no place; nothing is drawn of them.
    """
    pixels = axes.figure.dpi / 72  # type: ignore[union-attr]
    left_out = []
    for want in wanted:
        spot = _best(axes, want, taken, pixels)
        if spot is None:
            left_out.append(want)
            continue
        (x, y), box, line = spot
        at = axes.transData.transform((want.x, want.y))
        text = axes.annotate(
            want.text, (want.x, want.y), xytext=((x - at[0]) / pixels, (y - at[1]) / pixels),
            textcoords="offset points", ha="center", va="center", fontsize=want.fontsize, color=want.color,
            linespacing=1.0, zorder=6, annotation_clip=False, label="_label",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
        )  # fmt: skip
        text.set_in_layout(False)
        taken.boxes.append(box)
        if line is not None:
            inverse = axes.transData.inverted()
            (x0, y0), (x1, y1) = inverse.transform(line[:2]), inverse.transform(line[2:])
            (drawn,) = axes.plot([x0, x1], [y0, y1], color="#777777", linewidth=0.7, zorder=4, label="_leader",
                                 scalex=False, scaley=False)  # fmt: skip
            drawn.set_in_layout(False)
            taken.lines.append(line)
    return left_out


def together(names: Sequence[str]) -> str:
    """Up to four names on two lines, and how many more there are."""
    shown = names if len(names) <= 4 else names[:3]
    lines = [", ".join(shown[:2]), ", ".join(shown[2:])]
    if len(names) > 4:
        lines[1] += f" + {len(names) - 3} more"
    return ",\n".join(line for line in lines if line)


def size_of(axes: Axes, text: str, fontsize: float) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    probe = axes.text(0, 0, text, fontsize=fontsize, linespacing=1.0)
    box = probe.get_window_extent(axes.figure._get_renderer())  # type: ignore[union-attr]
    probe.remove()
    return box.width, box.height


def _best(axes: Axes, want: Wanted, taken: Taken, pixels: float) -> Any:
    """The centre, box and leader line (or None) of the best free place of a name; None where there is none."""
    px, py = axes.transData.transform((want.x, want.y))
    width, height = size_of(axes, want.text, want.fontsize)
    scale, radius = want.fontsize / 9 * pixels, want.radius * pixels
    panel, best, least = axes.bbox, None, math.inf
    for reach in _REACH:
        if reach * scale >= least:
            break
        for angle in _ANGLES:
            dx, dy = math.cos(angle), math.sin(angle)
            # the box touches the circle of this reach from outside, seen from the marker
            edge = radius + reach * scale
            x, y = px + dx * (edge + width / 2), py + dy * (edge + height / 2)
            box = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
            inside = panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
            if not inside or not free(box, taken, 1.5 * pixels):
                continue
            line = _leader(px, py, radius, box) if reach > _REACH[1] else None
            if line is not None and not _clear(line, taken, (px, py)):
                continue
            cost = reach * scale + 14 * pixels * sum(crosses(box, other) for other in taken.lines)
            if cost < least:
                best, least = ((x, y), box, line), cost
    return best


def free(box: Bbox, taken: Taken, gap: float) -> bool:
    """Whether a box covers neither a box nor a marker, with a gap in pixels around it."""
    wide = Bbox.from_extents(box.x0 - gap, box.y0 - gap, box.x1 + gap, box.y1 + gap)
    if any(wide.overlaps(other) for other in taken.boxes):
        return False
    return not any(_near(wide, x, y) < r for x, y, r in taken.circles)


def _near(box: Bbox, x: float, y: float) -> float:
    """How far a point is from a box; 0 inside it."""
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))


def _leader(x: float, y: float, radius: float, box: Bbox) -> tuple[float, float, float, float]:
    """From the edge of the marker to the nearest edge of the box."""
    tx, ty = min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)
    length = math.hypot(tx - x, ty - y) or 1.0
    return x + radius * (tx - x) / length, y + radius * (ty - y) / length, tx, ty


def _clear(line: tuple[float, float, float, float], taken: Taken, own: tuple[float, float]) -> bool:
    """Whether a leader crosses no other marker and no name."""
    if any(crosses(box, line) for box in taken.boxes):
        return False
    return not any(
        math.hypot(x - own[0], y - own[1]) > 1 and _from_line(line, x, y) < r for x, y, r in taken.circles
    )  # fmt: skip


def _from_line(line: tuple[float, float, float, float], x: float, y: float) -> float:
    """Distance of a point from a segment."""
    x0, y0, x1, y1 = line
    dx, dy = x1 - x0, y1 - y0
    t = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy or 1.0)
    t = min(max(t, 0.0), 1.0)
    return math.hypot(x - x0 - t * dx, y - y0 - t * dy)


def crosses(box: Bbox, line: tuple[float, float, float, float]) -> bool:
    """Whether a segment runs through a box (Liang and Barsky's clipping)."""
    x0, y0, x1, y1 = line
    low, high = 0.0, 1.0
    for p, q in ((x0 - x1, x0 - box.x0), (x1 - x0, box.x1 - x0), (y0 - y1, y0 - box.y0), (y1 - y0, box.y1 - y0)):
        if p == 0:
            if q < 0:
                return False
            continue
        t = q / p
        if p < 0:
            low = max(low, t)
        else:
            high = min(high, t)
        if low > high:
            return False
    return True
