"""Figures of a study about tensors, sums, sizes and trust, each with the sentence that says what to see."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hwmodels.validation.validate import STEPS
from qsim.plots import study as draw
from qsim.plots import study_tensors
from qsim.plots.study_tensors import Compared

from .looks import Drawing, and_list, column, titles
from .result import StudyResult

# --- what formats do to a tensor -------------------------------------------------------------------------------


def histograms(result: StudyResult) -> Drawing | None:
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
    return Drawing(name="error_histograms", section="tensors", title="What each format does to a tensor", says=says,
                   draw=lambda wide: study_tensors.histogram_figure(data, wide=wide))  # fmt: skip


def tensor_errors(result: StudyResult) -> Drawing | None:
    if not result.tensor_errors:
        return None
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for e in result.tensor_errors:
        groups.setdefault(e.tensor, {})[e.format] = (e.bits, e.sqnr_db)
    says = ("Each bit is worth about 6 dB. Small groups and a scale of their own buy several dB for a fraction of a "
            "bit; an outlier in the tensor costs the formats with one scale most.")  # fmt: skip
    return Drawing(name="signal_to_noise", section="tensors", title="Signal to noise against bits", says=says,
                   draw=lambda wide: study_tensors.sqnr_figure(groups, wide=wide))  # fmt: skip


def channels(result: StudyResult) -> Drawing | None:
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
    return Drawing(
        name="smoothing", section="tensors", says=says,
        title=f"Outliers before and after smoothing: {result.channels[0].layer}{_synthetic(result)}",
        draw=lambda wide: study_tensors.channel_figure(before, after, w_before, w_after, wide=wide),
    )  # fmt: skip


def _synthetic(result: StudyResult) -> str:
    return " (synthetic outliers)" if result.synthetic_outliers else ""


def _levels(maxima: np.ndarray) -> str:
    return f"{127 * np.median(maxima) / maxima.max():.0f}"


def salient(result: StudyResult) -> Drawing | None:
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
    return Drawing(
        name="salient_channels", section="tensors", says=says,
        title=f"Salient channels: {result.salient[0].layer}, 3-bit weights",
        draw=lambda wide: study_tensors.salient_figure(ways, wide=wide),
    )  # fmt: skip


# --- the accumulator -------------------------------------------------------------------------------------------


def accumulator(result: StudyResult) -> Drawing | None:
    if not result.accumulators:
        return None
    data = {
        kind: {
            way: (column(mine, "k"), column(mine, "relative_error"))
            for way in dict.fromkeys(r.way for r in result.accumulators)
            if (mine := [r for r in result.accumulators if (r.way, r.data) == (way, kind)])
        }
        for kind in dict.fromkeys(r.data for r in result.accumulators)
    }
    last = max(r.k for r in result.accumulators)
    ends = [r for r in result.accumulators if r.k == last and r.data == "one sign"]
    worst, best = max(ends, key=lambda r: r.relative_error), min(ends, key=lambda r: r.relative_error)
    says = (
        f"Sums of {last} products of one sign: {worst.way} is {100 * worst.relative_error:.2g} % off, all of it too "
        f"small (truncation towards zero); {best.way} {100 * best.relative_error:.1g} %. Adding each chain of 128 to a "
        "float32 register repairs it."
    )
    return Drawing(
        name="accumulator_error", section="accumulator", says=says,
        title="Error of a sum of E4M3 products against its length",
        draw=lambda wide: study_tensors.accumulation_figure(data, wide=wide),
    )  # fmt: skip


def exact(result: StudyResult) -> Drawing | None:
    if not result.exact:
        return None
    names = titles(result)
    groups: dict[str, dict[str, float]] = {}
    for e in result.exact:
        groups.setdefault(names[e.method], {})[e.device] = e.kl
    worst = max(result.exact, key=lambda e: e.kl)
    least = min((q.kl for q in result.quality if q.kl and q.method == worst.method), default=None)
    says = (
        f"The model's own layers through each device's instruction, beside the fast kernels, on "
        f"{worst.bytes_scored} bytes. The largest change is {names[worst.method]} on {worst.device}: KL "
        f"{worst.kl:.1e} nats per token, {worst.difference:+.4f} bits per byte"
    )
    if least:
        says += f"; the format itself costs {least:.1e} nats"
    says += (f". Sums here have at most {result.measured.widest_k} products; the figure above says what longer ones "
             "lose.")  # fmt: skip
    return Drawing(name="exact_products", section="accumulator", says=says,
                   title="Through each device's own instruction: change of the predictions",
                   draw=lambda wide: draw.grouped_figure(groups, xlabel="KL from the fast kernels "
                                                         "(nats per token)", wide=wide))  # fmt: skip


# --- what fits, and trust --------------------------------------------------------------------------------------


def capacity(result: StudyResult) -> Drawing | None:
    if not result.capacity:
        return None
    data: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(c.model for c in result.capacity):
        sizes = {c.scheme: c.weights_gbytes for c in result.capacity if c.model == model}
        data[model] = _merged(sizes)
    capacities = {c.device: c.capacity_gbytes for c in result.capacity}
    model = list(data)[-1]
    one = [c for c in result.capacity if c.model == model]
    fits = {
        s: [c.device for c in one if c.scheme == s and c.devices_needed == 1]
        for s in dict.fromkeys(c.scheme for c in one)
    }
    least = min(one, key=lambda c: c.weights_gbytes)
    base = one[0].scheme
    homes = {s: "one " + and_list(fits[s]) if fits[s] else "no device alone" for s in (base, least.scheme)}
    says = (
        f"{model} in {base} fits on {homes[base]}; in {least.scheme} on {homes[least.scheme]}. Dashed: memory of a "
        "device, which weights, cache and reserve must share."
    )
    return Drawing(name="what_fits", section="fits", title="Size of the weights against memories", says=says,
                   draw=lambda wide: draw.capacity_figure(data, capacities, wide=wide))  # fmt: skip


def _merged(sizes: Mapping[str, float]) -> dict[str, float]:
    """Schemes of the same size (to 1 %) on one line."""
    out: dict[str, float] = {}
    groups: list[tuple[float, list[str]]] = []
    for scheme, gb in sizes.items():
        for value, names in groups:
            if abs(gb / value - 1) < 0.01:
                names.append(scheme)
                break
        else:
            groups.append((gb, [scheme]))
    for value, names in groups:
        out[names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")] = value
    return out


def trust(result: StudyResult) -> Drawing | None:
    campaigns = dict(zip(STEPS.values(), ("first", "second"), strict=True))
    steps = [p for p in result.trust_points if p.section in campaigns]
    if not steps:
        return None
    groups = [
        Compared(label=f"{name}, {campaigns[section]} campaign",
                 measured_s=column(mine, "measured_s"), predicted_s=column(mine, "predicted_s"),
                 low_s=column(mine, "low_s"), high_s=column(mine, "high_s"))
        for section, name in dict.fromkeys((p.section, p.name) for p in steps)
        if (mine := [p for p in steps if (p.section, p.name) == (section, name)])
    ]  # fmt: skip
    m, p = np.concatenate([g.measured_s for g in groups]), np.concatenate([g.predicted_s for g in groups])
    low, high = np.concatenate([g.low_s for g in groups]), np.concatenate([g.high_s for g in groups])
    says = (
        f"{len(m)} whole steps measured on an H200, none of them fitted: mean error "
        f"{100 * np.mean(np.abs(p / m - 1)):.1f} %, {100 * np.mean((m >= low) & (m <= high)):.0f} % inside their 80 % "
        "band. Other devices rest on published kernel tables or on borrowed efficiencies; the tag beside every number "
        "says which."
    )
    return Drawing(name="predicted_measured", section="trust", title="Predicted against measured steps", says=says,
                   draw=lambda wide: study_tensors.trust_figure(groups, wide=wide))  # fmt: skip
