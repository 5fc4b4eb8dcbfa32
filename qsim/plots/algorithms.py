"""Figures of quantisation: what every layer lost beside round-to-nearest, and what every method costs a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .style import CYCLE, GREY, LIGHT, VERMILLION, new_figure, styled

_MARKERS = "os^vDP*X"


def record_figure(title: str, records: Sequence[Mapping[str, Any]]) -> Figure:
    """Relative output error of every layer above, the share of round-to-nearest's error below.

    Arguments:
        records: `LayerRecord.to_dict()` of each layer, in order. Layers without calibration show the weights' error.

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
    with styled():
        figure = new_figure(5.2)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        floor = 0.5 * min((v for v in (*errors, *rtn) if v > 0), default=1.0)
        upper.plot(x, np.maximum(rtn, floor), linestyle="none", marker="o", markersize=6, markerfacecolor="none",
                   markeredgecolor=GREY, markeredgewidth=0.9)  # fmt: skip
        ratio = np.divide(errors, rtn, out=np.ones_like(errors), where=rtn > 0)
        for j, name in enumerate(names):
            at = [i for i, kind in enumerate(kinds) if kind == name]
            style: dict[str, Any] = {"linestyle": "none", "marker": _MARKERS[j % len(_MARKERS)], "markersize": 5,
                                     "color": CYCLE[j % len(CYCLE)]}  # fmt: skip
            upper.plot(x[at], np.maximum(errors[at], floor), label=name, **style)
            lower.plot(x[at], ratio[at], **style)
        fallen = [i for i, r in enumerate(records) if r.get("fallback")]
        if fallen:
            lower.plot(x[fallen], ratio[fallen], linestyle="none", marker="o", markersize=11, markerfacecolor="none",
                       color=VERMILLION)  # fmt: skip
            lower.annotate("ringed: fell back", (0.99, 0.94), xycoords="axes fraction", ha="right", va="top",
                           fontsize=8, color=VERMILLION)  # fmt: skip
        upper.set_yscale("log")
        upper.set_title(title)
        upper.set_ylabel("relative squared error\nof the output" if calibrated else "mean squared error\nof the weight")
        handles = [Line2D([], [], linestyle="none", marker="o", markerfacecolor="none", markeredgecolor=GREY,
                          label="round to nearest"), *upper.get_legend_handles_labels()[0]]  # fmt: skip
        upper.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.3)
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
    step = max(1, len(first) // 16)
    for axes in (upper, lower):
        for i in first[1:]:
            axes.axvline(x[i] - 0.5, color=LIGHT, linewidth=0.7, zorder=0)
    lower.set_xticks(middles[::step], [numbers[i] for i in first[::step]])
    lower.tick_params(axis="x", length=0)
    lower.set_xlabel("decoder block")
    lower.set_xlim(-0.8, len(records) - 0.2)


@dataclass(frozen=True, kw_only=True)
class QualityPoint:
    """What one way of quantising costs: `loss` and its standard error, in bits per byte.

    `section` and `name` say where it stands, `method` gives its colour.
    """

    section: str
    name: str
    method: str
    loss: float
    error: float


def quality_figure(points: Sequence[QualityPoint]) -> Figure:
    """Losses in bits per byte as dots with bars of two standard errors, section by section.

    The axis is linear up to 0.001, where losses drown in their errors, and logarithmic beyond.
    """
    sections = list(dict.fromkeys(p.section for p in points))
    methods = list(dict.fromkeys(p.method for p in points))
    color = dict(zip(methods, (GREY, *CYCLE) if methods[:1] == ["RTN"] else CYCLE, strict=False))
    with styled():
        figure = new_figure(0.9 + 0.155 * (len(points) + 1.6 * len(sections)))
        axes = figure.subplots()
        at, ticks, labels = 0.0, [], []
        for section in sections:
            axes.text(0.995, at, section, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=8.5,
                      fontweight="bold", color="#333333")  # fmt: skip
            axes.axhline(at - 0.7, color=LIGHT, linewidth=0.7)
            at += 1
            for point in (p for p in points if p.section == section):
                marker = _MARKERS[methods.index(point.method) % len(_MARKERS)]
                axes.errorbar(point.loss, at, xerr=2 * point.error, color=color[point.method], marker=marker,
                              markersize=5, linestyle="none", elinewidth=1.4)  # fmt: skip
                ticks.append(at)
                labels.append(point.name)
                at += 1
            at += 0.6
        axes.set_yticks(ticks, labels, fontsize=7.5)
        axes.set_ylim(at - 0.6, -0.8)
        axes.tick_params(axis="y", length=0)
        axes.set_xscale("symlog", linthresh=1e-3, linscale=0.7)
        shown = [t for t in (0, 1e-3, 1e-2, 1e-1, 1, 10) if t <= 2 * max((p.loss for p in points), default=0) or t == 0]
        axes.set_xticks(shown, [f"{t:g}" for t in shown])
        axes.set_xlim(left=1.2 * min((p.loss - 2 * p.error for p in points), default=0) - 3e-4)
        axes.axvline(0, color=GREY, linewidth=0.9)
        axes.grid(axis="x")
        axes.set_xlabel("loss against the float model (bits per byte), ± 2 standard errors")
        handles = [Line2D([], [], linestyle="none", marker=_MARKERS[i % len(_MARKERS)], color=color[m], label=m)
                   for i, m in enumerate(methods)]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper center", ncols=len(methods))
    return figure
