"""The figures of a study: from its tables to matplotlib figures, each with the sentence that says what to see."""

from __future__ import annotations

from collections.abc import Iterator

from qsim.plots import study as draw

from . import figures_tensors as deep
from .looks import Drawing, and_list, case_rows, column, first_model, marks, quality_of, titles
from .result import StudyResult

FIGURES = ("quality_loss", "quality_speed", "rooflines", "batch_flip", "error_histograms", "signal_to_noise",
           "smoothing", "salient_channels", "accumulator_error", "exact_products", "what_fits",
           "predicted_measured")  # fmt: skip
"""Names of all figures that a study can have."""


def drawings(result: StudyResult) -> Iterator[Drawing]:
    """Every figure that the tables of the result allow, in the order of the report."""
    for make in (_loss, _tradeoff, _rooflines, _flips, deep.histograms, deep.tensor_errors, deep.channels, deep.salient,
                 deep.accumulator, deep.exact, deep.capacity, deep.trust):  # fmt: skip
        found = make(result)
        if found is not None:
            yield found


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
        f"{len(inside)} of {len(ordered)} methods stay within {limit:g} bits per byte of 16 bit; "
        f"{names[ordered[0].method]} loses least ({ordered[0].loss:+.4f}), {names[ordered[-1].method]} most "
        f"({ordered[-1].loss:+.3f}). The dashed line is that limit. Short upright bars are the same weights with "
        "activations kept in 16 bit. Losses below 0.002 are drawn on a linear scale, larger ones on a logarithmic one."
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
    says = (
        "Up is faster, left is better; the grey line joins what nothing beats in both, the grey area loses more than "
        f"the limit of {result.spec.quality.max_loss:g} bits per byte. {best}"
    )
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
    parts = [f"{name} on {and_list(devices)}" for name, devices in chosen.items()]
    return f"Within the limit the answer is {and_list(parts)}." if parts else ""


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
    limit = {"memory": "memory", "compute": "arithmetic", "overhead": "fixed times"}
    words = [f"by {and_list([limit[b] for b in sorted(bounds)])} in {regime}" for regime, bounds in slopes.items()]
    says = (
        f"On the slope memory sets the time, on the flat part arithmetic. Linear layers in {schemes[0]} are bound "
        f"{'; '.join(words)}. Fewer bits move a layer to the right along the slope (white markers): it gains until "
        "the roof levels off, and nothing after."
    )
    return Drawing(name="rooflines", section="why", says=says, draw=lambda wide: draw.rooflines_figure(data, wide=wide),
                   title=f"Rooflines with the operators of {result.operators[0].model}")  # fmt: skip


def _format_label(name: str) -> str:
    return {"bfloat16": "BF16", "float8_e4m3fn": "FP8", "int8": "INT8", "mxfp4": "MXFP4", "nvfp4": "NVFP4"}.get(
        name, name
    )


def curve_schemes(result: StudyResult) -> list[str]:
    """The schemes of the curves against batch: the first of each kind (integer weights, integer activations, FP8, FP8
    with an FP8 cache, blocks), in the order of the study's methods."""
    from qsim.formats import BlockFormat, IntFormat
    from qsim.scheme import get_scheme

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
    return list(found.values())


def _flips(result: StudyResult) -> Drawing | None:
    if not result.curves:
        return None
    turns = {(f.device, f.scheme): f for f in result.flips}
    data: dict[str, list[draw.Curve]] = {}
    for device in dict.fromkeys(c.device for c in result.curves):
        for scheme in curve_schemes(result):
            mine = [c for c in result.curves if (c.device, c.scheme) == (device, scheme)]
            data.setdefault(device, []).append(
                draw.Curve(label=scheme, batch=column(mine, "batch"), value=column(mine, "speedup"),
                           low=column(mine, "low"), high=column(mine, "high"),
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
    parts = [f"{scheme} stops paying off on {and_list(ends)}"] if ends else []
    if stays:
        parts.append(f"{'it ' if ends else scheme + ' '}gains up to batch {mine[0].searched_to} on {and_list(stays)}")
    return (
        "What is saved is bytes, so the gain is largest where memory is slowest and shrinks as the batch fills the "
        f"arithmetic units: {'; '.join(parts)}. Shaded: 80 % bands."
    )
