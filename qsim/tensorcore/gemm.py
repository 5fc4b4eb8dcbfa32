"""Matrix instructions and whole GEMMs, codes in, bits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numba
import numpy as np

from qsim._native.threads import for_each
from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.formats import FloatFormat, IntFormat, encode, get_format

from . import check
from .engine import Chain, Operands, Scales, add_to_nearest, canonical, tiles, worker_of
from .fused import join_chain
from .model import Instruction, get_instruction
from .order import instruction_chains, orders_of, segments_of, slices_of, unit_of
from .presets import Preset, Promotion, get_preset
from .promoted import JOINS, Factors, can_run, run_promoted

ScaleOrder: TypeAlias = Literal["product_first", "a_first", "b_first"]

_SMALL = 1 << 17
"""Multiply-adds of one matrix of a batch below which packing costs more than it saves; both ways give the same bits."""


def mma(
    instruction: str | Instruction,
    a: Any,
    b: Any,
    c: Any,
    *,
    scale_a: Any = None,
    scale_b: Any = None,
    satfinite: bool = False,
) -> np.ndarray:
    """D = A B^T + C by one matrix instruction, or by a chain of them when K is longer: bits in, bits out.

    Arguments:
        instruction: a name of the table (`hopper.wgmma.f32.e4m3`) or an `Instruction`.
        a: (..., M, K) codes: uint8 or uint16; float32 and TF32 as uint32 words (of TF32 the low 13 bits are not read);
            s8 and s4 as int8, u8 and u4 as uint8; f64 as uint64 words. FP6 and FP4 one code per byte.
        b: (..., N, K) codes. K is any multiple of the instruction's step; leading dimensions are batches and broadcast.
        c: (..., M, N) accumulators: f32 bits as uint32, f16 as uint16, s32 as int32, f64 as uint64.
        scale_a, scale_b: (..., M or N, K / block) scale codes (uint8) of block-scaled operands.
        satfinite: clamp s32 sums instead of wrapping.

    Returns:
        The type and shape of `c`. NaN results are the hardware's only NaN (0x7FFFFFFF, 0x7FFF); zeros are +0.

    Raises:
        ValueError, TypeError: an instruction that does not exist, codes of the wrong dtype, shapes that do not chain.

    Source: MMA-Sim, arXiv:2511.10909; Khattak & Mikaitis, arXiv:2512.07004; recordings on an H200.
    """
    ins = get_instruction(instruction).with_satfinite(satfinite)
    x, y = check.operands(a, b, ins, batched=True)
    k = x.shape[-1]
    step = ins.k if ins.arithmetic == "emulated" else ins.products
    if k == 0 or k % step:
        raise QsimError(f"K must be a multiple of the step of {ins.name}, {step}: got K={k}")
    try:
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except ValueError:
        raise QsimError(f"leading dimensions of a and b do not broadcast: got {x.shape} and {y.shape}") from None
    m, n = x.shape[-2], y.shape[-2]
    addend = check.accumulator(c, ins, (*batch, m, n))
    sa = check.block_scale(scale_a, "scale_a", ins.block_a, x.shape[:-1], k)
    sb = check.block_scale(scale_b, "scale_b", ins.block_b, y.shape[:-1], k)
    count = int(np.prod(batch, dtype=np.int64))
    x, y = (np.broadcast_to(v, (*batch, *v.shape[-2:])).reshape(count, *v.shape[-2:]) for v in (x, y))
    flat_c = addend.reshape(count, m, n)
    scales = [
        None if s is None else np.broadcast_to(s, (*batch, *s.shape[-2:])).reshape(count, *s.shape[-2:])
        for s in (sa, sb)
    ]
    out = np.empty_like(flat_c)
    chain = Chain(ins=worker_of(ins), allow_fast=m * n * k >= _SMALL)
    for i in range(count):
        left = _prepare(chain, ins, np.ascontiguousarray(x[i]), "a", None if scales[0] is None else scales[0][i])
        right = _prepare(chain, ins, np.ascontiguousarray(y[i]), "b", None if scales[1] is None else scales[1][i])
        total = flat_c[i]
        for part in instruction_chains(ins, np.arange(k)):
            if ins.arithmetic == "emulated":
                total = add_to_nearest(chain.run(left, right, np.zeros_like(total), part), total)
            else:
                total = chain.run(left, right, total, part)
        out[i] = total
    return out.reshape(addend.shape)


def _prepare(chain: Chain, ins: Instruction, codes: np.ndarray, which: str, scale: np.ndarray | None) -> Operands:
    fmt = ins.format_a if which == "a" else ins.format_b
    block = ins.block_a if which == "a" else ins.block_b
    if isinstance(fmt, IntFormat) or ins.input_a == "f64":
        return Operands(codes=codes, scales=Scales.none(), tops=np.zeros(len(codes), np.int64))
    return chain.operands(codes, fmt, block, scale)


def matmul(
    a: Any,
    b: Any,
    *,
    instruction: str | Instruction | None = None,
    preset: str | Preset | None = None,
    promote_every: int | None = None,
    promotion: Promotion | None = None,
    split_k: int | Sequence[int] = 1,
    k_order: Any = None,
    c: Any = None,
    scale_a: Any = None,
    scale_b: Any = None,
    scale_order: ScaleOrder | None = None,
    out_format: str | None = None,
    satfinite: bool = False,
    threads: int | None = None,
) -> np.ndarray:
    """A whole GEMM, y = a b^T, in the order in which a library's kernel runs the instructions.

    Arguments:
        a, b: (M, K) and (N, K) codes as for `mma`; any M, N, K. A ragged K is padded with zeros, which changes no bit.
        instruction: the matrix instruction; may be left to the preset.
        preset: `cublaslt_fp8_fast`, `cublaslt_fp8_precise`, `cublaslt_bf16`, `cublaslt_fp16`, `deepgemm`,
            `cutlass_fp8`; other arguments win over it. Without one it is a single chain.
        promote_every: K of each fresh chain, a multiple of the step; its float32 result is added to a register.
        promotion: "add" (plain addition), "ffma" (fma(scale_a * scale_b, chain, register)) or "ffma_a_first"
            (fma(chain * scale_a, scale_b, register)); each operation to nearest even.
        split_k: number of slices of K that run apart and are added forward in float32, or their lengths. Slices are
            equal in units of 128 bytes of A's type, as all 443 splits of BF16, FP16 and FP8 that cuBLASLt was seen to
            take on an H200 (hwmodels/measurements/gemm_split.csv). Libraries choose the number by shape; no rule was
            found that says it (reports/fused_splits.md).
        k_order: a permutation that is applied to every stretch of its length in K; ascending by default.
        c: (M, N) accumulators that the (first) chain starts from, or that promotion adds to; +0 by default.
        scale_a, scale_b: with block-scaled instructions the scale codes; with a preset that has blocks (`deepgemm`)
            float32 scales (M, K / 128) and (N / 128, K / 128), rounded up; else float32 scalars, or one per row.
        scale_order: how scalar or per-row scales meet the result r in float32: r * (sa * sb) "product_first",
            (r * sa) * sb "a_first", (r * sb) * sa "b_first". Default: as cuBLASLt does it on an H200 (PyTorch 2.11,
            reports/tensorcore_h200.txt), product first for two scalars, b first for scales of rows.
        out_format: format of the result, rounded once to nearest even from the accumulator; by default its bits.
        satfinite: clamp s32 sums after each instruction.
        threads: at most so many; `numba.get_num_threads()` by default. The result does not depend on it.

    Returns:
        (M, N) bits of the accumulator type (uint32 for f32, uint16 for f16, int32 for s32, uint64 for f64), or codes of
        `out_format`.

    Raises:
        ValueError, TypeError: unknown instruction or preset, codes of the wrong dtype, shapes that do not chain.

    Source: cuBLASLt's rules are established on an H200 (PyTorch 2.11, kernels without split-K).
    """
    p = get_preset(preset) if preset is not None else None
    if instruction is None and p is None:
        raise QsimError("matmul needs an instruction or a preset")
    ins = get_instruction(instruction if instruction is not None else p.instruction if p else "")
    ins = ins.with_satfinite(satfinite)
    x, y = check.operands(a, b, ins, batched=False)
    m, n, k = len(x), len(y), x.shape[1]
    every = promote_every if promote_every is not None else p.promote_every if p else None
    how: Promotion = promotion or (p.promotion if p else "add")
    slices = slices_of(k, split_k, ins)
    schedule = [segments_of(ins, order, every) for order in orders_of(k, k_order, slices)]
    scales = _Scaling(ins, p, every, how, scale_a, scale_b, scale_order, m, n, k)
    start = None if c is None else check.accumulator(c, ins, (m, n))
    _check_promotion(ins, every, how, len(schedule), scales)
    chain = Chain(ins=worker_of(ins))
    left = _prepare(chain, ins, x, "a", scales.block_a)
    right = _prepare(chain, ins, y, "b", scales.block_b)
    out = np.empty((m, n), _out_dtype(ins, out_format))

    def work(rows: slice, columns: slice) -> None:
        first = np.zeros((rows.stop - rows.start, columns.stop - columns.start), ins.output_dtype)
        if start is not None:
            first[:] = start[rows, columns]
        tile_a, tile_b = left.rows(rows), right.rows(columns)
        total = _tile(chain, ins, tile_a, tile_b, schedule[0], first, every, how, scales, rows, columns)
        for segments in schedule[1:]:
            part = _tile(chain, ins, tile_a, tile_b, segments, np.zeros_like(first), every, how, scales, rows, columns)
            total = add_to_nearest(total, part)
        out[rows, columns] = _finish(scales.apply(total, rows, columns), ins, out_format)

    if m and n:
        panel = chain.plan.columns if ins.arithmetic != "integer" and chain.plan is not None else 64
        count = numba.get_num_threads() if threads is None else threads
        parts = tiles(m, n, k, panel, count)
        for_each(len(parts), lambda i: work(*parts[i]), threads=count)
    return out


def _tile(
    chain: Chain,
    ins: Instruction,
    a: Operands,
    b: Operands,
    segments: list[np.ndarray],
    total: np.ndarray,
    every: int | None,
    how: Promotion,
    scales: _Scaling,
    rows: slice,
    columns: slice,
) -> np.ndarray:
    """One slice of K for one tile: chains, promoted or not."""
    if every is None and ins.arithmetic != "emulated":
        return chain.run(a, b, total, segments[0])
    if total.dtype == np.uint32 and can_run(chain.plan, a.tops, b.tops, max(map(len, segments))):
        assert chain.plan is not None
        left, right = (a.codes, a.scales.exponents), (b.codes, b.scales.exponents)
        factors = scales.factors(rows, columns) if how != "add" else Factors.none()
        registers = total.view(np.float32)
        out = run_promoted(chain.plan, left, right, segments, chain.block, registers, JOINS[how], factors)
        return canonical(out.view(np.uint32))
    for number, k_index in enumerate(segments):  # Inf, NaN and sums that may overflow
        part = chain.run(a, b, np.zeros_like(total), k_index)
        if how != "add":
            total = scales.promote(total, part, number, rows, columns)
        else:
            total = add_to_nearest(total, part)
    return total


def _check_promotion(ins: Instruction, every: int | None, how: str, slices: int, scales: _Scaling) -> None:
    if how not in JOINS:
        raise QsimError(f"promotion must be 'add', 'ffma' or 'ffma_a_first': got {how!r}")
    if slices > 1 and ins.output not in ("f32", "f16"):
        raise QsimError(f"split_k adds float partial sums; {ins.name} has {ins.output} accumulators")
    if every is None:
        if how != "add":
            raise QsimError(f"promotion={how!r} needs promote_every")
        return
    if ins.output not in ("f32", "f16") or ins.arithmetic == "emulated":
        raise QsimError(f"promote_every applies to chains of native f32 or f16 instructions: got {ins.name}")
    if every < 1 or every % unit_of(ins):
        raise QsimError(f"promote_every must be a multiple of the step of {ins.name}, {unit_of(ins)}: got {every}")
    if how != "add" and (ins.output != "f32" or slices > 1):
        raise QsimError(f"promotion={how!r} needs f32 accumulators and split_k=1")


class _Scaling:
    """Everything about scales of one call: block-scale codes, scales of promoted blocks, or scales of the result."""

    def __init__(
        self,
        ins: Instruction,
        preset: Preset | None,
        every: int | None,
        how: Promotion,
        scale_a: Any,
        scale_b: Any,
        order: ScaleOrder | None,
        m: int,
        n: int,
        k: int,
    ) -> None:
        self.block_a: np.ndarray | None = None
        self.block_b: np.ndarray | None = None
        self.row: np.ndarray | None = None
        self.column: np.ndarray | None = None
        if order is None:
            order = "product_first" if np.size(scale_a) == 1 and np.size(scale_b) == 1 else "b_first"
        self.order = order
        if order not in ("product_first", "a_first", "b_first"):
            raise QsimError(f"scale_order must be 'product_first', 'a_first' or 'b_first': got {order!r}")
        if ins.block_a is not None:
            assert ins.block_b is not None
            if k % ins.products:
                raise QsimError(f"K of a block-scaled GEMM must be a multiple of {ins.products}: got K={k}")
            self.block_a = check.block_scale(scale_a, "scale_a", ins.block_a, (m,), k)
            self.block_b = check.block_scale(scale_b, "scale_b", ins.block_b, (n,), k)
            return
        self.how: Promotion = how
        self.promoted = how != "add"
        if self.promoted:
            rows_a, rows_b, _ = preset.block if preset and preset.block else (1, 128, every)
            blocks = -(-k // every) if every else 1
            self.row = _block_scales(scale_a, "scale_a", m, rows_a, blocks)
            self.column = _block_scales(scale_b, "scale_b", n, rows_b, blocks)
        elif scale_a is not None or scale_b is not None:
            if ins.output != "f32":
                raise QsimError(f"scale_a and scale_b multiply float32 results: {ins.name} has {ins.output}")
            self.row = _result_scale(scale_a, "scale_a", m)
            self.column = _result_scale(scale_b, "scale_b", n)

    def factors(self, rows: slice, columns: slice) -> Factors:
        """The scales of a tile's chains."""
        assert self.row is not None
        assert self.column is not None
        return Factors(rows=self.row[rows], columns=self.column[columns])

    def promote(self, total: np.ndarray, part: np.ndarray, number: int, rows: slice, columns: slice) -> np.ndarray:
        """The registers after chain `number`, one multiplication and one fused multiply-add each."""
        factors = self.factors(rows, columns)
        row, column = np.ascontiguousarray(factors.rows), np.ascontiguousarray(factors.columns)
        out = total.copy()
        join_chain(part.view(np.float32), out.view(np.float32), JOINS[self.how], number, row, column)
        return canonical(out)

    def apply(self, total: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Scalar or per-row scales on the finished float32 tile."""
        if self.block_a is not None or self.row is None or self.promoted:
            return total
        assert self.column is not None
        x, sa, sb = total.view(np.float32), self.row[rows][:, None], self.column[columns][None, :]
        with np.errstate(all="ignore"):
            if self.order == "product_first":
                scaled = x * (sa * sb)
            else:
                scaled = (x * sa) * sb if self.order == "a_first" else (x * sb) * sa
        return canonical(scaled.view(np.uint32))


def _result_scale(scale: Any, name: str, rows: int) -> np.ndarray:
    values = real_array(1.0 if scale is None else scale, name, integers=True, dtype=np.float32)
    if values.size not in (1, rows):
        raise QsimError(f"{name} must be a scalar or one float32 per row ({rows}): got shape {values.shape}")
    return np.broadcast_to(values.reshape(-1), (rows,))


def _block_scales(scale: Any, name: str, rows: int, block: int, blocks: int) -> np.ndarray:
    """float32 scales of promoted blocks, one row for every row of the operand."""
    shape = (-(-rows // block), blocks)
    values = real_array(np.ones(shape) if scale is None else scale, name, integers=True, dtype=np.float32)
    if values.shape != shape:
        raise QsimError(f"{name} must have shape {shape}, one float32 per {block} rows and chain: got {values.shape}")
    return np.repeat(values, block, axis=0)[:rows]


def _out_dtype(ins: Instruction, out_format: str | None) -> np.dtype:
    if out_format is None:
        return ins.output_dtype
    fmt = get_format({"f32": "float32", "f16": "float16"}.get(out_format, out_format))
    if not isinstance(fmt, FloatFormat) or ins.output not in ("f32", "f16"):
        raise QsimError(
            f"out_format converts f32 and f16 accumulators to a float format: got {out_format!r} for {ins.name}"
        )
    return fmt.code_dtype


def _finish(bits: np.ndarray, ins: Instruction, out_format: str | None) -> np.ndarray:
    """Round the accumulator once, to nearest even, to the output format; overflow goes to Inf where it exists."""
    if out_format is None:
        return bits
    fmt = get_format({"f32": "float32", "f16": "float16"}.get(out_format, out_format))
    values = bits.view(np.float32 if ins.output == "f32" else np.float16).astype(np.float32)
    return encode(values, fmt, overflow="nonsaturating")
