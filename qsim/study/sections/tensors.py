"""What each format does to a tensor: its errors, its outliers, and the channels that matter."""

from __future__ import annotations

import numpy as np

from qsim.plots.names import and_list
from qsim.plots.tensors import channel_figure, histogram_figure, salient_figure, sqnr_figure

from ..figure import Drawing, Figure, Section
from ..looks import column
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    """Which tensors the section looks at."""
    tensors = list(dict.fromkeys(h.tensor for h in result.histograms))
    layer = result.salient[0].layer if result.salient else ""
    text = f"A layer of {result.measured.model}, {layer}: its {and_list(tensors)}." if tensors else ""
    return text + (f" Note: {result.synthetic_outliers}." if result.synthetic_outliers else "")


def _histograms(result: StudyResult) -> Drawing | None:
    if not result.histograms:
        return None
    data: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for h in result.histograms:
        data.setdefault(h.tensor, {})
    for tensor, mine in data.items():
        for fmt in dict.fromkeys(h.format for h in result.histograms if h.tensor == tensor):
            bins = [h for h in result.histograms if (h.tensor, h.format) == (tensor, fmt)]
            mine[fmt] = (column(bins, "low"), column(bins, "share"))
    worst = max(result.tensor_errors, key=lambda e: -e.sqnr_db) if result.tensor_errors else None
    best = max(result.tensor_errors, key=lambda e: e.sqnr_db) if result.tensor_errors else None
    says = "Rounding errors over the root mean square of the tensor: the narrower, the better."
    if worst and best:
        says += (f" From {best.format} ({best.sqnr_db:.0f} dB signal to noise on {best.tensor}) to {worst.format} "
                 f"({worst.sqnr_db:.0f} dB on {worst.tensor}).")  # fmt: skip
    return Drawing(title="What each format does to a tensor", says=says,
                   draw=lambda: histogram_figure(data))  # fmt: skip


def _errors(result: StudyResult) -> Drawing | None:
    if not result.tensor_errors:
        return None
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for e in result.tensor_errors:
        groups.setdefault(e.tensor, {})[e.format] = (e.bits, e.sqnr_db)
    says = ("Each bit is worth about 6 dB. Small groups and a scale of their own buy several dB for a fraction of a "
            "bit; an outlier in the tensor costs the formats with one scale most.")  # fmt: skip
    return Drawing(title="Signal to noise against bits", says=says,
                   draw=lambda: sqnr_figure(groups))  # fmt: skip


def _channels(result: StudyResult) -> Drawing | None:
    if not result.channels:
        return None
    before, after = column(result.channels, "activation_max"), column(result.channels, "smoothed_activation_max")
    w_before, w_after = column(result.channels, "weight_max"), column(result.channels, "smoothed_weight_max")
    says = (
        f"Before smoothing the largest channel of this input is {before.max() / np.median(before):.0f} times the "
        f"median one, and with one INT8 scale for the tensor the median channel uses {_levels(before)} of 127 levels; "
        f"after it is {after.max() / np.median(after):.0f} times, with {_levels(after)} levels. The weights pay: "
        f"their largest magnitude goes from {w_before.max():.2g} to {w_after.max():.2g}."
    )
    return Drawing(says=says,
        title=f"Outliers before and after smoothing: {result.channels[0].layer}{_synthetic(result)}",
        draw=lambda: channel_figure(before, after, w_before, w_after),
    )  # fmt: skip


def _synthetic(result: StudyResult) -> str:
    return " (synthetic outliers)" if result.synthetic_outliers else ""


def _levels(maxima: np.ndarray) -> str:
    return f"{127 * np.median(maxima) / maxima.max():.0f}"


def _salient(result: StudyResult) -> Drawing | None:
    if not result.salient:
        return None
    ways = {
        way: (np.array([r.kept_percent for r in mine]), np.array([r.relative_error for r in mine]))
        for way in dict.fromkeys(r.chosen_by for r in result.salient)
        if (mine := [r for r in result.salient if r.chosen_by == way])
    }
    at = {way: float(np.interp(1.0, x, y) / y[0]) for way, (x, y) in ways.items()}
    shares = [f"{100 * v:.0f} % of the error when chosen by {k}" for k, v in at.items()]
    says = f"Keeping 1 % of the input channels in 16 bit leaves {and_list(shares)}: " + (
        "the channels that matter are those with large inputs, which is what AWQ scales up."
        if at["input"] < 0.9 * min(at["weight"], at["chance"])
        else "no small set of channels dominates in this layer."
    )
    return Drawing(says=says,
        title=f"Salient channels: {result.salient[0].layer}, 3-bit weights",
        draw=lambda: salient_figure(ways),
    )  # fmt: skip


SECTION = Section(name="tensors", title="What each format does to a tensor", short="Formats", order=4, text=_text)
FIGURES = (
    Figure(name="error_histograms", section="tensors", make=_histograms, order=1),
    Figure(name="signal_to_noise", section="tensors", make=_errors, order=2),
    Figure(name="smoothing", section="tensors", make=_channels, order=3),
    Figure(name="salient_channels", section="tensors", make=_salient, order=4),
)
