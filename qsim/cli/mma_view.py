"""How a dot product looks in a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rich.text import Text

from qsim.cli.table import Column, print_table, say
from qsim.errors import QsimError
from qsim.formats.explain import number
from qsim.tensorcore.explain import EXAMPLES, Explanation, StepView, TermView, explain_dot
from qsim.tensorcore.model import get_instruction, list_instructions

if TYPE_CHECKING:
    from rich.console import Console

_ROUNDINGS = {"rz": "toward zero", "rne": "to nearest even"}


def explain_all(
    names: Sequence[str], a: list[float] | None, b: list[float] | None, c: list[float] | None, example: str | None
) -> tuple[list[Explanation], str]:
    """The dot product of the command line, or of an example, by each instruction; and what the example shows.

    Raises:
        ValueError: A without B, an example beside numbers of one's own, an unknown example.
    """
    if (a is None) != (b is None):
        raise QsimError("-a and -b belong together: give both, as many numbers each")
    if c is not None and len(c) != 1:
        raise QsimError(f"-c takes one number: got {len(c)}")
    if a is not None and b is not None:
        if example is not None:
            raise QsimError(f"--example {example} has its own numbers: leave out -a and -b, or --example")
        return [explain_dot(name, a, b, c[0] if c else 0.0) for name in names], ""
    name = example or "swallow"
    if name not in EXAMPLES:
        raise QsimError(f"no example {name!r}: there are {', '.join(EXAMPLES)}")
    chosen = EXAMPLES[name]
    start = c[0] if c else chosen.c
    return [explain_dot(n, chosen.a, chosen.b, start, fill=chosen.fill) for n in names], chosen.says


def row(e: Explanation) -> dict[str, Any]:
    """One result as a row of a table or CSV."""
    ins = e.instruction
    return {
        "instruction": ins.name,
        "result": e.result,
        "bits": f"{e.bits & (1 << 8 * ins.output_dtype.itemsize) - 1:#x}",
        "exact": None if e.exact is None else float(e.exact),
        "error": None if e.exact is None else float(Fraction(e.result) - e.exact),
    }


def instruction_rows(prefix: str) -> list[dict[str, Any]]:
    """The table of instructions.

    Raises:
        ValueError: no name starts with the prefix.
    """
    names = list_instructions(prefix)
    if not names:
        get_instruction(prefix)  # its message says what exists
        raise QsimError(f"no instruction starts with {prefix!r}")
    rows = []
    for name in names:
        ins = get_instruction(name)
        rows.append(
            {
                "instruction": name,
                "arithmetic": ins.arithmetic,
                "L": ins.products,
                "F": ins.fraction_bits or None,
                "e0": ins.zero_exponent,
                "rounding": ins.rounding or None,
                "k": ins.k,
                "shape": ins.shape,
                "status": ins.status,
            }
        )
    return rows


def print_list(rows: Sequence[dict[str, Any]], out: Console) -> None:
    """The instructions, one per line."""
    print_table(_INSTRUCTIONS, rows, lined=True, gap=3, indent=1)
    out.print()
    say("L products per step, F fraction bits kept, e0 exponent of a zero term; status: how it is known.")


def _arithmetic(arithmetic: str, rounding: str | None) -> str:
    if arithmetic in ("truncated", "scaled", "grouped"):
        return rounding or ""
    return arithmetic + (f", {rounding}" if rounding else "")


_INSTRUCTIONS = (
    Column("instruction", "instruction", left=True), Column("L", "L"), Column("F", "F"), Column("e0", "e0"),
    Column("rounding", ("arithmetic", "rounding"), _arithmetic, left=True), Column("status", "status", left=True),
)  # fmt: skip


def _error(error: float | None) -> str:
    return "" if error is None else "exact" if error == 0 else f"{error:+.4g}"


_RESULTS = (
    Column("instruction", "instruction", left=True), Column("result", "result", number), Column("bits", "bits"),
    Column("error", "error", _error),
)  # fmt: skip
_TERMS = (
    Column("term", "term", left=True), Column("product", "product"), Column("value", "value"), Column("E", "E"),
    Column("units", "units"), Column("lost", "lost", lambda lost: Text(lost, "bold red")),
)  # fmt: skip


def print_several(explanations: Sequence[Explanation], says: str, out: Console) -> None:
    """Several instructions on the same numbers."""
    first = explanations[0]
    if says:
        _paragraph(says[0].upper() + says[1:] + ".", out)
    exact = first.exact
    out.print()
    print_table(_RESULTS, [row(e) for e in explanations], lined=True, gap=3, indent=1)
    out.print()
    if exact is not None:
        out.print(Text(f"Exact sum of {first.instruction.name}'s operands: {number(float(exact))}"))
    seen = set()
    for e in explanations:
        if e.changed not in seen:
            _changes(e, out)
        seen.add(e.changed)


def print_one(e: Explanation, says: str, out: Console) -> None:
    """The whole story of one dot product."""
    ins = e.instruction
    out.print(Text.assemble(("d = a · b + c", "bold"), " by ", (ins.name, "bold"), f"  ({_model(e)})"), soft_wrap=True)
    if says:
        _paragraph(says[0].upper() + says[1:] + ".", out)
    _changes(e, out)
    if e.note:
        _paragraph(e.note + ".", out)
    for step in e.steps:
        out.print()
        _print_step(step, ins.rounding or "", len(e.steps), out)
    out.print()
    bits = row(e)["bits"]
    out.print(Text.assemble(("  Result  ", "bold"), (f"{number(e.result)}", "bold green"), f"  ({bits})"))
    if e.exact is not None:
        error = float(Fraction(e.result) - e.exact)
        told = "no error" if error == 0 else f"error {error:+.6g}"
        out.print(Text.assemble(("  Exact   ", "bold"), f"{number(float(e.exact))}  ({told})"))


def _model(e: Explanation) -> str:
    ins = e.instruction
    if ins.arithmetic not in ("truncated", "scaled", "grouped"):
        return ins.arithmetic
    return f"L={ins.products}, F={ins.fraction_bits}, e0={ins.zero_exponent}, {ins.rounding}"


def _paragraph(text: str, out: Console) -> None:
    for line in textwrap.wrap(text, max(20, out.width - 3)):
        out.print(Text("  " + line, "italic"))


def _changes(e: Explanation, out: Console) -> None:
    if e.changed:
        shown = "; ".join(e.changed[:4]) + ("; ..." if len(e.changed) > 4 else "")
        _paragraph(f"Rounded to {e.instruction.input_a} x {e.instruction.input_b} first: {shown}.", out)


def _print_step(step: StepView, rounding: str, steps: int, out: Console) -> None:
    title = f"Step {step.number + 1}" if steps > 1 else "One step"
    if step.note:
        out.print(Text.assemble((title, "bold"), f"  {step.note}: the result is {number(step.result)}"))
        return
    spread = f"largest exponent Emax = {step.max_exponent}, unit 2^{step.unit_exponent}"
    out.print(Text.assemble((title, "bold"), f"  k = {_range(step.k)}: {spread}"))
    rows = []
    for terms in _runs(step.terms):
        t = terms[0]
        label = t.label if len(terms) == 1 else f"{t.label}..{terms[-1].label.removeprefix('k=')}"
        product = "" if t.a is None or t.b is None else f"{number(t.a)} · {number(t.b)}"
        times = f" ×{len(terms)}" if len(terms) > 1 else ""
        rows.append({"term": label, "product": product, "value": _fraction(t.value), "E": t.exponent,
                     "units": f"{t.aligned}{times}", "lost": _fraction(t.lost) if t.lost else ""})  # fmt: skip
    out.print()
    print_table(_TERMS, rows, lined=True, gap=3, indent=1)
    out.print()
    if step.zeros:
        out.print(Text(f"  and {step.zeros} zero {'term' if step.zeros == 1 else 'terms'}", "dim"))
    how = _ROUNDINGS.get(rounding.split("_")[0], "")
    told = "exact" if step.sum == Fraction(step.result) else f"rounded {how}"
    total = f"  sum of the units  {step.total} · 2^{step.unit_exponent} = {_fraction(step.sum)}"
    result = f"→  {number(step.result)} ({told})"
    gap = "  " if len(total) + len(result) + 2 < out.width else "\n" + " " * 18
    out.print(Text(total + gap + result))


def _runs(terms: Sequence[TermView]) -> list[list[TermView]]:
    """Neighbouring products that are alike, as one line."""
    runs: list[list[TermView]] = []
    for t in terms:
        last = runs[-1][-1] if runs else None
        if last and t.label != "c" and last.label != "c" and (t.a, t.b) == (last.a, last.b) and t.a is not None:
            runs[-1].append(t)
        else:
            runs.append([t])
    return runs


def _range(k: tuple[int, ...]) -> str:
    if list(k) == list(range(k[0], k[-1] + 1)):
        return f"{k[0]}..{k[-1]}" if len(k) > 1 else f"{k[0]}"
    return ",".join(map(str, k[:6])) + (",..." if len(k) > 6 else "")


def _fraction(x: Fraction) -> str:
    return number(float(x))
