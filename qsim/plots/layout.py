"""Where things stand on a figure: panels, the title with what it says below, and a legend that is never cut."""

from __future__ import annotations

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


def grid_of(
    figure: Figure, count: int, size: str, heights: Sequence[float] = (1.0,), side: bool = False
) -> tuple[list[Axes], Axes | None, list[Axes]]:
    """Panels on shared axes, the empty cell of their grid where there is one (a legend stands well there), and axes for
    what stands beside them.

    A panel whose lower neighbour is missing keeps its tick labels.

    Arguments:
        heights: of the panels, then of each part beside them: below, or with `side` at the right of the panels. A part
            has no axes drawn but its own ticks.
    """
    across = columns_of(size, count)
    down = -(-count // across)
    if len(heights) == 1:
        grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        rest = []
    else:
        if side:
            outer = figure.add_gridspec(1, 2, width_ratios=(1.45, 1))
            under = outer[1].subgridspec(len(heights) - 1, 1, height_ratios=heights[1:])
        else:
            outer = figure.add_gridspec(2, 1, height_ratios=(heights[0], sum(heights[1:])))
            under = outer[1].subgridspec(len(heights) - 1, 1, height_ratios=heights[1:])
        grid = outer[0].subgridspec(down, across).subplots(squeeze=False, sharex=True, sharey=True)
        rest = [figure.add_subplot(under[i]) for i in range(len(heights) - 1)]
        for axes in rest:
            axes.set(xticks=[], yticks=[], frame_on=False)
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_axis_off()
    for i, axes in enumerate(flat[:count]):
        if i + across >= count:
            axes.tick_params(labelbottom=True)
    return flat[:count], flat[count] if count < len(flat) else None, rest


def heading(figure: Figure, title: str, said: Sequence[str]) -> None:
    """The title in bold, and below it in a lighter type what the reader must know; both are wrapped, never cut."""
    size = figure.get_size_inches()[0] * 72
    base = float(rcParams["font.size"])
    top = "\n".join(textwrap.wrap(title, max(20, int(size / (0.66 * 1.15 * base)))))
    small = 0.84 * base
    below = balanced("; ".join(said), max(24, int(size / (0.56 * small))))
    suptitle = figure.suptitle(top, x=0.012, ha="left", fontsize=1.15 * base, fontweight="bold", linespacing=1.15)
    if not below:
        return
    lines = top.count("\n") + 1 if title else 0
    text = figure.text(0.012, 0.98, "\n".join(below), ha="left", va="top", fontsize=small, color="#444444",
                       linespacing=1.15, label=f"_below {lines}")  # fmt: skip
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    width = max(map(len, below))
    while text.get_window_extent(renderer).width > 0.976 * figure.bbox.width and width > 24:
        width -= 3  # wide letters
        text.set_text("\n".join(balanced("; ".join(said), width)))
    # blank lines of the title make the room, with that of a line between the text and the panels
    room = text.get_window_extent(renderer).height + 1.2 * base * figure.dpi / 72
    alone = suptitle.get_window_extent(renderer).height
    while suptitle.get_window_extent(renderer).height - alone < room:
        suptitle.set_text(suptitle.get_text() + "\n")


def balanced(text: str, width: int) -> list[str]:
    """A text on as few lines of at most `width` characters as it needs, none much shorter than the others."""
    whole = textwrap.wrap(text, width, break_on_hyphens=False)
    for narrow in range(len(text) // max(len(whole), 1) + 1, width):
        found = textwrap.wrap(text, narrow, break_on_hyphens=False)
        if len(found) <= len(whole):
            return found
    return whole


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
        for columns in (1, 2):
            legend = spare.legend(handles=handles, loc="center", borderaxespad=0, ncols=columns, columnspacing=1.2)
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


def panels(
    count: int, height_in: float, *, columns: int = 3, size: str = "page", **share: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with `columns` panels side by side, fewer where it is narrow; the rest of the grid is left out."""
    across = min(columns, count, _NARROW.get(size, columns))
    down = -(-count // across)
    figure = new_figure(height_in * down + 0.75, size=size)
    grid = figure.subplots(down, across, squeeze=False, **share)
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_axis_off()
    return figure, flat[:count]


_NARROW = {"column": 1, "square": 2}
"""The most panels side by side in a figure narrower than a page."""


def panel_title(axes: Axes, title: str, **look: Any) -> None:
    """The title of one of several panels, wrapped to its width."""
    across = axes.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    base = float(rcParams["axes.titlesize"])
    width = axes.figure.get_size_inches()[0] / across  # type: ignore[union-attr]
    axes.set_title("\n".join(balanced(title, max(12, int(width * 72 / (0.82 * base))))), **look)


def title_above(figure: Figure, title: str) -> None:
    """A title over all panels, wrapped to the width of the figure; nothing where it is empty."""
    if title:
        base = float(rcParams["font.size"])
        width = int(figure.get_size_inches()[0] * 72 / (0.64 * 1.16 * base))
        figure.suptitle("\n".join(balanced(title, width)), x=0.01, ha="left", fontweight="bold", fontsize=1.16 * base)
