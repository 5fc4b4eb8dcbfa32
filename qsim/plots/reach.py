"""What kernels reach under the roofs of a data sheet, as thick lines with 80 % bands; and other memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from .style import DASHES, GREY

if TYPE_CHECKING:
    from .roofline import _Look
    from .roofs import Roof


WIDTH, ALPHA = 1.8, 0.5
"""Of the lines: wide under the thin roofs, and pale under paths and markers."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The best rate and bandwidth that the kernels of a scheme reach on a device, with 80 % bands.

    Attributes:
        device, scheme, format: as in `Point` and `Roof`.
        kernel: whose kernels, with version and year.
        flop_per_s, bandwidth_bytes_per_s: (low, reached, high) of each.
    """

    device: str
    scheme: str
    format: str
    kernel: str
    flop_per_s: tuple[float, float, float]
    bandwidth_bytes_per_s: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A memory beside the one that holds the weights: SRAM or cache before it, host memory behind it."""

    device: str
    name: str
    bandwidth_bytes_per_s: float


def drawn_reaches(reaches: Sequence[Reach], look: _Look) -> list[tuple[Any, Reach]]:
    """The lines to draw with their colours: one per scheme where colours are schemes, else the best of a format."""
    if look.color_by == "scheme":
        return [(look.colors[r.scheme], r) for r in reaches if r.scheme in look.colors]
    best: dict[tuple[str, str], Reach] = {}
    for r in reaches:
        known = best.get((r.device, r.format))
        if known is None or r.flop_per_s[1] > known.flop_per_s[1]:
            best[r.device, r.format] = r
    return [(look.colors[r.device] if look.color_by == "device" else GREY, r) for r in best.values()]


def draw_reaches(axes: Axes, reaches: Sequence[Reach], roofs: Sequence[Roof], look: _Look) -> None:
    """A line and a band for each; neither is ever above the roof of the format."""
    left, right = axes.get_xlim()
    for color, reach in drawn_reaches(reaches, look):
        mine = [r for r in roofs if r.device == reach.device and r.format == reach.format]
        if not mine:
            continue
        top = max(mine, key=lambda r: r.bandwidth_bytes_per_s)
        peaks = sorted({r.peak_flop_per_s for r in roofs if r.device == reach.device and r.used})
        dash = DASHES[peaks.index(top.peak_flop_per_s) % len(DASHES)] if top.peak_flop_per_s in peaks else "-"
        low, line, high = (
            (min(b, top.bandwidth_bytes_per_s), min(f, top.peak_flop_per_s))
            for b, f in zip(reach.bandwidth_bytes_per_s, reach.flop_per_s, strict=True)
        )
        corners = [f / b for b, f in (low, line, high)]
        x = np.unique([left, *(c for c in corners if left < c < right), right])
        edges = [np.minimum(x * b, f) / 1e12 for b, f in (low, line, high)]
        axes.fill_between(x, edges[0], edges[2], color=color, alpha=0.13, linewidth=0, zorder=0.5, label="_band")
        axes.plot(x, edges[1], color=color, linewidth=WIDTH * look.scale, alpha=ALPHA, linestyle=dash, zorder=1.5,
                  label="_reach", scalex=False, scaley=False)  # fmt: skip


def draw_tiers(axes: Axes, tiers: Sequence[Tier], roofs: Sequence[Roof], look: _Look) -> None:
    """The slope of each other memory, thin and dotted, up to the highest roof of its device."""
    left, _ = axes.get_xlim()
    for tier in tiers:
        top = max(r.peak_flop_per_s for r in roofs if r.device == tier.device)
        x = np.array([left, top / tier.bandwidth_bytes_per_s])
        color = look.colors[tier.device] if look.color_by == "device" else "#8A8A8A"
        if x[1] > x[0]:
            axes.plot(x, x * tier.bandwidth_bytes_per_s / 1e12, color=color, linewidth=0.8 * look.scale,
                      linestyle=(0, (1, 2)), zorder=1, label="_tier", scalex=False, scaley=False)  # fmt: skip
