"""Chains of truncated sums for a tile of outputs: the plan of an instruction, and the loop over chains and panels.

All of it is exact for finite operands whose sums stay below 2^128. `exact.redo_tile` then replaces the outputs of rows
and columns that hold Inf or NaN, or whose exponents are so large that a sum could overflow.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba
import numpy as np

from qsim._native.memory import aligned_empty
from qsim.formats import FloatFormat

from .decode import INF, cleared_bits, decoder
from .fused import join_chain
from .model import Instruction
from .panels import pack_a, pack_b
from .simd import PANEL_VECTORS, TAIL_VECTORS, VECTOR_BITS, run_panel

K_BLOCK = 128
"""Elements of K packed at a time, rounded to steps: a panel of B and a tile's rows of A fit the L2 together."""

ZERO_MARK = {8: -64, 16: -16384}
"""Exponent of a zero operand: two of them, or one and any real exponent, stay below every real sum."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the fast kernel runs one instruction: lane types, tables, and the numbers the inner loop needs."""

    products: int
    lane: np.dtype  # float32 or float64
    exponent: np.dtype  # int8 or int16
    state: np.dtype  # float32, or float64 holding f16 values
    values_a: np.ndarray
    values_b: np.ndarray
    exponents_a: np.ndarray
    exponents_b: np.ndarray
    keep_a: int
    keep_b: int
    floor: int
    fraction_bits: int
    mask: int
    c_smallest: float
    may_overflow: bool  # a float32 accumulator: exponents of operands and C decide
    c_limit: int  # largest exponent of C

    def top_limit(self, k: int) -> int:
        """Largest sum of operand exponents for which K products, and C, stay below 2^127."""
        return 123 - max(k - 1, 1).bit_length() if self.may_overflow else INF // 2

    @property
    def lanes(self) -> int:
        """Columns in one vector."""
        return VECTOR_BITS // 8 // self.lane.itemsize

    @property
    def columns(self) -> int:
        """Columns of B in a whole panel."""
        return self.lanes * PANEL_VECTORS

    def panels(self, columns: int) -> list[tuple[int, int]]:
        """(first column, vectors) of the panels that cover `columns`; the last one may be narrow."""
        found = [(first, PANEL_VECTORS) for first in range(0, columns, self.columns)]
        if 0 < columns - found[-1][0] <= self.lanes * TAIL_VECTORS:
            found[-1] = found[-1][0], TAIL_VECTORS
        return found

    def padded(self, columns: int) -> int:
        """`columns` rounded up to panels."""
        first, vectors = self.panels(columns)[-1]
        return first + vectors * self.lanes

    def exchanged(self) -> Plan:
        """The plan with A and B in each other's place: products commute, so D is only transposed."""
        return dataclasses.replace(
            self,
            values_a=self.values_b,
            values_b=self.values_a,
            exponents_a=self.exponents_b,
            exponents_b=self.exponents_a,
            keep_a=self.keep_b,
            keep_b=self.keep_a,
        )

    @property
    def k_block(self) -> int:
        """Elements of K packed at a time."""
        return max(K_BLOCK // self.products, 1) * self.products


Packable: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Codes (rows, K) and exponents of block scales (rows, blocks), or (0, 0) without."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Packed operands of one tile: flat arrays that start on a cache line, so that no vector load crosses one."""

    a_value: np.ndarray
    a_exponent: np.ndarray
    b_value: np.ndarray
    b_exponent: np.ndarray

    @classmethod
    def of(cls, plan: Plan, rows: int, k: int) -> Workspace:
        k = min(plan.k_block, k)
        return cls(
            a_value=aligned_empty((rows * k,), plan.lane),
            a_exponent=aligned_empty((rows * k,), plan.exponent),
            b_value=aligned_empty((k * 2 * plan.columns,), plan.lane),
            b_exponent=aligned_empty((k * plan.columns,), plan.exponent),
        )


def plan_for(ins: Instruction, *, scaled: bool = False) -> Plan | None:
    """The plan for a truncated instruction, or None when only `exact` can do it.

    The fast kernel needs a sum that fits the accumulators (F + log2 L below 51 bits), e0 at or below the accumulator's
    exponents (all real ones are), and rounding toward zero in float32 or to nearest in f16.
    """
    if ins.arithmetic not in ("truncated", "scaled"):
        return None
    assert isinstance(ins.format_a, FloatFormat)
    assert isinstance(ins.format_b, FloatFormat)
    rounding, fmt = ins.sum_rounding, ins.output_format
    if rounding.to_nearest != (ins.output == "f16") or (ins.output == "f16" and rounding.fraction_bits != 10):
        return None
    zero = -500 if ins.zero_exponent is None else ins.zero_exponent
    sum_bits = ins.fraction_bits + 2 + int(ins.products).bit_length()
    if zero > fmt.min_exponent or sum_bits > 51:
        return None
    formats = (ins.format_a, ins.format_b)
    small = all(-20 <= f.min_exponent and f.emax <= 20 for f in formats) and not scaled
    single = small and sum_bits <= 22 and ins.output == "f32"
    lane = np.dtype(np.float32 if single else np.float64)
    exponent = np.dtype(np.int8 if small else np.int16)
    # with narrow operands every product is above 2^-126, where e0 cannot be seen and int8 reaches
    floor = max(zero, -126) if small else zero
    a, b = (_tables(f, lane, exponent) for f in formats)
    return Plan(
        products=ins.products,
        lane=lane,
        exponent=exponent,
        state=np.dtype(np.float32 if ins.output == "f32" else np.float64),
        values_a=a[0],
        values_b=b[0],
        exponents_a=a[1],
        exponents_b=b[1],
        keep_a=cleared_bits(formats[0]),
        keep_b=cleared_bits(formats[1]),
        floor=floor,
        fraction_bits=ins.fraction_bits,
        mask=0xFFFFFFFF & ~((1 << (23 - min(rounding.fraction_bits, 23))) - 1),
        c_smallest=2.0**fmt.min_exponent,
        may_overflow=ins.output == "f32",
        c_limit=15 if ins.output == "f16" else 90 if single else 124,
    )


def _tables(fmt: FloatFormat, lane: np.dtype, exponent: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    d = decoder(fmt)
    if fmt.storage_bits == 32:
        return d.value.astype(np.float64), d.exponent.astype(exponent)
    mark = ZERO_MARK[exponent.itemsize * 8]
    if fmt.name == "bfloat16":
        return np.empty((0, 0), lane), np.empty((0, 0), exponent)  # its codes are the upper halves of float32 words
    finite = d.exponent < INF
    zero = (d.significand == 0) | ~finite
    return d.value.astype(lane), np.where(zero, mark, d.exponent).astype(exponent)


@dataclass(frozen=True, kw_only=True)
class Join:
    """Where the sums of chains go: float32 registers (rows, columns), and the scales as `fused.join_chain` has them."""

    how: int
    registers: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


_NONE = -1  # one chain that goes on from the state


@numba.njit(cache=True, nogil=True)
def _run_chains(
    a: Any,
    b: Any,
    k_index: np.ndarray,
    block: Any,
    tables: Any,
    shape: Any,
    vectors: tuple[int, ...],
    rounding: Any,
    work: Any,
    state: np.ndarray,
    registers: np.ndarray,
    how: Any,
    scale_rows: np.ndarray,
    scale_columns: np.ndarray,
) -> None:
    """The chains of a tile for its panels of one width; one loop, because Python between short calls costs as much."""
    values_a, values_b, exponents_a, exponents_b, keep_a, keep_b, mark = tables
    k_block, columns, products, begin, panels = shape
    floor, fraction_bits, mask, c_smallest = rounding
    a_value, a_exponent, b_value, b_exponent = work
    end = begin + columns * panels
    for number in range(k_index.shape[0]):
        if how != _NONE:
            state[:, begin:end] = 0
        for k0 in range(0, k_index.shape[1], k_block):
            part = k_index[number, k0 : k0 + k_block]
            pack_a(a[0], a[1], part, block, values_a, exponents_a, keep_a, mark, a_value, a_exponent)
            for first in range(begin, end, columns):
                pack_b(b[0], b[1], first, part, block, values_b, exponents_b, keep_b, mark, columns, b_value,
                        b_exponent)  # fmt: skip
                run_panel(a_value, a_exponent, b_value, b_exponent, state, first, columns, vectors, len(part),
                          products, floor, fraction_bits, mask, c_smallest)  # fmt: skip
        if how != _NONE:
            last = min(end, registers.shape[1])
            join_chain(state[:, begin:last], registers[:, begin:last], how, number, scale_rows,
                       scale_columns[begin:last])  # fmt: skip


def run_tile(
    plan: Plan,
    a: Packable,
    b: Packable,
    k_index: np.ndarray,
    block: int,
    state: np.ndarray,
    join: Join | None = None,
) -> None:
    """state <- a b^T + state for one tile; or, with `join`, the sums of chains from +0 go to its registers.

    Arguments:
        a, b: (rows, K) and (cols, K) codes, each with the exponents of its block scales.
        k_index: (chains, K) the k of each chain in order, a multiple of L long; -1 is a zero. One chain without `join`.
        block: elements that share a block scale.
        state: (rows, cols rounded up to panels) accumulators, see `simd.run_panel`.
    """
    if join is None:
        empty = np.empty((0, 0), np.float32)
        join = Join(how=_NONE, registers=empty, rows=empty, columns=empty)
    work = Workspace.of(plan, len(state), k_index.shape[1])
    tables = (plan.values_a, plan.values_b, plan.exponents_a, plan.exponents_b, plan.keep_a, plan.keep_b,
              ZERO_MARK[plan.exponent.itemsize * 8])  # fmt: skip
    found = plan.panels(len(b[0]))
    for vectors in sorted({v for _, v in found}, reverse=True):
        these = [first for first, v in found if v == vectors]
        _run_chains(
            a,
            b,
            k_index,
            block,
            tables,
            (plan.k_block, vectors * plan.lanes, plan.products, these[0], len(these)),
            (0,) * vectors,
            (plan.floor, plan.fraction_bits, plan.mask, plan.c_smallest),
            (work.a_value, work.a_exponent, work.b_value, work.b_exponent),
            state,
            join.registers,
            join.how,
            join.rows,
            join.columns,
        )
