"""Predictions beside measurements: each against the other, and their ratio with the band of the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from .layout import legend_of, title_above
from .style import CYCLE, GREY, MARKERS, new_figure, styled

THINNED_TO = 400
"""Points drawn of a group, evenly picked."""
BANDS_UP_TO = 160
"""A group with more points is drawn without their bands, which would be one grey area."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Measured and predicted times of one group, seconds, with the band of each prediction."""

    label: str
    measured_s: NDArray[np.float64]
    predicted_s: NDArray[np.float64]
    low_s: NDArray[np.float64]
    high_s: NDArray[np.float64]

    @property
    def mape(self) -> float:
        """Mean absolute error of the predictions in percent of the measurements."""
        return 100 * float(np.mean(np.abs(self.predicted_s / self.measured_s - 1)))


def comparison_figure(groups: Sequence[Compared], *, title: str = "", both: bool = True) -> Figure:
    """The ratio of measurement and prediction with the 80 % band of the prediction; the legend says the mean error.

    Large groups are thinned to 400 points each, evenly.

    Arguments:
        both: a panel of predictions against measurements beside it.
    """
    with styled():
        figure = new_figure(4.4 if both else 3.4)
        panels = figure.subplots(1, 2 if both else 1, squeeze=False, width_ratios=(1, 1.15) if both else None)[0]
        for i, group in enumerate(groups):
            look: dict[str, Any] = {"linestyle": "none", "marker": MARKERS[i % len(MARKERS)], "markersize": 3.6,
                                    "color": CYCLE[i % len(CYCLE)], "alpha": 0.8}  # fmt: skip
            pick = np.linspace(0, len(group.measured_s) - 1, min(THINNED_TO, len(group.measured_s))).astype(int)
            if both:
                panels[0].plot(group.measured_s[pick] * 1e3, group.predicted_s[pick] * 1e3, **look)
            _ratios(panels[-1], group, pick, look)
        if both:
            ends = np.array([min(float(g.measured_s.min()) for g in groups) / 1.5,
                             max(float(g.measured_s.max()) for g in groups) * 1.5]) * 1e3  # fmt: skip
            panels[0].plot(ends, ends, color=GREY, linewidth=0.8)
            panels[0].set(yscale="log", ylabel="predicted (ms)")
        for axes in panels:
            axes.set(xscale="log", xlabel="measured (ms)")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.grid(True)
        title_above(figure, title)
        legend_of(figure, [Line2D([], [], linestyle="none", marker=MARKERS[i % len(MARKERS)], markersize=4,
                                  color=CYCLE[i % len(CYCLE)], label=f"{g.label}: {g.mape:.1f} %")
                           for i, g in enumerate(groups)], None)  # fmt: skip
        return figure


def _ratios(axes: Axes, group: Compared, pick: NDArray[np.int_], look: dict[str, Any]) -> None:
    axes.axhline(1.0, color=GREY, linewidth=0.9)
    x = group.measured_s[pick] * 1e3
    if len(pick) <= BANDS_UP_TO:
        axes.vlines(x, group.low_s[pick] / group.predicted_s[pick], group.high_s[pick] / group.predicted_s[pick],
                    color=look["color"], alpha=0.25, linewidth=1.3)  # fmt: skip
        axes.set_title("bars: 80 % band of each prediction", fontweight="normal", fontsize="small")
    axes.plot(x, group.measured_s[pick] / group.predicted_s[pick], **look)
    low, high = axes.get_ylim()
    axes.set(ylabel="measured / predicted", ylim=(max(0.5, min(0.8, low)), min(1.6, max(1.25, high))))
