"""Figures of a study: what methods lose and gain, where batches flip, what fits.

Every function takes `wide`: a page's column, or a phone's. On a phone panels stack, so that type keeps its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from .style import CYCLE, DASHES, GREY, WIDTH_IN, new_figure, styled

NARROW_IN = 3.7
"""Width of a figure on a phone, in inches: 355 CSS pixels."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How a method looks in every figure of a study."""

    label: str
    color: str
    marker: str
    filled: bool = True

    def draw(self, axes: Axes, x: Any, y: Any, **more: Any) -> None:
        axes.plot(x, y, linestyle="none", marker=self.marker, color=self.color, markersize=6.5,
                  markerfacecolor=self.color if self.filled else "white", markeredgewidth=1.3, **more)  # fmt: skip

    def handle(self) -> Line2D:
        return Line2D([], [], linestyle="none", marker=self.marker, color=self.color, label=self.label, markersize=6,
                      markerfacecolor=self.color if self.filled else "white", markeredgewidth=1.2)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """One method on one device: its loss (bits per byte, standard error) and its rate (tokens/s, band)."""

    mark: Mark
    loss: float
    loss_se: float
    rate: float
    low: float
    high: float


def panels(count: int, wide: bool, height_in: float, *, columns: int = 3, **share: Any) -> tuple[Figure, list[Axes]]:
    """A grid of panels: `columns` side by side on a page, one on a phone; the rest of the grid is left out."""
    across = min(columns, count) if wide else 1
    down = -(-count // across)
    figure = new_figure(height_in * down + 0.75, WIDTH_IN if wide else NARROW_IN)
    grid = figure.subplots(down, across, squeeze=False, **share)
    flat = [axes for row in grid for axes in row]
    for axes in flat[count:]:
        axes.set_axis_off()
    return figure, flat[:count]


def legend_below(figure: Figure, handles: Sequence[Any], wide: bool, columns: int = 5) -> None:
    """One legend under all panels."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns if wide else 2,
                  handletextpad=0.3, columnspacing=1.0)  # fmt: skip


def tradeoff_figure(
    data: Mapping[str, Sequence[Tradeoff]], *, limit: float, ylabel: str, title: str = "", wide: bool = True
) -> Figure:
    """Quality against speed, one panel per device: loss to the right, rate upwards, the Pareto front joined.

    Arguments:
        data: device -> methods. limit: the loss that the study accepts, drawn as a line.
    """
    with styled():
        figure, grid = panels(len(data), wide, 2.25, sharex=True)
        knee = 0.002  # losses below it are drawn on a linear scale, 16 bit at 0 among them
        losses = [p.loss for points in data.values() for p in points] or [0.1]
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
                    [p.loss], [p.rate], xerr=[[1.645 * p.loss_se]] * 2, yerr=[[p.rate - p.low], [p.high - p.rate]],
                    ecolor=p.mark.color, elinewidth=0.8, alpha=0.55, fmt="none", zorder=2,
                )  # fmt: skip
                p.mark.draw(axes, [p.loss], [p.rate], zorder=3)
            axes.set_title(name)
            axes.set_ylim(bottom=0)
            axes.set_xlim(min(-0.4 * knee, 1.5 * least), most * 2)
            axes.grid(True)
            _loss_ticks(axes, most)
            if i % (3 if wide else 1) == 0:
                axes.set_ylabel(ylabel)
        for axes in grid[-3:] if wide else grid[-1:]:
            axes.set_xlabel("loss (bits per byte)")
        marks = {p.mark.label: p.mark for points in data.values() for p in points}
        legend_below(figure, [m.handle() for m in marks.values()], wide)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


def _loss_ticks(axes: Axes, most: float) -> None:
    ticks = [0.0] + [t for t in (0.004, 0.02, 0.1, 0.5, 2.0) if t <= 2 * most]
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


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A method's loss with its standard error, and the loss when activations stay in 16 bit, where that differs."""

    mark: Mark
    loss: float
    loss_se: float
    weights_only: float | None = None


def loss_figure(rows: Sequence[Loss], *, limit: float, title: str = "", wide: bool = True) -> Figure:
    """Loss of every method as points with 95 % intervals, least first; the limit is a line."""
    with styled():
        figure = new_figure(0.9 + 0.26 * len(rows), WIDTH_IN if wide else NARROW_IN)
        axes = figure.subplots()
        ordered = sorted(rows, key=lambda r: r.loss)
        most = max([*(r.loss for r in rows), 4 * limit])
        axes.set_xscale("symlog", linthresh=0.002, linscale=0.5)
        axes.axvspan(limit, most * 3, color="#F3F3F3", zorder=0, linewidth=0)
        axes.axvline(limit, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        for y, r in enumerate(ordered):
            axes.errorbar([r.loss], [y], xerr=[[1.96 * r.loss_se]] * 2, ecolor=r.mark.color, elinewidth=1.1, fmt="none")
            if r.weights_only is not None:
                axes.plot([r.weights_only], [y], marker="|", color=r.mark.color, markersize=11, linestyle="none",
                          markeredgewidth=1.6)  # fmt: skip
            r.mark.draw(axes, [r.loss], [y])
        axes.set_yticks(range(len(ordered)), [r.mark.label for r in ordered])
        axes.invert_yaxis()
        axes.set_xlim(min(-0.002, 1.5 * min(r.loss for r in rows)), most * 2)
        _loss_ticks(axes, most)
        bare = any(r.weights_only is not None for r in rows)
        said = "loss (bits per byte); bars: 95 % interval" + ("; |: activations kept in 16 bit" if bare else "")
        axes.set_xlabel(said if wide else "loss (bits per byte)")
        axes.grid(True, axis="x")
        if title:
            axes.set_title(title)
        return figure


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Speed-up over 16 bit against batch, with its band; `marked` is where a label says that it flips."""

    label: str
    batch: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    compute_bound_from: int | None = None


def flip_figure(data: Mapping[str, Sequence[Curve]], *, title: str = "", wide: bool = True) -> Figure:
    """Speed-up against batch, one panel per device; a circle is where linear layers turn compute-bound."""
    with styled():
        figure, grid = panels(len(data), wide, 2.0, sharex=True, sharey=True)
        for i, (axes, (name, curves)) in enumerate(zip(grid, data.items(), strict=True)):
            axes.axhline(1.0, color=GREY, linewidth=0.9)
            for j, c in enumerate(curves):
                color = CYCLE[j % len(CYCLE)]
                axes.fill_between(c.batch, c.low, c.high, color=color, alpha=0.12, linewidth=0)
                axes.plot(c.batch, c.value, color=color, linestyle=DASHES[j % len(DASHES)])
                if c.compute_bound_from is not None and c.compute_bound_from <= c.batch[-1]:
                    y = float(np.interp(np.log(c.compute_bound_from), np.log(c.batch), c.value))
                    axes.plot([c.compute_bound_from], [y], marker="o", markersize=5.5, color=color,
                              markerfacecolor="white", markeredgewidth=1.4)  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_major_locator(FixedLocator([1, 4, 16, 64, 256]))
            axes.set_title(name)
            axes.set_ylim(0, 1.12 * max(float(np.max(c.value)) for curves in data.values() for c in curves))
            axes.grid(True)
            if i % (3 if wide else 1) == 0:
                axes.set_ylabel("speed-up (x)")
        for axes in grid[-3:] if wide else grid[-1:]:
            axes.set_xlabel("batch (sequences)")
        first = next(iter(data.values()))
        handles = [Line2D([], [], color=CYCLE[j % len(CYCLE)], linestyle=DASHES[j % len(DASHES)], label=c.label)
                   for j, c in enumerate(first)]  # fmt: skip
        handles.append(Line2D([], [], linestyle="none", marker="o", color=GREY, markerfacecolor="white",
                              label="compute-bound from here"))  # fmt: skip
        legend_below(figure, handles, wide)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


@dataclass(frozen=True, kw_only=True)
class Roof:
    """One roof of a device."""

    label: str
    peak_flop_per_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Spot:
    """An operator under the roof: `regime` decides the colour, `scheme` the marker, `operator` the name."""

    operator: str
    regime: str
    scheme: str
    intensity: float
    flop_per_s: float


def rooflines_figure(
    data: Mapping[str, tuple[Sequence[Roof], Sequence[Spot]]], *, title: str = "", wide: bool = True
) -> Figure:
    """The operators of several regimes under each device's roofs, one panel per device on one scale."""
    with styled():
        figure, grid = panels(len(data), wide, 2.2, sharex=True, sharey=True)
        spots = [s for _, mine in data.values() for s in mine]
        regimes = list(dict.fromkeys(s.regime for s in spots))
        schemes = list(dict.fromkeys(s.scheme for s in spots))
        for i, (axes, (name, (roofs, mine))) in enumerate(zip(grid, data.items(), strict=True)):
            _roofs(axes, roofs)
            for s in mine:
                axes.plot(
                    [s.intensity], [s.flop_per_s / 1e12], linestyle="none", markersize=5,
                    marker="x" if s.operator == "attention" else "os^D"[schemes.index(s.scheme) % 4],
                    color=CYCLE[regimes.index(s.regime) % len(CYCLE)], markeredgewidth=1.2,
                    markerfacecolor="white" if schemes.index(s.scheme) else None,
                )  # fmt: skip
            axes.set_title(name)
            axes.set(xscale="log", yscale="log")
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(True)
            if i % (3 if wide else 1) == 0:
                axes.set_ylabel("TFLOP/s")
        grid[0].set_xlim(0.3, 2e4)
        grid[0].set_ylim(0.05, 4e3)
        for axes in grid[-3:] if wide else grid[-1:]:
            axes.set_xlabel("operations per byte")
        handles = [Line2D([], [], linestyle="none", marker="o", color=CYCLE[i % len(CYCLE)], label=r)
                   for i, r in enumerate(regimes)]  # fmt: skip
        handles += [Line2D([], [], linestyle="none", marker="os^D"[i % 4], color=GREY, label=s,
                           markerfacecolor="white" if i else GREY) for i, s in enumerate(schemes)]  # fmt: skip
        handles.append(Line2D([], [], linestyle="none", marker="x", color=GREY, label="attention"))
        legend_below(figure, handles, wide, columns=6)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


def _roofs(axes: Axes, roofs: Sequence[Roof]) -> None:
    """Roofs of one bandwidth; each distinct peak is a line with its formats written on it."""
    x = np.geomspace(0.2, 3e4, 200)
    peaks: dict[float, list[str]] = {}
    for roof in roofs:
        peaks.setdefault(roof.peak_flop_per_s, []).append(roof.label)
    for peak, labels in sorted(peaks.items()):
        bandwidth = roofs[0].bandwidth_bytes_per_s
        axes.plot(x, np.minimum(x * bandwidth, peak) / 1e12, color="#8A8A8A", linewidth=1.1)
        axes.annotate(", ".join(labels), (1.8e4, peak / 1e12), xytext=(0, 2), textcoords="offset points", ha="right",
                      fontsize=6.5, color="#555555")  # fmt: skip


def capacity_figure(
    data: Mapping[str, Mapping[str, float]], capacities: Mapping[str, float], *, title: str = "", wide: bool = True
) -> Figure:
    """Weights of each model in each scheme, in GB on a log scale, against the memories of the devices (lines).

    Arguments:
        data: model -> scheme -> GB. capacities: device -> GB.
    """
    with styled():
        rows = max(map(len, data.values()))
        figure, grid = panels(len(data), wide, 0.24 * rows + 1.6, columns=2, sharey=wide)
        by_size: dict[float, list[str]] = {}
        for name, gb in sorted(capacities.items(), key=lambda item: item[1]):
            by_size.setdefault(gb, []).append(name)
        for axes, (model, sizes) in zip(grid, data.items(), strict=True):
            names = list(sizes)
            values = np.array([sizes[n] for n in names])
            axes.set_xscale("log")
            axes.set_xlim(values.min() / 1.6, 1.5 * max(values.max(), *by_size))
            for gb in by_size:
                axes.axvline(gb, color=CYCLE[1], linewidth=0.8, linestyle=DASHES[1], zorder=0)
            axes.hlines(range(len(names)), axes.get_xlim()[0], values, color=CYCLE[0], linewidth=1.0)
            axes.plot(values, range(len(names)), linestyle="none", marker="o", color=CYCLE[0], markersize=6)
            for y, v in enumerate(values):
                axes.annotate(f"{v:.3g}", (v, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7.5,
                              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            above = axes.secondary_xaxis("top")
            above.set_xticks(list(by_size), [", ".join(d) for d in by_size.values()], rotation=60, ha="left",
                             rotation_mode="anchor")  # fmt: skip
            above.xaxis.set_minor_locator(NullLocator())
            above.tick_params(labelsize=7, color=CYCLE[1], labelcolor=CYCLE[1], pad=1)
            above.spines["top"].set_visible(False)
            axes.set_xlabel(f"{model}: weights (GB)")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


def grouped_figure(
    groups: Mapping[str, Mapping[str, float]], *, xlabel: str, title: str = "", wide: bool = True
) -> Figure:
    """Points on a log scale in groups of lines: group -> label -> value; a zero is written as such.

    Arguments:
        groups: e.g. method -> device -> value.
    """
    with styled():
        rows = [(g, label, v) for g, mine in groups.items() for label, v in mine.items()]
        height = 0.9 + 0.21 * (len(rows) + len(groups)) + 0.12 * len(groups)
        figure = new_figure(height, WIDTH_IN if wide else NARROW_IN)
        axes = figure.subplots()
        positive = [v for _, _, v in rows if v > 0] or [1.0]
        floor = min(positive) / 4
        ticks, labels, y = [], [], 0.0
        for i, (group, mine) in enumerate(groups.items()):
            axes.axhspan(y - 0.55, y + len(mine) + 0.55, color="#F3F3F3" if i % 2 == 0 else "#FFFFFF", zorder=0,
                         linewidth=0)  # fmt: skip
            color = CYCLE[i % len(CYCLE)]
            axes.annotate(group, (0.0, y), xycoords=("axes fraction", "data"), xytext=(4, 0), va="center",
                          textcoords="offset points", fontsize=8.5, fontweight="bold", color=color)  # fmt: skip
            y += 1  # the name of a group has a line of its own
            for label, value in mine.items():
                axes.plot([max(value, floor)], [y], marker="o" if value > 0 else "|", color=color, markersize=6)
                if value == 0:
                    axes.annotate(" 0: the same bits", (floor, y), va="center", fontsize=7.5, color=color)
                ticks.append(y)
                labels.append(label)
                y += 1
            y += 0.5
        axes.set_xscale("log")
        axes.set_xlim(floor / 1.5, max(positive) * 8)
        axes.set_yticks(ticks, labels)
        axes.set_ylim(y - 0.5, -0.7)
        axes.set_xlabel(xlabel)
        axes.grid(True, axis="x")
        if title:
            axes.set_title(title)
        return figure
