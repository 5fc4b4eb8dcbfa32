"""From predictions to the figure of their operators under the roofs of the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qsim.errors import QsimError
from qsim.plots import names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwmodels.device.device import Device
    from hwmodels.predicted import Prediction
    from qsim.plots.reach import Reach, Tier
    from qsim.plots.roofline import Point
    from qsim.plots.roofs import Roof

MOST_KERNELS = 4
"""Kernels named under the title; more are in the table of numbers."""


def path_of(value: str | None) -> tuple[str | None, tuple[int, ...]]:
    """`scheme` or `batch=1:256` as what moves and its values.

    Raises:
        QsimError: anything else, or a path of one value.
    """
    from .hardware_options import Numbers

    if value is None or value == "scheme":
        return value, ()
    kind, _, numbers = value.partition("=")
    if kind != "batch" or not numbers:
        raise QsimError(f"--path must be scheme, or batch=1:256 with a range of batches: got {value!r}")
    batches = Numbers().convert(numbers, None, None)
    if len(set(batches)) < 2:
        raise QsimError(f"--path {value}: a path needs at least two batches")
    return "batch", tuple(sorted(set(batches)))


def figure(
    predictions: Sequence[Prediction],
    *,
    path: str | None = None,
    layout: str = "panels",
    size: str = "page",
    beside: Sequence[str] = (),
) -> Figure:
    """The roofline of one or more predictions with scalar arguments; those of a path are in the order of the path.

    Arguments:
        beside: `time`, `table` or both.

    Raises:
        QsimError: as `qsim.plots.roofline.roofline_figure`.
    """
    from qsim.plots.beside import Beside
    from qsim.plots.roofline import roofline_figure

    from .roofline_beside import numbers_of, steps_of

    chips = list({p.device.name: p.device for p in predictions}.values())
    titles = dict(zip([c.name for c in chips], names.device_titles([c.title for c in chips]), strict=True))
    points = points_of(predictions, titles, path)
    least = 0.1 if path else 0.01
    points, small = _large(points, least)
    notes = [f"not drawn: {', '.join(small)}, less than {100 * least:g} % of the time each"] if small else []
    reaches = reaches_of(predictions, titles)
    notes = [*_cases(predictions, path), *notes, *_memory(predictions, titles), *_kernels(reaches)]
    title = _title(predictions, path, list(titles.values()))
    drawn = list(dict.fromkeys(p.operator for p in points))
    steps = steps_of(predictions, titles, drawn, path) if "time" in beside else ()
    numbers = numbers_of(predictions, titles, path) if "table" in beside else None
    return roofline_figure(
        title, roofs_of(predictions, titles), points, path=path, layout=layout, size=size, notes=notes,
        reaches=reaches, tiers=_tiers(chips, titles), beside=Beside(steps=steps, numbers=numbers),
    )  # fmt: skip


def points_of(predictions: Sequence[Prediction], titles: dict[str, str], path: str | None = None) -> list[Point]:
    """A point for every product of every prediction; `titles` are the devices' as people write them."""
    from hwmodels.predicted import operator_rows
    from qsim.plots.roofline import Point

    several = len({p.phase for p in predictions}) > 1
    points = []
    for p in predictions:
        scheme = names.scheme_title(p.scheme.name or "")
        at = {None: "", "scheme": scheme, "batch": f"{int(p.batch)}"}[path]
        points += [
            Point(device=titles[p.device.name], operator=names.operator_title(r["operator"]), scheme=scheme, at=at,
                  case=p.phase if several else "", intensity=r["flop_per_byte"], share=r["share"],
                  flop_per_s=1e9 * r["gflop"] / r["time_s"],
                  formats=tuple(map(names.format_title, r["format"].split("+"))))
            for r in operator_rows(p) if r["format"]
        ]  # fmt: skip
    return points


def reaches_of(predictions: Sequence[Prediction], titles: dict[str, str]) -> list[Reach]:
    """What the kernels of the linear layers reach, for each device and scheme."""
    from hwmodels.describe import reached
    from qsim.plots.reach import Reach

    return [
        Reach(device=titles[r["device"]], scheme=names.scheme_title(r["scheme"] or ""),
              format=names.format_title(r["format"]), flop_per_s=r["flop_per_s"],
              bandwidth_bytes_per_s=r["bandwidth_bytes_per_s"],
              kernel=r["generation"] or "assumed shares of a dataflow part")
        for r in reached(list(predictions))
    ]  # fmt: skip


def _kernels(reaches: Sequence[Reach]) -> list[str]:
    """Whose kernels the thick lines are, by generation."""
    whose: dict[str, dict[str, list[str]]] = {}
    for r in reaches:
        whose.setdefault(r.kernel, {}).setdefault(r.scheme, []).append(r.device)
    devices = len({r.device for r in reaches})
    if not whose:
        return []
    if len(whose) > MOST_KERNELS:
        return [f"reached by {len(whose)} kernels, which --with table names"]
    said = []
    for kernel, schemes in whose.items():
        where = {tuple(d) for d in schemes.values()}
        on = f" on {names.and_list(next(iter(where)))}" if len(where) == 1 and len(next(iter(where))) < devices else ""
        said.append(f"{names.and_list(list(schemes))}{on} by {kernel}")
    return ["reached: " + ", ".join(said)]


def _tiers(chips: Sequence[Device], titles: dict[str, str]) -> list[Tier]:
    """The other memories of each device, where their bandwidth is known."""
    from qsim.plots.reach import Tier

    return [
        Tier(device=titles[c.name], name=t.name, bandwidth_bytes_per_s=t.bandwidth_bytes_per_s)
        for c in chips for t in c.tiers if t.bandwidth_bytes_per_s and t != c.memory
    ]  # fmt: skip


def _large(points: Sequence[Any], least: float) -> tuple[list[Any], list[str]]:
    """The points of operators that take at least this share of some step, at most eight, and the others' names."""
    share: dict[str, float] = {}
    for p in points:
        share[p.operator] = max(share.get(p.operator, 0.0), p.share)
    kept = [name for name in sorted(share, key=lambda n: -share[n]) if share[name] >= least][:8]
    return [p for p in points if p.operator in kept], [name for name in share if name not in kept]


def _title(predictions: Sequence[Prediction], path: str | None, devices: Sequence[str]) -> str:
    phases = " and ".join(dict.fromkeys(p.phase for p in predictions))
    moved = {"scheme": "from {} to {}".format(*(names.scheme_title(predictions[i].scheme.name or "") for i in (0, -1))),
             "batch": f"batch {min(int(p.batch) for p in predictions)} to {max(int(p.batch) for p in predictions)}",
             None: "the operators of one step"}[path]  # fmt: skip
    where = f" on {devices[0]}" if len(devices) == 1 else ""  # several devices are named above their panels
    return f"{names.model_title(predictions[0].architecture.name)}{where}, {phases}: {moved}"


def _cases(predictions: Sequence[Prediction], path: str | None) -> list[str]:
    p = predictions[0]
    batch = [] if path == "batch" else [f"batch {int(p.batch)}"]
    split = [f"tensor parallel over {p.tensor_parallel} devices"] if p.tensor_parallel > 1 else []
    return [", ".join([*batch, f"{int(p.context):,} tokens of context", *split])]


def _memory(predictions: Sequence[Prediction], titles: dict[str, str]) -> list[str]:
    """What does not fit: schemes by device, or from which batch on a path."""
    least: dict[tuple[str, str], int] = {}
    for p in predictions:
        if not bool(p.fits):
            key = (titles[p.device.name], names.scheme_title(p.scheme.name or ""))
            least[key] = min(least.get(key, int(p.batch)), int(p.batch))
    if not least:
        return []
    smallest = min(int(p.batch) for p in predictions)
    homes: dict[str, list[str]] = {}
    for (device, scheme), batch in least.items():
        homes.setdefault(scheme + (f" from batch {batch}" if batch > smallest else ""), []).append(device)
    together: dict[str, list[str]] = {}
    for scheme, devices in homes.items():
        together.setdefault(names.and_list(devices), []).append(scheme)
    return ["more than the memory holds: " + ", ".join(f"{names.and_list(s)} on {d}" for d, s in together.items())]


def roofs_of(predictions: Sequence[Prediction], titles: dict[str, str]) -> list[Roof]:
    """The roofs that operators run under, and those of the other formats that a device declares."""
    from hwmodels.describe import roofs
    from qsim.plots.roofline import Roof

    found = {}
    for row in roofs(list(predictions)):
        key = (titles[row["device"]], names.format_title(row["format"]), row["bandwidth_bytes_per_s"])
        found[key] = Roof(device=key[0], format=key[1], integers=row["format"].startswith("int"),
                          peak_flop_per_s=row["peak_flop_per_s"], bandwidth_bytes_per_s=key[2])  # fmt: skip
    for device in {p.device.name: p.device for p in predictions}.values():
        title = titles[device.name]
        top = max(r.bandwidth_bytes_per_s for r in found.values() if r.device == title)
        for peak in device.compute.peaks:
            key = (title, names.format_title(peak.input), top)
            usual = device.peak_flop_per_s(peak.input) == peak.flop_per_s  # not the one of another accumulator
            if key in found or not usual:
                continue
            chips = top / device.memory.bandwidth_bytes_per_s
            found[key] = Roof(device=title, format=key[1], peak_flop_per_s=peak.flop_per_s * chips, used=False,
                              bandwidth_bytes_per_s=top, integers=peak.input.startswith("int"))  # fmt: skip
    return list(found.values())
