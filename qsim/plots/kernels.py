"""The figure of the fused kernels' speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    here = frame[(frame.N == 4096) & (frame.K == 4096) & (frame.state == "cold")]
    for offset, threads, colour in ((-0.2, 1, "#56B4E9"), (0.2, 2, "#0072B2")):
        rows = here[here.threads == threads].set_index(["kernel", "M"])
        heights = [rows.best_gbytes_per_s.get((kernel, 1), float("nan")) for kernel, _ in _RUNGS]
        bars = axes.bar(
            [i + offset for i in range(len(_RUNGS))],
            heights,
            0.38,
            color=colour,
            label="1 thread" if threads == 1 else f"{threads} threads",
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
        roof = rows.best_gbytes_per_s.get(("read", 1))
        if roof is not None:
            axes.axhline(roof, color=colour, linestyle="--", linewidth=1)
            what = f"read bandwidth, {threads} thread{'s' if threads > 1 else ''}"
            axes.annotate(what, (-0.45, roof), xytext=(0, 3), fontsize=8, textcoords="offset points", color=colour)
    axes.set_xticks(range(len(_RUNGS)), [label for _, label in _RUNGS])
    axes.set_ylabel("packed weight read (GB/s)")
    axes.set_title("One token, W4 g128, 4096 x 4096, weights out of cache", fontsize=10)
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
    axes.legend(loc="center left", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
