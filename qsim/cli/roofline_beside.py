"""What stands beside a roofline: where the time of each step goes, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsim.plots import names

if TYPE_CHECKING:
    from hwmodels.predicted import Prediction
    from qsim.plots.beside import Numbers, Step

_WHOLE = 0.9
"""The table has the operators that make up this part of a step's time, and the rest in one row."""


def _cells(predictions: Sequence[Prediction], titles: dict[str, str], path: str | None) -> dict[str, list[str]]:
    """What tells the predictions apart: column -> its cell for each; columns of one value are left out."""
    every = {
        "device": [titles[p.device.name] for p in predictions],
        "scheme": [names.scheme_title(p.scheme.name or "") for p in predictions],
        "phase": [p.phase for p in predictions],
        "batch": [f"{int(p.batch):,}" for p in predictions] if path == "batch" else [""] * len(predictions),
    }
    return {name: cells for name, cells in every.items() if len(set(cells)) > 1}


def steps_of(
    predictions: Sequence[Prediction], titles: dict[str, str], drawn: Sequence[str], path: str | None
) -> tuple[Step, ...]:
    """A bar for each prediction, its operators from the longest; those that the roofline does not draw are `other`."""
    from hwmodels.predicted import operator_rows
    from qsim.plots.beside import Step

    cells = _cells(predictions, titles, path)
    several = "phase" in cells
    out = []
    for i, p in enumerate(predictions):
        rows = {names.operator_title(r["operator"]): r["time_s"] for r in operator_rows(p)}
        parts = [(name, rows[name]) for name in sorted(rows, key=lambda n: -rows[n]) if name in drawn]
        scheme = names.scheme_title(p.scheme.name or "")
        out.append(
            Step(
                label=_label(cells, i),
                device=titles[p.device.name],
                scheme=scheme,
                parts_s=tuple(parts),
                case=p.phase if several else "",
                other_s=sum(rows.values()) - sum(s for _, s in parts),
            )
        )
    return tuple(out)


def numbers_of(predictions: Sequence[Prediction], titles: dict[str, str], path: str | None) -> Numbers:
    """For each prediction the operators that make up 90 % of its time, and the rest in one row."""
    from hwmodels.predicted import operator_rows
    from qsim.plots.beside import Numbers, Section

    cells = _cells(predictions, titles, path)
    sections = []
    for i, p in enumerate(predictions):
        rows: list[tuple[str, ...]] = []
        total = left = float(p.time_s)
        products = [r for r in operator_rows(p) if r["format"]]
        for r in sorted(products, key=lambda r: -r["time_s"]):
            if left <= (1 - _WHOLE) * total:
                break
            left -= r["time_s"]
            rows.append((names.operator_title(r["operator"]), names.three_digits(r["flop_per_byte"]),
                         names.three_digits(r["gflop"] / r["time_s"] / 1e3), f"{100 * r['share']:.0f} %",
                         names.three_digits(1e3 * r["time_s"])))  # fmt: skip
        rows.append(("others", "", "", f"{100 * left / total:.0f} %", names.three_digits(1e3 * left)))
        whole, low, high = (names.three_digits(1e3 * float(t)) for t in (p.time_s, p.low_s, p.high_s))
        longest = max(products, key=lambda r: r["time_s"] if r["generation"] else 0.0)
        notes = (f"80 % band: {low} to {high} ms", longest["generation"] or longest["kernel"])
        title = f"{_label(cells, i) or 'the whole step'}: {whole} ms"
        sections.append(Section(title=title, rows=tuple(rows), notes=notes))
    return Numbers(heads=("operator", "FLOP/byte", "TFLOP/s", "share", "ms"), sections=tuple(sections))


def _label(cells: dict[str, list[str]], i: int) -> str:
    return ", ".join(f"batch {mine[i]}" if name == "batch" else mine[i] for name, mine in cells.items())
