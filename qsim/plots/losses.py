"""What quantisation loses, in bits per byte: dots with their intervals, one line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .layout import legend_of, title_above
from .marks import Mark
from .style import CYCLE, GREY, LIGHT, MARKERS, new_figure, styled
from .tradeoff import loss_ticks


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A method's loss with its standard error, and the loss when activations stay in 16 bit, where that differs."""

    mark: Mark
    loss: float
    loss_se: float
    weights_only: float | None = None


def loss_figure(rows: Sequence[Loss], *, limit: float, title: str = "") -> Figure:
    """Loss of every method as points with 95 % intervals, least first; the limit is a line."""
    with styled():
        figure = new_figure(0.9 + 0.26 * len(rows))
        axes = figure.subplots()
        ordered = sorted(rows, key=lambda r: r.loss)
        most = max([*(r.loss for r in rows), 4 * limit])
        axes.set_xscale("symlog", linthresh=0.002, linscale=0.5)
        axes.axvspan(limit, most * 3, color="#F3F3F3", zorder=0, linewidth=0)
        axes.axvline(limit, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        for y, r in enumerate(ordered):
            axes.errorbar([r.loss], [y], xerr=[[1.96 * r.loss_se]] * 2, ecolor=r.mark.color, elinewidth=1.1, fmt="none")
            if r.weights_only is not None:
                axes.plot([r.weights_only], [y], marker="|", color=r.mark.color, markersize=11, linestyle="none",
                          markeredgewidth=1.6)  # fmt: skip
            r.mark.draw(axes, [r.loss], [y])
        axes.set_yticks(range(len(ordered)), [r.mark.label for r in ordered])
        axes.invert_yaxis()
        axes.set_xlim(min(-0.002, 1.5 * min(r.loss for r in rows)), most * 2)
        loss_ticks(axes, most)
        bare = any(r.weights_only is not None for r in rows)
        said = "loss (bits per byte); bars: 95 % interval" + ("; |: activations kept in 16 bit" if bare else "")
        axes.set_xlabel(said)
        axes.grid(True, axis="x")
        title_above(figure, title)
        return figure


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
            axes.text(0.995, at, section, transform=axes.get_yaxis_transform(), ha="right", va="center",
                      fontsize="small", fontweight="bold", color="#333333")  # fmt: skip
            axes.axhline(at - 0.7, color=LIGHT, linewidth=0.7)
            at += 1
            for point in (p for p in points if p.section == section):
                marker = MARKERS[methods.index(point.method) % len(MARKERS)]
                axes.errorbar(point.loss, at, xerr=2 * point.error, color=color[point.method], marker=marker,
                              markersize=5, linestyle="none", elinewidth=1.4)  # fmt: skip
                ticks.append(at)
                labels.append(point.name)
                at += 1
            at += 0.6
        axes.set_yticks(ticks, labels, fontsize="small")
        axes.set_ylim(at - 0.6, -0.8)
        axes.tick_params(axis="y", length=0)
        axes.set_xscale("symlog", linthresh=1e-3, linscale=0.7)
        shown = [t for t in (0, 1e-3, 1e-2, 1e-1, 1, 10) if t <= 2 * max((p.loss for p in points), default=0) or t == 0]
        axes.set_xticks(shown, [f"{t:g}" for t in shown])
        axes.set_xlim(left=1.2 * min((p.loss - 2 * p.error for p in points), default=0) - 3e-4)
        axes.axvline(0, color=GREY, linewidth=0.9)
        axes.grid(axis="x")
        axes.set_xlabel("loss against the float model (bits per byte), ± 2 standard errors")
        handles = [Line2D([], [], linestyle="none", marker=MARKERS[i % len(MARKERS)], color=color[m], label=m)
                   for i, m in enumerate(methods)]  # fmt: skip
        legend_of(figure, handles, None)
    return figure
