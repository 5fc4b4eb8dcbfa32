"""Rooflines: a panel for each device, its roofs, and the operators of a step under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .style import CYCLE, DASHES, new_figure, styled

MARKERS = "osD^vP*X"
LABELLED = 4
"""Operators that are named in a panel: those with the largest share of the time."""
OFFSETS = ((6, -5), (-6, 5), (6, 5), (-6, -5), (6, 16), (-6, 16), (6, -16), (-6, -16), (6, 28), (-6, 28))
"""Where a name is tried, in points from its marker; the first place where it hides no other name is taken."""


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One roof of a device: a format, its peak (FLOP/s) and the bandwidth (bytes/s)."""

    device: str
    format: str
    peak_flop_per_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An operator on the roofline of a device: operations per byte, the rate it reaches, its share of the time."""

    label: str
    device: str
    series: str
    intensity: float
    flop_per_s: float
    share: float = 1.0


def roofline_figure(title: str, ceilings: Sequence[Ceiling], points: Sequence[Placed]) -> Figure:
    """Roofs with their ridge points, and operators placed under them: a panel for each device.

    Operators of one series share a marker; those that take most of the time are named, once in each panel. Legends
    stand beside the panels, so that they hide nothing.
    """
    devices = list(dict.fromkeys(c.device for c in ceilings))
    with styled():
        figure = new_figure(0.7 + 2.9 * len(devices))
        panels = figure.subplots(len(devices), 1, squeeze=False)[:, 0]
        xs = [p.intensity for p in points if p.intensity > 0] or [1.0]
        ridges = [c.peak_flop_per_s / c.bandwidth_bytes_per_s for c in ceilings]
        x = np.geomspace(min(0.3, *xs) / 2, max(*ridges, *xs) * 4, 200)
        shapes = {name: i for i, name in enumerate(dict.fromkeys(p.series for p in points))}
        for axes, device in zip(panels, devices, strict=True):
            _panel(
                axes, x, [c for c in ceilings if c.device == device], [p for p in points if p.device == device], shapes
            )
            axes.set_title(device, fontweight="normal", fontsize=9.5)
        panels[-1].set_xlabel("arithmetic intensity (operations / byte)")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        figure.draw_without_rendering()  # the layout, which the places of names depend on
        for axes, device in zip(panels, devices, strict=True):
            _name_points(axes, [p for p in points if p.device == device])
        return figure


def _panel(axes: Any, x: Any, ceilings: Sequence[Ceiling], points: Sequence[Placed], shapes: dict[str, int]) -> None:
    for i, c in enumerate(ceilings):
        color, ridge = CYCLE[i % len(CYCLE)], c.peak_flop_per_s / c.bandwidth_bytes_per_s
        roof = np.minimum(x * c.bandwidth_bytes_per_s, c.peak_flop_per_s) / 1e12
        label = f"{c.format}: {c.peak_flop_per_s / 1e12:,.0f} T, ridge {ridge:.0f}"
        axes.plot(x, roof, color=color, linestyle=DASHES[i % len(DASHES)], label=label)
        axes.plot([ridge], [c.peak_flop_per_s / 1e12], marker="|", markersize=10, color=color)
    for series, j in shapes.items():
        mine = [p for p in points if p.series == series]
        if mine:
            axes.plot(
                [p.intensity for p in mine], [p.flop_per_s / 1e12 for p in mine], linestyle="none", markersize=5.5,
                marker=MARKERS[j % len(MARKERS)], color=CYCLE[(j + 3) % len(CYCLE)], label=series,
                markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", ylabel="TFLOP/s", xlim=(x[0], x[-1]))
    axes.grid(True, which="major")
    bandwidth = f"{ceilings[0].bandwidth_bytes_per_s / 1e9:.4g} GB/s"
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title=bandwidth, title_fontsize=8.5, alignment="left")


def _name_points(axes: Any, points: Sequence[Placed]) -> None:
    """Name the operators that take most of the time, where no name hides another."""
    share: dict[str, float] = {}
    for p in points:
        share[p.label] = max(share.get(p.label, 0.0), p.share)
    wanted = sorted(share, key=lambda name: -share[name])[:LABELLED]
    renderer = axes.figure._get_renderer()
    taken: list[Any] = []
    for label in wanted:
        at = max((p for p in points if p.label == label), key=lambda p: p.share)
        for dx, dy in OFFSETS:
            text = axes.annotate(
                label, (at.intensity, at.flop_per_s / 1e12), xytext=(dx, dy), textcoords="offset points", fontsize=7.5,
                color="#333333", ha="left" if dx > 0 else "right", va="bottom" if dy > 0 else "top",
            )  # fmt: skip
            text.set_in_layout(False)
            box = text.get_window_extent(renderer)
            inside = (
                axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
            )
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
