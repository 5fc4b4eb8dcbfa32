"""One thing against another, and the front that nothing beats in both: quality and speed, latency and throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from .labels import Taken, Wanted, place
from .layout import legend_of, panel_title, panels, settle, title_above
from .marks import Mark
from .style import CYCLE, GREY, SIZES, new_figure, styled


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """One method on one device: what it loses (percent of a score, band) and its rate (tokens/s, band)."""

    mark: Mark
    loss: float
    loss_low: float
    loss_high: float
    rate: float
    low: float
    high: float


def tradeoff_figure(data: Mapping[str, Sequence[Tradeoff]], *, limit: float, ylabel: str, title: str = "") -> Figure:
    """Quality against speed, one panel per device: loss to the right, rate upwards, the Pareto front joined.

    Arguments:
        data: device -> methods. limit: the loss that the study accepts, drawn as a line.
    """
    with styled():
        figure, grid = panels(len(data), 2.25, sharex=True)
        knee = 0.5  # losses below it are drawn on a linear scale, 16 bit at 0 among them
        losses = [v for points in data.values() for p in points for v in (p.loss_low, p.loss, p.loss_high)] or [5.0]
        most, least = max(losses), min(losses)
        for i, (axes, (name, points)) in enumerate(zip(grid, data.items(), strict=True)):
            axes.set_xscale("symlog", linthresh=knee, linscale=0.5)
            axes.axvspan(limit, most * 3, color="#F3F3F3", zorder=0, linewidth=0)
            axes.axvline(limit, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
            front = _front([(p.loss, p.rate) for p in points])
            axes.plot([points[j].loss for j in front], [points[j].rate for j in front], color="#9A9A9A", linewidth=1.0,
                      zorder=1)  # fmt: skip
            for p in points:
                axes.errorbar(
                    [p.loss], [p.rate], xerr=[[p.loss - p.loss_low], [p.loss_high - p.loss]],
                    yerr=[[p.rate - p.low], [p.high - p.rate]],
                    ecolor=p.mark.color, elinewidth=0.8, alpha=0.55, fmt="none", zorder=2,
                )  # fmt: skip
                p.mark.draw(axes, [p.loss], [p.rate], zorder=3)
            panel_title(axes, name)
            axes.set_ylim(bottom=0)
            axes.set_xlim(min(-0.4 * knee, 1.2 * least), most * 1.5)
            axes.grid(True)
            loss_ticks(axes, most, (1.0, 3.0, 10.0, 30.0))
            if i % 3 == 0:
                axes.set_ylabel(ylabel)
        for axes in grid[-3:]:
            axes.set_xlabel("loss (% of a score)")
            axes.tick_params(labelbottom=True)  # a panel above an empty place has no other to share its labels with
        marks = {p.mark.label: p.mark for points in data.values() for p in points}
        title_above(figure, title)
        legend_of(figure, [m.handle() for m in marks.values()], None)
        return figure


def loss_ticks(axes: Axes, most: float, at: Sequence[float] = (0.004, 0.02, 0.1, 0.5, 2.0)) -> None:
    """Ticks of an axis of losses that is linear near 0 and logarithmic beyond: 0 and `at`, up to `most`."""
    ticks = [0.0] + [t for t in at if t <= 2 * most]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in less loss and more speed, by loss."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def pareto_figure(
    title: str, x: Any, y: Any, labels: Sequence[str], front: NDArray[np.bool_], *, xlabel: str, ylabel: str,
    size: str = "page",
) -> Figure:  # fmt: skip
    """Points with the Pareto front joined; at most twelve points of the front are named, where there is room.

    `size` is a name of `style.SIZES`.
    """
    with styled(size=size):
        figure = new_figure(4.4, size=size)
        axes = figure.add_subplot()
        x, y = np.asarray(x, float), np.asarray(y, float)
        axes.plot(x[~front], y[~front], linestyle="none", marker="o", markersize=4 * SIZES[size].scale,
                  color="#B5B5B5", label="other cases")  # fmt: skip
        order = np.argsort(x[front])
        axes.plot(x[front][order], y[front][order], marker="D", markersize=5 * SIZES[size].scale, color=CYCLE[0],
                  label="Pareto front")  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12, y=0.1)
        axes.grid(True)
        title_above(figure, title)
        legend_of(figure, axes.get_legend_handles_labels()[0], None)
        settle(figure)
        best = np.flatnonzero(front)[order]
        wanted = [Wanted(text=labels[i], x=float(x[i]), y=float(y[i]), radius=3.0 * SIZES[size].scale,
                         fontsize=7.9 * SIZES[size].scale)
                  for i in best[:: max(1, len(best) // 12)]]  # fmt: skip
        pixels = figure.dpi / 72
        at = axes.transData.transform(np.column_stack([x[front], y[front]]))
        place(axes, wanted, Taken(circles=[(float(px), float(py), 3.0 * SIZES[size].scale * pixels) for px, py in at]))
        return figure
