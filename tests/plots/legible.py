"""What makes a figure illegible, found in the boxes that a renderer draws."""

from __future__ import annotations

from typing import Any

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


def faults(figure: Figure) -> list[str]:
    """What a reader would stumble over: text cut, over other text, over a marker, too small; markers that are hidden.

    Labels of operators and roofs must keep off every marker; other texts (ticks, titles) are not on the panel.
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
    markers = [m for axes in figure.axes for m in axes.lines if m.get_label() == "_marker"]
    circles = [(*m.axes.transData.transform(m.get_xydata()[0]), m.get_markersize() / 2 * figure.dpi / 72)
               for m in markers]  # fmt: skip
    for text, box in texts:
        if text.get_label() in ("_label", "_roof name"):
            for x, y, r in circles:
                dx, dy = max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1)
                if (dx * dx + dy * dy) ** 0.5 < 0.9 * r - SLACK:
                    out.append(f"{text.get_text()!r} over a marker")
    for i, (x, y, r) in enumerate(circles):
        for ox, oy, other in circles[i + 1 :]:  # drawn later
            if other > 0.9 * r and ((x - ox) ** 2 + (y - oy) ** 2) ** 0.5 < 0.4 * r:
                out.append(f"a marker hides another at ({x:.0f}, {y:.0f})")
    return out
