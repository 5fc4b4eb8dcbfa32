"""What single products through a black box tell: the order of its sums, where they are cut, how they are rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat

MatmulFunction: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(M, K) and (N, K) float32 values (int64 for integer inputs) to (M, N): float32, float16 or an integer type."""

Product: TypeAlias = tuple[float, int]
"""A product sign and significand (1, -1, 1.5, ...) and its exponent: significand * 2^exponent."""


class Box:
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


def _survivors(box: Box, pairs: list[tuple[int, int]], big: int, tiny: int, k: int, others: np.ndarray) -> np.ndarray:
    """For each pair of k holding +2^big and -2^big: how many of `others` are added after the pair has cancelled."""
    tests = []
    for i, j in pairs:
        test: dict[int, Product] = {int(t): (1.0, tiny) for t in others if t not in (i, j)}
        test[i], test[j] = (1.0, big), (-1.0, big)
        tests.append(test)
    return np.rint(np.ldexp(box.run(tests, k), -tiny)).astype(np.int64)


def steps_of(box: Box, positions: np.ndarray, big: int, tiny: int, k: int) -> list[tuple[int, ...]]:
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


def alignment_of(box: Box, spots: tuple[int, int, int], big: int) -> tuple[int | None, int, str]:
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


def rounding_of(box: Box, spots: tuple[int, ...], top: int) -> tuple[str, int | None]:
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


def zero_exponent_of(box: Box, spots: tuple[int, int], output: str, big_f: int, rounding: str) -> int | None:
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


def rounding_of_chain(box: Box, flat: list[int], top: int) -> tuple[str, int | None]:
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


def promotion_of(box: Box, order: list[tuple[int, ...]], top: int, tiny: int, k: int) -> int | None:
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
