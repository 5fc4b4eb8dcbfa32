"""What an accumulator does to a sum: error against K, the chain that stops at 64, error against its width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from qsim.errors import QsimError

from .layout import title_above
from .style import BLUE, CYCLE, DASHES, GREY, MARKERS, VERMILLION, new_figure, styled


@dataclass(frozen=True, kw_only=True)
class ErrorCurve:
    """Relative errors of one way to accumulate.

    Arguments:
        label: what the legend says.
        x: (n,) K, or fraction bits; ascending.
        error: (n,) relative Frobenius error against the exact product; zeros are not drawn.
    """

    label: str
    x: np.ndarray
    error: np.ndarray


def _draw(axis: Axes, curves: Sequence[ErrorCurve]) -> None:
    for i, curve in enumerate(curves):
        shown = curve.error > 0
        axis.plot(
            curve.x[shown],
            curve.error[shown],
            color=CYCLE[i % len(CYCLE)],
            linestyle=DASHES[i % len(DASHES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=4,
            label=curve.label,
        )


def accumulation_error_figure(panels: Mapping[str, Sequence[ErrorCurve]], *, title: str = "") -> Figure:
    """Error against K, one panel per kind of data, side by side on one scale.

    Arguments:
        panels: title of the panel to its curves; the same labels in every panel.
        title: above all panels.

    Raises:
        ValueError: no panel.
    """
    if not panels:
        raise QsimError("a figure of errors needs at least one panel")
    with styled():
        figure = new_figure(4.0)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (name, curves) in zip(axes, panels.items(), strict=True):
            _draw(axis, curves)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xlabel("K (products per output)")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
            axis.grid(True)
            axis.set_title(name)
        axes[0].set_ylabel("relative error\n(Frobenius)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        title_above(figure, title)
        return figure


def standstill_figure(rounds: np.ndarray, sums: Mapping[str, np.ndarray], *, exact: np.ndarray) -> Figure:
    """A sum that grows by 2 per round, until it does not.

    Arguments:
        rounds: (n,) number of rounds, ascending.
        sums: label to (n,) accumulated values.
        exact: (n,) what they should be.
    """
    with styled():
        figure = new_figure(3.4)
        axis = figure.subplots()
        axis.plot(rounds, exact, color=GREY, linestyle=(0, (2, 2)), label="exact: 2 per round")
        for i, (label, values) in enumerate(sums.items()):
            axis.plot(rounds, values, color=(VERMILLION, BLUE)[i % 2], linestyle=DASHES[i % len(DASHES)], label=label)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        for ruler in (axis.xaxis, axis.yaxis):
            ruler.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_xlabel("rounds of 16 instructions with K = 32, all operands 1/16")
        axis.set_ylabel("accumulator")
        axis.grid(True)
        axis.legend(loc="upper left")
        axis.annotate(
            "stands still at 64: every product is 2$^{-8}$,\nthe unit beside 64 is 2$^{-7}$",
            (rounds[-1], 64),
            (-6, -32),
            textcoords="offset points",
            ha="right",
            fontsize="small",
            color=VERMILLION,
        )
        return figure


def width_error_figure(curves: Sequence[ErrorCurve], marks: Mapping[str, int], *, title: str = "") -> Figure:
    """How wide must the accumulator be: error against F.

    Arguments:
        curves: one per kind of data and K; x is F.
        marks: name of an instruction to its F, drawn as a vertical line.
        title: of the figure.
    """
    with styled():
        figure = new_figure(3.9)
        axis = figure.subplots()
        _draw(axis, curves)
        middle = np.mean([limit for c in curves for limit in (c.x[0], c.x[-1])])
        for name, bits in marks.items():
            axis.axvline(bits, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)), zorder=0)
            low = bits < middle  # errors fall with F: free space is below on the left, above on the right
            axis.annotate(name, (bits, 0.0 if low else 1.0), (-3, 4 if low else -4), color=GREY, fontsize="small",
                          xycoords=("data", "axes fraction"), textcoords="offset points", rotation=90, ha="right",
                          va="bottom" if low else "top")  # fmt: skip
        axis.set_yscale("log")
        axis.set_xlabel("F, fraction bits kept when terms are aligned")
        axis.set_ylabel("relative error\n(Frobenius)")
        axis.xaxis.set_major_locator(MultipleLocator(2))
        axis.grid(True)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        title_above(figure, title)
        return figure
