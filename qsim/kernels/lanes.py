"""The inner loops, written as vectors of 16 lanes in LLVM's own language.

LLVM lowers `<16 x float>` to whatever the CPU has (one AVX-512 register, two AVX2, four NEON), so this is as portable
as
Numba itself; nothing here names an instruction. What it buys over a loop that LLVM must vectorise: accumulators stay in
registers, widths are not halved on CPUs that LLVM tunes to 256 bits, and the result does not hang on what the optimiser
finds. The same formulations as plain loops are in `ladder`.

A word is never unpacked. Field j of a word stays where it is, `float32(word & (mask << b*j))`, and the activation that
it meets is scaled by 2^-(b*j) beforehand: a field has at most 8 significant bits and the scale is a power of two, so
every product is the one that unpacking would give. The top field is shifted down. An FP8 code becomes the top of a
float32 by two shifts and a mask; its exponent is then too small by 2^120 (E4M3) or 2^112 (E5M2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.np import arrayobj

intrinsic: Any = extending.intrinsic  # its annotation is of the compiler's side, not of the call

AHEAD = 4096
"""Bytes between a load and the prefetch before it. A packed weight is one stream, but a kernel that computes between
its
loads does not keep enough of them in flight: without this the 4-bit product reached 19 of 38 GB/s, with it 26.
1 to 6 KiB measured alike."""

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VI, _VF = ir.VectorType(_I32, 16), ir.VectorType(_F32, 16)
_CONTRACT = ("contract",)  # a * b + c may become one fused operation


def _splat_int(value: int) -> ir.Constant:
    return ir.Constant(_VI, [value & 0xFFFFFFFF] * 16)


def _splat(builder: Any, scalar: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_VF, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(vector, ir.Constant(_VF, ir.Undefined), ir.Constant(_VI, [0] * 16))


def _at(builder: Any, base: Any, byte: Any, element: Any) -> Any:
    """Pointer to `element` values at `byte` bytes from a void pointer."""
    return builder.bitcast(builder.gep(base, [byte]), element.as_pointer())


def _load(builder: Any, base: Any, byte: Any, element: Any) -> Any:
    return builder.load(_at(builder, base, byte, element), align=4)


def _array(context: Any, builder: Any, signature: Any, args: Any, position: int) -> tuple[Any, Any]:
    """(void pointer to the data, elements in a row) of a C-contiguous array argument."""
    array = arrayobj.make_array(signature.args[position])(context, builder, args[position])
    shape = cgutils.unpack_tuple(builder, array.shape)
    return builder.bitcast(array.data, cgutils.voidptr_t), shape[-1]


def _prefetch(builder: Any, base: Any, byte: Any) -> None:
    pointer = builder.gep(base, [byte])
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])  # read, keep in all levels, data


@intrinsic
def prefetch(typingctx: Any, array: Any, byte: Any) -> Any:
    """Ask for the cache line at `byte` bytes from the start of an array; beyond its end is harmless."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _prefetch(builder, _array(context, builder, signature, args, 0)[0], args[1])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


def columns_per_step(bits: int) -> int:
    """Columns in one step of a loop: those of a word, or of three words for 3 bits."""
    return 32 if bits == 3 else 32 // bits


def float_fields(builder: Any, words: list[Any], bits: int, fp8: int) -> list[Callable[[], Any]]:
    """For each column of a step, what computes its 16 float32 values; FP8 as its bits at the top, see above."""
    return _fields(builder, words, bits, fp8, in_place=False)


def word_fields(builder: Any, words: list[Any], bits: int) -> list[Callable[[], Any]]:
    """For each column of a step, what computes its 16 codes as int32."""
    return _fields(builder, words, bits, 0, in_place=False, convert=False)


def _fields(
    builder: Any, words: list[Any], bits: int, fp8: int, *, in_place: bool, convert: bool = True
) -> list[Callable[[], Any]]:
    """For each column of a step, what computes its 16 values from the words, as float32.

    `in_place`: without shifting a field down, see the module's text.
    """

    def number(v: Any) -> Any:
        return builder.sitofp(v, _VF) if convert else v

    def integer(word: Any, j: int, last: bool) -> Any:
        mask = (1 << bits) - 1
        if last:
            return number(builder.lshr(word, _splat_int(32 - bits)))
        if in_place:
            return number(builder.and_(word, _splat_int(mask << (bits * j))))
        down = builder.lshr(word, _splat_int(bits * j)) if j else word
        return number(builder.and_(down, _splat_int(mask)))

    def float8(word: Any, j: int) -> Any:
        top = builder.shl(word, _splat_int(24 - 8 * j)) if j < 3 else word
        down, mask = (4, 0x87F00000) if fp8 == 1 else (3, 0x8FE00000)
        return builder.bitcast(builder.and_(builder.ashr(top, _splat_int(down)), _splat_int(mask)), _VF)

    def split(i: int) -> Any:
        low = builder.lshr(words[i], _splat_int(30))
        high = builder.and_(builder.lshr(words[2], _splat_int(29 - i)), _splat_int(4))
        if i:  # the third bit of column 31 is bit 30 of the last word
            high = builder.and_(builder.lshr(words[2], _splat_int(28)), _splat_int(4))
        return number(builder.or_(low, high))

    if fp8:
        return [lambda j=j: float8(words[0], j) for j in range(4)]  # type: ignore[misc]
    if bits == 3:
        thirty = [lambda w=w, j=j: integer(words[w], j, False) for w in range(3) for j in range(10)]  # type: ignore[misc]
        return [*thirty, lambda: split(0), lambda: split(1)]
    count = 32 // bits
    return [lambda j=j: integer(words[0], j, j == count - 1) for j in range(count)]  # type: ignore[misc]


def _chunk(bits: int, fp8: int, tokens: int) -> Any:
    """An intrinsic chunk(words, first, last, xs, m0, acc).

    acc[m, lane] = sum over columns of field * xs[m0 + m, column], for the steps first .. last - 1 of a tile; words
    (K * bits / 32, 64) uint32, xs (M, K) float32 scaled for fields in place, acc (tokens, 64) float32.
    """
    step, rows = columns_per_step(bits), 3 if bits == 3 else 1

    @intrinsic
    def chunk(typingctx: Any, words: Any, first: Any, last: Any, xs: Any, m0: Any, acc: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, _ = _array(context, builder, signature, args, 0)
            x, x_columns = _array(context, builder, signature, args, 3)
            out, _ = _array(context, builder, signature, args, 5)
            parts = 2 if tokens == 1 else 1  # enough independent sums to hide the latency of an addition
            sums = [
                [[cgutils.alloca_once(builder, _VF) for _ in range(parts)] for _ in range(4)] for _ in range(tokens)
            ]
            for m in range(tokens):
                for v in range(4):
                    for part in range(parts):
                        builder.store(ir.Constant(_VF, [0.0] * 16), sums[m][v][part])
            x_rows = [
                builder.gep(x, [builder.mul(builder.mul(builder.add(args[4], _I64(m)), x_columns), _I64(4))])
                for m in range(tokens)
            ]
            with cgutils.for_range_slice(builder, args[1], args[2], _I64(1)) as (i, _):
                here = builder.mul(i, _I64(256 * rows))
                for line in range(4 * rows):
                    _prefetch(builder, w, builder.add(here, _I64(AHEAD + 64 * line)))
                x_here = builder.mul(i, _I64(4 * step))
                loaded = [
                    [_load(builder, w, builder.add(here, _I64(256 * r + 64 * v)), _VI) for r in range(rows)]
                    for v in range(4)
                ]
                fields = [_fields(builder, loaded[v], bits, fp8, in_place=True) for v in range(4)]
                for j in range(step):
                    xj = [
                        _splat(builder, _load(builder, x_rows[m], builder.add(x_here, _I64(4 * j)), _F32))
                        for m in range(tokens)
                    ]
                    for v in range(4):
                        q = fields[v][j]()
                        for m in range(tokens):
                            total = sums[m][v][j % parts]
                            product = builder.fmul(q, xj[m], flags=_CONTRACT)
                            builder.store(builder.fadd(builder.load(total), product, flags=_CONTRACT), total)
            for m in range(tokens):
                for v in range(4):
                    whole = builder.load(sums[m][v][0])
                    for part in range(1, parts):
                        whole = builder.fadd(whole, builder.load(sums[m][v][part]))
                    builder.store(whole, _at(builder, out, _I64(256 * m + 64 * v), _VF), align=4)
            return context.get_dummy_value()

        return types.void(words, types.int64, types.int64, xs, types.int64, acc), codegen

    return chunk


def _expand(bits: int, fp8: int) -> Any:
    """An intrinsic expand(words, step, scale, zero, group, out, row, column).

    Values (field - zero[group, lane]) * scale[group, lane] of one step, to rows row .. of out at 64 columns from
    `column` on; FP8: field * scale, the scale already holding the exponent's 2^120.
    """
    rows = 3 if bits == 3 else 1

    @intrinsic
    def expand(
        typingctx: Any, words: Any, i: Any, scale: Any, zero: Any, group: Any, out: Any, row: Any, column: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            w, _ = _array(context, builder, signature, args, 0)
            s, _ = _array(context, builder, signature, args, 2)
            z, _ = _array(context, builder, signature, args, 3)
            o, o_columns = _array(context, builder, signature, args, 5)
            here, g = builder.mul(args[1], _I64(256 * rows)), builder.mul(args[4], _I64(256))
            stride = builder.mul(o_columns, _I64(4))
            corner = builder.add(builder.mul(args[6], stride), builder.mul(args[7], _I64(4)))
            for v in range(4):
                loaded = [_load(builder, w, builder.add(here, _I64(256 * r + 64 * v)), _VI) for r in range(rows)]
                sv = _load(builder, s, builder.add(g, _I64(64 * v)), _VF)
                zv = _load(builder, z, builder.add(g, _I64(64 * v)), _VF)
                at = builder.add(corner, _I64(64 * v))
                for field in _fields(builder, loaded, bits, fp8, in_place=False):
                    value = field() if fp8 else builder.fsub(field(), zv)
                    builder.store(builder.fmul(value, sv), _at(builder, o, at, _VF), align=4)
                    at = builder.add(at, stride)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(words, i64, scale, zero, i64, out, i64, i64), codegen

    return expand


def _product(tokens: int) -> Any:
    """An intrinsic product(w, depth, x, m0, k0, acc): acc[m0 + m] += sum over k < depth of w[k] * x[m0 + m, k0 + k].

    w (depth, 64) expanded weights that stay in L2, x (M, K), acc (M, 64), all float32.
    """

    @intrinsic
    def product(typingctx: Any, w: Any, depth: Any, x: Any, m0: Any, k0: Any, acc: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wp, _ = _array(context, builder, signature, args, 0)
            xp, x_columns = _array(context, builder, signature, args, 2)
            out, _ = _array(context, builder, signature, args, 5)
            rows = [builder.add(args[3], _I64(m)) for m in range(tokens)]
            x_rows = [
                builder.gep(xp, [builder.mul(builder.add(builder.mul(row, x_columns), args[4]), _I64(4))])
                for row in rows
            ]
            places = [[builder.add(builder.mul(row, _I64(256)), _I64(64 * v)) for v in range(4)] for row in rows]
            sums = [[cgutils.alloca_once(builder, _VF) for _ in range(4)] for _ in range(tokens)]
            for m in range(tokens):
                for v in range(4):
                    builder.store(_load(builder, out, places[m][v], _VF), sums[m][v])
            with cgutils.for_range(builder, args[1]) as loop:
                here, x_here = builder.mul(loop.index, _I64(256)), builder.mul(loop.index, _I64(4))
                wk = [_load(builder, wp, builder.add(here, _I64(64 * v)), _VF) for v in range(4)]
                for m in range(tokens):
                    xk = _splat(builder, _load(builder, x_rows[m], x_here, _F32))
                    for v in range(4):
                        term = builder.fmul(wk[v], xk, flags=_CONTRACT)
                        builder.store(builder.fadd(builder.load(sums[m][v]), term, flags=_CONTRACT), sums[m][v])
            for m in range(tokens):
                for v in range(4):
                    builder.store(builder.load(sums[m][v]), _at(builder, out, places[m][v], _VF), align=4)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(w, i64, x, i64, i64, acc), codegen

    return product


@intrinsic
def apply_group(
    typingctx: Any, acc: Any, m: Any, scale: Any, zero: Any, g: Any, xsum: Any, factor: Any, total: Any
) -> Any:
    """total[m] += scale[g] * (acc[m] - zero[g] * xsum) * factor over 64 lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, s, z, t = (_array(context, builder, signature, args, i)[0] for i in (0, 2, 3, 7))
        m_byte, g_byte = builder.mul(args[1], _I64(256)), builder.mul(args[4], _I64(256))
        xsum, factor = _splat(builder, args[5]), _splat(builder, args[6])
        for v in range(4):
            m_at, g_at = builder.add(m_byte, _I64(64 * v)), builder.add(g_byte, _I64(64 * v))
            shift = builder.fmul(_load(builder, z, g_at, _VF), xsum, flags=_CONTRACT)
            value = builder.fsub(_load(builder, a, m_at, _VF), shift, flags=_CONTRACT)
            scale = builder.fmul(_load(builder, s, g_at, _VF), factor)
            added = builder.fadd(
                _load(builder, t, m_at, _VF), builder.fmul(scale, value, flags=_CONTRACT), flags=_CONTRACT
            )
            builder.store(added, _at(builder, t, m_at, _VF), align=4)
        return context.get_dummy_value()

    i64, f32 = types.int64, types.float32
    return types.void(acc, i64, scale, zero, i64, f32, f32, total), codegen


@intrinsic
def half_scales(typingctx: Any, scales: Any, at: Any, out: Any, g: Any) -> Any:
    """out[g] = the 64 binary16 scales (uint16 bits) at element `at` of `scales`, as float32.

    Exponent and mantissa move up 13 bits and are re-biased by a multiplication, which handles subnormals too.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s, o = (_array(context, builder, signature, args, i)[0] for i in (0, 2))
        halves = ir.VectorType(ir.IntType(16), 16)
        for v in range(4):
            bits = builder.load(
                _at(builder, s, builder.mul(builder.add(args[1], _I64(16 * v)), _I64(2)), halves), align=2
            )
            word = builder.shl(builder.zext(bits, _VI), _splat_int(13))  # scales are positive: no sign to move
            value = builder.fmul(builder.bitcast(word, _VF), ir.Constant(_VF, [float(2.0**112)] * 16))
            byte = builder.add(builder.mul(args[3], _I64(256)), _I64(64 * v))
            builder.store(value, _at(builder, o, byte, _VF), align=4)
        return context.get_dummy_value()

    return types.void(scales, types.int64, out, types.int64), codegen


@intrinsic
def nibble_zeros(typingctx: Any, zeros: Any, at: Any, out: Any, g: Any) -> Any:
    """out[g] = the 64 packed 4-bit zero points at byte `at`: lane i in a low half, lane i + 32 in the high half."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        z, o = (_array(context, builder, signature, args, i)[0] for i in (0, 2))
        for v in range(2):
            packed = builder.load(_at(builder, z, builder.add(args[1], _I64(16 * v)), ir.VectorType(_I8, 16)), align=1)
            word = builder.zext(packed, _VI)
            for half, value in enumerate((builder.and_(word, _splat_int(15)), builder.lshr(word, _splat_int(4)))):
                byte = builder.add(builder.mul(args[3], _I64(256)), _I64(64 * v + 128 * half))
                builder.store(builder.sitofp(value, _VF), _at(builder, o, byte, _VF), align=4)
        return context.get_dummy_value()

    return types.void(zeros, types.int64, out, types.int64), codegen


chunk_u2_1, chunk_u3_1, chunk_u4_1, chunk_u8_1 = (_chunk(bits, 0, 1) for bits in (2, 3, 4, 8))
chunk_u2_4, chunk_u3_4, chunk_u4_4, chunk_u8_4 = (_chunk(bits, 0, 4) for bits in (2, 3, 4, 8))
chunk_e4m3_1, chunk_e5m2_1 = (_chunk(8, fp8, 1) for fp8 in (1, 2))
chunk_e4m3_4, chunk_e5m2_4 = (_chunk(8, fp8, 4) for fp8 in (1, 2))
expand_u2, expand_u3, expand_u4, expand_u8 = (_expand(bits, 0) for bits in (2, 3, 4, 8))
expand_e4m3, expand_e5m2 = (_expand(8, fp8) for fp8 in (1, 2))
product_1, product_6 = _product(1), _product(6)
