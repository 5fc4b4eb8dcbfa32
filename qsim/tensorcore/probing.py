"""What does this matrix multiply compute? Parameters of a black box, from its outputs alone.

The tests are those of Fasi, Higham, Mikaitis and Pranesh (2021) and of Khattak and Mikaitis (arXiv:2512.07004), for
GEMMs without an addend: one row of A and one row of B hold a few powers of two and zeros, and the result says which of
them took part. The module needs NumPy only; Numba is loaded when the result is compared with the table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat

from .experiments import (
    Box,
    MatmulFunction,
    alignment_of,
    promotion_of,
    rounding_of,
    rounding_of_chain,
    steps_of,
    zero_exponent_of,
)
from .model import Instruction, _block, _element, get_instruction, list_instructions


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What `probe` found.

    Attributes:
        input_a, input_b, output: what was multiplied, and the type of the result.
        products: L, products fused in one step (the size of the smallest group of k that behaves as one).
        fraction_bits: F; None when the inputs' range is too small to see a loss, then F is at least `at_least`.
        at_least: largest alignment distance that was seen to be exact.
        alignment: what happens to the bits below: "truncate", "floor", "nearest", or "unseen".
        zero_exponent: e0; None when it cannot be seen with these inputs and this output.
        rounding: of the result: "toward_zero", "nearest_even", "nearest_away", "down", or "unseen".
        result_bits: fraction bits of the result (23, 13, 10); None when not seen.
        order: the groups of k in the order in which they are added, within the first 128.
        promote_every: K of fresh chains that are added by a separate addition; None for a single chain.
        integer: what integer sums do beyond 2^31: "wrap", "clamp", "exact" (wider sums) or "unseen"; "" for floats.
        matches: table rows that answer every test alike; empty without Numba.
        note: what could not be done.
    """

    input_a: str
    input_b: str
    output: str
    products: int | None = None
    fraction_bits: int | None = None
    at_least: int = 0
    alignment: str = "unseen"
    zero_exponent: int | None = None
    rounding: str = "unseen"
    result_bits: int | None = None
    order: tuple[tuple[int, ...], ...] = ()
    promote_every: int | None = None
    integer: str = ""
    matches: tuple[str, ...] = ()
    note: str = ""

    @property
    def k_order(self) -> str:
        """ "ascending", or the positions of the first groups."""
        flat = [k for group in self.order for k in group]
        if flat == sorted(flat):
            return "ascending"
        return " | ".join(",".join(map(str, group)) for group in self.order[:4])

    def summary(self) -> str:
        """One line a finding."""
        if self.integer:
            return f"integer accumulation, overflow: {self.integer}\nmatches: {', '.join(self.matches) or '-'}"
        promotion = f"every {self.promote_every} of K" if self.promote_every else "none seen"
        big_f = f"{self.fraction_bits}" if self.fraction_bits is not None else f">= {self.at_least} (no loss seen)"
        lines = [
            f"inputs {self.input_a} x {self.input_b}, output {self.output}",
            f"L  products fused per step    {self.products}",
            f"F  fraction bits kept         {big_f} ({self.alignment})",
            f"e0 exponent of zero terms     {'not visible' if self.zero_exponent is None else self.zero_exponent}",
            f"result                        {self.result_bits} fraction bits, {self.rounding}",
            f"K order                       {self.k_order}",
            f"promotion                     {promotion}",
            f"matches                       {', '.join(self.matches) or '-'}",
        ]
        return "\n".join(lines + ([f"note: {self.note}"] if self.note else []))


def probe(
    matmul: MatmulFunction,
    *,
    input: str,
    input_b: str | None = None,
    k: int = 128,
    k_promotion: int = 512,
    rows: int = 64,
    match: bool = True,
) -> Probe:
    """Recover L, F, e0, rounding and K order of a black-box matrix multiply.

    Arguments:
        matmul: called with float32 arrays a (rows, K) and b (rows, K) whose values are exact in the input formats
            (int64 for integer inputs); returns the (rows, rows) products as float32, float16 or integers.
        input, input_b: format names of the operands: `bf16`, `f16`, `tf32`, `f32`, `e4m3`, `e5m2`, `e2m1`, `s8`, ...
        k: K of the tests; at least three steps of the instruction.
        k_promotion: K of the test for promotion; 0 to leave it out.
        rows: M = N of every call (a multiple of what the library wants).
        match: name the table's rows that behave alike (needs Numba).

    Returns:
        A `Probe`. What a format's range cannot show is None or "unseen".

    Raises:
        ValueError: a result of the wrong shape or dtype.

    Source: Fasi, Higham, Mikaitis, Pranesh 2021; arXiv:2512.07004.
    """
    input_b = input if input_b is None else input_b
    a, b = _element(input), _element(input_b)
    if not isinstance(a, FloatFormat) or not isinstance(b, FloatFormat):
        found = _probe_integers(matmul, input, input_b, rows)
        return dataclasses.replace(found, matches=_matches(found, k, k_promotion, rows)) if match else found
    trial = np.asarray(matmul(np.zeros((rows, k), np.float32), np.zeros((rows, k), np.float32)))
    if trial.shape != (rows, rows) or trial.dtype.kind != "f":
        raise QsimError(f"matmul must return floats of shape {(rows, rows)}: got {trial.dtype.name} {trial.shape}")
    box = Box(matmul, a, b, k, rows)
    found = _probe_floats(box, Probe(input_a=input, input_b=input_b, output=trial.dtype.name), k_promotion)
    if match:
        try:
            found = dataclasses.replace(found, matches=_matches(found, k, k_promotion, rows))
        except ImportError as error:
            found = dataclasses.replace(found, note=f"not compared with the table: {error}")
    return found


def _probe_floats(box: Box, found: Probe, k_promotion: int) -> Probe:
    top = min(box.largest, 12 if found.output == "float16" else 100)
    # normal operands where they reach far enough: some hardware flushes subnormals
    floor = sum(box.normal) if top - sum(box.normal) > 36 else box.smallest
    tiny = max(floor, -24 if found.output == "float16" else -100, top - 60)
    if top - tiny < 14:  # a 16-bit accumulator loses no whole term, and one of 32 bits nothing
        return dataclasses.replace(found, at_least=top - tiny, note="the inputs' range is too narrow to lose a term")
    order = steps_of(box, np.arange(box.k), top, tiny, box.k)
    size = min(len(group) for group in order)
    if len(order) == 1:  # nothing was ever lost
        return dataclasses.replace(found, at_least=top - tiny, note="no loss seen in one step of K")
    if size == 1 and len(order[0]) == 2:  # two places are needed to cancel: the first two look like one step
        order = [(p,) for p in order[0]] + order[1:]
    flat = [position for group in order for position in group]
    first, last = order[0], order[-1]
    # within one step where it has three places; else across steps, where C carries the first term
    spots = (first[0], first[1], first[2]) if size >= 3 else (flat[0], flat[2 * size - 1], flat[2 * size - 2])
    if size == 1:
        spots = (flat[0], flat[2], flat[1])
    big_f, at_least, alignment = alignment_of(box, spots, top)
    enough = last if size >= 3 else tuple(flat[-4:])
    rounding, bits = rounding_of(box, enough, top) if size >= 3 else rounding_of_chain(box, flat, top)
    zero = None
    if big_f is not None and size >= 2:
        zero = zero_exponent_of(box, (last[0], last[1]), found.output, big_f, rounding)
    return dataclasses.replace(
        found,
        products=size,
        fraction_bits=big_f,
        at_least=at_least,
        alignment=alignment,
        zero_exponent=zero,
        rounding=rounding,
        result_bits=bits,
        order=tuple(order),
        promote_every=promotion_of(box, order, top, tiny, k_promotion),
    )


def _probe_integers(matmul: MatmulFunction, input: str, input_b: str, rows: int) -> Probe:
    """Integer accumulation: exact up to 2^31, then what?"""
    formats = [_element(name) for name in (input, input_b)]
    high = [int(f.max) for f in formats]
    k = (2**31 // (high[0] * high[1]) // 128 + 2) * 128
    reached = k <= 1 << 18  # 4-bit operands would need millions
    k = k if reached else 1024
    out = np.asarray(matmul(np.full((rows, k), high[0], np.int64), np.full((rows, k), high[1], np.int64)))
    if out.dtype.kind not in "iu":
        raise QsimError(f"matmul of integers must return integers: got {out.dtype.name}")
    total = high[0] * high[1] * k
    value = int(out[0, 0])
    kind = (
        "unseen"
        if not reached and value == total
        else {total: "exact", (total + 2**31) % 2**32 - 2**31: "wrap", 2**31 - 1: "clamp"}.get(value, "other")
    )
    return Probe(input_a=input, input_b=input_b, output=out.dtype.name, integer=kind)


def _candidates(found: Probe) -> list[Instruction]:
    """Rows with these inputs and this output."""
    output = {"float32": "f32", "float16": "f16", "float64": "f64"}.get(found.output, "s32")
    rows = [get_instruction(name) for name in list_instructions()]

    def formats(a: str, b: str) -> tuple[Any, ...]:
        return _element(a), _element(b), _block(a), _block(b), a == "f64"

    wanted = formats(found.input_a, found.input_b)
    return [row for row in rows if row.output == output and formats(row.input_a, row.input_b) == wanted]


@lru_cache(maxsize=256)
def _expected(ins: Instruction, k: int, k_promotion: int, rows: int) -> Probe:
    """What the probe says about our own model of a row."""
    from .floats import matmul_floats

    return probe(
        lambda a, b: matmul_floats(a, b, instruction=ins),
        input=ins.input_a,
        input_b=ins.input_b,
        k=k,
        k_promotion=k_promotion,
        rows=rows,
        match=False,
    )


def _parameters(ins: Instruction) -> Instruction:
    """The row without what does not change bits, so that equal models are probed once."""
    return dataclasses.replace(ins, name="row", status="", source="", shape="", opcode="", k=ins.k)


def _matches(found: Probe, k: int, k_promotion: int, rows: int) -> tuple[str, ...]:
    """Names of the rows whose model answers alike. A promotion is the library's doing and is left out of account."""

    def answers(p: Probe) -> Any:
        native = p.promote_every is None or p.promote_every > 64
        return dataclasses.replace(
            p, matches=(), note="", input_a="", input_b="", promote_every=None if native else p.promote_every
        )

    names = []
    for row in _candidates(found):
        if found.integer:
            clamps = found.integer == "clamp"
            names.append(row.name + (" .satfinite" if clamps else ""))
        elif answers(_expected(_parameters(row), k, k_promotion, rows)) == answers(found):
            names.append(row.name)
    return tuple(names)
