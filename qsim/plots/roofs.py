"""The roofs of a roofline and their names: peaks at the right end, the bandwidth along the slope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from .labels import Taken, crosses, free, size_of
from .names import peak_title, rate_title
from .style import DASHES

if TYPE_CHECKING:
    from .roofline import _Look


@dataclass(frozen=True, kw_only=True)
class Roof:
    """A roof of a device: a format as people write it, its peak (FLOP/s) and the bandwidth (bytes/s).

    `used`: an operator of the figure multiplies in it; other roofs are drawn light. `integers`: its unit is OP/s.
    """

    device: str
    format: str
    peak_flop_per_s: float
    bandwidth_bytes_per_s: float
    used: bool = True
    integers: bool = False


def draw_roofs(axes: Axes, roofs: Sequence[Roof], look: _Look, layout: str) -> None:
    """The slope of each device and the flat part of each format: dashes tell formats apart."""
    left, right = axes.get_xlim()
    for device in dict.fromkeys(r.device for r in roofs):
        mine = [r for r in roofs if r.device == device]
        peaks = sorted({r.peak_flop_per_s for r in mine if r.used})
        for r in mine:
            color = look.colors[device] if layout == "overlay" else "#555555" if r.used else "#B5B5B5"
            ridge = r.peak_flop_per_s / r.bandwidth_bytes_per_s
            rank = peaks.index(r.peak_flop_per_s) if r.used else 0
            shared: dict[str, Any] = {"color": color, "zorder": 2 if r.used else 1, "label": "_roof",
                                      "linewidth": (1.3 if r.used else 0.7) * look.scale}  # fmt: skip
            axes.plot([left, ridge], np.array([left, ridge]) * r.bandwidth_bytes_per_s / 1e12, **shared)
            axes.plot([ridge, right], [r.peak_flop_per_s / 1e12] * 2, linestyle=DASHES[rank % len(DASHES)], **shared)


def name_roofs(axes: Axes, roofs: Sequence[Roof], look: _Look, layout: str, taken: Taken) -> list[str]:
    """The peaks at the right end of their roofs, else above the panel; the bandwidth along the slope.

    Returns what found no room.
    """
    pixels, font = axes.figure.dpi / 72, 7.8 * look.scale  # type: ignore[union-attr]
    left_out = []
    by_peak: dict[tuple[str, float, float], list[Roof]] = {}
    for r in roofs:
        by_peak.setdefault((r.device, r.peak_flop_per_s, r.bandwidth_bytes_per_s), []).append(r)
    for (device, peak, bandwidth), mine in sorted(by_peak.items(), key=lambda item: -item[0][1]):
        names = ", ".join(list(dict.fromkeys(r.format for r in mine if r.used)) or [r.format for r in mine][:2])
        whose = f"{device} " if layout == "overlay" else ""
        full = f"{whose}{names}  {peak_title(peak, all(r.integers for r in mine))}"
        color = look.colors[device] if layout == "overlay" else "#333333" if any(r.used for r in mine) else "#777777"
        ridge = peak / bandwidth
        texts = (f"{full}, ridge {ridge:,.0f}" if ridge >= 99.5 else f"{full}, ridge {ridge:.3g}", full,
                 full.replace("  ", "\n"), f"{whose}{names}")  # fmt: skip
        if not _write_peak(axes, texts, peak / 1e12, color, font, taken, pixels):
            left_out.append(f"{whose}{names} {peak / 1e12:,.4g}")
    for device, bandwidth in dict.fromkeys((r.device, r.bandwidth_bytes_per_s) for r in roofs):
        color = look.colors[device] if layout == "overlay" else "#333333"
        lowest = min(r.peak_flop_per_s for r in roofs if (r.device, r.bandwidth_bytes_per_s) == (device, bandwidth))
        _write_slope(axes, rate_title(bandwidth), bandwidth, lowest, color, font, taken, pixels)
    if not left_out or _write_above(axes, "; ".join(left_out), font, pixels):
        return []
    return [f"the roof of {name} {axes.get_title(loc='left')}".strip() for name in left_out]


def _write_above(axes: Axes, text: str, font: float, pixels: float) -> bool:
    """Write a text above a panel, right of its title, where both fit."""
    title = axes._left_title.get_window_extent()  # type: ignore[attr-defined]
    start = title.x1 if axes.get_title(loc="left") else axes.bbox.x0
    if start + size_of(axes, text, font)[0] + 8 * pixels > axes.bbox.x1:
        return False
    written = axes.annotate(text, (1.0, 1.0), xycoords="axes fraction", xytext=(0, 4.0), textcoords="offset points",
                            fontsize=font, color="#333333", ha="right", va="bottom", label="_roof name")  # fmt: skip
    written.set_in_layout(False)
    return True


def _write_peak(
    axes: Axes, texts: Sequence[str], peak: float, color: str, font: float, taken: Taken, pixels: float
) -> bool:
    """Write the longest of the texts that fits at the right end of a roof, above it or below it."""
    _, y = axes.transData.transform((1.0, peak))
    right, gap = axes.bbox.x1 - 2 * pixels, 2.0 * pixels
    for text in texts:
        width, height = size_of(axes, text, font)
        for above in (True, False):
            bottom = y + gap if above else y - gap - height
            box = Bbox.from_bounds(right - width, bottom, width, height)
            if box.y1 > axes.bbox.y1 or box.x0 < axes.bbox.x0 or not free(box, taken, 0.5 * pixels):
                continue
            if any(crosses(box, line) for line in taken.lines):
                continue
            x, _ = axes.transAxes.inverted().transform((right, y))
            written = axes.annotate(text, (x, peak), xycoords=("axes fraction", "data"), fontsize=font, color=color,
                                    xytext=(0, 2.0 if above else -2.0), textcoords="offset points", ha="right",
                                    va="bottom" if above else "top", zorder=6, label="_roof name",
                                    linespacing=1.0)  # fmt: skip
            written.set_in_layout(False)
            taken.boxes.append(box)
            return True
    return False


def _write_slope(
    axes: Axes, text: str, bandwidth: float, peak: float, color: str, font: float, taken: Taken, pixels: float
) -> None:
    """The bandwidth along the slope of a roof, above it, where nothing is in the way."""
    lowest = max(axes.get_xlim()[0], axes.get_ylim()[0] * 1e12 / bandwidth)
    ends = np.geomspace(lowest, peak / bandwidth, 2)
    (x0, y0), (x1, y1) = axes.transData.transform(np.column_stack([ends, ends * bandwidth / 1e12]))
    angle = float(np.degrees(np.arctan2(y1 - y0, x1 - x0)))
    for t in (0.5, 0.6, 0.4, 0.7, 0.3, 0.8, 0.2):
        x = float(ends[0] ** (1 - t) * ends[1] ** t)
        written = axes.annotate(text, (x, x * bandwidth / 1e12), fontsize=font, color=color, rotation=angle,
                                rotation_mode="anchor", ha="center", va="bottom", zorder=6, label="_roof name",
                                xytext=(-2.0, 2.0), textcoords="offset points")  # fmt: skip
        written.set_in_layout(False)
        box = written.get_window_extent(axes.figure._get_renderer())  # type: ignore[union-attr]
        inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1
        if inside and free(box, taken, 0.0):
            taken.boxes.append(box)
            return
        written.remove()
