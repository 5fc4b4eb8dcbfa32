"""One tile of a whole GEMM: which chains run over which k, and how their results are added up. Tiles run on threads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from qsim._native.memory import aligned_empty
from qsim.formats import BlockFormat, FloatFormat

from . import decode, exact, fast, other, panels
from .model import CANONICAL_NAN, Instruction, get_instruction

TILE_ROWS, TILE_COLUMNS = 512, 512
"""Largest tile: with `fast.K_BLOCK` elements of K packed its work space is a few MB, whatever M, N and K are."""

SMALLEST_TILE = 1 << 23
"""Products of a tile that is still worth a thread's attention: half a millisecond."""

TRUNCATED = ("truncated", "scaled", "grouped")


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Block scales of one operand, (rows, K / block): exponents for `scaled`, (significand, exponent) for `grouped`."""

    exponents: np.ndarray  # int16 (rows, blocks), or (0, 0)
    pairs: np.ndarray  # int64 (rows, blocks, 2), or (0, 0, 0)

    @classmethod
    def none(cls) -> Scales:
        return cls(exponents=np.empty((0, 0), np.int16), pairs=np.empty((0, 0, 0), np.int64))

    @classmethod
    def of(cls, block: BlockFormat, codes: np.ndarray, grouped: bool) -> Scales:
        """Decode the scale codes. The sign bit of a UE4M3 scale is not read."""
        scale = block.scale
        table = decode.decoder(scale)
        codes = codes & np.uint8(0xFF & ~scale.sign_mask)
        significand, exponent = table.significand[codes], table.exponent[codes]
        if grouped:
            return cls(
                exponents=np.empty((0, 0), np.int16),
                pairs=np.stack([significand.astype(np.int64), exponent.astype(np.int64)], axis=-1),
            )
        # E8M0 has no significand: its one-bit significand is 1 with no fraction
        return cls(exponents=np.ascontiguousarray(exponent), pairs=np.empty((0, 0, 0), np.int64))

    def rows(self, part: slice) -> Scales:
        return Scales(exponents=self.exponents[part], pairs=self.pairs[part])


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Codes with what is known about their rows."""

    codes: np.ndarray
    scales: Scales
    tops: np.ndarray  # largest exponent per row, INF and more for special values

    def rows(self, part: slice) -> Operands:
        return Operands(codes=self.codes[part], scales=self.scales.rows(part), tops=self.tops[part])


@dataclass(frozen=True, kw_only=True)
class Chain:
    """What turns codes and C into D along one chain of k: the instruction made ready to run.

    `ins` is the instruction that does the work (FP16 `mma` for the emulated ones, which read FP8 codes all the same).
    """

    ins: Instruction
    allow_fast: bool = True
    block: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        if self.ins.block_a is not None:
            object.__setattr__(self, "block", self.ins.block_a.block_size)

    @cached_property
    def plan(self) -> fast.Plan | None:
        return fast.plan_for(self.ins, scaled=self.ins.arithmetic == "scaled") if self.allow_fast else None

    @cached_property
    def parameters(self) -> np.ndarray:
        return exact.parameters_of(self.ins)

    def operands(
        self, codes: np.ndarray, fmt: FloatFormat, block: BlockFormat | None, scale: np.ndarray | None
    ) -> Operands:
        """Look at an operand once: decode its scales and find its largest exponents."""
        scales = Scales.none()
        if block is not None:
            assert scale is not None
            scales = Scales.of(block, scale, self.ins.arithmetic == "grouped")
        table = decode.decoder(fmt)
        if self.plan is None:
            tops = np.zeros(len(codes), np.int64)
        elif block is None and table.rises:
            sizes = codes.dtype.type(decode.cleared_bits(fmt) & ~(fmt.sign_mask << fmt.padding_bits))
            tops = table.exponent[panels.row_peaks(codes, sizes)].astype(np.int64)
        else:
            tops = panels.row_tops(
                codes, table.significand, table.exponent, decode.cleared_bits(fmt), scales.exponents, self.block
            )
        return Operands(codes=codes, scales=scales, tops=tops)

    def run(self, a: Operands, b: Operands, c: np.ndarray, k_index: np.ndarray) -> np.ndarray:
        """D's bits for one tile; `c` (rows, columns) bits, `k_index` the order of k, padded with -1 to steps."""
        if self.ins.arithmetic not in TRUNCATED:
            return other.RUN[self.ins.arithmetic](self.ins, a.codes, b.codes, c, k_index)
        plan = self.plan
        limit, c_limit = -(10**6), -(10**6)
        if plan is None:
            out = np.empty_like(c)
        else:
            out = _run_fast(plan, a, b, c, k_index, self.block)
            limit, c_limit = plan.top_limit(len(k_index)), plan.c_limit
        assert isinstance(self.ins.format_a, FloatFormat)
        assert isinstance(self.ins.format_b, FloatFormat)
        table_a, table_b = decode.decoder(self.ins.format_a), decode.decoder(self.ins.format_b)
        exact.redo_tile(
            a.codes,
            b.codes,
            c,
            a.tops,
            b.tops,
            limit,
            c_limit,
            k_index,
            a.scales.exponents,
            b.scales.exponents,
            self.block,
            a.scales.pairs,
            b.scales.pairs,
            (table_a.significand, table_a.exponent, table_b.significand, table_b.exponent),
            decode.cleared_bits(self.ins.format_a),
            decode.cleared_bits(self.ins.format_b),
            self.parameters,
            out,
        )
        return out


def _run_fast(plan: fast.Plan, a: Operands, b: Operands, c: np.ndarray, k_index: np.ndarray, block: int) -> np.ndarray:
    rows, columns = c.shape
    # panels cost more to pack than rows: where both pad alike, the shorter operand becomes the panels
    if (columns * plan.padded(rows), rows) < (rows * plan.padded(columns), columns):
        return np.ascontiguousarray(_run_fast(plan.exchanged(), b, a, c.T, k_index, block).T)
    state = aligned_empty((rows, plan.padded(columns)), plan.state)
    state[:, columns:] = 0
    narrow = np.float32 if c.dtype == np.uint32 else np.float16
    state[:, :columns] = np.ascontiguousarray(c).view(narrow)
    fast.run_tile(plan, (a.codes, a.scales.exponents), (b.codes, b.scales.exponents), k_index[None], block, state)
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(state[:, :columns].astype(narrow, copy=False)).view(c.dtype)


def add_to_nearest(total: np.ndarray, part: np.ndarray) -> np.ndarray:
    """FADD (float32 bits) or HADD2 (f16 bits): one addition, to nearest even, canonical NaN."""
    with np.errstate(all="ignore"):
        if total.dtype == np.uint32:
            out = (total.view(np.float32) + part.view(np.float32)).view(np.uint32)
            return canonical(out)
        # the sum of two f16 is exact in float64
        wide = total.view(np.float16).astype(np.float64) + part.view(np.float16).astype(np.float64)
        return canonical(wide.astype(np.float16).view(np.uint16))


def canonical(bits: np.ndarray) -> np.ndarray:
    """Every NaN to the one that the hardware writes."""
    if bits.dtype == np.uint32:
        bits[(bits & 0x7FFFFFFF) > 0x7F800000] = CANONICAL_NAN["f32"]
    elif bits.dtype == np.uint16:
        bits[(bits & 0x7FFF) > 0x7C00] = CANONICAL_NAN["f16"]
    return bits


def worker_of(ins: Instruction) -> Instruction:
    """The instruction that computes: for an emulated one FP16 `mma` with FP8 operand formats, else itself."""
    if ins.arithmetic != "emulated":
        return ins
    worker = get_instruction(ins.emulated_by)
    return dataclasses.replace(
        worker, name=ins.name, input_a=ins.input_a, input_b=ins.input_b, k_order=(), status=ins.status
    )


def tiles(rows: int, columns: int, k: int, panel: int, threads: int) -> list[tuple[slice, slice]]:
    """Cut the output into tiles, a few for each thread, of at least SMALLEST_TILE products; columns on panels."""
    tall, wide = min(rows, TILE_ROWS), min(-(-columns // panel) * panel, max(TILE_COLUMNS // panel, 1) * panel)
    wanted = 4 * threads if threads > 1 else 1
    wanted = min(wanted, max(1, rows * columns * k // SMALLEST_TILE))
    while -(-rows // tall) * -(-columns // wide) < wanted:
        if wide > panel and wide >= tall:
            wide = max(panel, wide // 2 // panel * panel)
        elif tall > 32:
            tall = -(-tall // 2)
        else:
            break
    return [
        (slice(i, min(i + tall, rows)), slice(j, min(j + wide, columns)))
        for i in range(0, rows, tall)
        for j in range(0, columns, wide)
    ]
