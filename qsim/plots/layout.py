"""Where things stand on a figure: panels, the title with what it says below, and a legend that is never cut."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from .style import new_figure

_COLUMNS = {
    "slide": (1, 2, 3, 2, 3, 3),
    "page": (1, 2, 2, 2, 2, 2),
    "column": (1, 1, 1, 1, 1, 1),
    "square": (1, 1, 2, 2, 2, 2),
}
"""Panels side by side, for 1 to 6 of them."""


def columns_of(size: str, count: int) -> int:
    """How many of `count` panels stand side by side in a figure of this size."""
    return _COLUMNS[size][min(count, 6) - 1]


def grid_of(figure: Figure, count: int, size: str) -> tuple[list[Axes], Axes | None]:
    """Panels on shared axes, and the empty cell of the grid where there is one (a legend stands well there).

    A panel whose lower neighbour is missing keeps its tick labels.
    """
    across = columns_of(size, count)
    down = -(-count // across)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_axis_off()
    for i, axes in enumerate(flat[:count]):
        if i + across >= count:
            axes.tick_params(labelbottom=True)
    return flat[:count], flat[count] if count < len(flat) else None


def heading(figure: Figure, title: str, said: Sequence[str]) -> None:
    """The title in bold, and below it in a lighter type what the reader must know; both are wrapped, never cut."""
    size = figure.get_size_inches()[0] * 72
    base = float(rcParams["font.size"])
    top = "\n".join(textwrap.wrap(title, max(20, int(size / (0.66 * 1.15 * base)))))
    small = 0.84 * base
    below = textwrap.wrap("; ".join(said), max(24, int(size / (0.56 * small))))
    room = len(below) * 1.15 * small + 0.25 * base if below else 0.0
    lines = top.count("\n") + 1 if title else 0
    blank = math.ceil(room / (1.4 * base))  # lines that make room for what stands below
    figure.suptitle(top + "\n" * blank, x=0.012, ha="left", fontsize=1.15 * base, fontweight="bold", linespacing=1.15)
    if below:
        figure.text(0.012, 0.98, "\n".join(below), ha="left", va="top", fontsize=small, color="#444444",
                    linespacing=1.15, label=f"_below {lines}")  # fmt: skip


def settle(figure: Figure) -> None:
    """Lay the figure out, and put what stands below the title right there. Nothing moves any more afterwards."""
    _lay_out(figure)
    for text in figure.texts:
        if str(text.get_label()).startswith("_below "):
            lines = int(str(text.get_label()).split()[1])
            title = figure.get_suptitle()
            box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
            line = box.height / (title.count("\n") + 1)
            text.set_y((box.y1 - lines * line) / figure.bbox.height)
            figure._suptitle.set_text(title.rstrip("\n"))  # type: ignore[attr-defined]  # its blank lines made the room
    figure.set_layout_engine("none")


def _lay_out(figure: Figure) -> None:
    """Find the places of all panels; drawing does the same, and draws."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def legend_of(figure: Figure, handles: Sequence[Any], spare: Axes | None) -> Legend:
    """A legend in the empty cell of the grid if it fits there, else below the panels in as many columns as fit."""
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    if spare is not None:
        legend = spare.legend(handles=handles, loc="center", borderaxespad=0)
        _lay_out(figure)
        box = legend.get_window_extent(renderer)
        if box.width <= spare.bbox.width and box.height <= spare.bbox.height:
            return legend
        legend.remove()
    by_rows = (-(-len(handles) // rows) for rows in range(1, len(handles) + 1))
    for columns in dict.fromkeys(by_rows):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.2,
                               handletextpad=0.4)  # fmt: skip
        if legend.get_window_extent(renderer).width <= 0.97 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    return legend


def panels(count: int, height_in: float, *, columns: int = 3, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure of a page's width with `columns` panels side by side; the rest of the grid is left out."""
    across = min(columns, count)
    down = -(-count // across)
    figure = new_figure(height_in * down + 0.75)
    grid = figure.subplots(down, across, squeeze=False, **share)
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_axis_off()
    return figure, flat[:count]


def title_above(figure: Figure, title: str) -> None:
    """A title over all panels; nothing where it is empty."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
