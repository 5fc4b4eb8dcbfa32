"""Chains of truncated sums for a tile of outputs: packing, and the loop over rows and panels around `simd.chain_steps`.

All of it is exact for finite operands whose sums stay below 2^128. `exact.redo_tile` then replaces the outputs of rows
and columns that hold Inf or NaN, or whose exponents are so large that a sum could overflow.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

import numba
import numpy as np
from numba.extending import overload

from qsim.formats import FloatFormat

from .exact import INF, cleared_bits, decoder
from .model import Instruction
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
            a_value=aligned(rows * k, plan.lane),
            a_exponent=aligned(rows * k, plan.exponent),
            b_value=aligned(k * 2 * plan.columns, plan.lane),
            b_exponent=aligned(k * plan.columns, plan.exponent),
        )


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """An empty array that starts on a cache line."""
    raw = np.empty(size * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * dtype.itemsize].view(dtype)


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
    finite = d.exponent < INF
    zero = (d.significand == 0) | ~finite
    return d.value.astype(lane), np.where(zero, mark, d.exponent).astype(exponent)


def _value(code: Any, keep: Any, table: Any) -> Any:
    """The value of a code, 0 for Inf and NaN. `table`: values, or for 32-bit words powers of two by exponent field."""
    raise NotImplementedError("compiled code only")


def _exponent(code: Any, keep: Any, table: Any, mark: Any) -> Any:
    """The exponent of a code, `mark` for zeros, Inf and NaN."""
    raise NotImplementedError("compiled code only")


@overload(_value)
def _value_overload(code: Any, keep: Any, table: Any) -> Any:
    def short(code: Any, keep: Any, table: Any) -> Any:
        return table[code & keep]

    def words(code: Any, keep: Any, table: Any) -> Any:
        word = np.int64(code) & np.int64(keep)
        field = (word >> 23) & 255
        significand: Any = (word & 0x7FFFFF) + (0x800000 if field else 0)
        if field == 255:
            significand = 0
        value = np.float64(significand) * table[field]
        return -value if word >> 31 else value

    return words if code.bitwidth == 32 else short


@overload(_exponent)
def _exponent_overload(code: Any, keep: Any, table: Any, mark: Any) -> Any:
    def short(code: Any, keep: Any, table: Any, mark: Any) -> Any:
        return table[code & keep]

    def words(code: Any, keep: Any, table: Any, mark: Any) -> Any:
        word = np.int64(code) & np.int64(keep)
        field = (word >> 23) & 255
        return mark if field == 255 or word & 0x7FFFFFFF == 0 else table[field]

    return words if code.bitwidth == 32 else short


@numba.njit(cache=True, nogil=True)
def row_tops(
    codes: np.ndarray, significands: np.ndarray, exponents: np.ndarray, keep: Any, scale: np.ndarray, block: Any
) -> np.ndarray:
    """Largest exponent of every row, int64; INF or more when the row holds an Inf or NaN."""
    rows, k = codes.shape
    tops = np.empty(rows, np.int64)
    for i in range(rows):
        top: Any = np.int64(-1000)
        for kk in range(k):
            code = np.int64(codes[i, kk]) & np.int64(keep)
            if codes.itemsize < 4:
                e: Any = exponents[code]
            else:
                field = (code >> 23) & 255
                e = exponents[field] if field < 255 else INF
            if scale.shape[0]:
                e += scale[i, kk // block]
            top = max(top, np.int64(e))
        tops[i] = top
    return tops


@numba.njit(cache=True, nogil=True)
def _pack_a(
    codes: np.ndarray,
    scale: np.ndarray,
    k_index: np.ndarray,
    block: Any,
    values: np.ndarray,
    exponents: np.ndarray,
    keep: Any,
    mark: Any,
    value_out: np.ndarray,
    exponent_out: np.ndarray,
) -> None:
    """Rows of A in the order of k_index: (rows, K) flat."""
    at = 0
    plain = scale.shape[0] == 0 and _is_ascending(k_index)
    for i in range(codes.shape[0]):
        if plain:  # the usual case, without branches, so that it is vectorised
            row = codes[i, k_index[0] : k_index[0] + len(k_index)]
            for n in range(len(row)):
                value_out[at + n] = _value(row[n], keep, values)
            for n in range(len(row)):
                exponent_out[at + n] = _exponent(row[n], keep, exponents, mark)
            at += len(row)
            continue
        for n in range(len(k_index)):
            k = k_index[n]
            if k < 0:
                value_out[at] = 0
                exponent_out[at] = mark
            else:
                code = codes[i, k]
                value_out[at] = _value(code, keep, values)
                exponent_out[at] = _exponent(code, keep, exponents, mark)
                if scale.shape[0]:
                    _apply_scale(value_out, exponent_out, at, scale[i, k // block], mark)
            at += 1


@numba.njit(cache=True, nogil=True)
def _is_ascending(k_index: np.ndarray) -> Any:
    """Whether k_index is k, k + 1, k + 2, ... without padding."""
    for n in range(len(k_index)):
        if k_index[n] != k_index[0] + n:
            return False
    return k_index[0] >= 0


@numba.njit(cache=True, nogil=True)
def _apply_scale(value: np.ndarray, exponent: np.ndarray, at: Any, scale: Any, mark: Any) -> None:
    if exponent[at] != mark and scale < INF:
        value[at] *= 2.0**scale
        exponent[at] += scale


@numba.njit(cache=True, nogil=True)
def _pack_b(
    codes: np.ndarray,
    scale: np.ndarray,
    first: Any,
    k_index: np.ndarray,
    block: Any,
    values: np.ndarray,
    exponents: np.ndarray,
    keep: Any,
    mark: Any,
    columns: Any,
    value_out: np.ndarray,
    exponent_out: np.ndarray,
) -> None:
    """A panel of B, `columns` rows of codes from `first`: (K, 2, columns) positive and negative parts, flat."""
    here = min(columns, codes.shape[0] - first)
    plain = scale.shape[0] == 0 and here == columns and _is_ascending(k_index)
    turned = np.empty((len(k_index), columns), codes.dtype)
    if plain:  # columns of the panel first: rows of B are often a power of two apart, and would evict one another
        for j in range(columns):
            codes_j = codes[first + j, k_index[0] : k_index[0] + len(k_index)]
            for n in range(len(codes_j)):
                turned[n, j] = codes_j[n]
    for n in range(len(k_index)):
        k = k_index[n]
        row = n * 2 * columns
        if plain:  # the usual case, without branches, so that it is vectorised
            column = turned[n]
            for j in range(columns):
                value = _value(column[j], keep, values)
                value_out[row + j] = max(value, value - value)
                value_out[row + columns + j] = min(value, value - value)
            for j in range(columns):
                exponent_out[n * columns + j] = _exponent(column[j], keep, exponents, mark)
            continue
        for j in range(columns):
            if k < 0 or j >= here:
                value_out[row + j] = 0
                value_out[row + columns + j] = 0
                # columns beyond B have an ordinary exponent, so that nobody takes care of their zeros
                exponent_out[n * columns + j] = mark if j < here else 0
                continue
            code = codes[first + j, k]
            value = _value(code, keep, values)
            at = n * columns + j
            exponent_out[at] = _exponent(code, keep, exponents, mark)
            value_out[row + j] = value
            if scale.shape[0]:
                # through the place of the positive part, which is written again below
                _apply_scale_b(value_out, row + j, exponent_out, at, scale[first + j, k // block], mark)
                value = value_out[row + j]
            value_out[row + j] = max(value, value - value)
            value_out[row + columns + j] = min(value, value - value)


@numba.njit(cache=True, nogil=True)
def _apply_scale_b(value: np.ndarray, at_value: Any, exponent: np.ndarray, at: Any, scale: Any, mark: Any) -> None:
    if exponent[at] != mark and scale < INF:
        value[at_value] *= 2.0**scale
        exponent[at] += scale


def run_tile(
    plan: Plan, a: Packable, b: Packable, k_index: np.ndarray, block: int, state: np.ndarray, work: Workspace
) -> None:
    """state <- a b^T + state for one tile, one chain of steps over `k_index` (a multiple of L long).

    Arguments:
        a, b: (rows, K) and (cols, K) codes, each with the exponents of its block scales.
        k_index: the k to take in order; -1 is a zero.
        state: (rows, cols rounded up to panels) accumulators, see `simd.run_panel`.
    """
    mark, panels = ZERO_MARK[plan.exponent.itemsize * 8], plan.panels(len(b[0]))
    k_block = plan.k_block
    for k0 in range(0, len(k_index), k_block):
        part = k_index[k0 : k0 + k_block]
        _pack_a(*a, part, block, plan.values_a, plan.exponents_a, plan.keep_a, mark, work.a_value, work.a_exponent)
        for first, vectors in panels:
            columns = vectors * plan.lanes
            _pack_b(
                *b,
                first,
                part,
                block,
                plan.values_b,
                plan.exponents_b,
                plan.keep_b,
                mark,
                columns,
                work.b_value,
                work.b_exponent,
            )
            run_panel(
                work.a_value,
                work.a_exponent,
                work.b_value,
                work.b_exponent,
                state,
                first,
                columns,
                (0,) * vectors,
                len(part),
                plan.products,
                plan.floor,
                plan.fraction_bits,
                plan.mask,
                plan.c_smallest,
            )
