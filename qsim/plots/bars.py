"""Bars: where the time goes, what a field changes, what was allowed and measured, a ladder of kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from .layout import heading, legend_of, settle, title_above
from .style import BLUE, CYCLE, GREY, LIGHT, SKY, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd


def breakdown_figure(
    title: str, labels: Sequence[str], parts: Mapping[str, Sequence[float]], *, size: str = "page"
) -> Figure:
    """Stacked bars: milliseconds of every part, for each label; small parts are gathered as `other`.

    `size` is a name of `style.SIZES`.
    """
    with styled(size=size):
        total = np.sum([np.asarray(v, float) for v in parts.values()], axis=0)
        shown = [n for n, v in parts.items() if np.max(np.asarray(v, float) / total) >= 0.03][:8]
        figure = new_figure(0.7 + 0.45 * len(labels) + 0.9, size=size)
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
                f"{value:.3g} ms", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize="small"
            )
        axes.set_xlim(right=float(total.max()) * 1e3 * (1.3 if size == "column" else 1.14))  # room for the totals
        axes.invert_yaxis()
        axes.set(xlabel="time (ms)")
        axes.grid(True, axis="x")
        title_above(figure, title)
        legend_of(figure, axes.get_legend_handles_labels()[0], None)
        return figure


def tornado_figure(
    title: str, fields: Sequence[str], low: Any, high: Any, base: float, *, xlabel: str, size: str = "page"
) -> Figure:
    """Bars from the result with a field lowered to the result with it raised, largest effect on top.

    Fields that change the result by less than a thousandth are named under the title. `size` is one of `style.SIZES`.
    """
    with styled(size=size):
        low, high = np.asarray(low, float), np.asarray(high, float)
        moves = np.maximum(abs(low - base), abs(high - base)) >= 1e-3 * base
        still = [name for name, moved in zip(fields, moves, strict=True) if not moved]
        if not moves.any():
            moves[:] = True
        low, high, fields = low[moves], high[moves], [n for n, m in zip(fields, moves, strict=True) if m]
        figure = new_figure(1.1 + 0.38 * len(fields) + 0.6, size=size)
        axes = figure.add_subplot()
        axes.barh(fields, low - base, left=base, color=CYCLE[0], height=0.6, label="field lowered")
        axes.barh(fields, high - base, left=base, color=CYCLE[1], height=0.6, label="field raised")
        axes.axvline(base, color=GREY, linewidth=0.8)
        axes.invert_yaxis()
        axes.set(xlabel=xlabel)
        axes.grid(True, axis="x")
        heading(figure, title, [f"no effect: {', '.join(still)}"] if still else [])
        legend_of(figure, axes.get_legend_handles_labels()[0], None)
        settle(figure)
        return figure


def measured_figure(title: str, labels: Sequence[str], predicted: Any, measured: Any, *, size: str = "page") -> Figure:
    """Pairs of bars: the speed-up that bytes and arithmetic allow, and the one measured.

    `size` is a name of `style.SIZES`.
    """
    with styled(size=size):
        figure = new_figure(0.8 + 0.5 * len(labels) + 0.6, size=size)
        axes = figure.add_subplot()
        y = np.arange(len(labels))
        axes.barh(
            y - 0.2, predicted, height=0.36, color=LIGHT, edgecolor=GREY, label="allowed by bandwidth and arithmetic"
        )
        axes.barh(y + 0.2, measured, height=0.36, color=CYCLE[0], label="measured")
        axes.axvline(1.0, color=GREY, linewidth=0.8)
        axes.set_yticks(y, labels)
        axes.invert_yaxis()
        axes.set(xlabel="speed-up (x)")
        title_above(figure, title)
        axes.grid(True, axis="x")
        legend_of(figure, axes.get_legend_handles_labels()[0], None)
        return figure


_RUNGS = (
    ("ladder 1 naive", "1 naive"),
    ("ladder 2 factored", "2 factored scales"),
    ("W4A16 g128, float32 x, portable", "3 lanes, fields in place"),
    ("W4A8 g128, best path", "4 vpdpbusd (INT8 x)"),
)


def ladder_figure(frame: pd.DataFrame) -> Figure:
    """Packed bytes per second for each rung of the ladder, one and two threads, under the measured read bandwidth.

    Arguments:
        frame: rows of `reports/kernels_speed.csv`.
    """
    with styled():
        return _ladder(frame)


def _ladder(frame: pd.DataFrame) -> Figure:
    figure = new_figure(4.0)
    axes = figure.subplots()
    here = frame[(frame.N == 4096) & (frame.K == 4096) & (frame.state == "cold")]
    for offset, threads, colour in ((-0.2, 1, SKY), (0.2, 2, BLUE)):
        rows = here[here.threads == threads].set_index(["kernel", "M"])
        heights = [rows.best_gbytes_per_s.get((kernel, 1), float("nan")) for kernel, _ in _RUNGS]
        bars = axes.bar(
            [i + offset for i in range(len(_RUNGS))],
            heights,
            0.38,
            color=colour,
            label="1 thread" if threads == 1 else f"{threads} threads",
        )
        axes.bar_label(bars, fmt="%.1f", fontsize="small", padding=2)
        roof = rows.best_gbytes_per_s.get(("read", 1))
        if roof is not None:
            axes.axhline(roof, color=colour, linestyle="--", linewidth=1)
            what = f"read bandwidth, {threads} thread{'s' if threads > 1 else ''}"
            axes.annotate(
                what, (-0.45, roof), xytext=(0, 3), fontsize="small", textcoords="offset points", color=colour
            )
    axes.set_xticks(range(len(_RUNGS)), [label for _, label in _RUNGS])
    axes.set_ylabel("packed weight read (GB/s)")
    title_above(figure, "One token, W4 g128, 4096 x 4096, weights out of cache")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    legend_of(figure, axes.get_legend_handles_labels()[0], None)
    return figure
