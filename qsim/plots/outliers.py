"""Outliers of a model's layers: input channels and rows of weights, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .layout import legend_of, panels, title_above
from .names import operator_title
from .style import CYCLE, GREY, MARKERS, styled

_MARKS = (("channel_ratio", "largest input channel\nover the median one", 85.0, "as in OPT"),
          ("peak_ratio", "largest input value\nover the typical one", 1000.0, "massive"),
          ("row_range", "largest weight of a row\nover its median", 60.0, "INT8: 2 steps left"))  # fmt: skip


def outlier_figure(model: str, layers: Sequence[Mapping[str, Any]], *, size: str = "page") -> Figure:
    """Three panels against the block: input channels, single values, rows of weights; the dashed line marks where INT8
    has next to no steps left for what is typical.

    Arguments:
        layers: `LayerOutliers.to_dict()` of each product.
        size: a name of `style.SIZES`.
    """
    with styled(size=size):
        figure, grid = panels(3, 2.6, columns=3, size=size)
        kinds = list(dict.fromkeys(str(one["kind"]) for one in layers if one["block"] is not None))
        for axes, (name, label, limit, says) in zip(grid, _MARKS, strict=True):
            for j, kind in enumerate(kinds):
                mine = [one for one in layers if one["kind"] == kind and one[name] is not None]
                worst: dict[int, float] = {}
                for one in mine:
                    worst[one["block"]] = max(worst.get(one["block"], 0.0), one[name])
                name_of = operator_title(kind.replace("/", "_"))
                axes.plot(list(worst), list(worst.values()), marker=MARKERS[j % len(MARKERS)], markersize=4,
                          color=CYCLE[j % len(CYCLE)], linewidth=1, label=name_of)  # fmt: skip
            axes.axhline(limit, color=GREY, linestyle="--", linewidth=0.9)
            axes.set(yscale="log", xlabel="block", ylabel=label)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 1.0), max(high, 2.5 * limit))
            axes.annotate(says, (0.02, limit), xycoords=("axes fraction", "data"), xytext=(0, 2), fontsize="small",
                          textcoords="offset points", color=GREY)  # fmt: skip
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(True)
        legend_of(figure, grid[0].get_legend_handles_labels()[0], None)
        title_above(figure, f"Outliers of {model}")
        return figure
