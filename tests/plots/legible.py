"""What makes a figure illegible, found in the boxes that a renderer draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

SMALLEST_PT = 7.0
SLACK = 1.0
"""Pixels that boxes may share: boxes of text have a little air above and below the letters."""


def drawn_texts(figure: Figure) -> list[tuple[Text, Any]]:
    """Every text that reaches the page, with its box in pixels."""
    found: list[tuple[Text, Any]] = []
    original = Text.draw

    def draw(self: Text, renderer: Any, *args: Any, **more: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            found.append((self, Text.get_window_extent(self, renderer)))
        original(self, renderer, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", draw)
        FigureCanvasAgg(figure).draw()
    return found


def circles_of(axes: Any, label: str | None = None) -> list[tuple[float, float, float]]:
    """Centre and radius in pixels of every marker of a panel, or of the lines of one label."""
    found = []
    for line in axes.lines:
        if line.get_marker() in ("None", "none", "", " ", None) or label not in (None, line.get_label()):
            continue
        if not len(line.get_xydata()):
            continue
        radius = line.get_markersize() / 2 * axes.figure.dpi / 72
        at = line.get_transform().transform(np.asarray(line.get_xydata(), float))
        found += [(float(x), float(y), radius) for x, y in at if np.isfinite(x) and np.isfinite(y)]
    return found


def faults(figure: Figure) -> list[str]:
    """What a reader would stumble over: text cut, over other text, over a marker, too small; markers that are hidden.

    A text on a panel must keep off every marker of its panel, but for one that it is written into.
    """
    texts = drawn_texts(figure)
    page, out = figure.bbox, []
    for text, box in texts:
        what = text.get_text()
        if box.x0 < page.x0 - SLACK or box.x1 > page.x1 + SLACK or box.y0 < page.y0 - SLACK or box.y1 > page.y1 + SLACK:
            out.append(f"cut: {what!r}")
        if text.get_fontsize() < SMALLEST_PT - 1e-9:
            out.append(f"{text.get_fontsize():.1f} pt: {what!r}")
    for i, (a, box) in enumerate(texts):
        for b, other in texts[:i]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            if wide > SLACK and high > SLACK:
                out.append(f"{a.get_text()!r} over {b.get_text()!r}")
    circles = [c for axes in figure.axes for c in circles_of(axes, "_marker")]
    every = {axes: circles_of(axes) for axes in figure.axes}
    for text, box in texts:
        if text in getattr(text.axes, "texts", ()):
            for x, y, r in every[text.axes]:
                dx, dy = max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1)
                if (dx * dx + dy * dy) ** 0.5 < 0.9 * r - SLACK:
                    out.append(f"{text.get_text()!r} over a marker")
    for i, (x, y, r) in enumerate(circles):
        for ox, oy, other in circles[i + 1 :]:  # drawn later
            if other > 0.9 * r and ((x - ox) ** 2 + (y - oy) ** 2) ** 0.5 < 0.4 * r:
                out.append(f"a marker hides another at ({x:.0f}, {y:.0f})")
    return out
