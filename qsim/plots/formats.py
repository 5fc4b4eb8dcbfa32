"""Figures of number formats: the number line, the spacing, error against magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from qsim.errors import QsimError
from qsim.formats.explain import number

from .layout import title_above
from .style import BLUE, CYCLE, DASHES, GREY, VERMILLION, new_figure, styled


@dataclass(frozen=True, kw_only=True)
class ErrorSeries:
    """One format in `error_figure`.

    Arguments:
        label: what the legend says.
        magnitude, worst, rms: arrays of one shape, ascending to `max`; relative errors, NaN where there is no sample.
        max: the largest magnitude that is not clipped.
    """

    label: str
    magnitude: np.ndarray
    worst: np.ndarray
    rms: np.ndarray
    max: float


def format_figure(name: str, values: np.ndarray, *, smallest_normal: float | None = None, size: str = "page") -> Figure:
    """A format's values on the number line, near zero, and their spacing.

    Arguments:
        name: the title.
        values: (n,) all finite values, ascending; at most a few thousand are drawn well.
        smallest_normal: below it values are drawn as subnormals; None: there are none.
        size: a name of `style.SIZES`.

    Raises:
        ValueError: fewer than two values.
    """
    if values.size < 2:
        raise QsimError(f"a number line needs at least two values: got {values.size} of {name}")
    positive = values[values > 0]
    edge = smallest_normal if smallest_normal is not None else 0.0
    zoom = min(8 * edge if edge else positive[min(15, positive.size - 1)], positive[-1])
    wide = positive[-1] / positive[0] > 2.0**40
    uniform = bool(np.allclose(np.diff(values), values[1] - values[0]))
    panels = 2 if wide or uniform or zoom == positive[-1] else 3
    with styled(size=size):
        figure = new_figure(3.8 if panels == 2 else 5.6, size=size)
        axes = figure.subplots(panels, 1, height_ratios=[1, 2.6] if panels == 2 else [1, 1, 3.4])
        _number_line(axes[0], positive if wide else values, edge)
        title_above(figure, f"{name}: {values.size} finite values, {number(values[0])} to {number(values[-1])}")
        axes[0].set_xlabel("value")
        if wide:
            axes[0].set_xscale("log", base=2)
            _octave_ticks(axes[0].xaxis)
        if panels == 3:
            low = -zoom if values[0] < 0 else 0.0
            _number_line(axes[1], values[(values >= low) & (values <= zoom)], edge)
            axes[1].set_xlabel("value, near zero")
        _spacing(axes[-1], positive, edge)
        if edge:
            _name_colours(axes[-1])
    return figure


def binade_figure(
    name: str, first: np.ndarray, last: np.ndarray, spacing: np.ndarray, *, smallest_normal: float | None = None,
    size: str = "page",
) -> Figure:  # fmt: skip
    """A format with too many values to draw one by one: the values next to 1, and the spacing binade by binade.

    Arguments:
        name: the title.
        first, last, spacing: (binades,) first and last value of a binade and the spacing inside it, ascending.
        smallest_normal, size: as in `format_figure`.
    """
    edge = smallest_normal if smallest_normal is not None else 0.0
    with styled(size=size):
        figure = new_figure(4.6, size=size)
        top, bottom = figure.subplots(2, 1, height_ratios=[1, 3.4])
        unit = float(spacing[np.searchsorted(first, 1.0, side="right") - 1])
        _number_line(top, np.concatenate([1 + unit / 2 * np.arange(-16, 0), 1 + unit * np.arange(9)]), 0.0)
        title_above(figure, f"{name}: up to {last[-1]:.6g}; just above 1 the spacing is {unit:.6g}")
        top.set_xlabel("value, near 1")
        top.xaxis.set_major_locator(FixedLocator([1 - 8 * unit, 1 - 4 * unit, 1, 1 + 4 * unit, 1 + 8 * unit]))
        top.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.9g}"))
        x = np.stack([first, last, np.full_like(last, np.nan)], axis=1)
        relative = np.stack([spacing / first, spacing / last, np.full_like(last, np.nan)], axis=1)
        normal = first >= edge
        bottom.set_xscale("log", base=2)
        bottom.set_yscale("log", base=2)
        bottom.plot(x[normal].ravel(), relative[normal].ravel(), color=BLUE, linewidth=1.2)
        if not normal.all():
            bottom.plot(x[~normal].ravel(), relative[~normal].ravel(), color=VERMILLION)
            _mark_subnormals(bottom, edge)
        _finish_spacing(bottom)
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


def _name_colours(axes: Axes) -> None:
    axes.plot([], [], color=BLUE, linewidth=3, label="normal")
    axes.plot([], [], color=VERMILLION, linewidth=3, label="zero and subnormal")
    axes.legend(loc="upper right")


def _spacing(axes: Axes, positive: np.ndarray, edge: float) -> None:
    spacing = np.diff(positive)
    x, relative = positive[:-1], spacing / positive[:-1]
    subnormal = x < edge
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    marker = 3.2 if x.size <= 300 else 1.2
    axes.plot(x[~subnormal], relative[~subnormal], "o", color=BLUE, markersize=marker)
    if subnormal.any():
        axes.plot(x[subnormal], relative[subnormal], "s", color=VERMILLION, markersize=marker)
        _mark_subnormals(axes, edge)
    _finish_spacing(axes)


def _mark_subnormals(axes: Axes, edge: float) -> None:
    axes.axvline(edge, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "top", "color": GREY, "fontsize": "small"}
    axes.annotate(" smallest normal", (edge, 1), **style)


def _finish_spacing(axes: Axes) -> None:
    axes.set_xlabel("value")
    axes.set_ylabel("spacing / value")
    axes.grid(True)
    _octave_ticks(axes.xaxis)
    _octave_ticks(axes.yaxis, at_most=9)


def _octave_ticks(axis: Axis, at_most: int = 12) -> None:
    """Ticks at powers of two whose exponents are multiples of 1, 2, 4, 8, ...: a step that reads well."""
    low, high = np.log2(axis.get_view_interval())
    step = 1
    while (high - low) / step > at_most:
        step *= 2
    axis.set_major_locator(FixedLocator(np.exp2(np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_power_label))


def _power_label(x: float, _position: int | None = None) -> str:
    exponent = round(float(np.log2(x))) if x > 0 else 0
    return f"$2^{{{exponent}}}$" if exponent else "1"


def error_figure(
    series: Sequence[ErrorSeries], title: str = "Relative error against magnitude", *, size: str = "page"
) -> Figure:
    """Worst and rms relative error against magnitude, one colour per format.

    Arguments:
        series: at most seven, which is as many colours as are told apart.
        title: the heading.
        size: a name of `style.SIZES`.

    Raises:
        ValueError: no series, or more than seven.
    """
    if not 1 <= len(series) <= len(CYCLE):
        raise QsimError(f"the figure takes 1 to {len(CYCLE)} formats: got {len(series)}")
    with styled(size=size):
        figure = new_figure(4.6, size=size)
        axes = figure.subplots()
        top = 1.6 * max(float(np.nanmax(s.worst)) for s in series)
        for i, s in enumerate(series):
            color, dash = CYCLE[i], DASHES[i % len(DASHES)]
            seen = np.isfinite(s.worst)
            # the last bin reaches to the largest value
            x, worst, rms = (
                np.append(v[seen], end)
                for v, end in zip(
                    (s.magnitude, s.worst, s.rms), (s.max, s.worst[seen][-1], s.rms[seen][-1]), strict=True
                )
            )
            axes.fill_between(x, rms, worst, color=color, alpha=0.13, linewidth=0)
            axes.plot(x, worst, color=color, linestyle=dash, label=s.label)
            axes.plot(x, rms, color=color, linestyle=dash, linewidth=0.8)
            axes.vlines(s.max, worst[-1], top, color=color, linestyle=dash, linewidth=0.8)
            axes.plot(s.max, top, marker="^", color=color, markersize=6, clip_on=False, linestyle="none")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("magnitude of the value")
        axes.set_ylabel("relative error, |rounded - value| / |value|")
        title_above(figure, title)
        axes.set_ylim(_floor(series), top)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _octave_ticks(axes.xaxis)
        axes.grid(True)
        axes.legend(
            title="thick: worst case; thin: rms;\n▲: clips from here on",
            title_fontsize="small",
            alignment="left",
            loc="lower left",
        )
    return figure


def _floor(series: Sequence[ErrorSeries]) -> float:
    """Bottom of the axis: a little under the smallest rms that is not an accident of few values."""
    lowest = min(float(np.nanquantile(s.rms[s.rms > 0], 0.05)) for s in series)
    return lowest / 4
