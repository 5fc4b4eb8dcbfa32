"""Amounts as dots on a logarithmic line: sizes of weights against memories, values in groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from .layout import panels, title_above
from .style import CYCLE, DASHES, new_figure, styled


def capacity_figure(
    data: Mapping[str, Mapping[str, float]], capacities: Mapping[str, float], *, title: str = ""
) -> Figure:
    """Weights of each model in each scheme, in GB on a log scale, against the memories of the devices (lines).

    Arguments:
        data: model -> scheme -> GB. capacities: device -> GB.
    """
    with styled():
        rows = max(map(len, data.values()))
        by_size: dict[float, list[str]] = {}
        for name, gb in sorted(capacities.items(), key=lambda item: item[1]):
            by_size.setdefault(gb, []).append(name)
        longest = max(len(", ".join(names)) for names in by_size.values())  # written upwards, above each panel
        figure, grid = panels(len(data), 0.24 * rows + 0.75 + 0.075 * longest, columns=2, sharey=True)
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
                ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                axes.annotate(f"{v:.3g}", (v, y), xytext=(6, 0), textcoords="offset points", fontsize="small",
                              va="center", bbox=ground)  # fmt: skip
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
            above = axes.secondary_xaxis("top")
            above.set_xticks(list(by_size), [", ".join(d) for d in by_size.values()], rotation=90)
            above.xaxis.set_minor_locator(NullLocator())
            above.tick_params(labelsize="small", color=CYCLE[1], labelcolor=CYCLE[1], pad=1)
            above.spines["top"].set_visible(False)
            axes.set_xlabel(f"{model}: weights (GB)")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        title_above(figure, title)
        return figure


def grouped_figure(groups: Mapping[str, Mapping[str, float]], *, xlabel: str, title: str = "") -> Figure:
    """Points on a log scale in groups of lines: group -> label -> value; a zero is written as such.

    Arguments:
        groups: e.g. method -> device -> value.
    """
    with styled():
        rows = [(g, label, v) for g, mine in groups.items() for label, v in mine.items()]
        height = 0.9 + 0.21 * (len(rows) + len(groups)) + 0.12 * len(groups)
        figure = new_figure(height)
        axes = figure.subplots()
        positive = [v for _, _, v in rows if v > 0] or [1.0]
        floor = min(positive) / 4
        ticks, labels, y = [], [], 0.0
        for i, (group, mine) in enumerate(groups.items()):
            axes.axhspan(y - 0.55, y + len(mine) + 0.55, color="#F3F3F3" if i % 2 == 0 else "#FFFFFF", zorder=0,
                         linewidth=0)  # fmt: skip
            color = CYCLE[i % len(CYCLE)]
            axes.annotate(group, (0.0, y), xycoords=("axes fraction", "data"), xytext=(4, 0), va="center",
                          textcoords="offset points", fontsize="small", fontweight="bold", color=color)  # fmt: skip
            y += 1  # the name of a group has a line of its own
            for label, value in mine.items():
                axes.plot([max(value, floor)], [y], marker="o" if value > 0 else "|", color=color, markersize=6)
                if value == 0:
                    axes.annotate("0: the same bits", (floor, y), xytext=(8, 0), textcoords="offset points",
                                  va="center", fontsize="small", color=color)  # fmt: skip
                ticks.append(y)
                labels.append(label)
                y += 1
            y += 0.5
        axes.set_xscale("log")
        axes.set_xlim(floor / 1.5, max(positive) * 8)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(ticks, labels)
        axes.set_ylim(y - 0.5, -0.7)
        axes.set_xlabel(xlabel)
        axes.grid(True, axis="x")
        title_above(figure, title)
        return figure
