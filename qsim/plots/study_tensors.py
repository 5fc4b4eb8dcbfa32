"""Figures of a study about tensors, sums and trust; wide for a page, narrow for a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from .hardware import Compared
from .study import NARROW_IN, legend_below, panels
from .style import CYCLE, DASHES, GREY, WIDTH_IN, new_figure, styled

__all__ = ["Compared", "accumulation_figure", "channel_figure", "histogram_figure", "salient_figure", "sqnr_figure",
           "trust_figure"]  # fmt: skip
MARKERS = "osD^vP*X"
Array = NDArray[np.float64]


def histogram_figure(
    data: Mapping[str, Mapping[str, tuple[Array, Array]]], *, title: str = "", wide: bool = True
) -> Figure:
    """Shares of rounding errors over the tensor's rms, as steps; one panel per tensor, a colour per format.

    Arguments:
        data: tensor -> format -> (lower ends of equal bins, share of each).
    """
    with styled():
        figure, grid = panels(len(data), wide, 2.7, columns=2, sharey=True)
        for axes, (name, formats) in zip(grid, data.items(), strict=True):
            for i, (low, share) in enumerate(formats.values()):
                width = low[1] - low[0]
                edges = np.append(low, low[-1] + width)
                axes.stairs(np.maximum(share / width, 1e-9), edges, color=CYCLE[i % len(CYCLE)], linewidth=1.4,
                            linestyle=DASHES[i % len(DASHES)])  # fmt: skip
            axes.set_yscale("log")
            axes.set_ylim(bottom=1e-3)
            axes.set_title(name)
            axes.set_xlabel("error / rms of the tensor")
            axes.grid(True)
        grid[0].set_ylabel("density")
        if not wide:
            for axes in grid[1:]:
                axes.set_ylabel("density")
        names = list(dict.fromkeys(n for mine in data.values() for n in mine))
        legend_below(figure, [Line2D([], [], color=CYCLE[i % len(CYCLE)], linestyle=DASHES[i % len(DASHES)], label=n)
                              for i, n in enumerate(names)], wide, columns=4)  # fmt: skip
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


def sqnr_figure(data: Mapping[str, Mapping[str, tuple[float, float]]], *, title: str = "", wide: bool = True) -> Figure:
    """Signal-to-noise ratio (dB) against bits per element, a marker per tensor; the line is 6.02 dB per bit.

    Arguments:
        data: tensor -> format -> (bits, dB).
    """
    with styled():
        figure = new_figure(4.0 if wide else 4.6, WIDTH_IN if wide else NARROW_IN)
        axes = figure.subplots()
        every = [point for mine in data.values() for point in mine.values()]
        bits = np.array([min(b for b, _ in every) - 0.5, max(b for b, _ in every) + 0.5])
        axes.plot(bits, 6.02 * bits - 6.0, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        names = list(dict.fromkeys(f for mine in data.values() for f in mine))
        for i, (tensor, mine) in enumerate(data.items()):
            x, y = np.array([mine[n] for n in names if n in mine]).T
            axes.plot(x, y, linestyle="none", marker=MARKERS[i % len(MARKERS)], color=CYCLE[i % len(CYCLE)],
                      markersize=6, label=tensor, alpha=0.9)  # fmt: skip
        placed: list[tuple[float, float]] = []
        for n in names:
            b = next(mine[n][0] for mine in data.values() if n in mine)
            top = max(mine[n][1] for mine in data.values() if n in mine)
            shift = 5 + 9 * sum(abs(b - pb) < 0.35 and abs(top - pt) < 2.5 for pb, pt in placed)
            placed.append((b, top))
            axes.annotate(n, (b, top), xytext=(4, shift), textcoords="offset points", fontsize=7.5, color="#333333")
        axes.set_xlabel("bits per element, scales included")
        axes.set_ylabel("signal to noise (dB)")
        axes.margins(x=0.08, y=0.12)
        axes.grid(True)
        axes.legend(loc="upper left")
        if title:
            axes.set_title(title)
        return figure


def channel_figure(
    before: Array, after: Array, weight_before: Array, weight_after: Array, *, title: str = "", wide: bool = True
) -> Figure:
    """Largest magnitude of every channel, sorted by the input before smoothing: inputs above, weights below."""
    with styled():
        figure, grid = panels(2, wide, 2.6, columns=2)
        order = np.argsort(-before)
        x = np.arange(1, len(before) + 1)
        for axes, name, one, two in (
            (grid[0], "input of the layer", before, after),
            (grid[1], "weight column", weight_before, weight_after),
        ):
            axes.plot(x, one[order], color=CYCLE[1], linewidth=1.1, label="before")
            axes.plot(x, two[order], color=CYCLE[0], linewidth=1.1, label="after", linestyle=DASHES[0], alpha=0.85)
            axes.set(xscale="log", yscale="log", xlabel="channel, by its input before smoothing",
                     ylabel="largest magnitude", title=name)  # fmt: skip
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(True)
        grid[0].legend()
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


def salient_figure(ways: Mapping[str, tuple[Array, Array]], *, title: str = "", wide: bool = True) -> Figure:
    """Output error of a layer against the share of input channels kept in 16 bit, by how they are chosen.

    Arguments:
        ways: how they are chosen -> (percent kept, relative output error).
    """
    with styled():
        figure = new_figure(3.4, WIDTH_IN if wide else NARROW_IN)
        axes = figure.subplots()
        for i, (way, (kept, error)) in enumerate(ways.items()):
            axes.plot(kept, 100 * error, color=CYCLE[i % len(CYCLE)], linestyle=DASHES[i % len(DASHES)], markersize=4,
                      marker=MARKERS[i % len(MARKERS)], label=way)  # fmt: skip
        axes.set_xscale("symlog", linthresh=0.5)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1, 2, 5, 10, 20, 50]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.set_xlabel("input channels kept in 16 bit (%)")
        axes.set_ylabel("error of the output (%)")
        axes.set_ylim(bottom=0)
        axes.grid(True)
        axes.legend(title="channels chosen by", title_fontsize=8.5, alignment="left")
        if title:
            axes.set_title(title)
        return figure


def accumulation_figure(
    data: Mapping[str, Mapping[str, tuple[Array, Array]]], *, title: str = "", wide: bool = True
) -> Figure:
    """Relative error of a sum against its length, one panel per kind of data, a curve per way to add."""
    with styled():
        figure, grid = panels(len(data), wide, 2.9, columns=2, sharey=True)
        for i, (axes, (name, ways)) in enumerate(zip(grid, data.items(), strict=True)):
            for j, (k, error) in enumerate(ways.values()):
                shown = error > 0
                axes.plot(k[shown], error[shown], color=CYCLE[j % len(CYCLE)], linestyle=DASHES[j % len(DASHES)],
                          marker=MARKERS[j % len(MARKERS)], markersize=3.5)  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=8))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.set_xlabel("products in the sum, K")
            axes.set_title(name)
            axes.grid(True)
            if not i or not wide:
                axes.set_ylabel("relative error")
        ways_names = list(next(iter(data.values())))
        handles = [Line2D([], [], color=CYCLE[j % len(CYCLE)], linestyle=DASHES[j % len(DASHES)], markersize=4,
                          marker=MARKERS[j % len(MARKERS)], label=n) for j, n in enumerate(ways_names)]  # fmt: skip
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if wide else 1)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        return figure


def trust_figure(groups: Sequence[Compared], *, title: str = "", wide: bool = True) -> Figure:
    """Measured over predicted time against the measured time, with the 80 % band of each prediction."""
    with styled():
        figure = new_figure(3.4 if wide else 4.2, WIDTH_IN if wide else NARROW_IN)
        axes = figure.subplots()
        axes.axhline(1.0, color=GREY, linewidth=0.9)
        for i, g in enumerate(groups):
            color, marker = CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)]
            x = g.measured_s * 1e3
            axes.vlines(x, g.low_s / g.predicted_s, g.high_s / g.predicted_s, color=color, alpha=0.25, linewidth=1.2)
            mape = 100 * float(np.mean(np.abs(g.predicted_s / g.measured_s - 1)))
            axes.plot(x, g.measured_s / g.predicted_s, linestyle="none", marker=marker, markersize=4, color=color,
                      label=f"{g.label}: {mape:.1f} %")  # fmt: skip
        axes.set(xscale="log", xlabel="measured time (ms)", ylabel="measured / predicted", ylim=(0.7, 1.4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.grid(True)
        figure.legend(loc="outside lower center", ncols=2 if wide else 1)
        if title:
            axes.set_title(title)
        return figure
