"""Serving: an engine over time, tokens for a user against tokens of a device, and latency against throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from .layout import legend_of, panel_title, panels, title_above
from .style import CYCLE, DASHES, GREY, styled


@dataclass(frozen=True, kw_only=True)
class LoadCurve:
    """Latency of a deployment against its throughput.

    Attributes:
        rate: generated tokens per second of each device. token_s: seconds per token, predicted; low_s, high_s: its 80 %
            band.
        measured_rate, measured_s: the same, measured.
    """

    rate: NDArray[np.float64]
    token_s: NDArray[np.float64]
    low_s: NDArray[np.float64]
    high_s: NDArray[np.float64]
    measured_rate: NDArray[np.float64]
    measured_s: NDArray[np.float64]
    other_rate: NDArray[np.float64] | None = None
    other_s: NDArray[np.float64] | None = None


def timeline_figure(timeline: NDArray[np.float64], *, title: str = "", size: str = "page") -> Figure:
    """An engine over time: sequences that run, requests that wait, and the share of the KV cache.

    Arguments:
        timeline: (points, 4) seconds, running, waiting, share of the cache.
        size: a name of `style.SIZES`.
    """
    with styled(size=size):
        figure, (above, below) = panels(2, 1.7, columns=1, size=size, sharex=True)
        seconds, running, waiting, cache = timeline.T
        above.step(seconds, running, where="post", color=CYCLE[0], label="running")
        above.step(seconds, waiting, where="post", color=CYCLE[1], linestyle=DASHES[1], label="waiting")
        above.set_ylabel("requests")
        above.set_ylim(bottom=0)
        below.step(seconds, 100 * cache, where="post", color=CYCLE[2])
        below.set_ylabel("KV cache (%)")
        below.set_ylim(0, 105)
        below.set_xlabel("time (s)")
        for axes in (above, below):
            axes.grid(True)
        title_above(figure, title)
        legend_of(figure, above.get_legend_handles_labels()[0], None)
        return figure


def frontier_figure(
    data: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]], *, title: str = "",
    user_at_least: float | None = None, size: str = "page",
) -> Figure:  # fmt: skip
    """Tokens a second of each device against tokens per second that a user sees, a panel for each device.

    Arguments:
        data: device -> scheme -> (tokens/s per user, tokens/s per device), the best deployments of each.
        user_at_least: a limit on the first, drawn as a line.
        size: a name of `style.SIZES`.
    """
    with styled(size=size):
        figure, grid = panels(len(data), 3.2 if len(data) == 1 else 2.4, size=size, sharex=True, sharey=True)
        names = list(dict.fromkeys(s for curves in data.values() for s in curves))
        for axes, (device, curves) in zip(grid, data.items(), strict=True):
            for i, name in enumerate(names):
                if name in curves:
                    x, y = curves[name]
                    axes.plot(x, y, color=CYCLE[i % len(CYCLE)], linestyle=DASHES[i % len(DASHES)], marker=".")
            if user_at_least is not None:
                axes.axvline(user_at_least, color=GREY, linewidth=0.9)
            panel_title(axes, device)
            axes.set_xlabel("tokens/s for each user")
            axes.grid(True)
        grid[0].set_ylabel("tokens/s of each device")
        grid[0].set_ylim(bottom=0)
        grid[0].set_xlim(left=0)
        title_above(figure, title)
        legend_of(figure, [
            Line2D([], [], color=CYCLE[i % len(CYCLE)], linestyle=DASHES[i % len(DASHES)], marker=".", label=name)
            for i, name in enumerate(names)
        ] + ([] if user_at_least is None else [
            Line2D([], [], color=GREY, linewidth=0.9, label=f"asked for: {user_at_least:.3g} tokens/s for each user")
        ]), None)  # fmt: skip
        return figure


def load_figure(data: Mapping[str, Sequence[LoadCurve]], *, title: str = "", other: str = "") -> Figure:
    """Latency against throughput: lines predicted with 80 % bands, circles measured, crosses another tool.

    Arguments:
        data: title of a panel -> its curves.
        other: name of the other tool, "" for none.
    """
    with styled():
        figure, grid = panels(len(data), 1.9)
        for i, (axes, (name, curves)) in enumerate(zip(grid, data.items(), strict=True)):
            for c in curves:
                axes.plot(c.rate, 1e3 * c.token_s, color=CYCLE[0])
                axes.fill_between(c.rate, 1e3 * c.low_s, 1e3 * c.high_s, color=CYCLE[0], alpha=0.15, linewidth=0)
                axes.plot(c.measured_rate, 1e3 * c.measured_s, "o", markersize=4.0, color=CYCLE[1])
                if c.other_rate is not None and c.other_s is not None:
                    axes.plot(c.other_rate, 1e3 * c.other_s, "x", markersize=4.5, color=CYCLE[2])
            panel_title(axes, name, fontsize="small")
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.grid(True)
            if i % 3 == 0:
                axes.set_ylabel("ms per token")
        for axes in grid[-3:]:
            axes.set_xlabel("tokens/s of each device")
        title_above(figure, title)
        handles = [
            Line2D([], [], color=CYCLE[0], label="predicted, 80 % band"),
            Line2D([], [], color=CYCLE[1], linestyle="none", marker="o", markersize=4.0, label="measured"),
        ]
        if other:
            handles.append(Line2D([], [], color=CYCLE[2], linestyle="none", marker="x", markersize=4.5, label=other))
        legend_of(figure, handles, None)
        return figure
