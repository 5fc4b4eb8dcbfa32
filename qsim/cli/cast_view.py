"""How a cast looks in a terminal."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

from rich.text import Text

from qsim.cli.table import Column, print_table
from qsim.formats.explain import BitField, CastExplanation, Neighbour, hex_code, number

if TYPE_CHECKING:
    from rich.console import Console

FIELD_STYLES = {
    "sign": "bold magenta",
    "exponent": "bold cyan",
    "mantissa": "bold yellow",
    "integer": "bold cyan",
    "index": "bold cyan",
    "padding": "dim",
}
_TAKEN = "bold green"


def row(e: CastExplanation) -> dict[str, Any]:
    """One cast as a row of a table or CSV."""
    return {
        "value": e.value,
        "format": e.format.name,
        "code": hex_code(e.code, e.format),
        "bits": " ".join(f.bits for f in e.fields if f.name != "padding"),
        "result": e.result,
        "absolute_error": e.absolute_error,
        "relative_error": e.relative_error,
        "case": e.case,
    }


def print_one(e: CastExplanation, out: Console) -> None:
    """The whole story of one cast."""
    title = Text.assemble((number(e.value), "bold"), " to ", (e.format.name, "bold"), _choices(e))
    out.print(title)
    if e.via is not None:
        out.print()
        out.print(Text(f"First to {e.via.format.name}: {number(e.via.result)} ({hex_code(e.via.code, e.via.format)})"))
        _fact("Decision", e.via.decision, out)
        out.print()
        out.print(Text(f"Then to {e.format.name}:"))
    out.print()
    _print_bits(e, out)
    line = _number_line(e, out.width)
    if line:
        out.print()
        for part in line:
            out.print(part, no_wrap=True)
    out.print()
    _fact("Decision", e.decision, out)
    if e.direct_code is not None:
        _fact("Directly", _about_direct(e), out)
    _fact("Error", _error_text(e), out)


def _fact(name: str, text: str, out: Console) -> None:
    """A bold name and a paragraph with a hanging indent, without trailing blanks (rich's tables pad)."""
    indent = 12
    for i, line in enumerate(textwrap.wrap(text, max(20, out.width - indent - 1))):
        out.print(Text.assemble(("  " + (name if i == 0 else "").ljust(indent - 2), "bold"), line))


def _choices(e: CastExplanation) -> str:
    nan = f", nan={e.nan}" if math.isnan(e.value) else ""
    return f"  (rounding={e.rounding}, overflow={e.overflow}{nan})"


def _print_bits(e: CastExplanation, out: Console) -> None:
    """The code's fields, and a leader from each to what it says."""
    shown = [f for f in e.fields if f.name != "padding"]
    head, starts, column = Text("  "), [], 2
    for f in shown:
        starts.append(column)
        head.append(f.bits, FIELD_STYLES[f.name])
        head.append("  ")
        column += len(f.bits) + 2
    if len(shown) < len(e.fields):
        head.append(f"(+{len(e.fields[-1].bits)} padding bits)  ", FIELD_STYLES["padding"])
    head.append(hex_code(e.code, e.format), "bold")
    head.append(" = ")
    head.append(number(e.result), _TAKEN)
    out.print(head, no_wrap=True)
    width = max(len(f.name) for f in shown)
    column = min(column, starts[-1] + 8)  # a long mantissa leaves room for what it says
    for i in reversed(range(len(shown))):
        out.print(_leader(starts[: i + 1], column, shown[i], width), no_wrap=True)


def _leader(starts: list[int], end: int, f: BitField, width: int) -> Text:
    line = Text("".join("│" if c in starts[:-1] else " " for c in range(starts[-1])), "dim")
    line.append("└" + "─" * (end - starts[-1] - 2) + " ", "dim")
    line.append(f.name.ljust(width), FIELD_STYLES[f.name])
    line.append(f"  {f.meaning}")
    return line


def _number_line(e: CastExplanation, width: int) -> list[Text]:
    """Both neighbours, with the input at its place between them."""
    below, above = e.below, e.above
    if below is None and above is None:
        return []
    codes = [hex_code(n.code, e.format) if n and n.code is not None else "none" if n else "" for n in (below, above)]
    left, right = (number(below.value) if below else ""), (number(above.value) if above else "")
    margin = max(len(left), len(codes[0]))
    room = max(16, min(48, width - margin - max(len(right), len(codes[1])) - 8))
    at = _place_on(room, below, above)
    line = Text("  " + " " * (margin - len(left)))
    line.append(left, _style(e, below))
    line.append((" ├" if below else "  ") + "─" * at, "dim")
    line.append("●", "bold")
    line.append("─" * (room - at - 1) + ("┤ " if above else ""), "dim")
    line.append(right, _style(e, above))
    under = Text("  ")
    under.append(codes[0].rjust(margin) + "  ", "dim")
    labels = [f"{n.distance_ulp:.4g} ulp" if n and not math.isnan(n.distance_ulp) else "" for n in (below, above)]
    x = number(e.value if e.via is None else e.via.result)
    spot = min(at - len(x) // 2, room - len(x) - len(labels[1]) - 1)
    middle = labels[0].ljust(max(len(labels[0]) + 1, spot)) + x
    under.append(middle + labels[1].rjust(room - len(middle)))
    under.append("  " + codes[1], "dim")
    under.rstrip()
    return [line, under]


def _place_on(room: int, below: Neighbour | None, above: Neighbour | None) -> int:
    """The column of the input on a line of that many columns."""
    if below is None or above is None:  # beyond the one neighbour there is
        return room - 1 if above is None else 0
    share = below.distance_ulp / (below.distance_ulp + above.distance_ulp)
    return min(room - 2, max(1, round(share * (room - 1))))


def _style(e: CastExplanation, n: Neighbour | None) -> str:
    return _TAKEN if n is not None and n.value == e.result else ""


def _about_direct(e: CastExplanation) -> str:
    assert e.direct_code is not None
    assert e.via is not None
    direct = f"rounded once, {number(e.value)} is {hex_code(e.direct_code, e.format)}"
    if e.direct_code == e.code:
        return f"{direct} too: the stage in between did no harm."
    return f"{direct}: rounding twice, via {e.via.format.name}, gives another code."


def _error_text(e: CastExplanation) -> str:
    if math.isnan(e.value) or math.isinf(e.value):
        return "none: the value is not finite"
    if not math.isfinite(e.result):
        return "not defined: the result is not finite"
    if e.error == 0:
        return "0: exact"
    relative = "relative not defined at 0" if e.value == 0 else f"relative {percent(e.relative_error)}"
    return f"{e.error:+.6g}  ({relative})"


def percent(share: float) -> str:
    """A relative error in per cent, three digits."""
    return f"{100 * share:.3g} %"


_COLUMNS = tuple(
    Column(name, name, left=name not in ("value", "result", "error"))
    for name in ("value", "format", "code", "bits", "result", "error", "decided by")
)


def print_several(explanations: list[CastExplanation]) -> None:
    """Several casts, one line each."""
    rows, last = [], None
    for e in explanations:
        rows.append({
            "value": "" if e.value == last else number(e.value), "format": e.format.name,
            "code": hex_code(e.code, e.format), "decided by": e.case, "result": number(e.result),
            "bits": Text(" ").join(Text(f.bits, FIELD_STYLES[f.name]) for f in e.fields if f.name != "padding"),
            "error": "" if not math.isfinite(e.relative_error) else percent(e.relative_error) if e.error else "0",
        })  # fmt: skip
        last = e.value
    print_table(_COLUMNS, rows, lined=True, gap=3, indent=1)
