"""One dot product, step by step, as a record: what each term became when it was aligned, and how the sum was rounded.

Pure data for lessons, from the exact reference: the command line prints it, a notebook can take it apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat
from qsim.formats.reference import encode

from . import reference, reference_other
from .model import Instruction, get_instruction
from .reference import Operand, Step, decode


@dataclass(frozen=True, kw_only=True)
class Example:
    """A dot product worth looking at: A and B are repeated up to one step when `fill` is set."""

    a: tuple[float, ...]
    b: tuple[float, ...]
    c: float = 0.0
    fill: bool = False
    says: str = ""


EXAMPLES = {
    "swallow": Example(
        a=(8, 0.375, -8, 0.0625, -0.01953125),
        b=(8, 0.5, 8, 0.01953125, 0.5),
        says="a large pair cancels, and what lies F bits below it has gone with it",
    ),
    "stops-at-64": Example(
        a=(0.0625,), b=(0.0625,), c=64.0, fill=True,
        says="products of 2^-8 beside an accumulator of 64: with F = 13 the unit is 2^-7, and the sum stands still",
    ),
    "small-c": Example(
        a=(1.0,), b=(1.0,), c=2.0**-14,
        says="C is a term like the others: below 2^(Emax - F) it is lost, even before anything is added to it",
    ),
    "no-carry": Example(
        a=(1.5, 1.5), b=(1.5, 2.0**-9),
        says="1.5 x 1.5 = 2.25 keeps the exponent 0: products are not renormalised before they are aligned",
    ),
}  # fmt: skip
"""Examples by name; values are rounded to the operands' formats like any others."""


@dataclass(frozen=True, kw_only=True)
class TermView:
    """One product, or C, in one step. Exact values as fractions."""

    label: str
    a: float | None
    b: float | None
    value: Fraction
    exponent: int
    aligned: int
    kept: Fraction
    lost: Fraction


@dataclass(frozen=True, kw_only=True)
class StepView:
    """One step: its terms that are not zero, the unit they are cut to, their sum, and the rounded result."""

    number: int
    k: tuple[int, ...]
    terms: tuple[TermView, ...]
    zeros: int
    max_exponent: int
    unit_exponent: int
    total: int
    sum: Fraction
    bits: int
    result: float
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A dot product d = a . b + c by one instruction (a chain of steps), with what was lost on the way."""

    instruction: Instruction
    a: tuple[float, ...]
    b: tuple[float, ...]
    c: float
    steps: tuple[StepView, ...]
    bits: int
    result: float
    exact: Fraction | None
    note: str = ""
    changed: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """The content as plain values; fractions as floats."""
        ins = self.instruction
        return {
            "instruction": ins.name,
            "products": ins.products,
            "fraction_bits": ins.fraction_bits or None,
            "zero_exponent": ins.zero_exponent,
            "rounding": ins.rounding,
            "a": list(self.a),
            "b": list(self.b),
            "c": self.c,
            "steps": [_step_dict(step) for step in self.steps],
            "bits": f"{self.bits:#x}",
            "result": self.result,
            "exact": None if self.exact is None else float(self.exact),
            "error": None if self.exact is None or not math.isfinite(self.result) else float(_error(self)),
            "note": self.note,
            "changed": list(self.changed),
        }


def _error(e: Explanation) -> Fraction:
    assert e.exact is not None
    return Fraction(e.result) - e.exact


def _step_dict(step: StepView) -> dict[str, Any]:
    return {
        "step": step.number,
        "k": list(step.k),
        "max_exponent": step.max_exponent,
        "unit_exponent": step.unit_exponent,
        "terms": [
            {
                "term": t.label,
                "a": t.a,
                "b": t.b,
                "value": float(t.value),
                "exponent": t.exponent,
                "aligned_units": t.aligned,
                "kept": float(t.kept),
                "lost": float(t.lost),
            }
            for t in step.terms
        ],
        "zero_terms": step.zeros,
        "sum_units": step.total,
        "sum": float(step.sum),
        "bits": f"{step.bits:#x}",
        "result": step.result,
        "note": step.note,
    }


def explain_dot(
    instruction: str | Instruction, a: Sequence[float], b: Sequence[float], c: float = 0.0, *, fill: bool = False
) -> Explanation:
    """Take one dot product apart.

    Arguments:
        instruction: name or value. Block-scaled operands have scale 1.
        a, b: numbers, one a k; they are rounded to the operands' formats (`changed` says which), and padded with zeros
            to whole steps.
        c: the addend, rounded to the accumulator's type.
        fill: repeat a and b up to one step instead of padding with zeros.

    Returns:
        Every step for the truncated sums of NVIDIA's tensor cores (emulated instructions: those of the instruction that
        does the work); for other arithmetic the result alone, with a note.

    Raises:
        ValueError: an unknown instruction, or a and b of different lengths or empty.
    """
    ins = get_instruction(instruction)
    if len(a) != len(b) or not len(a):
        raise QsimError(f"a and b must have the same number of values, at least one: got {len(a)} and {len(b)}")
    step = ins.k if ins.arithmetic == "emulated" else ins.products
    length = -(-len(a) // step) * step
    padded = [[x[i % len(x)] if fill else (x[i] if i < len(x) else 0.0) for i in range(length)] for x in (a, b)]
    codes_a, codes_b = (_codes(ins, values, which) for values, which in zip(padded, "ab", strict=True))
    c_code = _c_code(ins, c)
    values_a, values_b = _values(ins, codes_a, "a"), _values(ins, codes_b, "b")
    changed = tuple(
        f"{which}[{i}] = {given:g} becomes {taken:g}"
        for which, given_all, taken_all in (("a", padded[0], values_a), ("b", padded[1], values_b))
        for i, (given, taken) in enumerate(zip(given_all, taken_all, strict=True))
        if given != taken and given == given and (not fill or i < len(a))
    )
    steps, bits, note = _run(ins, codes_a, codes_b, c_code, values_a, values_b)
    c_value = _result(ins, c_code)
    finite = all(math.isfinite(v) for v in (*values_a, *values_b, c_value))
    exact = (
        sum((Fraction(x) * Fraction(y) for x, y in zip(values_a, values_b, strict=True)), Fraction(c_value))
        if finite
        else None
    )
    return Explanation(
        instruction=ins,
        a=tuple(values_a),
        b=tuple(values_b),
        c=c_value,
        steps=tuple(steps),
        bits=bits,
        result=_result(ins, bits),
        exact=exact,
        note=note,
        changed=changed,
    )


def _codes(ins: Instruction, values: Sequence[float], which: str) -> list[int]:
    fmt = ins.format_a if which == "a" else ins.format_b
    if ins.input_a == "f64":
        return np.array(values, np.float64).view(np.uint64).tolist()
    if not isinstance(fmt, FloatFormat):
        return [max(fmt.min_integer, min(fmt.max_integer, round(_finite(ins, v)))) for v in values]
    return [encode(v, fmt, overflow="saturate_finite") for v in values]


def _finite(ins: Instruction, value: float) -> float:
    if not math.isfinite(value):
        raise QsimError(f"{ins.name} multiplies integers, which have no Inf and no NaN: got {value}")
    return value


def _c_code(ins: Instruction, c: float) -> int:
    if ins.output == "s32":
        return round(_finite(ins, c))
    if ins.output == "f64":
        return int(np.float64(c).view(np.uint64))
    return encode(c, ins.output_format, overflow="nonsaturating")


def _values(ins: Instruction, codes: Sequence[int], which: str) -> list[float]:
    fmt = ins.format_a if which == "a" else ins.format_b
    if ins.input_a == "f64":
        return np.array(codes, np.uint64).view(np.float64).tolist()
    if not isinstance(fmt, FloatFormat):
        return [float(v) for v in codes]
    return [_number(decode(fmt, code)) for code in codes]


def _number(x: Operand) -> float:
    if x.kind == "nan":
        return math.nan
    if x.kind == "inf":
        return -math.inf if x.negative else math.inf
    return float(x.value)


def _result(ins: Instruction, bits: int) -> float:
    if ins.output == "s32":
        return float(bits)
    if ins.output == "f64":
        return float(np.uint64(bits).view(np.float64))
    return _number(decode(ins.output_format, bits))


def _run(
    ins: Instruction, a: list[int], b: list[int], c: int, va: list[float], vb: list[float]
) -> tuple[list[StepView], int, str]:
    if ins.arithmetic in ("truncated", "scaled", "grouped"):
        steps = _chain(ins, a, b, c, va, vb, list(range(len(a))))
        return steps, steps[-1].bits, ""
    if ins.arithmetic != "emulated":
        return [], reference.dot(ins, a, b, c), f"arithmetic {ins.arithmetic!r} has no aligned terms to show"
    worker = get_instruction(ins.emulated_by)
    out: list[StepView] = []
    fmt = ins.output_format
    nan = reference_other.CANONICAL_NAN[ins.output]
    assert isinstance(ins.format_a, FloatFormat)
    assert isinstance(ins.format_b, FloatFormat)
    for start in range(0, len(a), ins.k):
        order = [start + k for k in ins.k_order]
        x = [reference_other._as_f16(ins.format_a, a[k]) for k in order]
        y = [reference_other._as_f16(ins.format_b, b[k]) for k in order]
        out += _chain(worker, x, y, 0, [va[k] for k in order], [vb[k] for k in order], order, len(out))
        c = reference_other.add(out[-1].bits, c, fmt, nan)
    note = f"{ins.name} is not a tensor-core instruction of its own: {worker.name} starts at +0, then C is added"
    return out, c, note


def _chain(
    ins: Instruction, a: list[int], b: list[int], c: int, va: list[float], vb: list[float], k: list[int], first: int = 0
) -> list[StepView]:
    one = Operand(kind="finite", negative=False, significand=1, exponent=0, fraction_bits=0)
    scales = [(one, one)] * len(a) if ins.block_a is not None else []
    views = []
    for n, step in enumerate(reference.steps(ins, a, b, c, scales)):
        part = slice(n * ins.products, (n + 1) * ins.products)
        views.append(_view(ins, step, first + n, k[part], va[part], vb[part]))
    return views


def _view(ins: Instruction, step: Step, number: int, k: list[int], va: list[float], vb: list[float]) -> StepView:
    unit = Fraction(2) ** step.unit_exponent
    terms = []
    for t in step.terms:
        if t.is_zero:
            continue
        sign = -1 if t.negative else 1
        single = t.label.isdigit()
        terms.append(
            TermView(
                label=f"k={k[int(t.label)]}" if single else t.label,
                a=va[int(t.label)] if single else None,
                b=vb[int(t.label)] if single else None,
                value=sign * t.significand * Fraction(2) ** (t.exponent - t.fraction_bits),
                exponent=t.exponent,
                aligned=sign * t.aligned,
                kept=sign * t.aligned * unit,
                lost=sign * t.lost,
            )
        )
    return StepView(
        number=number,
        k=tuple(k),
        terms=tuple(terms),
        zeros=sum(t.is_zero for t in step.terms),
        max_exponent=step.max_exponent,
        unit_exponent=step.unit_exponent,
        total=step.total,
        sum=step.total * unit,
        bits=step.bits,
        result=_result(ins, step.bits),
        note=step.note,
    )
