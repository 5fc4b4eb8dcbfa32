"""What number formats do to a tensor: rounding errors, signal to noise, channels, and those that matter most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray

from .labels import Taken, Wanted, place
from .layout import legend_of, panel_title, panels, settle, title_above
from .style import CYCLE, DASHES, GREY, MARKERS, new_figure, styled

Array = NDArray[np.float64]


def histogram_figure(data: Mapping[str, Mapping[str, tuple[Array, Array]]], *, title: str = "") -> Figure:
    """Shares of rounding errors over the tensor's rms, as steps; one panel per tensor, a colour per format.

    Arguments:
        data: tensor -> format -> (lower ends of equal bins, share of each).
    """
    with styled():
        figure, grid = panels(len(data), 2.7, columns=2, sharey=True)
        for axes, (name, formats) in zip(grid, data.items(), strict=True):
            for i, (low, share) in enumerate(formats.values()):
                width = low[1] - low[0]
                edges = np.append(low, low[-1] + width)
                axes.stairs(np.maximum(share / width, 1e-9), edges, color=CYCLE[i % len(CYCLE)], linewidth=1.4,
                            linestyle=DASHES[i % len(DASHES)])  # fmt: skip
            axes.set_yscale("log")
            axes.set_ylim(bottom=1e-3)
            panel_title(axes, name)
            axes.set_xlabel("error / rms of the tensor")
            axes.grid(True)
        grid[0].set_ylabel("density")
        names = list(dict.fromkeys(n for mine in data.values() for n in mine))
        title_above(figure, title)
        legend_of(figure, [Line2D([], [], color=CYCLE[i % len(CYCLE)], linestyle=DASHES[i % len(DASHES)], label=n)
                           for i, n in enumerate(names)], None)  # fmt: skip
        return figure


def sqnr_figure(data: Mapping[str, Mapping[str, tuple[float, float]]], *, title: str = "") -> Figure:
    """Signal-to-noise ratio (dB) against bits per element, a marker per tensor; the line is 6.02 dB per bit.

    Arguments:
        data: tensor -> format -> (bits, dB).
    """
    with styled():
        figure = new_figure(4.0)
        axes = figure.subplots()
        every = [point for mine in data.values() for point in mine.values()]
        bits = np.array([min(b for b, _ in every) - 0.5, max(b for b, _ in every) + 0.5])
        axes.plot(bits, 6.02 * bits - 6.0, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
        names = list(dict.fromkeys(f for mine in data.values() for f in mine))
        for i, (tensor, mine) in enumerate(data.items()):
            x, y = np.array([mine[n] for n in names if n in mine]).T
            axes.plot(x, y, linestyle="none", marker=MARKERS[i % len(MARKERS)], color=CYCLE[i % len(CYCLE)],
                      markersize=6, label=tensor, alpha=0.9)  # fmt: skip
        axes.set_xlabel("bits per element, scales included")
        axes.set_ylabel("signal to noise (dB)")
        axes.margins(x=0.08, y=0.12)
        axes.grid(True)
        legend = axes.legend(loc="upper left")
        title_above(figure, title)
        settle(figure)
        tops = {n: max((mine[n] for mine in data.values() if n in mine), key=lambda point: point[1]) for n in names}
        at = axes.transData.transform(every)
        taken = Taken(circles=[(float(x), float(y), 3.5 * figure.dpi / 72) for x, y in at],
                      boxes=[legend.get_window_extent()])  # fmt: skip
        place(axes, [Wanted(text=n, x=b, y=db, radius=3.5, fontsize=7.9) for n, (b, db) in tops.items()], taken)
        return figure


def channel_figure(
    before: Array, after: Array, weight_before: Array, weight_after: Array, *, title: str = ""
) -> Figure:
    """Largest magnitude of every channel, sorted by the input before smoothing: inputs above, weights below."""
    with styled():
        figure, grid = panels(2, 2.6, columns=2)
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
        title_above(figure, title)
        return figure


def salient_figure(ways: Mapping[str, tuple[Array, Array]], *, title: str = "") -> Figure:
    """Output error of a layer against the share of input channels kept in 16 bit, by how they are chosen.

    Arguments:
        ways: how they are chosen -> (percent kept, relative output error).
    """
    with styled():
        figure = new_figure(3.4)
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
        axes.legend(title="channels chosen by", title_fontsize="small", alignment="left", loc="lower left")
        title_above(figure, title)
        return figure
