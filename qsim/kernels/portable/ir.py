"""The portable inner loops. Nothing here names an instruction; the same formulations as plain loops are in `ladder`.

64 output rows are four vectors of 16 lanes. `words` are records, see `stored`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from qsim._native.vectors import (
    F32,
    I8,
    I16,
    I64,
    VF,
    VI,
    array,
    intrinsic,
    load,
    multiply_add,
    splat,
    splat_float,
    splat_int,
    store,
)

from ..features import has_wide_registers
from ..stored import Stored, fields, stored_of

_SUMS = 12  # registers that a narrow loop keeps for sums; the rest hold a weight, an activation and a mask

LANES = range(4)  # vectors of 16 rows in a tile


def passes(registers: int) -> tuple[range, ...]:
    """The four vectors of a tile in as many passes as their sums take registers, with what they meet.

    A vector of 16 lanes is one register of AVX-512 and two of AVX2, which has 16: a loop whose sums do not fit moves
    them to memory and back in every step, which made products of one token twice as slow.

    Arguments:
        registers: of 256 bits, that the sums of one vector take.
    """
    if has_wide_registers():
        return (LANES,)
    vectors = max(_SUMS // registers, 1)
    return tuple(LANES[first : first + vectors] for first in range(0, len(LANES), vectors))


@intrinsic
def columns_per_step(typingctx: Any, words: Any) -> Any:
    """Columns in one step of a kernel's loop over these words; a constant of the compiled code."""
    columns = stored_of(words).columns
    return types.int64(words), lambda context, builder, signature, args: I64(columns)


@intrinsic
def padded_columns(typingctx: Any, words: Any) -> Any:
    """Columns of a packed weight, padding included."""
    stored = stored_of(words)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, (_, rows, _) = array(context, builder, signature, args, 0)
        return builder.mul(builder.udiv(rows, I64(stored.words)), I64(stored.columns))

    return types.int64(words), codegen


@intrinsic
def centre(typingctx: Any, words: Any) -> Any:
    """2^(bits-1) for integers, 0 for floats; a constant, float32."""
    stored = stored_of(words)
    value = 0.0 if stored.is_float else float(1 << (stored.bits - 1))
    return types.float32(words), lambda context, builder, signature, args: F32(value)


@intrinsic
def value_factor(typingctx: Any, words: Any) -> Any:
    """What the fields of these words must be multiplied by, see `Stored.shift`; a constant, float32."""
    factor = 2.0 ** stored_of(words).shift
    return types.float32(words), lambda context, builder, signature, args: F32(factor)


def load_words(builder: Any, base: Any, byte: Any, stored: Stored, vectors: int = 4) -> list[list[Any]]:
    """For each vector of 16 rows the words of one step."""
    return [[load(builder, base, builder.add(byte, I64(256 * r + 64 * v)), VI) for r in range(stored.words)]
            for v in range(vectors)]  # fmt: skip


def float_step(builder: Any, base: Any, byte: Any, rows: Any, x_byte: Any, stored: Stored, acc: Any) -> None:
    """Fields times float32 activations, for as many vectors as there are sums; the parts of a sum take turns."""
    vectors = len(acc[0])
    loaded = load_words(builder, base, byte, stored, vectors)
    numbers = [fields(builder, words, stored, in_place=True) for words in loaded]
    for j in range(stored.columns):
        xj = [splat(builder, load(builder, row, builder.add(x_byte, I64(4 * j)), F32)) for row in rows]
        for v in range(vectors):
            q = numbers[v][j]()
            for m in range(len(rows)):
                total = acc[m][v][j % len(acc[m][v])]
                builder.store(multiply_add(builder, q, xj[m], builder.load(total)), total)


@intrinsic
def expand(typingctx: Any, words: Any, tile: Any, i: Any, scale: Any, zero: Any, group: Any, out: Any, row: Any) -> Any:
    """Rows row .. of out (R, 64) = (value - zero[group, lane]) * scale[group, lane] of step i of a tile.

    A float's value is its field times 2^shift. That product comes first and is exact: scale * 2^shift may be Inf.
    """
    stored, i64 = stored_of(words), types.int64

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base, (_, steps, _) = array(context, builder, signature, args, 0)
        whole = splat_float(2.0**stored.shift)
        scales, zeros, target = (array(context, builder, signature, args, a)[0] for a in (3, 4, 6))
        first = builder.mul(builder.mul(args[1], steps), I64(256))
        here = builder.add(first, builder.mul(args[2], I64(256 * stored.words)))
        g, corner = builder.mul(args[5], I64(256)), builder.mul(args[7], I64(256))
        for v, loaded in enumerate(load_words(builder, base, here, stored)):
            place = builder.add(g, I64(64 * v))
            by = load(builder, scales, place, VF)
            less = None if stored.is_float else load(builder, zeros, place, VF)
            for j, field in enumerate(fields(builder, loaded, stored)):
                value = builder.fmul(field(), whole) if less is None else builder.fsub(field(), less)
                store(builder, builder.fmul(value, by), target, builder.add(corner, I64(256 * j + 64 * v)))
        return context.get_dummy_value()

    return types.void(words, i64, i64, scale, zero, i64, out, i64), codegen


def _product(tokens: int) -> Any:
    """An intrinsic product(w, depth, x, m0, k0, acc): acc[m0 + m] += sum over k < depth of w[k] * x[m0 + m, k0 + k].

    w (depth, 64) expanded weights that stay in L2, x (M, K), acc (M, 64), all float32.
    """

    @intrinsic
    def product(typingctx: Any, w: Any, depth: Any, x: Any, m0: Any, k0: Any, acc: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, _ = array(context, builder, signature, args, 0)
            source, (_, columns) = array(context, builder, signature, args, 2)
            out, _ = array(context, builder, signature, args, 5)
            rows = [builder.add(args[3], I64(m)) for m in range(tokens)]
            x_rows = [
                builder.gep(source, [builder.mul(builder.add(builder.mul(row, columns), args[4]), I64(4))])
                for row in rows
            ]
            for pass_ in passes(2 * tokens):
                places = [[builder.add(builder.mul(row, I64(256)), I64(64 * v)) for v in pass_] for row in rows]
                sums = [[cgutils.alloca_once_value(builder, load(builder, out, place, VF)) for place in at]
                        for at in places]  # fmt: skip
                with cgutils.for_range(builder, args[1]) as loop:
                    here, x_here = builder.mul(loop.index, I64(256)), builder.mul(loop.index, I64(4))
                    wk = [load(builder, weights, builder.add(here, I64(64 * v)), VF) for v in pass_]
                    for row, totals in zip(x_rows, sums, strict=True):
                        xk = splat(builder, load(builder, row, x_here, F32))
                        for value, total in zip(wk, totals, strict=True):
                            builder.store(multiply_add(builder, value, xk, builder.load(total)), total)
                for at, totals in zip(places, sums, strict=True):
                    for place, total in zip(at, totals, strict=True):
                        store(builder, builder.load(total), out, place)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(w, i64, x, i64, i64, acc), codegen

    return product


@intrinsic
def finish_row(
    typingctx: Any, total: Any, m: Any, scale: Any, shift: Any, xsum: Any, by: Any, bias: Any, out: Any, row: Any,
    column: Any,
) -> Any:  # fmt: skip
    """out[row, column + lane] = value * by + bias[column + lane] over 64 lanes, each operation rounded.

    value is total[m, lane] if that is float32; if int32, (total - shift[0, lane] * xsum) * scale[0, lane] with an exact
    difference.
    """
    i64, exact = types.int64, total.dtype == types.int32

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums, scales, shifts, biases = (array(context, builder, signature, args, a)[0] for a in (0, 2, 3, 6))
        target, (_, n) = array(context, builder, signature, args, 7)
        added, factor = splat(builder, args[4]), splat(builder, args[5])
        corner = builder.mul(builder.add(builder.mul(args[8], n), args[9]), I64(4))
        for v in LANES:
            place = builder.add(builder.mul(args[1], I64(256)), I64(64 * v))
            value = load(builder, sums, place, VI if exact else VF)
            if exact:
                less = builder.mul(builder.fptosi(load(builder, shifts, I64(64 * v), VF), VI), added)
                value = builder.sitofp(builder.sub(value, less), VF)
                value = builder.fmul(value, load(builder, scales, I64(64 * v), VF))
            more = load(builder, biases, builder.add(builder.mul(args[9], I64(4)), I64(64 * v)), VF)
            value = builder.fadd(builder.fmul(value, factor), more)
            store(builder, value, target, builder.add(corner, I64(64 * v)))
        return context.get_dummy_value()

    return types.void(total, i64, scale, shift, types.int32, types.float32, bias, out, i64, i64), codegen


@intrinsic
def half_scales(typingctx: Any, scales: Any, at_element: Any, out: Any, g: Any) -> Any:
    """out[g] = the 64 binary16 scales (uint16 bits) at an element of `scales`, as float32.

    Exponent and mantissa move up 13 bits and are re-biased by a multiplication, which handles subnormals too. The
    sign is extended before: bits 28 to 30, above the exponent, are its copies and are cleared.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (array(context, builder, signature, args, i)[0] for i in (0, 2))
        for v in LANES:
            byte = builder.mul(builder.add(args[1], I64(16 * v)), I64(2))
            bits = load(builder, source, byte, ir.VectorType(I16, 16), align=2)
            word = builder.and_(builder.shl(builder.sext(bits, VI), splat_int(13)), splat_int(0x8FFFFFFF))
            value = builder.fmul(builder.bitcast(word, VF), splat_float(2.0**112))
            store(builder, value, target, builder.add(builder.mul(args[3], I64(256)), I64(64 * v)))
        return context.get_dummy_value()

    return types.void(scales, types.int64, out, types.int64), codegen


@intrinsic
def nibble_zeros(typingctx: Any, zeros: Any, at_byte: Any, out: Any, g: Any) -> Any:
    """out[g] = the 64 packed 4-bit zero points at a byte: lane i in a low half, lane i + 32 in the high half."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (array(context, builder, signature, args, i)[0] for i in (0, 2))
        for v in range(2):
            packed = load(builder, source, builder.add(args[1], I64(16 * v)), ir.VectorType(I8, 16), align=1)
            word = builder.zext(packed, VI)
            for half, value in enumerate((builder.and_(word, splat_int(15)), builder.lshr(word, splat_int(4)))):
                byte = builder.add(builder.mul(args[3], I64(256)), I64(64 * v + 128 * half))
                store(builder, builder.sitofp(value, VF), target, byte)
        return context.get_dummy_value()

    return types.void(zeros, types.int64, out, types.int64), codegen


product_4, product_6 = (_product(tokens) for tokens in (4, 6))
