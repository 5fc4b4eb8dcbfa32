"""Figures of number formats: the number line, the spacing, error against magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from .style import BLUE, CYCLE, DASHES, GREY, VERMILLION, new_figure, styled


@dataclass(frozen=True, kw_only=True)
class ErrorSeries:
    """One format in `error_figure`.

    Arguments:
        label: what the legend says.
        magnitude, worst, rms: arrays of one shape; relative errors, NaN where there is no sample.
        max: the largest magnitude that is not clipped.
    """

    label: str
    magnitude: np.ndarray
    worst: np.ndarray
    rms: np.ndarray
    max: float


def format_figure(name: str, values: np.ndarray, *, smallest_normal: float | None = None) -> Figure:
    """A format's values on the number line, near zero, and their spacing.

    Arguments:
        name: the title.
        values: (n,) all finite values, ascending; at most a few thousand are drawn well.
        smallest_normal: below it values are drawn as subnormals; None: there are none.

    Raises:
        ValueError: fewer than two values.
    """
    if values.size < 2:
        raise ValueError(f"a number line needs at least two values: got {values.size} of {name}")
    positive = values[values > 0]
    edge = smallest_normal if smallest_normal is not None else 0.0
    uniform = bool(np.allclose(np.diff(values), values[1] - values[0]))
    with styled():
        figure = new_figure(3.1 if uniform else 5.6)
        axes = figure.subplots(2 if uniform else 3, 1, height_ratios=[1, 3] if uniform else [1, 1, 3.4])
        _number_line(axes[0], values, edge)
        axes[0].set_title(f"{name}: {values.size} finite values, {values[0]:.6g} to {values[-1]:.6g}")
        axes[0].set_xlabel("value")
        if not uniform:
            _near_zero(axes[1], values, positive, edge)
        _spacing(axes[-1], positive, edge)
    return figure


def _number_line(axes: Axes, values: np.ndarray, edge: float) -> None:
    subnormal = np.abs(values) < edge
    width = 1.1 if values.size <= 300 else 0.4
    axes.vlines(values[~subnormal], 0, 1, color=BLUE, linewidth=width)
    axes.vlines(values[subnormal], 0, 1, color=VERMILLION, linewidth=width)
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.01)


def _near_zero(axes: Axes, values: np.ndarray, positive: np.ndarray, edge: float) -> None:
    """The subnormals and three binades above them, or the sixteen smallest values of a format without subnormals."""
    limit = 8 * edge if edge else positive[min(15, positive.size - 1)]
    limit = min(limit, positive[-1])
    low = -limit if values[0] < 0 else 0.0
    shown = values[(values >= low) & (values <= limit)]
    _number_line(axes, shown, edge)
    axes.set_xlabel("value, near zero")
    axes.plot([], [], color=BLUE, linewidth=2, label="normal")
    if edge:
        axes.plot([], [], color=VERMILLION, linewidth=2, label="zero and subnormal")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, borderaxespad=0.0)


def _spacing(axes: Axes, positive: np.ndarray, edge: float) -> None:
    spacing = np.diff(positive)
    x, relative = positive[:-1], spacing / positive[:-1]
    subnormal = x < edge
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    marker = 3.2 if x.size <= 300 else 1.2
    axes.plot(x[~subnormal], relative[~subnormal], "o", color=BLUE, markersize=marker, label="normal")
    if subnormal.any():
        axes.plot(x[subnormal], relative[subnormal], "s", color=VERMILLION, markersize=marker, label="subnormal")
        axes.axvline(edge, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            " smallest normal", (edge, 1), xycoords=("data", "axes fraction"), va="top", color=GREY, fontsize=8.5
        )
    axes.set_xlabel("value")
    axes.set_ylabel("spacing to the next / value")
    axes.grid(True)
    _powers_of_two(axes)


def _powers_of_two(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=2, numticks=12))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_power_label))


def _power_label(x: float, _position: int | None = None) -> str:
    exponent = round(float(np.log2(x))) if x > 0 else 0
    return f"{x:g}" if -2 <= exponent <= 6 else f"$2^{{{exponent}}}$"


def error_figure(series: Sequence[ErrorSeries], title: str = "Relative error against magnitude") -> Figure:
    """Worst and rms relative error against magnitude, one colour a format.

    Arguments:
        series: at most seven, which is as many colours as are told apart.
        title: the heading.

    Raises:
        ValueError: no series, or more than seven.
    """
    if not 1 <= len(series) <= len(CYCLE):
        raise ValueError(f"the figure takes 1 to {len(CYCLE)} formats: got {len(series)}")
    with styled():
        figure = new_figure(4.6)
        axes = figure.subplots()
        for i, s in enumerate(series):
            dash = DASHES[i % len(DASHES)]
            axes.fill_between(s.magnitude, s.rms, s.worst, color=CYCLE[i], alpha=0.13, linewidth=0)
            axes.plot(s.magnitude, s.worst, color=CYCLE[i], linestyle=dash, label=s.label)
            axes.plot(s.magnitude, s.rms, color=CYCLE[i], linestyle=dash, linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("magnitude of the value")
        axes.set_ylabel("relative error")
        axes.set_title(title)
        worst = np.concatenate([s.worst for s in series])
        axes.set_ylim(_floor(series), min(4.0, 1.6 * float(np.nanmax(worst))))
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=14))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_power_label))
        axes.grid(True)
        axes.legend(title="thick: worst case, thin: rms", title_fontsize=8.5, alignment="left", loc="lower left")
    return figure


def _floor(series: Sequence[ErrorSeries]) -> float:
    """Bottom of the axis: a little under the smallest rms that is not an accident of few values."""
    lowest = min(float(np.nanquantile(s.rms[s.rms > 0], 0.05)) for s in series)
    return lowest / 4
