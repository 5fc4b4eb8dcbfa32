"""How far kernels that compute the same product are from each other: outputs that differ, and what a model loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from qsim.errors import QsimError

from .layout import title_above
from .style import BLUE, GREY, new_figure, styled

_SHADES = LinearSegmentedColormap.from_list("white to blue", ["#ffffff", BLUE])
_LOWEST = 0.01  # per cent, the palest shade: one output in 10,000


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a model loses by one kernel.

    Arguments:
        label: the kernel.
        bits_per_byte: against the reference, in bits per byte of text; positive is worse.
        error: its standard error.
    """

    label: str
    bits_per_byte: float
    error: float


def distance_figure(
    names: Sequence[str], panels: Mapping[str, np.ndarray], changes: Sequence[Change] = (), *, title: str = ""
) -> Figure:
    """The share of outputs that differ for each pair of kernels, one panel per kind of weight; and below, what a model
    loses by each kernel.

    Arguments:
        names: the kernels.
        panels: title to (n, n) shares in 0..1 of outputs that differ; symmetric, of which the lower triangle is drawn.
        changes: of the model; the panel is left out when there are none.
        title: above all panels.

    Raises:
        QsimError: no panel, or an array that is not (n, n) for n names.
    """
    n = len(names)
    for name, shares in panels.items():
        if np.shape(shares) != (n, n):
            raise QsimError(f"shares of {n} kernels must have shape ({n}, {n}): got {np.shape(shares)} ({name})")
    if not panels:
        raise QsimError("a figure of distances needs at least one panel")
    with styled():
        below = 0.5 + 0.24 * len(changes) if changes else 0.0
        high = 0.95 + 0.42 * n
        figure = new_figure(high + below + (0.3 if title else 0.0))
        grid = figure.add_gridspec(2 if changes else 1, len(panels), height_ratios=[high, below] if changes else [1])
        for column, (name, shares) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[0, column])
            _triangle(axes, names if column == 0 else [""] * n, names, 100 * np.asarray(shares, np.float64))
            axes.set_title(name)
        if changes:
            _changes(figure.add_subplot(grid[1, :]), changes)
        title_above(figure, title)
        return figure


def _triangle(axes: Axes, rows: Sequence[str], columns: Sequence[str], percent: np.ndarray) -> None:
    n = len(columns)
    lower = np.tril(np.ones((n, n), bool), -1)
    # shades by order of magnitude, from one output in 10,000 to all of them; pale enough to be written on
    shade = np.log10(np.maximum(percent, _LOWEST) / _LOWEST) / np.log10(100 / _LOWEST)
    axes.imshow(np.where(lower, 0.55 * shade, np.nan)[1:, :-1], cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(lower), strict=True):
        value = percent[i, j]
        text = (
            "0" if value == 0 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
        )
        axes.text(j, i - 1, text, ha="center", va="center", fontsize="small", color="#222222")
    axes.set_yticks(range(n - 1), rows[1:])
    axes.set_xticks(range(n - 1), [name.replace(" ", "\n") for name in columns[:-1]], fontsize="small")
    axes.tick_params(length=0)
    axes.set_xlabel("% of BF16 outputs that differ")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _changes(axes: Axes, changes: Sequence[Change]) -> None:
    y = np.arange(len(changes))[::-1]
    axes.axvline(0, color=GREY, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.errorbar([1e3 * c.bits_per_byte for c in changes], y, xerr=[1e3 * c.error for c in changes], fmt="o",
                  color=BLUE, markersize=5, capsize=3, linewidth=1.4)  # fmt: skip
    axes.set_yticks(y, [c.label for c in changes])
    axes.set_ylim(-0.6, len(changes) - 0.4)
    axes.set_xlabel("model: thousandths of a bit per byte above exact arithmetic (bars: one standard error)")
    axes.grid(True, axis="x")
