"""`vpdpbusd` and `vdpbf16ps` as Numba intrinsics. Importing this is harmless; compiling a caller needs the features.

`vpdpbusd` multiplies four unsigned by four signed bytes in each of 16 lanes and adds the sum to an int32: stored codes
are unsigned, activations signed, so it fits without conversion. `vdpbf16ps` multiplies two BF16 by two and adds them to
a float32; it takes subnormal numbers as zero.

Two uses. A stream (`stream.ir`) decodes words in registers for up to four tokens; its activations are
in the order in which shifts and masks leave the codes, see `stream.prepare`. A `product` is for many tokens: a slice of
columns of a tile is first expanded, in natural order, into

    b       (D, 64) words, four bytes or two BF16 of one row each: what the packed words of 8-bit integers are already
            (4, D*16) for AMX, whose tiles are 16 rows
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from qsim._native.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    VF,
    VI,
    array,
    call,
    intrinsic,
    load,
    multiply_add,
    splat,
    splat_int,
    store,
)

from ..portable.ir import LANES, load_words
from ..stored import Stored, fields, integers, stored_of

_V8, _V16 = ir.VectorType(I8, 64), ir.VectorType(I16, 32)


class _BFloat(ir.Type):
    """LLVM's `bfloat`, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


_VBF = ir.VectorType(_BFloat(), 32)


def dot_bytes(builder: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    """acc + sums of four products of bytes."""
    operand = _V8 if llvm.llvm_version_info[0] >= 21 else VI  # the operands' type changed with LLVM 21
    pair = [builder.bitcast(unsigned, operand), builder.bitcast(signed, operand)]
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", VI, [acc, *pair])


def dot_bf16(builder: Any, acc: Any, a: Any, b: Any) -> Any:
    """acc + sums of two products of BF16."""
    pair = [builder.bitcast(a, _VBF), builder.bitcast(b, _VBF)]
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", VF, [acc, *pair])


# --- streams ------------------------------------------------------------------------------------------------


def bytes_step(builder: Any, base: Any, byte: Any, rows: Any, x_byte: Any, stored: Stored, acc: Any) -> None:
    """Integers of 4 or 8 bits times int8; of 4 bits the columns 0, 2, 4, 6, then 1, 3, 5, 7."""
    halves = 1 if stored.bits == 8 else 2
    words = [w[0] for w in load_words(builder, base, byte, stored)]
    for half in range(halves):
        xw = [splat(builder, load(builder, row, builder.add(x_byte, I64(4 * half)), I32)) for row in rows]
        for v in LANES:
            codes = words[v]
            if halves == 2:
                codes = builder.lshr(codes, splat_int(4)) if half else codes
                codes = builder.and_(codes, splat_int(0x0F0F0F0F))
            for m in range(len(rows)):
                total = acc[m][v][half % len(acc[m][v])]
                builder.store(dot_bytes(builder, builder.load(total), codes, xw[m]), total)


def bf16_table(stored: Stored) -> list[int]:
    """BF16 bits of the 16 codes of a 4-bit format, twice over: bit 4 of an index is of no account."""
    values = [float(code) for code in range(16)]
    if stored.is_float:
        one = 1 << stored.mantissa
        for code in range(16):
            e, m = (code & 7) >> stored.mantissa, code & (one - 1)
            magnitude = (m + one if e else m) * 2.0 ** (max(e, 1) - stored.bias - stored.mantissa)
            values[code] = -magnitude if code & 8 else magnitude
    return [int(b) >> 16 for b in np.array(values, np.float32).view(np.uint32)] * 2


def bf16_step(builder: Any, base: Any, byte: Any, rows: Any, x_byte: Any, stored: Stored, acc: Any) -> None:
    """4-bit codes, looked up, times BF16: columns j and j + 4 are field j of a word's two halves of 16 bits."""
    table = ir.Constant(_V16, bf16_table(stored))
    words = [builder.bitcast(w[0], _V16) for w in load_words(builder, base, byte, stored)]
    for j in range(4):
        xw = [splat(builder, load(builder, row, builder.add(x_byte, I64(4 * j)), I32)) for row in rows]
        for v in LANES:
            index = builder.lshr(words[v], ir.Constant(_V16, [4 * j] * 32)) if j else words[v]
            pair = call(builder, "llvm.x86.avx512.permvar.hi.512", _V16, [table, index])
            for m in range(len(rows)):
                total = acc[m][v][j % len(acc[m][v])]
                builder.store(dot_bf16(builder, builder.load(total), pair, xw[m]), total)


# --- expansion ----------------------------------------------------------------------------------------------


def _place(builder: Any, out: Any, first: Any, v: int, for_amx: bool) -> tuple[Any, int]:
    """Byte of vector v of word `first` of b, and the bytes from there to the same vector of the next word."""
    _, width = out
    if for_amx:
        rows = builder.mul(builder.mul(width, I64(4)), I64(v))
        return builder.add(builder.mul(first, I64(64)), rows), 64
    return builder.add(builder.mul(first, I64(256)), I64(64 * v)), 256


def _expand_bytes(for_amx: bool) -> Any:
    """An intrinsic expand(words, tile, i, b, k): step i of a tile as words of four bytes, from column k of b on.

    Codes as they are; for AMX less 2^(bits-1) and signed.
    """

    @intrinsic
    def expand(typingctx: Any, words: Any, tile: Any, i: Any, b: Any, k: Any) -> Any:
        i64, stored = types.int64, stored_of(words)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, shape = array(context, builder, signature, args, 3)
            first = builder.udiv(args[4], I64(4))
            centre = ir.Constant(_V8, [1 << (stored.bits - 1)] * 64)
            for v, loaded in enumerate(load_step(context, builder, signature, args, stored)):
                place, stride = _place(builder, shape, first, v, for_amx)
                for quad, codes in enumerate(_quads(builder, loaded, stored)):
                    if for_amx:
                        codes = builder.bitcast(builder.sub(builder.bitcast(codes, _V8), centre), VI)
                    store(builder, codes, out, builder.add(place, I64(stride * quad)))
            return context.get_dummy_value()

        return types.void(words, i64, i64, b, i64), codegen

    return expand


def load_step(context: Any, builder: Any, signature: Any, args: Any, stored: Stored) -> list[list[Any]]:
    """The words of step args[2] of tile args[1] of args[0]."""
    base, (_, steps, _) = array(context, builder, signature, args, 0)
    first = builder.mul(builder.mul(args[1], steps), I64(256))
    return load_words(builder, base, builder.add(first, builder.mul(args[2], I64(256 * stored.words))), stored)


def _quads(builder: Any, words: list[Any], stored: Stored) -> list[Any]:
    """Vectors of four consecutive columns, a byte each."""
    if stored.bits == 8:
        return words
    if stored.bits == 4:
        out = []
        for half in (builder.and_(words[0], splat_int(0xFFFF)), builder.lshr(words[0], splat_int(16))):
            spread = builder.or_(half, builder.shl(half, splat_int(8)))
            spread = builder.and_(spread, splat_int(0x00FF00FF))
            spread = builder.or_(spread, builder.shl(spread, splat_int(4)))
            out.append(builder.and_(spread, splat_int(0x0F0F0F0F)))
        return out
    codes = integers(builder, words, stored)
    out = []
    for j in range(0, len(codes), 4):
        word = codes[j]()
        for byte in range(1, 4):
            word = builder.or_(word, builder.shl(codes[j + byte](), splat_int(8 * byte)))
        out.append(word)
    return out


def _expand_bf16(for_amx: bool) -> Any:
    """An intrinsic expand(words, tile, i, scale, zero, g, b, k): step i of a tile from column k of b on, as BF16.

    Values are (code - zero[g, lane]) * scale[g, lane]. The caller sees to it that these are BF16 numbers: they are cut,
    not rounded.
    """

    @intrinsic
    def expand(typingctx: Any, words: Any, tile: Any, i: Any, scale: Any, zero: Any, g: Any, b: Any, k: Any) -> Any:
        i64, stored = types.int64, stored_of(words)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            scales, zeros = (array(context, builder, signature, args, a)[0] for a in (3, 4))
            out, shape = array(context, builder, signature, args, 6)
            first = builder.udiv(args[7], I64(2))
            for v, loaded in enumerate(load_step(context, builder, signature, args, stored)):
                lanes = builder.add(builder.mul(args[5], I64(256)), I64(64 * v))
                by = load(builder, scales, lanes, VF)
                less = None if stored.is_float else load(builder, zeros, lanes, VF)
                place, stride = _place(builder, shape, first, v, for_amx)
                numbers = fields(builder, loaded, stored)
                for pair in range(len(numbers) // 2):
                    halves = []
                    for number in numbers[2 * pair : 2 * pair + 2]:
                        value = number() if less is None else builder.fsub(number(), less)
                        halves.append(builder.bitcast(builder.fmul(value, by), VI))
                    low = builder.lshr(halves[0], splat_int(16))
                    word = builder.or_(low, builder.and_(halves[1], splat_int(0xFFFF0000)))
                    store(builder, word, out, builder.add(place, I64(stride * pair)))
            return context.get_dummy_value()

        return types.void(words, i64, i64, scale, zero, i64, b, i64), codegen

    return expand


# --- products -----------------------------------------------------------------------------------------------


def _product(dot: Any, sums: Any, tokens: int, grouped: bool) -> Any:
    """An intrinsic product(b, steps, x, m0, w0, scale, zero, g, xsum, c, xgroup, total).

    sum[m, lane] over the first `steps` words of b times words w0 .. w0 + steps - 1 of token m0 + m. x (M, W) lies slice
    by slice: these words of all tokens are one piece of memory. When `grouped`

        total[m0 + m, lane] += (sum - zero[g, lane] * xsum[m0 + m, c]) * scale[g, lane] * xgroup[m0 + m, g]

    in float32, else total += sum.
    """

    @intrinsic
    def product(
        typingctx: Any, b: Any, steps: Any, x: Any, m0: Any, w0: Any, scale: Any, zero: Any, g: Any, xsum: Any, c: Any,
        xgroup: Any, total: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, _ = array(context, builder, signature, args, 0)
            source, (x_tokens, _) = array(context, builder, signature, args, 2)
            scales, zeros, out = (array(context, builder, signature, args, a)[0] for a in (5, 6, 11))
            rows = [builder.add(args[3], I64(m)) for m in range(tokens)]
            slice_ = builder.mul(x_tokens, args[4])
            x_rows = [builder.gep(source, [builder.mul(builder.add(slice_, builder.mul(row, args[1])), I64(4))])
                      for row in rows]  # fmt: skip
            places = [[builder.add(builder.mul(row, I64(256)), I64(64 * v)) for v in LANES] for row in rows]
            acc = [[cgutils.alloca_once(builder, sums) for _ in LANES] for _ in rows]
            for m in range(tokens):
                for v in LANES:
                    start = ir.Constant(sums, [sums.element(0)] * 16)
                    builder.store(start if grouped else load(builder, out, places[m][v], sums), acc[m][v])
            with cgutils.for_range(builder, args[1]) as loop:
                here, x_here = builder.mul(loop.index, I64(256)), builder.mul(loop.index, I64(4))
                wk = [load(builder, weights, builder.add(here, I64(64 * v)), VI) for v in LANES]
                for m in range(tokens):
                    xk = splat(builder, load(builder, x_rows[m], x_here, I32))
                    for v in LANES:
                        builder.store(dot(builder, builder.load(acc[m][v]), wk[v], xk), acc[m][v])
            lanes = builder.mul(args[7], I64(256))
            for m, row in enumerate(rows):
                if grouped:
                    added = _element(context, builder, signature, args, 8, row, args[9])
                    factor = _element(context, builder, signature, args, 10, row, args[7])
                for v in LANES:
                    value = builder.load(acc[m][v])
                    if grouped:
                        value = builder.sitofp(value, VF) if sums == VI else value
                        place = builder.add(lanes, I64(64 * v))
                        less = builder.fneg(load(builder, zeros, place, VF))
                        value = multiply_add(builder, less, added, value)
                        by = builder.fmul(load(builder, scales, place, VF), factor)
                        value = multiply_add(builder, value, by, load(builder, out, places[m][v], VF))
                    store(builder, value, out, places[m][v])
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(b, i64, x, i64, i64, scale, zero, i64, xsum, i64, xgroup, total), codegen

    return product


def _element(context: Any, builder: Any, signature: Any, args: Any, position: int, row: Any, column: Any) -> Any:
    """A float32 of a matrix argument, in all lanes."""
    base, (_, columns) = array(context, builder, signature, args, position)
    return splat(builder, load(builder, base, builder.mul(builder.add(builder.mul(row, columns), column), I64(4)), F32))


expand_bytes, expand_bf16 = _expand_bytes(False), _expand_bf16(False)
amx_bytes, amx_bf16 = _expand_bytes(True), _expand_bf16(True)
bytes_product_4, bytes_product_6 = (_product(dot_bytes, VI, tokens, False) for tokens in (4, 6))
bytes_grouped_4, bytes_grouped_6 = (_product(dot_bytes, VI, tokens, True) for tokens in (4, 6))
bf16_grouped_4, bf16_grouped_6 = (_product(dot_bf16, VF, tokens, True) for tokens in (4, 6))
