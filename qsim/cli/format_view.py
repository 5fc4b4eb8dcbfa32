"""How formats look in a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from qsim.cli.table import Column, print_table, say
from qsim.formats import reference
from qsim.formats.describe import binades, nan_count, special_codes
from qsim.formats.explain import hex_code, number
from qsim.formats.spec import BlockFormat, CodebookFormat, ElementFormat, FloatFormat, Format, IntFormat

if TYPE_CHECKING:
    from rich.console import Console

    from qsim.analysis.formats import FormatError

_SUBNORMAL, _SPECIAL, _HEAD = "yellow", "magenta", "cyan"


def gap_of(out: Console) -> int:
    """Blanks between columns, by the width of the terminal."""
    return 3 if out.width >= 100 else 2


def power(x: float | None) -> str:
    """A power of two as such, other numbers to five digits, None as a dash."""
    if x is None:
        return "-"
    mantissa, exponent = math.frexp(x)
    if mantissa == 0.5 and not 1 <= x <= 1024:
        return f"2^{exponent - 1}"
    return f"{x:.5g}" if abs(x) < 1e6 else f"{x:.3g}"


def _count(n: int) -> str:
    return str(n) if n < 10**6 else f"{n:.1e}".replace("e+0", "e")


def _special(has_inf: bool, nan_codes: int) -> str:
    return ("Inf " if has_inf else "") + ("NaN" if nan_codes else "") or "-"


_FLOATS = (
    Column("format", "name", left=True), Column("bits", "bits"), Column("s-e-m", "layout"), Column("bias", "bias"),
    Column("max", "max", power), Column("normal", "smallest_normal", power),
    Column("subn.", "smallest_subnormal", power), Column("eps", "eps", power),
    Column("special", ("has_inf", "nan_codes"), _special, left=True), Column("finite", "finite_values", _count),
)  # fmt: skip
_ALIASES = Column("also called", "aliases", left=True)
_INTEGERS = (
    Column("format", "name", left=True), Column("bits", "bits"), Column("coding", "layout", left=True),
    Column("min", "min", number), Column("max", "max", number), Column("step", "eps", power),
    Column("finite", "finite_values"),
)  # fmt: skip
_BLOCKS = (
    Column("format", "name", left=True), Column("element", "element", left=True), Column("scale", "scale", left=True),
    Column("block", "block_size"), Column("bits/element", "bits_per_element", "{:g}".format),
    Column("tensor scale", "tensor_scale", lambda has: "float32" if has else "-"),
)  # fmt: skip


def print_catalogue(rows: list[dict[str, Any]], out: Console) -> None:
    """All formats, one table for each kind."""
    wide = out.width >= 110
    print_table((*_FLOATS, _ALIASES) if wide else _FLOATS, [r for r in rows if r["kind"] == "float"],
                title="Floating point", lined=True, gap=2 if wide else 1)  # fmt: skip
    say("s-e-m: sign, exponent, mantissa bits; normal, subn.: the smallest of each; finite: how many values.")
    out.print()
    print_table(_INTEGERS, [r for r in rows if r["kind"] in ("int", "codebook")], title="Integers and tables",
                lined=True, gap=gap_of(out))  # fmt: skip
    out.print()
    print_table(_BLOCKS, [r for r in rows if r["kind"] == "block"], title="Blocks that share a scale", lined=True,
                gap=gap_of(out))  # fmt: skip
    out.print()
    out.print("qsim formats NAME shows one in full.")


def print_format(fmt: Format, limits: dict[str, Any], out: Console) -> None:
    """One format: its limits, then its values."""
    out.print(Text.assemble((fmt.name, "bold"), _also(limits)))
    out.print()
    facts = _block_facts(fmt, limits) if isinstance(fmt, BlockFormat) else _facts(fmt)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        for i, line in enumerate(textwrap.wrap(value, max(20, out.width - width - 5))):
            out.print(Text.assemble(("  " + (name if i == 0 else "").ljust(width + 2), _HEAD), line))
    out.print()
    if isinstance(fmt, BlockFormat):
        out.print(f"The values of an element: qsim formats {fmt.element.name}")
    elif isinstance(fmt, FloatFormat) and fmt.storage_bits > 8:
        _print_wide(fmt, out)
    elif isinstance(fmt, FloatFormat) and fmt.mantissa_bits and fmt.exponent_bits:
        _print_values(fmt, out)
    else:
        _print_codes(fmt, out)


def _also(limits: dict[str, Any]) -> str:
    return f"  also called {limits['aliases'].replace(' ', ', ')}" if limits["aliases"] else ""


def _facts(fmt: ElementFormat) -> list[tuple[str, str]]:
    if isinstance(fmt, IntFormat):
        kind = "two's complement" if fmt.signed else "unsigned"
        unit = f", in units of 2^-{fmt.fraction_bits}" if fmt.fraction_bits else ""
        return [
            ("layout", f"{fmt.bits} bits, {kind}{unit}"),
            ("range", f"{number(fmt.min)} to {number(fmt.max)}, step {number(fmt.eps)}"),
            ("special", "no Inf, no NaN, one zero"),
            ("values", f"{fmt.finite_count}"),
        ]
    if isinstance(fmt, CodebookFormat):
        return [
            ("layout", f"{fmt.bits} bits, an index into a table of {len(fmt.table)} values"),
            ("range", f"{number(fmt.min)} to {number(fmt.max)}"),
            ("special", f"no Inf, no NaN, {'one' if fmt.has_zero else 'no'} zero"),
        ]
    sign = "1 sign bit" if fmt.signed else "no sign"
    pad = f", {fmt.padding_bits} padding bits" if fmt.padding_bits else ""
    facts = [
        ("layout", f"{sign}, {fmt.exponent_bits} exponent, {fmt.mantissa_bits} mantissa{pad}; bias {fmt.bias}"),
        ("largest finite", f"{number(fmt.max)}  ({hex_code(fmt.max_code, fmt)})"),
        ("smallest normal", power(fmt.smallest_normal)),
    ]
    if fmt.has_subnormals and fmt.mantissa_bits:
        facts.append(("smallest subnormal", power(fmt.smallest_subnormal)))
    facts += [
        ("epsilon", f"{power(fmt.eps)}  (spacing just above 1)"),
        ("overflow", _overflow(fmt)),
        ("infinity", hex_code(fmt.inf_code, fmt) if fmt.inf_code is not None else "none"),
        ("NaN", _nans(fmt)),
        ("zero", "none" if not fmt.has_zero else "+0 and -0" if fmt.has_negative_zero else "one, no -0"),
        ("finite values", str(fmt.finite_count)),
    ]
    return facts


def _overflow(fmt: FloatFormat) -> str:
    """From where rounding to nearest even leaves the largest value; a tie stays when its code is even."""
    top = fmt.max_magnitude_code
    limit = number(float((fmt.fraction(top) + fmt.fraction(top + 1)) / 2))
    if len(limit) > 12:
        limit = f"about {float(limit):.9g}"
    return f"nearest_even goes past the largest {'above' if top % 2 == 0 else 'from'} {limit}{' on' * (top % 2)}"


def _nans(fmt: FloatFormat) -> str:
    count = nan_count(fmt)
    if count <= 6:
        return ", ".join(hex_code(c, fmt) for c in fmt.nan_codes) or "none"
    # only IEEE formats have more: every mantissa above that of Inf
    first, last = fmt.max_magnitude_code + 2, (1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1
    runs = [[hex_code((sign | c) << fmt.padding_bits, fmt) for c in (first, last)] for sign in (0, fmt.sign_mask)]
    return f"{count} codes, {' and '.join(' to '.join(run) for run in runs)}"


def _block_facts(fmt: BlockFormat, limits: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("element", f"{fmt.element.name}, largest {number(fmt.element.max)}"),
        ("scale", f"one {fmt.scale.name} for {fmt.block_size} elements along an axis"),
        ("tensor scale", "float32, above the block scales" if fmt.tensor_scale else "none"),
        ("bits per element", f"{limits['bits_per_element']:g} with the scale's share"),
        ("largest finite", power(fmt.max) + (" times the tensor scale" if fmt.tensor_scale else "")),
    ]


def _cell(value: float, width: int, style: str = "") -> Text:
    """The value, exactly if that fits the width, else with as many digits as do."""
    if not math.isfinite(value):
        return Text(number(value), _SPECIAL)
    texts = [number(value), *(f"{value:.{digits}g}" for digits in range(16, 1, -1))]
    return Text(next((t for t in texts if len(t) <= width), texts[-1]), style)


def _print_values(fmt: FloatFormat, out: Console) -> None:
    """Mantissa across, exponent down; positive half."""
    m = fmt.mantissa_bits
    per_row = min(1 << m, 8)
    values = [float(reference.decode(w, fmt)) for w in range(1 << (fmt.exponent_bits + m))]
    widest = max(len(number(v)) for v in values)
    sides = 4 + fmt.exponent_bits + 1 + max(len(f"2^{fmt.min_exponent}"), len(f"2^{fmt.emax + 1}")) + 1
    gap = 2 if sides + per_row * (widest + 2) <= out.width else 1
    width = max(6, min(widest, (out.width - sides) // per_row - gap))
    for start in range(0, 1 << m, per_row):
        if start:
            out.print()
        heads = [f"{k:0{m}b}" for k in range(start, start + per_row)]
        columns = [Column(name, name, left=True) for name in ("code", "exponent")] + [Column(h, h) for h in heads]
        rows = []
        for e_field in range(1 << fmt.exponent_bits):
            first = (e_field << m) + start
            subnormal = fmt.has_subnormals and e_field == 0
            scale = fmt.min_exponent if subnormal else e_field - fmt.bias
            cells = [_cell(values[w], width, _SUBNORMAL if subnormal else "") for w in range(first, first + per_row)]
            field = Text(f"{e_field:0{fmt.exponent_bits}b} 2^{scale}", _HEAD)
            rows.append({"code": Text(hex_code(first, fmt), "dim"), "exponent": field,
                         **dict(zip(heads, cells, strict=True))})  # fmt: skip
        print_table(columns, rows, lined=True, gap=gap)
    notes = ["Mantissa bits across, exponent bits down; code is that of the first column."]
    if fmt.has_subnormals:
        notes.append("The first row is zero and the subnormals.")
    if fmt.signed:
        minus = f"{hex_code(fmt.sign_mask, fmt)} itself is " + ("-0" if fmt.has_negative_zero else "NaN")
        notes.append(f"Negative values: add {hex_code(fmt.sign_mask, fmt)} to the code; {minus}.")
    if widest > width:
        notes.append("What does not fit is rounded: a wider terminal or --csv has every digit.")
    out.print()
    say(" ".join(notes))


def _print_codes(fmt: ElementFormat, out: Console) -> None:
    """A grid of codes: for integers, tables and powers of two."""
    values = [float(reference.decode(c, fmt)) for c in range(1 << fmt.bits)]
    if isinstance(fmt, FloatFormat):
        cells = [Text(power(v)) if math.isfinite(v) else Text(number(v), _SPECIAL) for v in values]
    else:
        digits = 7 if isinstance(fmt, CodebookFormat) else 17
        cells = [_cell(v, digits + 3) for v in values]
    widest = max(len(c.plain) for c in cells)
    gap = gap_of(out)
    per_row = next((n for n in (16, 8, 4) if n <= len(values) and (widest + gap) * n + 9 <= out.width), 2)
    heads = [f"+{i:X}" for i in range(per_row)]
    rows = [
        {"code": Text(hex_code(start, fmt), "dim"), **dict(zip(heads, cells[start : start + per_row], strict=True))}
        for start in range(0, len(values), per_row)
    ]
    print_table([Column("code", "code", left=True), *(Column(h, h) for h in heads)], rows, lined=True, gap=gap)
    if isinstance(fmt, CodebookFormat):
        out.print()
        out.print("Rounded to fit; --csv has every digit.")


def _print_wide(fmt: FloatFormat, out: Console) -> None:
    """Too many values to list: the landmarks, and binades from the subnormals to the top."""
    columns = _LANDMARKS if fmt.bits <= 20 or out.width >= 100 else _LANDMARKS[:3]
    print_table(columns, special_codes(fmt), lined=True, gap=gap_of(out))
    rows = binades(fmt)
    picks = sorted(
        {0, 1, 2, len(rows) - 2, len(rows) - 1} | {i for i, r in enumerate(rows) if -3 <= r["exponent"] <= 3}
    )
    shown: list[dict[str, Any]] = []
    last = -1
    for i in (i for i in picks if 0 <= i < len(rows)):
        if i != last + 1:
            shown.append({"binade": "..."})
        row, last = rows[i], i
        shown.append({"binade": "subnormal" if row["class"] == "subnormal" else f"2^{row['exponent']}", **row})
    out.print()
    print_table(_BINADES, shown, title="Some binades", lined=True, gap=gap_of(out))


_LANDMARKS = (
    Column("landmark", "landmark", left=True), Column("code", "code"), Column("value", "value", number),
    Column("bits", "bits", left=True),
)  # fmt: skip
_BINADES = (
    Column("binade", "binade", left=True), Column("values", "values"), Column("first", "first", "{:.9g}".format),
    Column("last", "last", "{:.9g}".format), Column("spacing", "spacing", power),
)  # fmt: skip


def print_comparison(found: Sequence[FormatError], out: Console) -> None:
    """Relative error per octave, worst and rms, one column per format."""
    lows = sorted({float(v) for e in found for v in e.curve.low})
    at = [{float(v): i for i, v in enumerate(e.curve.low)} for e in found]
    cells = [[_error_cell(e, rows.get(low)) for e, rows in zip(found, at, strict=True)] for low in lows]
    names = [e.format.name for e in found]
    shown: list[dict[str, str]] = []
    last: list[str] | None = None
    for i, (low, row) in enumerate(zip(lows, cells, strict=True)):
        # rows that repeat their neighbours say nothing new
        if row == last and i + 1 < len(cells) and cells[i + 1] == row:
            if cells[i - 2] != row or i < 2:
                shown.append({"from": "..."})
            continue
        shown.append({"from": power(low), **dict(zip(names, row, strict=True))})
        last = row
    print_table([Column("from", "from", left=True), *(Column(name, name) for name in names)], shown, lined=True,
                title="Relative error: worst case (rms)", gap=gap_of(out))  # fmt: skip
    out.print()
    for e in found:
        if e.scale != 1:
            out.print(f"{e.format.name} is scaled by {e.scale:.6g}, so that its largest value is {number(e.max)}.")
    out.print("Each row is the octave from that power of two; clips: beyond the largest value.")


def _error_cell(e: FormatError, i: int | None) -> str:
    if i is None:
        return "clips"
    if np.isnan(e.curve.worst[i]):
        return "-"
    return f"{100 * e.curve.worst[i]:.3g} % ({100 * e.curve.rms[i]:.3g} %)"
