"""VNNI and AMX instructions as Numba intrinsics. Importing this is harmless; compiling a caller needs the CPU features.

`vpdpbusd` multiplies four unsigned by four signed bytes in each of 16 lanes and adds the sum to an int32: stored codes
are unsigned, activations signed, so it fits without conversion. AMX multiplies a tile A (16 tokens x 64 bytes of K)
by a
tile B (64 bytes of K x 16 features) in one instruction. LLVM's own tile type does not pass through Numba, so the tile
registers are named in assembly text, which no other code here uses.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from .lanes import (
    _CONTRACT,
    _F32,
    _I32,
    _I64,
    _VF,
    _VI,
    AHEAD,
    _array,
    _at,
    _load,
    _prefetch,
    _splat,
    _splat_int,
    columns_per_step,
    float_fields,
    word_fields,
)

intrinsic: Any = extending.intrinsic

llvm.initialize_native_asmparser()  # without it, inline assembly ends the process

_VOID = cgutils.voidptr_t
_V8 = ir.VectorType(ir.IntType(8), 64)


def _dpbusd(builder: Any, acc: Any, unsigned: Any, signed: Any) -> Any:
    name = "llvm.x86.avx512.vpdpbusd.512"
    operand = _V8 if llvm.llvm_version_info[0] >= 21 else _VI  # the operands' type changed with LLVM 21
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VI, [_VI, operand, operand]), name)
    return builder.call(function, [acc, builder.bitcast(unsigned, operand), builder.bitcast(signed, operand)])


def _splat_word(builder: Any, word: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_VI, ir.Undefined), word, _I32(0))
    return builder.shuffle_vector(vector, ir.Constant(_VI, ir.Undefined), ir.Constant(_VI, [0] * 16))


def _chunk_bytes(bits: int, tokens: int) -> Any:
    """An intrinsic chunk(words, first, last, xq, m0, acc).

    acc[m, lane] = sum of code * x over the words first .. last - 1 of a tile, int32; words (K*bits/32, 64) uint32, xq
    (M, K/4) uint32: four int8 activations a word, in order for 8 bits; for 4 bits the columns 0, 2, 4, 6 then 1, 3,
    5, 7
    of every eight, so that a mask and a shift by 4 leave whole words of codes.
    """
    per_word = 1 if bits == 8 else 2

    @intrinsic
    def chunk(typingctx: Any, words: Any, first: Any, last: Any, xq: Any, m0: Any, acc: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, _ = _array(context, builder, signature, args, 0)
            x, x_columns = _array(context, builder, signature, args, 3)
            out, _ = _array(context, builder, signature, args, 5)
            parts = 2 if tokens == 1 and per_word == 2 else 1
            sums = [
                [[cgutils.alloca_once(builder, _VI) for _ in range(parts)] for _ in range(4)] for _ in range(tokens)
            ]
            for m in range(tokens):
                for v in range(4):
                    for part in range(parts):
                        builder.store(_splat_int(0), sums[m][v][part])
            x_rows = [
                builder.gep(x, [builder.mul(builder.mul(builder.add(args[4], _I64(m)), x_columns), _I64(4))])
                for m in range(tokens)
            ]
            with cgutils.for_range_slice(builder, args[1], args[2], _I64(1)) as (i, _):
                here, x_here = builder.mul(i, _I64(256)), builder.mul(i, _I64(4 * per_word))
                for line in range(4):
                    _prefetch(builder, w, builder.add(here, _I64(AHEAD + 64 * line)))
                loaded = [_load(builder, w, builder.add(here, _I64(64 * v)), _VI) for v in range(4)]
                for half in range(per_word):
                    xw = [
                        _splat_word(builder, _load(builder, x_rows[m], builder.add(x_here, _I64(4 * half)), _I32))
                        for m in range(tokens)
                    ]
                    for v in range(4):
                        codes = loaded[v]
                        if per_word == 2:
                            codes = builder.lshr(codes, _splat_int(4)) if half else codes
                            codes = builder.and_(codes, _splat_int(0x0F0F0F0F))
                        for m in range(tokens):
                            total = sums[m][v][half % parts]
                            builder.store(_dpbusd(builder, builder.load(total), codes, xw[m]), total)
            for m in range(tokens):
                for v in range(4):
                    whole = builder.load(sums[m][v][0])
                    for part in range(1, parts):
                        whole = builder.add(whole, builder.load(sums[m][v][part]))
                    builder.store(whole, _at(builder, out, _I64(256 * m + 64 * v), _VI), align=4)
            return context.get_dummy_value()

        return types.void(words, types.int64, types.int64, xq, types.int64, acc), codegen

    return chunk


def _tiles_bytes(bits: int) -> Any:
    """An intrinsic to_bytes(words, i, out, k): the codes of one step less 2^(bits-1), as signed rows of B tiles.

    out is (4, depth * 16) uint32: for each 16 lanes, tiles of 16 rows of 16 words, a word four columns of a lane; k
    is the
    first column, counted from the start of `out`.
    """
    step = columns_per_step(bits)

    @intrinsic
    def to_bytes(typingctx: Any, words: Any, i: Any, out: Any, k: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, _ = _array(context, builder, signature, args, 0)
            o, width = _array(context, builder, signature, args, 2)
            rows = 3 if bits == 3 else 1
            here, stride = builder.mul(args[1], _I64(256 * rows)), builder.mul(width, _I64(4))
            at = builder.mul(args[3], _I64(16))  # 64 bytes for every four columns
            centre = ir.Constant(_V8, [1 << (bits - 1)] * 64)
            for v in range(4):
                loaded = [_load(builder, w, builder.add(here, _I64(256 * r + 64 * v)), _VI) for r in range(rows)]
                base = builder.add(at, builder.mul(stride, _I64(v)))
                for quad, codes in enumerate(_quads(builder, loaded, bits)):
                    word = builder.bitcast(builder.sub(builder.bitcast(codes, _V8), centre), _VI)
                    builder.store(word, _at(builder, o, builder.add(base, _I64(64 * quad)), _VI), align=4)
            return context.get_dummy_value()

        return types.void(words, types.int64, out, types.int64), codegen

    assert step % 4 == 0
    return to_bytes


def _quads(builder: Any, words: list[Any], bits: int) -> list[Any]:
    """Vectors of four consecutive columns, a byte each."""
    if bits == 8:
        return words
    if bits == 4:
        out = []
        for half in (builder.and_(words[0], _splat_int(0xFFFF)), builder.lshr(words[0], _splat_int(16))):
            spread = builder.or_(half, builder.shl(half, _splat_int(8)))
            spread = builder.and_(spread, _splat_int(0x00FF00FF))
            spread = builder.or_(spread, builder.shl(spread, _splat_int(4)))
            out.append(builder.and_(spread, _splat_int(0x0F0F0F0F)))
        return out
    fields = word_fields(builder, words, bits)
    out = []
    for j in range(0, len(fields), 4):
        word = fields[j]()
        for byte in range(1, 4):
            word = builder.or_(word, builder.shl(fields[j + byte](), _splat_int(8 * byte)))
        out.append(word)
    return out


def _tiles_bf16(bits: int, fp8: int) -> Any:
    """As `_tiles_bytes` for BF16: a word two columns of a lane; integers less 2^(bits-1), FP8 values as they are.
    Exact.
    """

    @intrinsic
    def to_bf16(typingctx: Any, words: Any, i: Any, out: Any, k: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, _ = _array(context, builder, signature, args, 0)
            o, width = _array(context, builder, signature, args, 2)
            rows = 3 if bits == 3 else 1
            here, stride = builder.mul(args[1], _I64(256 * rows)), builder.mul(width, _I64(4))
            at = builder.mul(args[3], _I64(32))
            change = ir.Constant(
                _VF, [float(2.0 ** (120 if fp8 == 1 else 112)) if fp8 else float(1 << (bits - 1))] * 16
            )
            for v in range(4):
                loaded = [_load(builder, w, builder.add(here, _I64(256 * r + 64 * v)), _VI) for r in range(rows)]
                base = builder.add(at, builder.mul(stride, _I64(v)))
                fields = float_fields(builder, loaded, bits, fp8)
                for pair in range(len(fields) // 2):
                    halves = []
                    for field in fields[2 * pair : 2 * pair + 2]:
                        value = builder.fmul(field(), change) if fp8 else builder.fsub(field(), change)
                        halves.append(builder.bitcast(value, _VI))
                    low = builder.lshr(halves[0], _splat_int(16))
                    word = builder.or_(low, builder.and_(halves[1], _splat_int(0xFFFF0000)))
                    builder.store(word, _at(builder, o, builder.add(base, _I64(64 * pair)), _VI), align=4)
            return context.get_dummy_value()

        return types.void(words, types.int64, out, types.int64), codegen

    return to_bf16


@intrinsic
def configure_tiles(typingctx: Any, table: Any) -> Any:
    """Load the tile configuration, 64 bytes; for each thread before its first tile instruction."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, _ = _array(context, builder, signature, args, 0)
        builder.asm(
            ir.FunctionType(ir.VoidType(), [_VOID]), "ldtilecfg ($0)", "r,~{memory}", [pointer], side_effect=True
        )
        return context.get_dummy_value()

    return types.void(table), codegen


@intrinsic
def release_tiles(typingctx: Any) -> Any:
    """Return the tile registers to their initial state."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.asm(ir.FunctionType(ir.VoidType(), []), "tilerelease", "~{memory}", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


def _block(product: str) -> Any:
    """An intrinsic block(a, a0, a1, b, b0, b1, steps, c, keep).

    c (4, 16, 16) [+]= the 2 x 2 tiles A0, A1 x B0, B1 over `steps` consecutive tiles of 1 KiB from each byte offset a0,
    a1 into `a` and b0, b1 into `b`; `keep` starts from what is in c. Loads stand between products, which hides them.
    """
    zero = "; ".join(f"tilezero %tmm{i}" for i in range(4))
    pointers = [f"tileloadd ({{}},$4,1), %tmm{4 + i}".format(f"${i}") for i in range(4)]
    body = "; ".join([
        pointers[2], pointers[0], f"{product} %tmm6, %tmm4, %tmm0",
        pointers[3], f"{product} %tmm7, %tmm4, %tmm1",
        pointers[1], f"{product} %tmm6, %tmm5, %tmm2", f"{product} %tmm7, %tmm5, %tmm3",
    ])  # fmt: skip

    @intrinsic
    def block(
        typingctx: Any, a: Any, a0: Any, a1: Any, b: Any, b0: Any, b1: Any, steps: Any, c: Any, c0: Any, keep: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            ap, _ = _array(context, builder, signature, args, 0)
            bp, _ = _array(context, builder, signature, args, 3)
            cp, _ = _array(context, builder, signature, args, 7)
            cp = builder.gep(cp, [args[8]])

            def emit(text: str, constraints: str, operands: list[Any]) -> None:
                kind = ir.FunctionType(ir.VoidType(), [o.type for o in operands])
                builder.asm(kind, text, constraints + "~{memory}", operands, side_effect=True)

            def each_c(what: str) -> None:
                for i in range(4):
                    tile = f"%tmm{i}"
                    order = f"($0,$1,1), {tile}" if what == "tileloadd" else f"{tile}, ($0,$1,1)"
                    emit(f"{what} {order}", "r,r,", [builder.gep(cp, [_I64(1024 * i)]), _I64(64)])

            with builder.if_else(args[9]) as (then, otherwise):
                with then:
                    each_c("tileloadd")
                with otherwise:
                    emit(zero, "", [])
            rows = [builder.gep(ap, [args[1]]), builder.gep(ap, [args[2]])]
            columns = [builder.gep(bp, [args[4]]), builder.gep(bp, [args[5]])]
            with cgutils.for_range(builder, args[6]) as loop:
                at = builder.mul(loop.index, _I64(1024))
                places = [builder.gep(p, [at]) for p in (*rows, *columns)]
                emit(body, "r,r,r,r,r,", [*places, _I64(64)])
            each_c("tilestored")
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(a, i64, i64, b, i64, i64, i64, c, i64, types.boolean), codegen

    return block


def _apply_tile(integer: bool, full: bool) -> Any:
    """An intrinsic apply(c, c0, scale, zero, g, column, xsum, xgroup, chunk, m0, total).

    For the 16 x 16 tile at byte c0 of c (int32 when `integer`, else float32):
    total[m0 + r, column + lane] += scale[g, column + lane] * (c[r, lane] - zero[g, column + lane] * xsum[chunk, m0 +
    r])
    * xgroup[g, m0 + r]. Without `full` the zero point is 0 and xgroup 1. `total` is (M, 64) float32.
    """

    @intrinsic
    def apply(
        typingctx: Any, c: Any, c0: Any, scale: Any, zero: Any, g: Any, column: Any, xsum: Any, xgroup: Any, chunk: Any,
        m0: Any, total: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cp, s, z, t = (_array(context, builder, signature, args, i)[0] for i in (0, 2, 3, 10))
            sums, tokens = _array(context, builder, signature, args, 6)
            factors, _ = _array(context, builder, signature, args, 7)
            place = builder.mul(builder.add(builder.mul(args[4], _I64(64)), args[5]), _I64(4))
            sv, zv = _load(builder, s, place, _VF), _load(builder, z, place, _VF)
            out = builder.mul(builder.add(builder.mul(args[9], _I64(64)), args[5]), _I64(4))
            for r in range(16):
                value = _load(builder, cp, builder.add(args[1], _I64(64 * r)), _VI if integer else _VF)
                value = builder.sitofp(value, _VF) if integer else value
                scaled = sv
                if full:
                    token = builder.add(args[9], _I64(r))
                    at = builder.mul(builder.add(builder.mul(args[8], tokens), token), _I64(4))
                    shift = builder.fmul(zv, _splat(builder, _load(builder, sums, at, _F32)), flags=_CONTRACT)
                    value = builder.fsub(value, shift, flags=_CONTRACT)
                    at = builder.mul(builder.add(builder.mul(args[4], tokens), token), _I64(4))
                    scaled = builder.fmul(sv, _splat(builder, _load(builder, factors, at, _F32)))
                here = builder.add(out, _I64(256 * r))
                term = builder.fmul(scaled, value, flags=_CONTRACT)
                whole = builder.fadd(_load(builder, t, here, _VF), term, flags=_CONTRACT)
                builder.store(whole, _at(builder, t, here, _VF), align=4)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(c, i64, scale, zero, i64, i64, xsum, xgroup, i64, i64, total), codegen

    return apply


@intrinsic
def finish_row(
    typingctx: Any, c: Any, c0: Any, scale: Any, zero: Any, lane: Any, xsum: Any, row: Any, bias: Any, b0: Any,
    out: Any, o0: Any,
) -> Any:  # fmt: skip
    """out[o0 + i] = float(c[c0 + i] - zero[lane + i] * xsum) * scale[lane + i] * row + bias[b0 + i] for 16 lanes i.

    c and xsum int32, zero int32 (64,), the others float32, all flat; the subtraction is exact.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cp, s, z, b, o = (_array(context, builder, signature, args, i)[0] for i in (0, 2, 3, 7, 9))
        four = _I64(4)
        lane_at = builder.mul(args[4], four)
        total = _load(builder, cp, builder.mul(args[1], four), _VI)
        shift = builder.mul(_load(builder, z, lane_at, _VI), _splat_word(builder, args[5]))
        value = builder.sitofp(builder.sub(total, shift), _VF)
        value = builder.fmul(builder.fmul(value, _load(builder, s, lane_at, _VF)), _splat(builder, args[6]))
        value = builder.fadd(value, _load(builder, b, builder.mul(args[8], four), _VF))
        builder.store(value, _at(builder, o, builder.mul(args[10], four), _VF), align=4)
        return context.get_dummy_value()

    i64, f32 = types.int64, types.float32
    return types.void(c, i64, scale, zero, i64, types.int32, f32, bias, i64, out, i64), codegen


chunk_b4_1, chunk_b8_1 = (_chunk_bytes(bits, 1) for bits in (4, 8))
chunk_b4_4, chunk_b8_4 = (_chunk_bytes(bits, 4) for bits in (4, 8))
bytes_u2, bytes_u3, bytes_u4, bytes_u8 = (_tiles_bytes(bits) for bits in (2, 3, 4, 8))
bf16_u2, bf16_u3, bf16_u4, bf16_u8 = (_tiles_bf16(bits, 0) for bits in (2, 3, 4, 8))
bf16_e4m3, bf16_e5m2 = (_tiles_bf16(8, fp8) for fp8 in (1, 2))
block_s8, block_bf16 = _block("tdpbssd"), _block("tdpbf16ps")
apply_int, apply_float = _apply_tile(True, False), _apply_tile(False, False)
apply_int_full, apply_float_full = _apply_tile(True, True), _apply_tile(False, True)
