"""The portable inner loops. Nothing here names an instruction; the same formulations as plain loops are in `ladder`.

64 output rows are four vectors of 16 lanes. `words` are records, see `stored`; xs are activations that carry the factor
of the field that they meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from qsim._native.vectors import (
    AHEAD,
    F32,
    I8,
    I16,
    I64,
    LINE,
    VF,
    VI,
    array,
    intrinsic,
    lane_sum,
    load,
    multiply_add,
    prefetch_line,
    splat,
    splat_float,
    splat_int,
    store,
)

from .stored import Stored, fields, stored_of

_LANES = range(4)  # vectors of 16 rows in a tile


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


def activation_factors(stored: Stored) -> np.ndarray:
    """What the activation of each of 32 columns is multiplied by before it meets an in-place field, float32.

    For floats the square root of 2^shift: with the whole of it on either side, small products would be subnormal. The
    rest is in the sums before they meet a scale (`_stream`), which may be any finite float32.
    """
    if stored.is_float:
        return np.full(32, 2.0 ** (stored.shift // 2), np.float32)
    return np.array([2.0 ** -stored.field_shift(j % stored.columns) for j in range(32)], np.float32)


@intrinsic
def prepare_run(typingctx: Any, words: Any, x: Any, m: Any, first: Any, steps: Any, xs: Any) -> Any:
    """xs[m, first + i] = x[m, first + i] * factor for 32 * steps columns; returns the sum of x over them, float32."""
    factors = activation_factors(stored_of(words))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, (_, columns) = array(context, builder, signature, args, 1)
        target, (_, wide) = array(context, builder, signature, args, 5)
        m, first = args[2], args[3]
        read = builder.mul(builder.add(builder.mul(m, columns), first), I64(4))
        write = builder.mul(builder.add(builder.mul(m, wide), first), I64(4))
        halves = [ir.Constant(VF, [float(f) for f in factors[16 * h : 16 * h + 16]]) for h in range(2)]
        sums = [cgutils.alloca_once_value(builder, splat_float(0.0)) for _ in range(2)]
        with cgutils.for_range(builder, args[4]) as loop:
            for h in range(2):
                here = builder.add(builder.mul(loop.index, I64(128)), I64(64 * h))
                value = load(builder, source, builder.add(read, here), VF)
                store(builder, builder.fmul(value, halves[h]), target, builder.add(write, here))
                builder.store(builder.fadd(builder.load(sums[h]), value), sums[h])
        return lane_sum(builder, builder.fadd(builder.load(sums[0]), builder.load(sums[1])))

    i64 = types.int64
    return types.float32(words, x, i64, i64, i64, xs), codegen


@dataclass(frozen=True, kw_only=True)
class Inner:
    """How a stream forms the sums of one chunk.

    Arguments:
        sums: LLVM type of 16 sums, VF or VI.
        columns: columns of x in one of its 32-bit words.
        step: function (builder, base, byte, x rows, byte of x, stored, sums[m][v][part]) that adds one step's products.
    """

    sums: Any
    columns: int
    step: Callable[..., None]


def _inner_of(xs: Any) -> Inner:
    """The loop for prepared activations of this Numba type: float32, or records named `bytes` or `bf16`."""
    if xs.dtype == types.float32:
        return Inner(sums=VF, columns=1, step=_float_step)
    from . import dots

    (name,) = xs.dtype.fields
    return dots.INNER[name]


def _stream(tokens: int) -> Any:
    """An intrinsic stream(words, tile, g, xs, m0, xsum, xgroup, scale, shift, group, step, total, scales, zeros).

    For group g of `group` columns of a tile of 64 rows, and `tokens` tokens from m0 on, over its chunks c of `step`:

        total[m, lane] += (sum of field * xs[m] - shift[lane] * xsum[m, c]) * scale[lane] * xgroup[m, g]

    words (T, steps, 64) records, xs (M, .) activations from `prepare`, xsum (M, chunks), xgroup (M, G), scale and shift
    (1, 64) float32, total (M, 64). If `total` is int32 the sums are integers, exact in float32 over a chunk, and
    neither scale nor xgroup is used. The packed scales and zeros of the group one tile further are prefetched.
    """

    @intrinsic
    def stream(
        typingctx: Any, words: Any, tile: Any, g: Any, xs: Any, m0: Any, xsum: Any, xgroup: Any, scale: Any, shift: Any,
        group: Any, step: Any, total: Any, scales: Any, zeros: Any,
    ) -> Any:  # fmt: skip
        i64, stored, inner, exact = types.int64, stored_of(words), _inner_of(xs), total.dtype == types.int32
        vector = VI if exact else VF
        in_place = stored.is_float and xs.dtype == types.float32
        rest = splat_float(2.0 ** (stored.shift - stored.shift // 2))  # of 2^shift, see `activation_factors`
        parts = 2 if tokens == 1 else 1  # enough independent sums to hide the latency of an addition

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            base, (_, steps, _) = array(context, builder, signature, args, 0)
            x, (_, x_words) = array(context, builder, signature, args, 3)
            sums, (_, chunks) = array(context, builder, signature, args, 5)
            factors, (_, groups) = array(context, builder, signature, args, 6)
            scale, shift, out = (array(context, builder, signature, args, i)[0] for i in (7, 8, 11))
            tile, g, m0, group, step = args[1], args[2], args[4], args[9], args[10]
            base = builder.gep(base, [builder.mul(builder.mul(tile, steps), I64(256))])
            at_token = [builder.add(m0, I64(m)) for m in range(tokens)]
            rows = [builder.gep(x, [builder.mul(builder.mul(t, x_words), I64(4))]) for t in at_token]
            acc = [[[cgutils.alloca_once(builder, inner.sums) for _ in range(parts)] for _ in _LANES] for _ in rows]
            whole = [[cgutils.alloca_once(builder, vector) for _ in _LANES] for _ in rows]
            places = [[builder.add(builder.mul(t, I64(256)), I64(64 * v)) for v in _LANES] for t in at_token]
            for m in range(tokens):
                for v in _LANES:
                    builder.store(load(builder, out, places[m][v], vector), whole[m][v])
            per_group = builder.udiv(group, I64(stored.columns))
            per_chunk = builder.udiv(step, I64(stored.columns))
            chunks_before = builder.mul(g, builder.udiv(chunks, groups))
            chunk = cgutils.alloca_once_value(builder, chunks_before)
            _prefetch_next(context, builder, signature, args, builder.add(builder.mul(tile, groups), g), groups)
            begin, end = builder.mul(g, per_group), builder.mul(builder.add(g, I64(1)), per_group)
            with cgutils.for_range_slice(builder, begin, end, per_chunk) as (first, _):
                for sum_ in (s for row in acc for vs in row for s in vs):
                    builder.store(ir.Constant(inner.sums, [inner.sums.element(0)] * 16), sum_)
                limit = builder.add(first, per_chunk)
                last = builder.select(builder.icmp_signed("<", limit, end), limit, end)
                with cgutils.for_range_slice(builder, first, last, I64(1)) as (i, _):
                    here = builder.mul(i, I64(256 * stored.words))
                    for line in range(4 * stored.words):
                        prefetch_line(builder, base, builder.add(here, I64(AHEAD + 64 * line)))
                    x_here = builder.mul(i, I64(4 * stored.columns // inner.columns))
                    inner.step(builder, base, here, rows, x_here, stored, acc)
                c = builder.load(chunk)
                for m, t in enumerate(at_token):
                    place = builder.mul(builder.add(builder.mul(t, chunks), c), I64(4))
                    xsum = splat(builder, load(builder, sums, place, F32))
                    place = builder.mul(builder.add(builder.mul(t, groups), g), I64(4))
                    factor = splat(builder, load(builder, factors, place, F32))
                    for v in _LANES:
                        value = _total(builder, acc[m][v])
                        value = builder.fmul(value, rest) if in_place else value
                        less = builder.fneg(load(builder, shift, I64(64 * v), VF))
                        value = multiply_add(builder, less, xsum, value)
                        if exact:
                            added = builder.add(builder.load(whole[m][v]), builder.fptosi(value, VI))
                        else:
                            by = builder.fmul(load(builder, scale, I64(64 * v), VF), factor)
                            added = multiply_add(builder, value, by, builder.load(whole[m][v]))
                        builder.store(added, whole[m][v])
                builder.store(builder.add(c, I64(1)), chunk)
            for m in range(tokens):
                for v in _LANES:
                    store(builder, builder.load(whole[m][v]), out, places[m][v])
            return context.get_dummy_value()

        return types.void(words, i64, i64, xs, i64, xsum, xgroup, scale, shift, i64, i64, total, scales, zeros), codegen

    return stream


def _total(builder: Any, parts: list[Any]) -> Any:
    """The sum of a chunk, float32."""
    values = [builder.load(p) for p in parts]
    whole = values[0]
    integer = whole.type == VI
    for value in values[1:]:
        whole = builder.add(whole, value) if integer else builder.fadd(whole, value)
    return builder.sitofp(whole, VF) if integer else whole


def _prefetch_next(context: Any, builder: Any, signature: Any, args: Any, group: Any, groups: Any) -> None:
    """The lines of scales and zeros one tile after the group of that number."""
    following = builder.add(group, groups)
    for position in (12, 13):
        base, (_, _, lanes) = array(context, builder, signature, args, position)
        size = signature.args[position].dtype.bitwidth // 8
        start = builder.mul(builder.mul(following, lanes), I64(size))
        for line in range(size):
            prefetch_line(builder, base, builder.add(start, I64(LINE * line)))


def load_words(builder: Any, base: Any, byte: Any, stored: Stored) -> list[list[Any]]:
    """For each vector of 16 rows the words of one step."""
    return [[load(builder, base, builder.add(byte, I64(256 * r + 64 * v)), VI) for r in range(stored.words)]
            for v in _LANES]  # fmt: skip


def _float_step(builder: Any, base: Any, byte: Any, rows: Any, x_byte: Any, stored: Stored, acc: Any) -> None:
    """Fields times float32 activations; the parts of a sum take turns."""
    numbers = [fields(builder, words, stored, in_place=True) for words in load_words(builder, base, byte, stored)]
    for j in range(stored.columns):
        xj = [splat(builder, load(builder, row, builder.add(x_byte, I64(4 * j)), F32)) for row in rows]
        for v in _LANES:
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
            places = [[builder.add(builder.mul(row, I64(256)), I64(64 * v)) for v in _LANES] for row in rows]
            sums = [[cgutils.alloca_once(builder, VF) for _ in _LANES] for _ in range(tokens)]
            for m in range(tokens):
                for v in _LANES:
                    builder.store(load(builder, out, places[m][v], VF), sums[m][v])
            with cgutils.for_range(builder, args[1]) as loop:
                here, x_here = builder.mul(loop.index, I64(256)), builder.mul(loop.index, I64(4))
                wk = [load(builder, weights, builder.add(here, I64(64 * v)), VF) for v in _LANES]
                for m in range(tokens):
                    xk = splat(builder, load(builder, x_rows[m], x_here, F32))
                    for v in _LANES:
                        builder.store(multiply_add(builder, wk[v], xk, builder.load(sums[m][v])), sums[m][v])
            for m in range(tokens):
                for v in _LANES:
                    store(builder, builder.load(sums[m][v]), out, places[m][v])
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
        for v in _LANES:
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
        for v in _LANES:
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


stream_1, stream_4 = _stream(1), _stream(4)
product_4, product_6 = (_product(tokens) for tokens in (4, 6))
