"""What does this matrix multiply compute? Parameters of a black box, from its outputs alone.

The tests are those of Fasi, Higham, Mikaitis and Pranesh (2021) and of Khattak and Mikaitis (arXiv:2512.07004), for
GEMMs without an addend: one row of A and one row of B hold a few powers of two and zeros, and the result says which of
them took part. The module needs NumPy only; Numba is loaded when the result is compared with the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat

from .model import Instruction, _block, _element, get_instruction, list_instructions

MatmulFunction: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(M, K) and (N, K) float32 values (int64 for integer inputs) to (M, N): float32, float16 or an integer type."""

Product: TypeAlias = tuple[float, int]
"""A product sign and significand (1, -1, 1.5, ...) and its exponent: significand * 2^exponent."""


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


class _Box:
    """Runs tests on the black box: each test is a set of products at positions of k, its result one number."""

    def __init__(self, function: MatmulFunction, a: FloatFormat, b: FloatFormat, k: int, rows: int) -> None:
        self.function, self.formats, self.k, self.rows = function, (a, b), k, rows
        self.low = [f.min_exponent - f.mantissa_bits * f.has_subnormals for f in (a, b)]
        self.high = [f.emax for f in (a, b)]
        self.normal = [f.min_exponent for f in (a, b)]

    @property
    def largest(self) -> int:
        """Exponent of the largest product of two powers of two."""
        return sum(self.high)

    @property
    def smallest(self) -> int:
        return sum(self.low)

    def factors(self, product: Product) -> tuple[float, float]:
        """a and b with a * b = product, their exponents as near as the formats allow; a has the significand."""
        significand, exponent = product
        low_a = self.low[0] if abs(significand) in (0.0, 1.0) else self.normal[0]
        least, most = max(low_a, exponent - self.high[1]), min(self.high[0], exponent - self.low[1])
        ea = min(max(exponent // 2, least), most)
        eb = exponent - ea
        if least > most:
            raise QsimError(f"no product {significand} * 2^{exponent} in these formats")
        return float(np.ldexp(significand, ea)), float(np.ldexp(1.0, eb))

    def run(self, tests: Sequence[Mapping[int, Product]], k: int | None = None) -> np.ndarray:
        """Results of the tests as float64: test t is row t of A times row t of B."""
        k = self.k if k is None else k
        out = np.empty(len(tests))
        for start in range(0, len(tests), self.rows):
            part = tests[start : start + self.rows]
            a, b = np.zeros((self.rows, k), np.float32), np.zeros((self.rows, k), np.float32)
            for t, test in enumerate(part):
                for position, product in test.items():
                    a[t, position], b[t, position] = self.factors(product)
            out[start : start + len(part)] = np.diag(np.asarray(self.function(a, b), np.float64))[: len(part)]
        return out


def _survivors(box: _Box, pairs: list[tuple[int, int]], big: int, tiny: int, k: int, others: np.ndarray) -> np.ndarray:
    """For each pair of k holding +2^big and -2^big: how many of `others` are added after the pair has cancelled."""
    tests = []
    for i, j in pairs:
        test: dict[int, Product] = {int(t): (1.0, tiny) for t in others if t not in (i, j)}
        test[i], test[j] = (1.0, big), (-1.0, big)
        tests.append(test)
    return np.rint(np.ldexp(box.run(tests, k), -tiny)).astype(np.int64)


def _steps(box: _Box, positions: np.ndarray, big: int, tiny: int, k: int) -> list[tuple[int, ...]]:
    """Groups of `positions` in the order in which they are added, one group per step.

    Big terms at i and j and a tiny term everywhere: those of steps after the later of i and j survive, the others are
    shifted out. With i in the first step the count says how many come after j. (Where F is too large for the format and
    only the accumulator loses the tiny terms, those of j's own step survive as well: the groups are the same.)
    """
    first = int(positions[0])
    while True:
        rest = [int(p) for p in positions if p != first]
        counts = _survivors(box, [(first, j) for j in rest], big, tiny, k, positions)
        early = [first] + [j for j, n in zip(rest, counts, strict=True) if n == counts.max()]
        if len(early) == len(positions):  # nothing is ever lost
            return [tuple(early)]
        pairs = [(i, j) for n, i in enumerate(early) for j in early[n + 1 :]]
        among = _survivors(box, pairs, big, tiny, k, positions)
        if len(among) == 0 or among.max() <= counts.max():
            break
        first = pairs[int(among.argmax())][0]  # a pair that cancels still earlier: start again from there
    after = {j: int(n) for j, n in zip(rest, counts, strict=True)}
    after[first] = int(counts.max())
    return [
        tuple(sorted(p for p, n in after.items() if n == level)) for level in sorted(set(after.values()), reverse=True)
    ]


def _largest_true(flags: np.ndarray) -> int:
    """Index of the last of the leading true flags, -1 when the first is false."""
    return int(np.argmin(np.append(flags, False))) - 1


def _alignment(box: _Box, spots: tuple[int, int, int], big: int) -> tuple[int | None, int, str]:
    """(F or None, largest exact distance, what happens below) from 2^big - 2^big + 2^(big - n) at three places of k."""
    i, j, t = spots
    reach = big - box.smallest
    results = box.run([{i: (1.0, big), j: (-1.0, big), t: (1.0, big - n)} for n in range(reach + 1)])
    exact = results == np.ldexp(1.0, big - np.arange(reach + 1))
    last = _largest_true(exact)
    if last == reach or last < 0:
        return None, max(last, 0), "unseen"
    kind = "unseen"
    try:
        # 1.5 units of either sign: cut to 1, to -2 by a floor, to +-2 by rounding
        up, down = np.ldexp(
            box.run([{i: (1.0, big), j: (-1.0, big), t: (s, big - last)} for s in (1.5, -1.5)]), last - big
        )
        kind = {(1.0, -1.0): "truncate", (1.0, -2.0): "floor", (2.0, -2.0): "nearest"}.get((up, down), "other")
    except ValueError:
        pass
    return last, last, kind


def _rounding(box: _Box, spots: tuple[int, ...], top: int) -> tuple[str, int | None]:
    """How the sum of one step is rounded: a sum of 2^q equal terms, and the half units below its last bit."""
    q = max(min(len(spots) - 2, 8).bit_length() - 1, 0)
    heads, (s, t) = spots[: 1 << q], spots[1 << q : (1 << q) + 2]
    big = top - q
    base: dict[int, Product] = dict.fromkeys(heads, (1.0, big))
    reach = big - box.smallest
    results = box.run([{**base, s: (1.0, big - n)} for n in range(1, reach + 1)])
    n_max = _largest_true(results != np.ldexp(1.0, big + q)) + 1
    if n_max < 1 or n_max + 1 > reach:
        return "unseen", None
    bits = n_max + q
    tests: list[dict[int, Product]] = []
    for sign in (1.0, -1.0):
        head: dict[int, Product] = dict.fromkeys(heads, (sign, big))
        tests.append({**head, s: (sign, big - n_max), t: (sign, big - n_max - 1)})  # tie above an odd last bit
        tests.append({**head, t: (sign, big - n_max - 1)})  # tie above an even one
    odd, even, odd_negative, even_negative = np.abs(np.ldexp(box.run(tests), n_max - big)) - (1 << (q + n_max))
    found = (odd > 1, even > 0, odd_negative > 1, even_negative > 0)
    return {
        (False, False, False, False): "toward_zero",
        (True, False, True, False): "nearest_even",
        (True, True, True, True): "nearest_away",
        (False, False, True, True): "down",
        (True, True, False, False): "up",
    }.get(found, "other"), bits


def _zero_exponent(box: _Box, spots: tuple[int, int], output: str, big_f: int, rounding: str) -> int | None:
    """e0 from tiny products beside zeros, F bits below e0 they vanish; seen through the result's smallest unit."""
    unit = -149 if output == "float32" else -24
    s, t = spots
    # toward zero: unit - x is 0 when x takes part; to nearest: unit/2 + x is a unit when x does
    nearest = rounding.startswith("nearest")
    base, sign, alone = (unit - 1, 1.0, 0.0) if nearest else (unit, -1.0, float(np.ldexp(1.0, unit)))
    if base < sum(box.normal) or base > box.largest:
        return None
    distances = np.arange(1, base - box.smallest + 1)
    if not len(distances):
        return None
    results = box.run([{s: (1.0, base), t: (sign, int(base - n))} for n in distances])
    last = _largest_true(results != alone) + 1
    if last < 1 or last == len(distances):
        return None
    exponent = big_f + base - last
    return exponent if exponent > base else None


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
    box = _Box(matmul, a, b, k, rows)
    found = _probe_floats(box, Probe(input_a=input, input_b=input_b, output=trial.dtype.name), k_promotion)
    if match:
        try:
            found = dataclasses.replace(found, matches=_matches(found, k, k_promotion, rows))
        except ImportError as error:
            found = dataclasses.replace(found, note=f"not compared with the table: {error}")
    return found


def _probe_floats(box: _Box, found: Probe, k_promotion: int) -> Probe:
    top = min(box.largest, 12 if found.output == "float16" else 100)
    # normal operands where they reach far enough: some hardware flushes subnormals
    floor = sum(box.normal) if top - sum(box.normal) > 36 else box.smallest
    tiny = max(floor, -24 if found.output == "float16" else -100, top - 60)
    if top - tiny < 14:  # a 16-bit accumulator loses no whole term, and one of 32 bits nothing
        return dataclasses.replace(found, at_least=top - tiny, note="the inputs' range is too narrow to lose a term")
    order = _steps(box, np.arange(box.k), top, tiny, box.k)
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
    big_f, at_least, alignment = _alignment(box, spots, top)
    enough = last if size >= 3 else tuple(flat[-4:])
    rounding, bits = _rounding(box, enough, top) if size >= 3 else _rounding_of_chain(box, flat, top)
    zero = None
    if big_f is not None and size >= 2:
        zero = _zero_exponent(box, (last[0], last[1]), found.output, big_f, rounding)
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
        promote_every=_promotion(box, order, top, tiny, k_promotion),
    )


def _rounding_of_chain(box: _Box, flat: list[int], top: int) -> tuple[str, int | None]:
    """Rounding when steps are too small for the ties: 2^top, then a tiny term in the next step."""
    head, s = flat[0], flat[-1]
    reach = top - box.smallest
    kept = box.run([{head: (1.0, top), s: (1.0, top - n)} for n in range(1, min(reach, 60) + 1)])
    n_max = _largest_true(kept != np.ldexp(1.0, top)) + 1
    if n_max < 1 or top - n_max - 1 < sum(box.normal):
        return "unseen", None
    up, down = np.abs(
        box.run([{head: (sign, top), s: (1.5 * sign, top - n_max - 1)} for sign in (1.0, -1.0)])
    ) > np.ldexp(1.0, top)
    return {(True, True): "nearest_even", (False, False): "toward_zero", (False, True): "down"}.get(
        (bool(up), bool(down)), "other"
    ), n_max


def _promotion(box: _Box, order: list[tuple[int, ...]], top: int, tiny: int, k: int) -> int | None:
    """K of a fresh chain: a big term in the first chain cannot be cancelled inside a later one.

    +2^top at the very first k and -2^top at j: every tiny term of j's own chain is lost, the ones after it survive. So
    the first k whose own chain ends later than the first one shows where chains begin.
    """
    small = min(len(group) for group in order)
    lengths = [len(group) for group in order]
    if lengths[-1] > small:  # already inside the first K: groups of several steps
        return max(lengths)
    if k <= box.k:
        return None
    start = order[0][0]
    edges = np.arange(0, k, small)
    positions = np.arange(k)
    counts = _survivors(box, [(start, int(j)) for j in edges[1:]], top, tiny, k, positions)
    runs = np.diff(np.flatnonzero(np.append(np.append(True, np.diff(counts) != 0), True)))
    return int(runs.max() * small) if len(runs) and runs.max() > 1 else None


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
