"""The figures of a study: from its tables to matplotlib figures, each with the sentence that says what to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qsim.plots import study as draw
from qsim.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

from .result import StudyResult
from .rows import DecisionRow, QualityRow, SpeedRow
from .spec import Method


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of the report: its file name, where it stands, what to see, and how it is drawn wide or narrow."""

    name: str
    section: str
    title: str
    says: str
    draw: Callable[[bool], Figure] = field(repr=False)


def drawings(result: StudyResult) -> Iterator[Drawing]:
    """Every figure that the tables of the result allow, in the order of the report."""
    for make in (_loss, _tradeoff, _rooflines, _flips, _histograms, _tensor_errors, _channels, _salient,
                 _accumulator, _exact, _capacity, _trust):  # fmt: skip
        found = make(result)
        if found is not None:
            yield found


# --- how methods look ------------------------------------------------------------------------------------------


_MARKERS = {"none": "*", "rtn": "o", "gptq": "s", "awq": "D", "smoothquant": "^", "fp8": "v"}


def marks(methods: Sequence[Method]) -> dict[str, draw.Mark]:
    """Method name -> its look: the colour is the format, the marker the algorithm or the granularity."""
    from qsim.formats import BlockFormat, IntFormat
    from qsim.quantize import get_scheme

    out: dict[str, draw.Mark] = {}
    variants: dict[str, int] = {}
    for m in methods:
        scheme = get_scheme(m.scheme)
        weight = scheme.weight
        if not weight.is_quantized:
            color = BLACK
        elif isinstance(weight.format, BlockFormat):
            color = PURPLE
        elif isinstance(weight.format, IntFormat):
            color = BLUE if scheme.activation.is_quantized else {4: VERMILLION, 3: ORANGE}.get(weight.bits, SKY)
        else:
            color = GREEN
        marker = _MARKERS[m.algorithm]
        if color in (GREEN, PURPLE) and m.algorithm in ("fp8", "rtn"):  # one algorithm: the marker tells the scheme
            shapes = "v><Pd" if color == GREEN else "oXph"
            marker = shapes[variants.get(color, 0) % len(shapes)]
            variants[color] = variants.get(color, 0) + 1
        out[m.name] = draw.Mark(label=m.title, color=color, marker=marker,
                                filled=m.algorithm != "rtn" or color == PURPLE)  # fmt: skip
    return out


def quality_of(result: StudyResult) -> dict[tuple[str, str], QualityRow]:
    return {(q.method, q.variant): q for q in result.quality}


def titles(result: StudyResult) -> dict[str, str]:
    return {m.method: m.title for m in result.methods}


def first_model(result: StudyResult) -> str:
    return result.speed[0].model


def case_rows(result: StudyResult, case: str, model: str) -> list[SpeedRow]:
    """Rows of a case on one device, or on the fewest that hold 16 bit."""
    mine = [r for r in result.speed if r.case == case and r.model == model]
    least = {d: min((r.devices for r in mine if r.device == d), default=1) for d in {r.device for r in mine}}
    return [r for r in mine if r.devices == least[r.device]]


# --- quality and speed -----------------------------------------------------------------------------------------


def _loss(result: StudyResult) -> Drawing | None:
    if not result.quality:
        return None
    q, looks, limit = quality_of(result), marks(result.spec.methods), result.spec.quality.max_loss
    rows = [
        draw.Loss(mark=looks[m], loss=row.loss, loss_se=row.loss_se,
                  weights_only=q[m, "weights"].loss if (m, "weights") in q else None)
        for (m, variant), row in q.items() if variant == "full"
    ]  # fmt: skip
    names = titles(result)
    ordered = sorted((r for r in q.values() if r.variant == "full" and not r.method.startswith("none:")),
                     key=lambda r: r.loss)  # fmt: skip
    inside = [r for r in ordered if r.loss + 1.645 * r.loss_se <= limit]
    says = (
        f"{len(inside)} of {len(ordered)} methods stay within {limit:g} bits a byte of 16 bit; "
        f"{names[ordered[0].method]} loses least ({ordered[0].loss:+.4f}), {names[ordered[-1].method]} most "
        f"({ordered[-1].loss:+.3f})."
    )
    return Drawing(name="quality_loss", section="quality", title="What each method loses", says=says,
                   draw=lambda wide: draw.loss_figure(rows, limit=limit, wide=wide))  # fmt: skip


def _tradeoff(result: StudyResult) -> Drawing | None:
    if not result.quality:
        return None
    case = next((c for c in result.spec.cases if c.phase == "decode"), None)
    if case is None:
        return None
    q, looks, model = quality_of(result), marks(result.spec.methods), first_model(result)
    data: dict[str, list[draw.Tradeoff]] = {}
    for r in case_rows(result, case.name, model):
        if not r.fits:
            continue
        for m in (m for m in result.spec.methods if m.scheme == r.scheme and (m.name, r.executed) in q):
            row = q[m.name, r.executed]
            rate, low, high = (r.tokens_per_s * r.time_s / t for t in (r.time_s, r.high_s, r.low_s))
            data.setdefault(r.device, []).append(
                draw.Tradeoff(mark=looks[m.name], loss=row.loss, loss_se=row.loss_se, rate=rate, low=low, high=high)
            )
    if not data:
        return None
    best = _sentence_of_choice(result, case.name, model)
    says = f"Up is faster, left is better; the grey line joins what nothing beats in both. {best}"
    return Drawing(
        name="quality_speed", section="quality", says=says,
        title=f"Quality against speed: {model}, batch {case.batch}, {case.context} tokens",
        draw=lambda wide: draw.tradeoff_figure(data, limit=result.spec.quality.max_loss, ylabel="tokens/s", wide=wide),
    )  # fmt: skip


def _sentence_of_choice(result: StudyResult, case: str, model: str) -> str:
    names = titles(result)
    chosen: dict[str, list[str]] = {}
    for d in result.decisions:
        if (d.case, d.model) == (case, model) and d.method:
            chosen.setdefault(names[d.method], []).append(d.device)
    parts = [f"{name} on {_and(devices)}" for name, devices in chosen.items()]
    return f"Within the limit the answer is {_and(parts)}." if parts else ""


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


# --- why -------------------------------------------------------------------------------------------------------


def _rooflines(result: StudyResult) -> Drawing | None:
    if not result.operators:
        return None
    data: dict[str, tuple[list[draw.Roof], list[draw.Spot]]] = {}
    for device in dict.fromkeys(r.device for r in result.roofs):
        roofs = [
            draw.Roof(label=_format_label(r.format), peak_flop_per_s=r.peak_flop_per_s,
                      bandwidth_bytes_per_s=r.bandwidth_bytes_per_s)
            for r in result.roofs if r.device == device
        ]  # fmt: skip
        spots = [
            draw.Spot(operator="attention" if o.kind == "attention" else o.operator, regime=o.regime, scheme=o.scheme,
                      intensity=o.flop_per_byte, flop_per_s=o.flop_per_s)
            for o in result.operators if o.device == device and o.operator != "lm_head"
        ]  # fmt: skip
        data[device] = (roofs, spots)
    schemes = list(dict.fromkeys(o.scheme for o in result.operators))
    linear = [o for o in result.operators if o.kind in ("gemm", "fused") and o.operator != "lm_head"]
    slopes = {
        regime: {o.bound for o in linear if o.regime == regime and o.scheme == schemes[0]}
        for regime in dict.fromkeys(o.regime for o in linear)
    }
    words = "; ".join(f"{regime}: {_and(sorted(bounds))}" for regime, bounds in slopes.items())
    says = (
        f"On the slope memory sets the time, on the flat part arithmetic. Linear layers in {schemes[0]} are bound by "
        f"{words}. Fewer bits move a layer to the right along the slope (white markers): it gains until the roof "
        "levels off, and nothing after."
    )
    return Drawing(name="rooflines", section="why", says=says, draw=lambda wide: draw.rooflines_figure(data, wide=wide),
                   title=f"Rooflines with the operators of {result.operators[0].model}")  # fmt: skip


def _format_label(name: str) -> str:
    return {"bfloat16": "BF16", "float8_e4m3fn": "FP8", "int8": "INT8", "mxfp4": "MXFP4", "nvfp4": "NVFP4"}.get(
        name, name
    )


def curve_schemes(result: StudyResult) -> list[str]:
    """At most four schemes for the curves against batch: one of each family, the smallest first."""
    from qsim.formats import BlockFormat, IntFormat
    from qsim.quantize import get_scheme

    found: dict[str, str] = {}
    for m in result.spec.methods:
        scheme = get_scheme(m.scheme)
        weight = scheme.weight
        if not weight.is_quantized:
            continue
        if isinstance(weight.format, BlockFormat):
            family = "block"
        elif isinstance(weight.format, IntFormat):
            family = "integers" if scheme.activation.is_quantized else "weights only"
        else:
            family = "fp8 cache" if scheme.kv_cache.is_quantized else "fp8"
        found.setdefault(family, m.scheme)
    return list(found.values())[:5]


def _flips(result: StudyResult) -> Drawing | None:
    if not result.curves:
        return None
    turns = {(f.device, f.scheme): f for f in result.flips}
    data: dict[str, list[draw.Curve]] = {}
    for device in dict.fromkeys(c.device for c in result.curves):
        for scheme in curve_schemes(result):
            mine = [c for c in result.curves if (c.device, c.scheme) == (device, scheme)]
            data.setdefault(device, []).append(
                draw.Curve(label=scheme, batch=_column(mine, "batch"), value=_column(mine, "speedup"),
                           low=_column(mine, "low"), high=_column(mine, "high"),
                           compute_bound_from=turns[device, scheme].compute_bound_from)
            )  # fmt: skip
    if not any(data.values()):
        return None
    return Drawing(name="batch_flip", section="why", says=_flip_words(result), title="Speed-up of a decode step over "
                   f"16 bit against batch: {result.curves[0].model}, {result.spec.speed.context} tokens of context",
                   draw=lambda wide: draw.flip_figure(data, wide=wide))  # fmt: skip


def _flip_words(result: StudyResult) -> str:
    scheme = curve_schemes(result)[0]
    mine = [f for f in result.flips if f.scheme == scheme]
    ends = [f"{f.device} from batch {f.no_gain_from}" for f in mine if f.no_gain_from is not None]
    stays = [f.device for f in mine if f.no_gain_from is None]
    parts = [f"{scheme} stops to gain on {_and(ends)}"] if ends else []
    if stays:
        parts.append(f"{'it ' if ends else scheme + ' '}gains up to batch {mine[0].searched_to} on {_and(stays)}")
    return (
        "What is saved is bytes, so the gain is largest where memory is slowest and shrinks as the batch fills the "
        f"arithmetic units: {'; '.join(parts)}. Shaded: 80 % bands."
    )


def _column(rows: Sequence[Any], name: str) -> np.ndarray:
    return np.array([getattr(r, name) for r in rows], np.float64)


# --- what formats do to a tensor -------------------------------------------------------------------------------


def _histograms(result: StudyResult) -> Drawing | None:
    if not result.histograms:
        return None
    data: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for h in result.histograms:
        data.setdefault(h.tensor, {})
    for tensor, mine in data.items():
        for fmt in dict.fromkeys(h.format for h in result.histograms if h.tensor == tensor):
            bins = [h for h in result.histograms if (h.tensor, h.format) == (tensor, fmt)]
            mine[fmt] = (_column(bins, "low"), _column(bins, "share"))
    worst = max(result.tensor_errors, key=lambda e: -e.sqnr_db) if result.tensor_errors else None
    best = max(result.tensor_errors, key=lambda e: e.sqnr_db) if result.tensor_errors else None
    says = "Rounding errors over the root mean square of the tensor: the narrower, the better."
    if worst and best:
        says += (f" From {best.format} ({best.sqnr_db:.0f} dB signal to noise on {best.tensor}) to {worst.format} "
                 f"({worst.sqnr_db:.0f} dB on {worst.tensor}).")  # fmt: skip
    from qsim.plots import study_tensors

    return Drawing(name="error_histograms", section="tensors", title="What each format does to a tensor", says=says,
                   draw=lambda wide: study_tensors.histogram_figure(data, wide=wide))  # fmt: skip


def _tensor_errors(result: StudyResult) -> Drawing | None:
    if not result.tensor_errors:
        return None
    from qsim.plots import study_tensors

    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for e in result.tensor_errors:
        groups.setdefault(e.tensor, {})[e.format] = (e.bits, e.sqnr_db)
    says = ("Each bit is worth about 6 dB. Small groups and a scale of their own buy several dB for a fraction of a "
            "bit; an outlier in the tensor costs the formats with one scale most.")  # fmt: skip
    return Drawing(name="signal_to_noise", section="tensors", title="Signal to noise against bits", says=says,
                   draw=lambda wide: study_tensors.sqnr_figure(groups, wide=wide))  # fmt: skip


def _channels(result: StudyResult) -> Drawing | None:
    if not result.channels:
        return None
    from qsim.plots import study_tensors

    before, after = _column(result.channels, "activation_max"), _column(result.channels, "smoothed_activation_max")
    w_before, w_after = _column(result.channels, "weight_max"), _column(result.channels, "smoothed_weight_max")
    says = (
        f"Before smoothing the largest channel of this input is {before.max() / np.median(before):.0f} times the "
        f"median one, and one INT8 scale for all leaves the others {_levels(before)} of 127 steps; after it is "
        f"{after.max() / np.median(after):.0f} times, with {_levels(after)} steps. The weights pay: their largest "
        f"column grows from {w_before.max() / np.median(w_before):.1f} to {w_after.max() / np.median(w_after):.1f} "
        "times the median."
    )
    return Drawing(name="smoothing", section="tensors", title=f"Outliers before and after smoothing: "
                   f"{result.channels[0].layer}", says=says,
                   draw=lambda wide: study_tensors.channel_figure(before, after, w_before, w_after, wide=wide))  # fmt: skip


def _levels(maxima: np.ndarray) -> str:
    return f"{127 * np.median(maxima) / maxima.max():.0f}"


def _salient(result: StudyResult) -> Drawing | None:
    if not result.salient:
        return None
    from qsim.plots import study_tensors

    ways = {
        way: (np.array([r.kept_percent for r in mine]), np.array([r.relative_error for r in mine]))
        for way in dict.fromkeys(r.chosen_by for r in result.salient)
        if (mine := [r for r in result.salient if r.chosen_by == way])
    }
    at = {way: float(np.interp(1.0, x, y) / y[0]) for way, (x, y) in ways.items()}
    says = (
        f"Keeping 1 % of the input channels in 16 bit leaves {_and([f'{100 * v:.0f} % of the error when chosen by {k}' for k, v in at.items()])}: "
        "the channels that matter are those with large inputs, which is what AWQ scales up."
    )
    return Drawing(name="salient_channels", section="tensors", title=f"Salient channels: {result.salient[0].layer}, "
                   "3-bit weights", says=says, draw=lambda wide: study_tensors.salient_figure(ways, wide=wide))  # fmt: skip


# --- the accumulator -------------------------------------------------------------------------------------------


def _accumulator(result: StudyResult) -> Drawing | None:
    if not result.accumulators:
        return None
    from qsim.plots.study_tensors import accumulation_figure

    data = {
        kind: {
            way: (_column(mine, "k"), _column(mine, "relative_error"))
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
    return Drawing(name="accumulator_error", section="accumulator", title="Error of a sum of E4M3 products against its "
                   "length", says=says, draw=lambda wide: accumulation_figure(data, wide=wide))  # fmt: skip


def _exact(result: StudyResult) -> Drawing | None:
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
        f"{worst.bytes_scored} bytes. Most changes {names[worst.method]} on {worst.device}: {worst.kl:.1e} nats a token, "
        f"{worst.difference:+.4f} bits a byte"
    )
    if least:
        says += f"; the format itself costs {least:.1e} nats"
    says += (f". Sums here have at most {result.measured.widest_k} products; the figure above says what longer ones "
             "lose.")  # fmt: skip
    return Drawing(name="exact_products", section="accumulator", says=says,
                   title="Through each device's own instruction: change of the predictions",
                   draw=lambda wide: draw.grouped_figure(groups, xlabel="KL divergence from the fast kernels "
                                                         "(nats a token)", wide=wide))  # fmt: skip


# --- what fits, and trust --------------------------------------------------------------------------------------


def _capacity(result: StudyResult) -> Drawing | None:
    if not result.capacity:
        return None
    data: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(c.model for c in result.capacity):
        sizes = {c.scheme: c.weights_gbytes for c in result.capacity if c.model == model}
        data[model] = _merged(sizes)
    capacities = {c.device: c.capacity_gbytes for c in result.capacity}
    model = list(data)[-1]
    one = [c for c in result.capacity if c.model == model]
    fits = {s: [c.device for c in one if c.scheme == s and c.devices_needed == 1] for s in dict.fromkeys(c.scheme for c in one)}
    least = min(one, key=lambda c: c.weights_gbytes)
    base = one[0].scheme
    says = (
        f"{model} in {base} fits on {'no device of the study alone' if not fits[base] else 'one ' + _and(fits[base])}; "
        f"in {least.scheme} on {'none' if not fits[least.scheme] else 'one ' + _and(fits[least.scheme])}. Dashed: "
        "memory of a device, of which weights, cache and reserve must share."
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


def _trust(result: StudyResult) -> Drawing | None:
    steps = [p for p in result.trust_points if "whole steps" in p.section]
    if not steps:
        return None
    from qsim.plots.study_tensors import Compared, trust_figure

    groups = [
        Compared(label=f"{name}, {'first' if 'nothing' in section else 'second'} campaign",
                 measured_s=_column(mine, "measured_s"), predicted_s=_column(mine, "predicted_s"),
                 low_s=_column(mine, "low_s"), high_s=_column(mine, "high_s"))
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
    return Drawing(name="trust", section="trust", title="Predicted against measured steps", says=says,
                   draw=lambda wide: trust_figure(groups, wide=wide))  # fmt: skip


def decided(result: StudyResult, model: str) -> dict[str, dict[str, DecisionRow]]:
    """case -> device -> answer, for one model."""
    out: dict[str, dict[str, DecisionRow]] = {}
    for d in result.decisions:
        if d.model == model:
            out.setdefault(d.case, {})[d.device] = d
    return out
