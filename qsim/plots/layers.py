"""What every layer of a model lost in quantisation, beside round-to-nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .layout import legend_of, title_above
from .style import CYCLE, GREY, LIGHT, MARKERS, VERMILLION, new_figure, styled


def record_figure(title: str, records: Sequence[Mapping[str, Any]], *, size: str = "page") -> Figure:
    """Relative output error of every layer above, the share of round-to-nearest's error below.

    Arguments:
        records: `LayerRecord.to_dict()` of each layer, in order. Layers without calibration show the weights' error.
        size: a name of `style.SIZES`.

    Hollow grey marks are round-to-nearest, filled ones the method; colours and markers tell the kinds of Linear apart.
    Layers that fell back to another method are ringed.
    """
    calibrated = all(r.get("output_error") is not None for r in records)
    mine, plain = ("output_error", "rtn_output_error") if calibrated else ("weight_mse", "rtn_weight_mse")
    errors = np.array([float(r[mine]) for r in records])
    rtn = np.array([float(r[plain]) for r in records])
    kinds = [str(r["layer"]).rpartition(".")[2] for r in records]
    names = list(dict.fromkeys(kinds))
    x = np.arange(len(records))
    with styled(size=size):
        figure = new_figure(5.2, size=size)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        floor = 0.5 * min((v for v in (*errors, *rtn) if v > 0), default=1.0)
        upper.plot(x, np.maximum(rtn, floor), linestyle="none", marker="o", markersize=6, markerfacecolor="none",
                   markeredgecolor=GREY, markeredgewidth=0.9)  # fmt: skip
        ratio = np.divide(errors, rtn, out=np.ones_like(errors), where=rtn > 0)
        for j, name in enumerate(names):
            at = [i for i, kind in enumerate(kinds) if kind == name]
            style: dict[str, Any] = {"linestyle": "none", "marker": MARKERS[j % len(MARKERS)], "markersize": 5,
                                     "color": CYCLE[j % len(CYCLE)]}  # fmt: skip
            upper.plot(x[at], np.maximum(errors[at], floor), label=name, **style)
            lower.plot(x[at], ratio[at], **style)
        fallen = [i for i, r in enumerate(records) if r.get("fallback")]
        if fallen:
            lower.plot(x[fallen], ratio[fallen], linestyle="none", marker="o", markersize=11, markerfacecolor="none",
                       color=VERMILLION)  # fmt: skip
        upper.set_yscale("log")
        title_above(figure, title)
        upper.set_ylabel("relative squared error\nof the output" if calibrated else "mean squared error\nof the weight")
        handles = [Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", markeredgecolor=GREY,
                          label="round to nearest"), *upper.get_legend_handles_labels()[0]]  # fmt: skip
        if fallen:
            handles.append(Line2D([], [], linestyle="none", marker="o", markersize=9, markerfacecolor="none",
                                  color=VERMILLION, label="fell back"))  # fmt: skip
        legend_of(figure, handles, None)
        lower.axhline(1.0, color=GREY, linewidth=0.9)
        lower.set_ylim(0, max(1.15, 1.08 * float(ratio.max(initial=0))))
        lower.set_ylabel("share of\nround-to-nearest's")
        _blocks(upper, lower, records, x)
        for axes in (upper, lower):
            axes.grid(axis="y")
    return figure


def _blocks(upper: Any, lower: Any, records: Sequence[Mapping[str, Any]], x: np.ndarray) -> None:
    """Ticks and lines at the decoder blocks, by the first number in each layer's name."""
    numbers = [next((p for p in str(r["layer"]).split(".") if p.isdigit()), "") for r in records]
    first = [i for i, n in enumerate(numbers) if i == 0 or n != numbers[i - 1]]
    middles = [(a + b - 1) / 2 for a, b in zip(first, [*first[1:], len(numbers)], strict=True)]
    step = max(1, round(len(first) / (2.2 * lower.figure.get_size_inches()[0])))
    for axes in (upper, lower):
        for i in first[1:]:
            axes.axvline(x[i] - 0.5, color=LIGHT, linewidth=0.7, zorder=0)
    lower.set_xticks(middles[::step], [numbers[i] for i in first[::step]])
    lower.tick_params(axis="x", length=0)
    lower.set_xlabel("decoder block")
    lower.set_xlim(-0.8, len(records) - 0.2)
