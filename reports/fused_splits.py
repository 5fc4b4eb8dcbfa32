"""Does a rule say into how many parts cuBLASLt splits K? Rules found on 2000 recorded calls, tried on 500 others.

    python reports/fused_splits.py          # prints reports/fused_splits.md

hwmodels/measurements/gemm_split.csv holds the calls; those with held_out = 1 were recorded afterwards, at shapes drawn
at random, and no rule here has seen them.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _machine import describe

TABLE = Path(__file__).parents[1] / "hwmodels" / "measurements" / "gemm_split.csv"
FORMATS = ("bf16", "fp16", "tf32", "fp8", "fp8_row")
MULTIPROCESSORS = 132
Rule = Callable[[np.ndarray], np.ndarray]  # (calls, 3) of N, K, M to parts


def calls(fmt: str, held_out: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, K, M) of the recorded calls of a format, and their parts."""
    with TABLE.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["fmt"] == fmt and r["held_out"] == held_out and r["parts"]]
    shapes = np.array([[float(r[key]) for key in "NKM"] for r in rows])
    return shapes, np.array([float(r["parts"]) for r in rows])


def never(shapes: np.ndarray, parts: np.ndarray) -> tuple[str, Rule]:
    return "never split", lambda x: np.ones(len(x))


def nearest(shapes: np.ndarray, parts: np.ndarray) -> tuple[str, Rule]:
    """The recorded call whose N, K and M are nearest as ratios."""
    known = np.log2(shapes)

    def rule(x: np.ndarray) -> np.ndarray:
        away = ((np.log2(x)[:, None] - known[None]) ** 2).sum(-1)
        return parts[away.argmin(1)]

    return "as the nearest recorded call", rule


def waves(shapes: np.ndarray, parts: np.ndarray) -> tuple[str, Rule]:
    """As many parts as fill the multiprocessors with tiles, each of some K at least; tile and K fitted."""

    def rule(x: np.ndarray, n: int, m: int, fill: float, least: int) -> np.ndarray:
        tiles = np.ceil(x[:, 0] / n) * np.ceil(x[:, 2] / m)
        return np.maximum(1, np.minimum(np.floor(fill * MULTIPROCESSORS / tiles), np.floor(x[:, 1] / least)))

    grid = itertools.product(
        (64, 128, 256), (8, 16, 32, 64, 128, 256), (0.5, 0.75, 1, 1.25, 1.5, 2), (512, 1024, 2048, 4096)
    )
    best = max(grid, key=lambda g: float((rule(shapes, *g) == parts).mean()))
    n, m, fill, least = best
    return f"tiles of {n} x {m} that fill {fill:g} of {MULTIPROCESSORS}, K of {least} at least", lambda x: rule(
        x, *best
    )


def main() -> None:
    print("# How many parts of K does cuBLASLt take?\n")
    for line in describe("numpy"):
        print(f"* {line}")
    print(
        "\n`matmul(..., split_k=parts)` gives the bits of a split GEMM; the lengths of the parts follow from their\n"
        "number (tests/tensorcore/test_splits.py), which the library chooses. Rules were fitted on the calls\n"
        "that were recorded first, and tried on those recorded afterwards.\n"
    )
    print("| format | rule | first calls | hit | held-out calls | hit |")
    print("|---|---|---|---|---|---|")
    held = []
    for fmt in FORMATS:
        (shapes, parts), (later, wanted) = calls(fmt, "0"), calls(fmt, "1")
        for make in (never, nearest, waves):
            name, rule = make(shapes, parts)
            first, last = ((rule(x) == p).mean() for x, p in ((shapes, parts), (later, wanted)))
            print(f"| {fmt} | {name} | {len(parts)} | {100 * first:.1f} % | {len(wanted)} | {100 * last:.1f} % |")
            if first == last == 1:
                held.append(fmt)
    print(
        f"\nA rule without a miss: {', '.join(dict.fromkeys(held)) or 'none'}. For the other formats none of these\n"
        "holds, so that `split_k` stays an argument, and what is known is the table of recorded calls,\n"
        "`hwmodels/measurements/gemm_split.csv`. INT8 sums are exact: a split changes nothing."
    )


if __name__ == "__main__":
    main()
