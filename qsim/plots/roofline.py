"""Rooflines: operators of a step under the roofs of one or more devices, and the way they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from qsim.errors import QsimError

from .beside import Beside, draw_bars, draw_table, prepare_bars
from .labels import Taken, Wanted, place, together
from .layout import grid_of, heading, legend_of, settle
from .markers import Spot, gathered, radius
from .reach import ALPHA, WIDTH, Reach, Tier, draw_reaches, draw_tiers
from .roofs import Roof, draw_roofs, name_roofs
from .style import CYCLE, GREY, SIZES, new_figure, styled

SHAPES = "sD^v<>Pph8X*"
"""Markers of operators, by their share of the time; a circle is several operators at one place."""
FILLS = ("full", "none", "left", "top", "right", "bottom")
MOST_DEVICES, MOST_OVERLAID, MOST_SCHEMES = 6, 3, len(FILLS)
NAMED = 0.9
"""Operators are named until they make up this part of the time."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """An operator under the roofs of a device: operations per byte, the rate it reaches, its share of the step's time.

    `case` is what runs (`decode, batch 16`). On a path, `at` is the value that moves the operator (`batch 4`).
    `formats` are those it multiplies in, as the roofs name them.
    """

    device: str
    operator: str
    scheme: str
    intensity: float
    flop_per_s: float
    share: float = 1.0
    case: str = ""
    at: str = ""
    formats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What colours, shapes and fills stand for in one figure."""

    color_by: str
    colors: dict[str, Any]
    shapes: dict[str, str]
    fills: dict[str, str]
    scale: float
    crowd: float

    def key(self, p: Point) -> str:
        return str(getattr(p, self.color_by))

    @property
    def size(self) -> float:
        """The radius of the markers of a path, in points."""
        return 3.4 * self.scale

    def smallest(self) -> float:
        return 2.7 * self.scale

    def largest(self) -> float:
        return 8.0 * self.scale * self.crowd

    def marker(self, names: Sequence[str], scheme: str | None, color: str, size: float) -> dict[str, Any]:
        """Arguments of `plot` for one marker of a radius in points."""
        fill = "full" if scheme is None else self.fills[scheme]
        shape = "o" if len(names) > 1 else self.shapes[names[0]]
        grown = size * (1.0 if shape in "os" else 1.15)
        edge = 0.7 if fill == "full" else 1.1
        return {"linestyle": "none", "marker": shape, "markersize": 2 * grown, "color": color,
                "markeredgecolor": "white" if fill == "full" else color, "markeredgewidth": edge * self.scale,
                "fillstyle": "full" if fill == "none" else fill, "markerfacecoloralt": "white",
                "markerfacecolor": "white" if fill == "none" else color}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _More:
    reaches: tuple[Reach, ...]
    tiers: tuple[Tier, ...]
    beside: Beside


_NOTHING = Beside()


def roofline_figure(
    title: str,
    roofs: Sequence[Roof],
    points: Sequence[Point],
    *,
    path: str | None = None,
    layout: str = "panels",
    size: str = "page",
    notes: Sequence[str] = (),
    reaches: Sequence[Reach] = (),
    tiers: Sequence[Tier] = (),
    beside: Beside = _NOTHING,
) -> Figure:
    """Roofs, and operators under them: the marker's shape is the operator, its fill the scheme, its area its share.

    Colours are schemes; with several cases (decode and prefill) they are cases, in an overlay devices. The operators
    that make up 90 % of the time are named where there is room; what is left out is said under the title.

    Arguments:
        path: what moves along each operator's path, `scheme` or `batch`; the points of a path are in its order.
        layout: `panels`, one for each device on shared axes, or `overlay`, at most three devices on one.
        size: a name of `style.SIZES`.
        notes: sentences under the title.
        reaches: what kernels reach, drawn thick with 80 % bands; the roofs of the data sheet are thin.
        tiers: other memories, whose slopes are dotted.
        beside: bars and a table under the panels; beside the only panel of a slide.

    Raises:
        QsimError: nothing to draw, more devices or schemes than the layout holds, more bars and rows than the size
            holds, or values that a log axis cannot show.
    """
    _check(roofs, points, path, layout, size)
    beside.check(size, _side(size, layout, roofs))
    more = _More(reaches=tuple(reaches), tiers=tuple(tiers), beside=beside)
    look = _look(points, path, layout, size)
    said = [*notes, *_encoding(points, path)]
    missing: list[str] = []
    for _ in range(3):  # what finds no room is said under the title, which takes some room itself
        tail = [f"no room to name {', '.join(missing)}"] if missing else []
        figure, left_out = _build(title, roofs, points, look, path, layout, size, [*said, *tail], more)
        if set(left_out) <= set(missing):
            break
        missing = list(dict.fromkeys([*missing, *left_out]))
    return figure


def _build(
    title: str, roofs: Sequence[Roof], points: Sequence[Point], look: _Look, path: str | None, layout: str, size: str,
    said: Sequence[str], more: _More,
) -> tuple[Figure, list[str]]:  # fmt: skip
    """The figure, and the names that found no room."""
    devices = list(dict.fromkeys(r.device for r in roofs))
    groups = [devices] if layout == "overlay" else [[d] for d in devices]
    side = _side(size, layout, roofs)
    extra = more.beside.heights_in(size, side)
    with styled(look.scale):
        height, width = _size(size, len(groups))
        whole = height if SIZES[size].height_in else height + sum(extra)
        figure = new_figure(whole, width)
        upper = whole - sum(extra) - 1.6 * look.scale  # without title and legend
        panels, spare, rest = grid_of(figure, len(groups), size, [upper, *extra], side)
        _limits(panels, roofs, points, more.tiers)
        for axes, group in zip(panels, groups, strict=True):
            mine = [r for r in roofs if r.device in group]
            draw_tiers(axes, [t for t in more.tiers if t.device in group], mine, look)
            draw_reaches(axes, [r for r in more.reaches if r.device in group], mine, look)
            draw_roofs(axes, mine, look, layout)
            if layout != "overlay" and len(devices) > 1:
                axes.set_title(group[0], fontweight="normal")
        if more.beside.steps:
            prepare_bars(rest[0], more.beside.steps)
        heading(figure, title, said)
        legend_of(figure, _handles(points, look, path, bool(more.reaches)), spare)
        settle(figure)
        left_out: list[str] = []
        for axes, group in zip(panels, groups, strict=True):
            mine = [r for r in roofs if r.device in group]
            left_out += _fill(axes, mine, [p for p in points if p.device in group],
                              [t for t in more.tiers if t.device in group], look, path, layout)  # fmt: skip
        if more.beside.steps:
            draw_bars(rest[0], more.beside.steps, look)
        if rest:
            draw_table(figure, rest[-1], more.beside, look, size, side)
        return figure, left_out


def _side(size: str, layout: str, roofs: Sequence[Roof]) -> bool:
    """Whether there is room at the side of the panels: that of the only panel of a slide."""
    return size == "slide" and (layout == "overlay" or len({r.device for r in roofs}) == 1)


def _check(roofs: Sequence[Roof], points: Sequence[Point], path: str | None, layout: str, size: str) -> None:
    from .style import check_size

    check_size(size)
    if not roofs or not points:
        raise QsimError("a roofline needs at least one roof and one operator: got none")
    if path not in (None, "scheme", "batch"):
        raise QsimError(f"a path of a roofline must be scheme or batch: got {path!r}")
    devices = {r.device for r in roofs}
    if layout not in ("panels", "overlay"):
        raise QsimError(f"a roofline's layout must be panels or overlay: got {layout!r}")
    most = MOST_OVERLAID if layout == "overlay" else MOST_DEVICES
    if len(devices) > most:
        raise QsimError(f"a roofline with {layout} holds at most {most} devices: got {len(devices)}; draw two figures")
    schemes = {p.scheme for p in points}
    if len(schemes) > MOST_SCHEMES:
        raise QsimError(f"a roofline holds at most {MOST_SCHEMES} schemes: got {len(schemes)}; draw two figures")
    cases = {p.case for p in points}
    if layout == "overlay" and len(cases) > 1:
        raise QsimError(f"an overlay holds one case, since colours are devices: got {' and '.join(sorted(cases))}")
    for p in points:
        if not (0 < p.intensity < np.inf and 0 < p.flop_per_s < np.inf):
            raise QsimError(f"a roofline's axes are logarithmic: {p.operator} on {p.device} has "
                            f"{p.intensity:g} FLOP/byte and {p.flop_per_s:g} FLOP/s")  # fmt: skip
    if path is not None and len({p.at for p in points}) < 2:
        raise QsimError(f"a path needs at least two values: got one {path}")


def _look(points: Sequence[Point], path: str | None, layout: str, size: str) -> _Look:
    share: dict[str, float] = {}
    for p in points:
        share[p.operator] = max(share.get(p.operator, 0.0), p.share)
    by_share = sorted(share, key=lambda name: -share[name])
    color_by = "device" if layout == "overlay" else "case" if len({p.case for p in points}) > 1 else "scheme"
    if path == "scheme" and color_by == "scheme":
        color_by = "operator"
    keys = by_share if color_by == "operator" else list(dict.fromkeys(getattr(p, color_by) for p in points))
    schemes = list(dict.fromkeys(p.scheme for p in points))
    many = layout == "panels" and len({p.device for p in points}) > 3  # panels are small
    return _Look(
        color_by=color_by, colors={k: CYCLE[i % len(CYCLE)] for i, k in enumerate(keys)}, scale=SIZES[size].scale,
        shapes={k: SHAPES[i % len(SHAPES)] for i, k in enumerate(by_share)},
        fills=dict(zip(schemes, FILLS, strict=False)), crowd=0.75 if many else 1.0,
    )  # fmt: skip


def _size(size: str, count: int) -> tuple[float, float]:
    """Height and width in inches."""
    from .layout import columns_of

    found = SIZES[size]
    rows = -(-count // columns_of(size, count))
    each = 4.0 if count == 1 else 2.7
    return found.height_in or rows * each + 1.6 * found.scale, found.width_in


def _limits(panels: Sequence[Axes], roofs: Sequence[Roof], points: Sequence[Point], tiers: Sequence[Tier]) -> None:
    ridges = [r.peak_flop_per_s / r.bandwidth_bytes_per_s for r in roofs]
    xs, ys = [p.intensity for p in points], [p.flop_per_s / 1e12 for p in points]
    # the slope of a faster memory ends at its own ridge, further left
    ends = [max(r.peak_flop_per_s for r in roofs if r.device == t.device) / t.bandwidth_bytes_per_s for t in tiers]
    for axes in panels:
        axes.set(xscale="log", yscale="log")
        axes.set_xlim(min([x / 3 for x in xs] + [x / 4 for x in ends]), max(max(ridges) * 20, max(xs) * 4))
        axes.set_ylim(min(ys) / 4, max(r.peak_flop_per_s for r in roofs) / 1e12 * 2.5)
        axes.grid(True, which="major")
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(numticks=8, subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
            axis.set_minor_locator(NullLocator())
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            integers = any(r.integers for r in roofs)
            axes.set_ylabel("TFLOP/s or TOP/s" if integers else "TFLOP/s")
        if axes.xaxis.get_tick_params()["labelbottom"]:
            axes.set_xlabel("arithmetic intensity (FLOP/byte)")


def _encoding(points: Sequence[Point], path: str | None) -> list[str]:
    if path is not None:
        schemes = list(dict.fromkeys(p.scheme for p in points))
        dotted = f"; dotted arrows: from {schemes[0]} to {schemes[-1]} at one batch"
        return [f"each arrow is one operator's path with the {path}" + dotted * (path == "batch" and len(schemes) > 1)]
    if len({p.share for p in points}) < 2:
        return []
    return ["area of a marker: share of the step's time", "circle: several operators at one place"]


def _handles(points: Sequence[Point], look: _Look, path: str | None, reached: bool) -> list[Line2D]:
    """The legend: shapes of operators, then fills of schemes, then colours of what is neither."""
    drawn = list(look.shapes)
    plain = {"scale": look.scale, "size": 3.6 * look.scale}
    out = [Line2D([], [], label=name, **look.marker((name,), None, look.colors.get(name, GREY)
                  if look.color_by == "operator" else GREY, plain["size"])) for name in drawn]  # fmt: skip
    if len(look.fills) > 1 or look.color_by == "scheme":
        for scheme in look.fills:
            color = look.colors[scheme] if look.color_by == "scheme" else GREY
            out.append(Line2D([], [], label=scheme, **look.marker(("", ""), scheme, color, plain["size"])))
    if look.color_by in ("case", "device"):
        out += [Line2D([], [], color=c, linestyle="none", marker="s", markersize=8 * look.scale, label=k)
                for k, c in look.colors.items()]  # fmt: skip
    out.append(Line2D([], [], color="#555555", linewidth=0.9 * look.scale, label="data sheet"))
    if reached:
        out.append(Line2D([], [], color=GREY, alpha=ALPHA, linewidth=WIDTH * look.scale,
                          label="reached by kernels, 80 % band"))  # fmt: skip
    return out


# --- what is drawn on the finished layout ----------------------------------------------------------------------


def _fill(
    axes: Axes, roofs: Sequence[Roof], points: Sequence[Point], tiers: Sequence[Tier], look: _Look, path: str | None,
    layout: str,
) -> list[str]:  # fmt: skip
    """Markers or paths, then names; returns the names that found no room."""
    from .paths import draw_paths

    taken = Taken()
    for r in (r for r in roofs if r.used):
        xs = [axes.get_xlim()[0], r.peak_flop_per_s / r.bandwidth_bytes_per_s, axes.get_xlim()[1]]
        ys = [min(x * r.bandwidth_bytes_per_s, r.peak_flop_per_s) / 1e12 for x in xs]
        corners = axes.transData.transform(np.column_stack([xs, ys]))
        taken.lines += [(*corners[i], *corners[i + 1]) for i in range(2)]
    wanted = draw_paths(axes, points, look, taken, path) if path else _draw_markers(axes, points, look, taken)
    left_out = name_roofs(axes, roofs, tiers, look, layout, taken)
    font = 8.3 * look.scale
    sized = [replace(w, fontsize=w.fontsize * font / 8) for w in wanted]
    unplaced = place(axes, sized, taken)
    named = {name for w in sized if w not in unplaced for name in _names(w)}
    return left_out + [name for w in unplaced if not w.value for name in _names(w) if name not in named]


def _names(want: Wanted) -> list[str]:
    return want.text.replace("\n", " ").split(", ")


def _draw_markers(axes: Axes, points: Sequence[Point], look: _Look, taken: Taken) -> list[Wanted]:
    pixels = axes.figure.dpi / 72  # type: ignore[union-attr]
    small, large = look.smallest() * pixels, look.largest() * pixels
    at = axes.transData.transform([(p.intensity, p.flop_per_s / 1e12) for p in points])
    series = {f"{look.key(p)}\n{p.scheme}": (look.key(p), p.scheme) for p in points}
    spots = gathered(
        [Spot(x=float(x), y=float(y), radius=radius(p.share, small, large), names=(p.operator,), share=p.share,
              series=f"{look.key(p)}\n{p.scheme}") for p, (x, y) in zip(points, at, strict=True)], small, large,
    )  # fmt: skip
    inverse = axes.transData.inverted()
    labels: list[tuple[Spot, Wanted]] = []
    for spot in spots:
        x, y = inverse.transform((spot.x, spot.y))
        key, scheme = series[spot.series] if spot.series else (None, None)
        color = GREY if key is None else look.colors[key]
        axes.plot([x], [y], zorder=3, label="_marker", scalex=False, scaley=False,
                  **look.marker(spot.names, scheme, color, spot.radius / pixels))  # fmt: skip
        taken.circles.append((spot.x, spot.y, 1.15 * spot.radius))
        words = together(spot.names)
        labels.append((spot, Wanted(text=words, x=x, y=y, radius=1.1 * spot.radius / pixels, color="#222222")))
    return [want for _, want in _worth_naming(labels)]


def _worth_naming(labels: Sequence[tuple[Spot, Wanted]]) -> list[tuple[Spot, Wanted]]:
    """Every set of operators at one place, and other operators until 90 % of the time has a name; each once."""
    best: dict[str, float] = {}
    for spot, _ in labels:
        for name in spot.names:
            best[name] = max(best.get(name, 0.0), spot.share)
    total, named, known = sum(best.values()), 0.0, set()
    for name in sorted(best, key=lambda n: -best[n]):
        if named < NAMED * total:
            known.add(name)
        named += best[name]
    out, done = [], set()
    groups: set[tuple[str, ...]] = set()
    for spot, want in sorted(labels, key=lambda pair: -pair[0].share):
        if len(spot.names) > 1:
            if spot.names not in groups:
                groups.add(spot.names)
                out.append((spot, want))
        elif spot.names[0] in known and spot.names[0] not in done:
            done.add(spot.names[0])
            out.append((spot, want))
    return out
