"""Speed-up against batch: what a scheme gains, where it ends, with bands and measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from .layout import legend_of, panel_title, panels, title_above
from .style import CYCLE, DASHES, GREY, styled

BAND = 1.5
"""How far above the largest value the axis goes for the sake of a band."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A speed-up over a range of batches or tokens, with its band, and measured values where there are some.

    `turns_at` is where the operator turns compute-bound; None, or beyond the last batch, draws nothing.
    """

    label: str
    x: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    measured: NDArray[np.float64] | None = None
    turns_at: int | None = None


def speedup_figure(
    data: Mapping[str, Sequence[Curve]], *, title: str = "", xlabel: str = "batch (sequences)",
    ylabel: str = "speed-up (x)",
) -> Figure:  # fmt: skip
    """Speed-up against batch with 80 % bands, a panel for each device; 1 is drawn, filled circles are measurements.

    A hollow circle is where linear layers turn compute-bound.

    Arguments:
        data: title of a panel -> its curves, the same labels in each; one panel may be called "".
    """
    with styled():
        figure, grid = panels(len(data), 3.4 if len(data) == 1 else 2.0, sharex=True, sharey=True)
        for i, (axes, (name, curves)) in enumerate(zip(grid, data.items(), strict=True)):
            axes.axhline(1.0, color=GREY, linewidth=0.9)
            for j, curve in enumerate(curves):
                _draw(axes, curve, CYCLE[j % len(CYCLE)], DASHES[j % len(DASHES)])
            panel_title(axes, name)
            axes.grid(True)
            if i % 3 == 0:
                axes.set_ylabel(ylabel)
        every = [c for curves in data.values() for c in curves]
        _scale(grid, every)
        for axes in grid[-3:]:
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)  # a panel above an empty place shares its labels with none
        title_above(figure, title)
        legend_of(figure, _handles(next(iter(data.values())), every), None)
        return figure


def _draw(axes: Axes, c: Curve, color: str, dash: Any) -> None:
    axes.plot(c.x, c.value, color=color, linestyle=dash)
    if c.low is not None and c.high is not None:
        axes.fill_between(c.x, c.low, c.high, color=color, alpha=0.13, linewidth=0)
    if c.measured is not None:
        axes.plot(c.x, c.measured, linestyle="none", marker="o", markersize=4.5, color=color)
    if c.turns_at is not None and c.turns_at <= c.x[-1]:
        y = float(np.interp(np.log(c.turns_at), np.log(c.x), c.value))
        axes.plot([c.turns_at], [y], marker="o", markersize=5.5, color=color, markerfacecolor="white",
                  markeredgewidth=1.4)  # fmt: skip


def _scale(grid: Sequence[Axes], curves: Sequence[Curve]) -> None:
    """A logarithmic x axis with the values themselves as ticks where they fit, and y from 0."""
    values = sorted({float(v) for c in curves for v in c.x})
    ticks: Sequence[float] = values if len(grid) == 1 and len(values) <= 10 else [1, 4, 16, 64, 256, 1024, 4096, 16384]
    top = max(float(np.nanmax(v)) for c in curves for v in (c.value, c.measured) if v is not None)
    bands = max((float(np.nanmax(c.high)) for c in curves if c.high is not None), default=0.0)
    top = max(top, min(bands / 1.08, BAND * top))
    for axes in grid:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([t for t in ticks if values[0] <= t <= values[-1]]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_ylim(0, 1.12 * top)


def _handles(first: Sequence[Curve], every: Sequence[Curve]) -> list[Line2D]:
    out = [Line2D([], [], color=CYCLE[j % len(CYCLE)], linestyle=DASHES[j % len(DASHES)], label=c.label)
           for j, c in enumerate(first)]  # fmt: skip
    if any(c.measured is not None for c in every):
        out.append(Line2D([], [], linestyle="none", marker="o", color=GREY, markersize=4.5, label="measured"))
    if any(c.turns_at is not None for c in every):
        out.append(Line2D([], [], linestyle="none", marker="o", color=GREY, markerfacecolor="white",
                          label="compute-bound from here"))  # fmt: skip
    return out
