"""Figures of hardware models: speed-up, breakdown, prediction against measurement, Pareto, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from .style import CYCLE, DASHES, GREY, LIGHT, new_figure, styled

MARKERS = "osD^vP*X"


@dataclass(frozen=True, kw_only=True)
class Band:
    """A curve with its band, and measured points where there are some."""

    label: str
    x: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None
    measured: NDArray[np.float64] | None = None


def speedup_figure(
    title: str, curves: Sequence[Band], *, xlabel: str = "batch", ylabel: str = "speed-up over bf16 (x)"
) -> Figure:
    """Speed-up against batch with 80 % bands; circles are measurements; 1 is drawn."""
    with styled():
        figure = new_figure(4.2)
        axes = figure.add_subplot()
        axes.axhline(1.0, color=GREY, linewidth=0.8)
        for i, c in enumerate(curves):
            color = CYCLE[i % len(CYCLE)]
            axes.plot(c.x, c.value, color=color, linestyle=DASHES[i % len(DASHES)], label=c.label)
            if c.low is not None and c.high is not None:
                axes.fill_between(c.x, c.low, c.high, color=color, alpha=0.15, linewidth=0)
            if c.measured is not None:
                axes.plot(c.x, c.measured, linestyle="none", marker="o", markersize=4.5, color=color)
        axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
        ticks = sorted({float(v) for c in curves for v in c.x})
        if len(ticks) <= 16:
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(True, axis="y")
        axes.legend()
        return figure


def breakdown_figure(title: str, labels: Sequence[str], parts: Mapping[str, Sequence[float]]) -> Figure:
    """Stacked bars: milliseconds of every part, for each label; small parts are gathered as `other`."""
    with styled():
        total = np.sum([np.asarray(v, float) for v in parts.values()], axis=0)
        shown = [n for n, v in parts.items() if np.max(np.asarray(v, float) / total) >= 0.03][:8]
        figure = new_figure(0.7 + 0.45 * len(labels) + 0.9)
        axes = figure.add_subplot()
        left = np.zeros(len(labels))
        hatches = ("", "//", "..", "xx", "\\\\", "++", "--", "oo")
        for i, name in enumerate(shown):
            value = np.asarray(parts[name], float) * 1e3
            axes.barh(labels, value, left=left, color=CYCLE[i % len(CYCLE)], label=name, height=0.65,
                      hatch=hatches[i // len(CYCLE)], edgecolor="white", linewidth=0.5)  # fmt: skip
            left += value
        axes.barh(labels, total * 1e3 - left, left=left, color=LIGHT, label="other", height=0.65)
        for y, value in enumerate(total * 1e3):
            axes.annotate(
                f"{value:.3g} ms", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_xlim(right=float(total.max()) * 1e3 * 1.14)
        axes.invert_yaxis()
        axes.set(xlabel="time (ms)", title=title)
        axes.grid(True, axis="x")
        figure.legend(loc="outside lower center", ncols=5)
        return figure


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Measured and predicted times of one group, seconds, with the band of each prediction."""

    label: str
    measured_s: NDArray[np.float64]
    predicted_s: NDArray[np.float64]
    low_s: NDArray[np.float64]
    high_s: NDArray[np.float64]


def comparison_figure(title: str, groups: Sequence[Compared]) -> Figure:
    """Prediction against measurement, and the ratio of the two with the 80 % band of the prediction.

    Large groups are thinned to 400 points each, evenly.
    """
    with styled():
        figure = new_figure(4.4)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
        least = min(float(g.measured_s.min()) for g in groups)
        most = max(float(g.measured_s.max()) for g in groups)
        edge = np.array([least / 1.5, most * 1.5]) * 1e3
        left.plot(edge, edge, color=GREY, linewidth=0.8)
        right.axhline(1.0, color=GREY, linewidth=0.8)
        for i, g in enumerate(groups):
            pick = np.linspace(0, len(g.measured_s) - 1, min(400, len(g.measured_s))).astype(int)
            color, marker = CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)]
            x, y = g.measured_s[pick] * 1e3, g.predicted_s[pick] * 1e3
            mape = 100 * float(np.mean(np.abs(g.predicted_s / g.measured_s - 1)))
            look: dict[str, Any] = {
                "linestyle": "none",
                "marker": marker,
                "markersize": 3.5,
                "color": color,
                "alpha": 0.75,
            }
            left.plot(x, y, label=f"{g.label}: {mape:.1f} %", **look)
            ratio = g.measured_s[pick] / g.predicted_s[pick]
            right.plot(x, ratio, **look)
            if len(pick) <= 160:
                down = np.maximum(1 - g.low_s[pick] / g.predicted_s[pick], 0)
                up = np.maximum(g.high_s[pick] / g.predicted_s[pick] - 1, 0)
                right.errorbar(x, np.ones(len(pick)), yerr=np.stack([down, up]), linestyle="none", ecolor=color,
                               alpha=0.3, elinewidth=1.5)  # fmt: skip
        left.set(xscale="log", yscale="log", xlabel="measured (ms)", ylabel="predicted (ms)", title=title)
        right.set(xscale="log", xlabel="measured (ms)", ylabel="measured / predicted", ylim=(0.5, 1.6))
        if any(len(g.measured_s) <= 160 for g in groups):
            right.set_title("bars: 80 % band of each prediction", fontweight="normal")
        for axes in (left, right):
            axes.grid(True)
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def pareto_figure(
    title: str, x: Any, y: Any, labels: Sequence[str], front: NDArray[np.bool_], *, xlabel: str, ylabel: str
) -> Figure:
    """Points with the Pareto front joined; only points of the front are labelled."""
    with styled():
        figure = new_figure(4.4)
        axes = figure.add_subplot()
        x, y = np.asarray(x, float), np.asarray(y, float)
        axes.plot(x[~front], y[~front], linestyle="none", marker="o", markersize=4, color=LIGHT, label="other cases")
        order = np.argsort(x[front])
        axes.plot(x[front][order], y[front][order], marker="D", markersize=5, color=CYCLE[0], label="Pareto front")
        step = max(1, int(front.sum()) // 12)
        for i in np.flatnonzero(front)[order][::step]:
            axes.annotate(labels[i], (x[i], y[i]), xytext=(5, 4), textcoords="offset points", fontsize=7.5)
        axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel, title=title)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12)
        axes.grid(True)
        axes.legend()
        return figure


def tornado_figure(title: str, fields: Sequence[str], low: Any, high: Any, base: float, *, xlabel: str) -> Figure:
    """Bars from the result with a field lowered to the result with it raised, largest effect on top."""
    with styled():
        figure = new_figure(0.9 + 0.38 * len(fields) + 0.6)
        axes = figure.add_subplot()
        low, high = np.asarray(low, float), np.asarray(high, float)
        axes.barh(fields, low - base, left=base, color=CYCLE[0], height=0.6, label="field lowered")
        axes.barh(fields, high - base, left=base, color=CYCLE[1], height=0.6, label="field raised")
        axes.axvline(base, color=GREY, linewidth=0.8)
        axes.invert_yaxis()
        axes.set(xlabel=xlabel, title=title)
        axes.grid(True, axis="x")
        axes.legend(loc="lower right")
        return figure


def measured_figure(title: str, labels: Sequence[str], predicted: Any, measured: Any) -> Figure:
    """Pairs of bars: the speed-up that bytes and arithmetic allow, and the one measured."""
    with styled():
        figure = new_figure(0.8 + 0.5 * len(labels) + 0.6)
        axes = figure.add_subplot()
        y = np.arange(len(labels))
        axes.barh(
            y - 0.2, predicted, height=0.36, color=LIGHT, edgecolor=GREY, label="allowed by bandwidth and arithmetic"
        )
        axes.barh(y + 0.2, measured, height=0.36, color=CYCLE[0], label="measured")
        axes.axvline(1.0, color=GREY, linewidth=0.8)
        axes.set_yticks(y, labels)
        axes.invert_yaxis()
        axes.set(xlabel="speed-up (x)", title=title)
        axes.grid(True, axis="x")
        figure.legend(loc="outside lower center", ncols=2)
        return figure
