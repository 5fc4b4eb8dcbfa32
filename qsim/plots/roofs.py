"""The roofs of a data sheet and their names: peaks at the right end, ridges beside their corners, bandwidths along the
slopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from .labels import Taken, crosses, free, size_of
from .names import and_list, peak_title, rate_title
from .reach import Tier
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
    """The slope of each device and the flat part of each format, thin: dashes tell formats apart."""
    left, right = axes.get_xlim()
    for device in dict.fromkeys(r.device for r in roofs):
        mine = [r for r in roofs if r.device == device]
        peaks = sorted({r.peak_flop_per_s for r in mine if r.used})
        for r in mine:
            color = look.colors[device] if layout == "overlay" else "#555555" if r.used else "#B5B5B5"
            ridge = r.peak_flop_per_s / r.bandwidth_bytes_per_s
            rank = peaks.index(r.peak_flop_per_s) if r.used else 0
            shared: dict[str, Any] = {"color": color, "zorder": 2 if r.used else 1, "label": "_roof",
                                      "linewidth": (0.9 if r.used else 0.6) * look.scale,
                                      "alpha": 0.5 if layout == "overlay" and not r.used else 1.0}  # fmt: skip
            axes.plot([left, ridge], np.array([left, ridge]) * r.bandwidth_bytes_per_s / 1e12, **shared)
            axes.plot([ridge, right], [r.peak_flop_per_s / 1e12] * 2, linestyle=DASHES[rank % len(DASHES)], **shared)


def name_roofs(
    axes: Axes, roofs: Sequence[Roof], tiers: Sequence[Tier], look: _Look, layout: str, taken: Taken
) -> list[str]:
    """The peaks at the right end of their roofs, else above the panel; ridges and bandwidths once each.

    Returns what found no room.
    """
    pixels, font = axes.figure.dpi / 72, 7.8 * look.scale  # type: ignore[union-attr]
    left_out = []
    by_peak: dict[tuple[str, float, float], list[Roof]] = {}
    for r in roofs:
        by_peak.setdefault((r.device, r.peak_flop_per_s, r.bandwidth_bytes_per_s), []).append(r)
    by_use = sorted(by_peak.items(), key=lambda item: (not any(r.used for r in item[1]), -item[0][1]))
    for (device, peak, bandwidth), mine in by_use:
        used = any(r.used for r in mine)
        formats = list(dict.fromkeys(r.format for r in mine if r.used or not used))
        whose = f"{device} " if layout == "overlay" else ""
        rate = peak_title(peak, all(r.integers for r in mine))
        short = formats if len(formats) < 3 else [formats[0], f"{len(formats) - 1} more"]
        color = look.colors[device] if layout == "overlay" else "#333333" if used else "#777777"
        name = ", ".join(formats)
        bare = rate.split()[0]  # the axis has the unit
        texts = (f"{whose}{name}  {rate}", f"{whose}{name}  {bare}", f"{whose}{name}\n{rate}",
                 f"{whose}{and_list(short)}  {rate}", f"{whose}{and_list(short)}\n{rate}")  # fmt: skip
        if not _write_peak(axes, texts, peak / 1e12, color, font, taken, pixels, roofs):
            left_out.append(f"{whose}{name} {peak / 1e12:,.4g}")
        if used:
            _write_ridge(axes, peak, bandwidth, color, font, taken, pixels)
    slopes = [(r.device, r.bandwidth_bytes_per_s, "", r.peak_flop_per_s) for r in roofs]
    tops = {r.device: max(o.peak_flop_per_s for o in roofs if o.device == r.device) for r in roofs}
    slopes += [(t.device, t.bandwidth_bytes_per_s, f"{t.name} ", tops[t.device]) for t in tiers]
    lowest: dict[tuple[str, float, str], float] = {}
    for device, bandwidth, name, peak in slopes:
        lowest[device, bandwidth, name] = min(lowest.get((device, bandwidth, name), np.inf), peak)
    for (device, bandwidth, name), peak in lowest.items():
        color = look.colors[device] if layout == "overlay" else "#777777" if name else "#333333"
        text = name + rate_title(bandwidth)
        if not _write_slope(axes, text, bandwidth, peak, color, font, taken, pixels) and name:
            left_out.append(text)
    if not left_out or _write_above(axes, "; ".join(left_out), font, pixels):
        return []
    return [f"the roof of {name} {axes.get_title(loc='left')}".strip() for name in left_out]


def _write_ridge(
    axes: Axes, peak: float, bandwidth: float, color: str, font: float, taken: Taken, pixels: float
) -> None:
    """The intensity of a ridge left of its corner, where there is room; `--with table` has it too."""
    ridge = peak / bandwidth
    x, y = axes.transData.transform((ridge, peak / 1e12))
    text = f"ridge {ridge:,.0f}" if ridge >= 99.5 else f"ridge {ridge:.3g}"
    width, height = size_of(axes, text, font)
    for up in (0.5, 0.1, 0.9):
        box = Bbox.from_bounds(x - 5 * pixels - width, y - (1 - up) * height, width, height)
        inside = box.x0 > axes.bbox.x0 and box.y1 < axes.bbox.y1
        if inside and free(box, taken, 0.5 * pixels) and not any(crosses(box, line) for line in taken.lines):
            written = axes.annotate(text, (ridge, peak / 1e12), xytext=((box.x0 - x) / pixels, (box.y0 - y) / pixels),
                                    textcoords="offset points", fontsize=font, color=color, ha="left", va="bottom",
                                    zorder=6, label="_roof name", bbox=_GROUND)  # fmt: skip
            written.set_in_layout(False)
            taken.boxes.append(box)
            return


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
    axes: Axes, texts: Sequence[str], peak: float, color: str, font: float, taken: Taken, pixels: float,
    roofs: Sequence[Roof],
) -> bool:  # fmt: skip
    """Write the longest of the texts that fits at the right end of a roof, above it or below it.

    A text crosses no roof that an operator runs under; it may stand on paler lines where nothing else is free.
    """
    _, y = axes.transData.transform((1.0, peak))
    right, gap = axes.bbox.x1 - 2 * pixels, 2.0 * pixels
    for over in (False, True):
        kept_off = taken.lines if over else taken.lines + _pale(axes, 1e12 * peak, roofs)
        for text in texts:
            width, height = size_of(axes, text, font)
            for above in (True, False):
                bottom = y + gap if above else y - gap - height
                box = Bbox.from_bounds(right - width, bottom, width, height)
                if box.y1 > axes.bbox.y1 or box.x0 < axes.bbox.x0 or not free(box, taken, 0.5 * pixels):
                    continue
                if any(crosses(box, line) for line in kept_off):
                    continue
                x, _ = axes.transAxes.inverted().transform((right, y))
                written = axes.annotate(text, (x, peak), xycoords=("axes fraction", "data"), fontsize=font, color=color,
                                        xytext=(0, 2.0 if above else -2.0), textcoords="offset points", ha="right",
                                        va="bottom" if above else "top", zorder=6, label="_roof name", linespacing=1.0,
                                        bbox=_GROUND)  # fmt: skip
                written.set_in_layout(False)
                taken.boxes.append(box)
                return True
    return False


_GROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3}
"""What a name stands on, so that a line below it does not strike it through."""


def _pale(axes: Axes, own: float, roofs: Sequence[Roof]) -> list[tuple[float, float, float, float]]:
    """The flat parts of what kernels reach and of the roofs of no operator, but for the one of this peak; in pixels."""
    right = axes.get_xlim()[1]
    flat = [np.asarray(line.get_xydata())[-2:] for line in axes.lines if line.get_label() == "_reach"]
    flat += [np.array([[r.peak_flop_per_s / r.bandwidth_bytes_per_s, r.peak_flop_per_s / 1e12],
                       [right, r.peak_flop_per_s / 1e12]]) for r in roofs
             if not r.used and not np.isclose(r.peak_flop_per_s, own)]  # fmt: skip
    ends = [axes.transData.transform(line) for line in flat]
    return [(float(a[0]), float(a[1]), float(b[0]), float(b[1])) for a, b in ends]


def _write_slope(
    axes: Axes, text: str, bandwidth: float, peak: float, color: str, font: float, taken: Taken, pixels: float
) -> bool:
    """The bandwidth along the slope of a roof, above it, where nothing is in the way; whether there was room."""
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
            return True
        written.remove()
    return False
