"""Promoted chains of a tile in one compiled loop: each chain starts at +0, its sum joins a float32 register."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsim._native.memory import aligned_empty

from .fast import Join, Packable, Plan, run_tile
from .fused import ADD, COLUMN_FIRST, PRODUCT, ROW_FIRST
from .presets import Promotion

JOINS: dict[Promotion, int] = {"add": ADD, "ffma": PRODUCT, "ffma_a_first": ROW_FIRST}
_EXCHANGED = {ADD: ADD, PRODUCT: PRODUCT, ROW_FIRST: COLUMN_FIRST}


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Float32 scales of a tile's rows and columns, one for each chain: (rows, chains) and (columns, chains).

    Without scales both are (0, 0).
    """

    rows: np.ndarray
    columns: np.ndarray

    @classmethod
    def none(cls) -> Factors:
        return cls(rows=np.empty((0, 0), np.float32), columns=np.empty((0, 0), np.float32))


def can_run(plan: Plan | None, tops_a: np.ndarray, tops_b: np.ndarray, k: int) -> bool:
    """Whether the loop gives the bits of chains over K = k: float32 sums of finite operands that cannot overflow."""
    if plan is None or plan.state != np.float32:
        return False
    return int(tops_a.max()) + int(tops_b.max()) <= plan.top_limit(k)


def run_promoted(
    plan: Plan,
    a: Packable,
    b: Packable,
    segments: list[np.ndarray],
    block: int,
    total: np.ndarray,
    how: int,
    factors: Factors,
) -> np.ndarray:
    """The registers of a tile after all chains.

    Arguments:
        plan: of the instruction; `can_run` must hold.
        a, b: codes (rows, K) and (columns, K), each with the exponents of its block scales.
        segments: the k of each chain in order, padded with -1 to whole steps; all but the last are equally long.
        block: elements that share a block scale.
        total: (rows, columns) float32 that the chains are added to.
        how: ADD, PRODUCT or ROW_FIRST.
        factors: the scales that a fused multiply-add takes.
    """
    rows, columns = total.shape
    # panels cost more to pack than rows: where both pad alike, the shorter operand becomes the panels
    if (columns * plan.padded(rows), rows) < (rows * plan.padded(columns), columns):
        turned = Factors(rows=factors.columns, columns=factors.rows)
        out = _promoted(plan.exchanged(), b, a, segments, block, total.T, _EXCHANGED[how], turned)
        return np.ascontiguousarray(out.T)
    return _promoted(plan, a, b, segments, block, total, how, factors)


def _promoted(
    plan: Plan,
    a: Packable,
    b: Packable,
    segments: list[np.ndarray],
    block: int,
    total: np.ndarray,
    how: int,
    factors: Factors,
) -> np.ndarray:
    rows, columns = total.shape
    longest = max(len(s) for s in segments)
    k_index = np.full((len(segments), longest), -1, np.int64)
    for number, segment in enumerate(segments):
        k_index[number, : len(segment)] = segment
    out = np.array(total, np.float32, order="C")
    state = aligned_empty((rows, plan.padded(columns)), plan.state)
    row, column = np.ascontiguousarray(factors.rows), np.ascontiguousarray(factors.columns)
    run_tile(plan, a, b, k_index, block, state, Join(how=how, registers=out, rows=row, columns=column))
    return out
