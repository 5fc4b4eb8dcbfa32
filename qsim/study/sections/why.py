"""Why: operators under the roofs of the devices, and where a gain ends as the batch grows."""

from __future__ import annotations

from qsim.plots.names import and_list, chip_title, format_title, model_title, operator_title, scheme_title
from qsim.plots.roofline import Point, Roof, roofline_figure
from qsim.plots.speedup import Curve, speedup_figure

from ..figure import Drawing, Figure, Section
from ..looks import column, curve_schemes
from ..result import StudyResult

MOST_ROOFS = 6
"""Devices of one figure of rooflines."""


def _rooflines(result: StudyResult) -> Drawing | None:
    if not result.operators:
        return None
    drawn = list(dict.fromkeys(o.device for o in result.operators))
    rest = drawn[MOST_ROOFS:]
    roofs = [
        Roof(device=chip_title(r.device), format=format_title(r.format), integers=r.format.startswith("int"),
             peak_flop_per_s=r.peak_flop_per_s, bandwidth_bytes_per_s=r.bandwidth_bytes_per_s)
        for r in result.roofs if r.device not in rest
    ]  # fmt: skip
    points = [
        Point(device=chip_title(o.device), operator=operator_title(o.operator), scheme=scheme_title(o.scheme),
              case=o.regime, intensity=o.flop_per_byte, flop_per_s=o.flop_per_s, share=o.share)
        for o in result.operators if o.operator != "lm_head" and o.device not in rest
    ]  # fmt: skip
    schemes = list(dict.fromkeys(o.scheme for o in result.operators))
    linear = [o for o in result.operators if o.kind in ("gemm", "fused") and o.operator != "lm_head"]
    slopes = {
        regime: {o.bound for o in linear if o.regime == regime and o.scheme == schemes[0]}
        for regime in dict.fromkeys(o.regime for o in linear)
    }
    limit = {"memory": "memory", "compute": "arithmetic", "overhead": "fixed times"}
    words = [f"by {and_list([limit[b] for b in sorted(bounds)])} in {regime}" for regime, bounds in slopes.items()]
    says = (
        "On the slope memory sets the time, on the flat part arithmetic. Linear layers in "
        f"{scheme_title(schemes[0])} are bound {'; '.join(words)}. Fewer bits move a layer to the right along "
        "the slope: it gains until the roof levels off, and nothing after."
        + (f" {and_list(rest)} {'is' if len(rest) == 1 else 'are'} in the tables only." if rest else "")
    )
    return Drawing(says=says, draw=lambda: roofline_figure("", roofs, points),
                   title=f"Rooflines with the operators of {model_title(result.operators[0].model)}")  # fmt: skip


def _flips(result: StudyResult) -> Drawing | None:
    if not result.curves:
        return None
    turns = {(f.device, f.scheme): f.compute_bound_from for f in result.flips}
    data: dict[str, list[Curve]] = {}
    for device in dict.fromkeys(c.device for c in result.curves):
        for scheme in curve_schemes(result):
            mine = [c for c in result.curves if (c.device, c.scheme) == (device, scheme)]
            data.setdefault(chip_title(device), []).append(
                Curve(label=scheme_title(scheme), x=column(mine, "batch"), value=column(mine, "speedup"),
                           low=column(mine, "low"), high=column(mine, "high"),
                           turns_at=turns.get((device, scheme)))
            )  # fmt: skip
    if not any(data.values()):
        return None
    case = f"{model_title(result.curves[0].model)}, {result.spec.speed.context} tokens of context"
    return Drawing(title=f"Speed-up of a decode step over 16 bit against batch: {case}", says=_flip_words(result),
                   draw=lambda: speedup_figure(data))  # fmt: skip


def _flip_words(result: StudyResult) -> str:
    first = curve_schemes(result)[0]
    scheme = scheme_title(first)
    mine = [f for f in result.flips if f.scheme == first]
    ends = [f"{f.device} from batch {f.no_gain_from}" for f in mine if f.no_gain_from is not None]
    stays = [f.device for f in mine if f.no_gain_from is None]
    parts = [f"{scheme} stops paying off on {and_list(ends)}"] if ends else []
    if stays:
        parts.append(f"{'it ' if ends else scheme + ' '}gains up to batch {mine[0].searched_to} on {and_list(stays)}")
    return (
        "What is saved is bytes, so the gain is largest where memory is slowest and shrinks as the batch fills the "
        f"arithmetic units: {'; '.join(parts)}. Shaded: 80 % bands."
    )


SECTION = Section(name="why", title="Why", order=3, template="why.html")
FIGURES = (
    Figure(name="rooflines", section="why", make=_rooflines, order=1),
    Figure(name="batch_flip", section="why", make=_flips, order=2),
)
