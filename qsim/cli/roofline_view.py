"""From predictions to the figure of their operators under the roofs of the devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qsim.errors import QsimError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hwmodels.predicted import Prediction

_UNDRAWN = ("tf32", "float32")
"""Declared formats whose roof is drawn only where an operator multiplies in them."""


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
    predictions: Sequence[Prediction], *, path: str | None = None, layout: str = "panels", size: str = "page"
) -> Figure:
    """The roofline of one or more predictions with scalar arguments; those of a path are in the order of the path.

    Raises:
        QsimError: as `qsim.plots.roofline.roofline_figure`.
    """
    from hwmodels.predicted import operator_rows
    from qsim.plots import names
    from qsim.plots.roofline import Point, roofline_figure

    chips = list({p.device.name: p.device for p in predictions}.values())
    titles = dict(zip([c.name for c in chips], names.device_titles([c.title for c in chips]), strict=True))
    several = len({p.phase for p in predictions}) > 1
    points = []
    for p in predictions:
        scheme = names.scheme_title(p.scheme.name or "")
        at = {None: "", "scheme": scheme, "batch": f"{int(p.batch)}"}[path]
        points += [
            Point(device=titles[p.device.name], operator=names.operator_title(r["operator"]), scheme=scheme, at=at,
                  case=p.phase if several else "", intensity=r["flop_per_byte"], share=r["share"],
                  flop_per_s=1e9 * r["gflop"] / r["time_s"])
            for r in operator_rows(p) if r["format"]
        ]  # fmt: skip
    least = 0.1 if path else 0.01
    points, small = _large(points, least)
    notes = [f"not drawn: {', '.join(small)}, less than {100 * least:g} % of the time each"] if small else []
    notes = [*_cases(predictions, path), *notes, *_memory(predictions, titles)]
    title = _title(predictions, path, list(titles.values()))
    return roofline_figure(title, _roofs(predictions, titles), points, path=path, layout=layout, size=size, notes=notes)


def _large(points: Sequence[Any], least: float) -> tuple[list[Any], list[str]]:
    """The points of operators that take at least this share of some step, at most eight, and the others' names."""
    share: dict[str, float] = {}
    for p in points:
        share[p.operator] = max(share.get(p.operator, 0.0), p.share)
    kept = [name for name in sorted(share, key=lambda n: -share[n]) if share[name] >= least][:8]
    return [p for p in points if p.operator in kept], [name for name in share if name not in kept]


def _title(predictions: Sequence[Prediction], path: str | None, devices: Sequence[str]) -> str:
    from qsim.plots.names import model_title, scheme_title

    phases = " and ".join(dict.fromkeys(p.phase for p in predictions))
    moved = {"scheme": "from {} to {}".format(*(scheme_title(predictions[i].scheme.name or "") for i in (0, -1))),
             "batch": f"batch {min(int(p.batch) for p in predictions)} to {max(int(p.batch) for p in predictions)}",
             None: "the operators of one step"}[path]  # fmt: skip
    where = f" on {devices[0]}" if len(devices) == 1 else ""  # several devices are named above their panels
    return f"{model_title(predictions[0].architecture.name)}{where}, {phases}: {moved}"


def _cases(predictions: Sequence[Prediction], path: str | None) -> list[str]:
    p = predictions[0]
    batch = [] if path == "batch" else [f"batch {int(p.batch)}"]
    split = [f"tensor parallel over {p.tensor_parallel} devices"] if p.tensor_parallel > 1 else []
    return [", ".join([*batch, f"{int(p.context):,} tokens of context", *split])]


def _memory(predictions: Sequence[Prediction], titles: dict[str, str]) -> list[str]:
    """What does not fit: schemes by device, or from which batch on a path."""
    from qsim.plots.names import and_list, scheme_title

    least: dict[tuple[str, str], int] = {}
    for p in predictions:
        if not bool(p.fits):
            key = (titles[p.device.name], scheme_title(p.scheme.name or ""))
            least[key] = min(least.get(key, int(p.batch)), int(p.batch))
    if not least:
        return []
    smallest = min(int(p.batch) for p in predictions)
    homes: dict[str, list[str]] = {}
    for (device, scheme), batch in least.items():
        homes.setdefault(scheme + (f" from batch {batch}" if batch > smallest else ""), []).append(device)
    together: dict[str, list[str]] = {}
    for scheme, devices in homes.items():
        together.setdefault(and_list(devices), []).append(scheme)
    return ["more than the memory holds: " + ", ".join(f"{and_list(s)} on {d}" for d, s in together.items())]


def _roofs(predictions: Sequence[Prediction], titles: dict[str, str]) -> list[Any]:
    """The roofs that operators run under, and those of the other formats that a device declares."""
    from hwmodels.describe import roofs
    from qsim.plots.names import format_title
    from qsim.plots.roofline import Roof

    found = {}
    for row in roofs(list(predictions)):
        key = (titles[row["device"]], format_title(row["format"]), row["bandwidth_bytes_per_s"])
        found[key] = Roof(device=key[0], format=key[1], integers=row["format"].startswith("int"),
                          peak_flop_per_s=row["peak_flop_per_s"], bandwidth_bytes_per_s=key[2])  # fmt: skip
    for device in {p.device.name: p.device for p in predictions}.values():
        title = titles[device.name]
        top = max(r.bandwidth_bytes_per_s for r in found.values() if r.device == title)
        for peak in device.compute.peaks:
            key = (title, format_title(peak.input), top)
            usual = device.peak_flop_per_s(peak.input) == peak.flop_per_s  # not the one of another accumulator
            if key in found or peak.input in _UNDRAWN or not usual:
                continue
            chips = top / device.memory.bandwidth_bytes_per_s
            found[key] = Roof(device=title, format=key[1], peak_flop_per_s=peak.flop_per_s * chips, used=False,
                              bandwidth_bytes_per_s=top, integers=peak.input.startswith("int"))  # fmt: skip
    return list(found.values())
