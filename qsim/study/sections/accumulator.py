"""What the accumulator does: sums by each device's own instruction, and a model through it."""

from __future__ import annotations

from qsim.plots.accumulator import ErrorCurve, accumulation_error_figure
from qsim.plots.amounts import grouped_figure
from qsim.plots.names import chip_title

from ..figure import Drawing, Figure, Section
from ..looks import column, titles
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    """What differs between devices below the format."""
    devices = [d for d in result.spec.speed.devices if d.accumulator is not None]
    given = "; ".join(f"{d.title}: {d.accumulator.source}" for d in devices if d.accumulator is not None)
    tail = f" Accumulators as given: {given}." if given else ""
    return (
        "Two devices that multiply the same FP8 numbers do not give the same sum. A tensor core aligns the products of "
        "a step to the largest exponent and cuts off what lies below: 13 fraction bits on Hopper and Ada in FP8, 24 or "
        f"25 in 16 bit. Every sum here is the instruction's own, bit for bit.{tail}"
    )


def _accumulator(result: StudyResult) -> Drawing | None:
    if not result.accumulators:
        return None
    data = {
        kind: [
            ErrorCurve(label=_way_title(way), x=column(mine, "k"), error=column(mine, "relative_error"))
            for way in dict.fromkeys(r.way for r in result.accumulators)
            if (mine := [r for r in result.accumulators if (r.way, r.data) == (way, kind)])
        ]
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
    return Drawing(says=says,
        title="Error of a sum of E4M3 products against its length",
        draw=lambda: accumulation_error_figure(data),
    )  # fmt: skip


def _way_title(way: str) -> str:
    """`h100-sxm, h200: FP8, promoted every 128` with the devices as people write them."""
    chips, colon, rest = way.partition(":")
    return ", ".join(map(chip_title, chips.split(", "))) + colon + rest


def _exact(result: StudyResult) -> Drawing | None:
    if not result.exact:
        return None
    names = titles(result)
    groups: dict[str, dict[str, float]] = {}
    for e in result.exact:
        groups.setdefault(names[e.method], {})[chip_title(e.device)] = e.kl
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
    return Drawing(says=says,
                   title="Through each device's own instruction: change of the predictions",
                   draw=lambda: grouped_figure(groups, xlabel="KL from the fast kernels "
                                                         "(nats per token)"))  # fmt: skip


SECTION = Section(name="accumulator", title="What the accumulator does", short="Accumulator", order=5, text=_text,
                  template="accumulator.html")  # fmt: skip
FIGURES = (
    Figure(name="accumulator_error", section="accumulator", make=_accumulator, order=1),
    Figure(name="exact_products", section="accumulator", make=_exact, order=2),
)
