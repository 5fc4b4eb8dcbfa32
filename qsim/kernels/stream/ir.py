"""The inner loop of a few tokens, on every path: words are decoded in registers and meet prepared activations.

xs are activations that carry the factor of the field that they meet, see `prepare`. What a path does with a word is a
step of its own: `portable.ir.float_step`, `dot.ir.bytes_step` and `dot.ir.bf16_step`.
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
    I64,
    LINE,
    NEAR_AHEAD,
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
    store,
)

from ..dot.ir import bf16_step, bytes_step
from ..features import has_wide_registers
from ..portable.ir import float_step, passes
from ..stored import Stored, stored_of


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


INNER = {
    "float32": Inner(sums=VF, columns=1, step=float_step),
    "bytes": Inner(sums=VI, columns=4, step=bytes_step),
    "bf16": Inner(sums=VF, columns=2, step=bf16_step),
}


def _inner_of(xs: Any) -> Inner:
    """The loop for prepared activations of this Numba type: float32, or records named `bytes` or `bf16`."""
    if xs.dtype == types.float32:
        return INNER["float32"]
    (name,) = xs.dtype.fields
    return INNER[name]


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
        # enough independent sums to hide the latency of an addition: four or eight registers, see `passes`
        parts = 2 if tokens == 1 and has_wide_registers() else 1
        ahead = AHEAD if has_wide_registers() else NEAR_AHEAD

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
            per_group = builder.udiv(group, I64(stored.columns))
            per_chunk = builder.udiv(step, I64(stored.columns))
            chunks_before = builder.mul(g, builder.udiv(chunks, groups))
            _prefetch_next(context, builder, signature, args, builder.add(builder.mul(tile, groups), g), groups)
            begin, end = builder.mul(g, per_group), builder.mul(builder.add(g, I64(1)), per_group)
            for number, lanes in enumerate(passes(2 * parts * tokens)):
                corner = builder.gep(base, [I64(64 * lanes[0])])
                acc = [[[cgutils.alloca_once(builder, inner.sums) for _ in range(parts)] for _ in lanes] for _ in rows]
                places = [[builder.add(builder.mul(t, I64(256)), I64(64 * v)) for v in lanes] for t in at_token]
                whole = [[cgutils.alloca_once_value(builder, load(builder, out, place, vector)) for place in here]
                         for here in places]  # fmt: skip
                chunk = cgutils.alloca_once_value(builder, chunks_before)
                with cgutils.for_range_slice(builder, begin, end, per_chunk) as (first, _):
                    for sum_ in (s for row in acc for vs in row for s in vs):
                        builder.store(ir.Constant(inner.sums, [inner.sums.element(0)] * 16), sum_)
                    limit = builder.add(first, per_chunk)
                    last = builder.select(builder.icmp_signed("<", limit, end), limit, end)
                    with cgutils.for_range_slice(builder, first, last, I64(1)) as (i, _):
                        here = builder.mul(i, I64(256 * stored.words))
                        for line in range(0 if number else 4 * stored.words):
                            prefetch_line(builder, base, builder.add(here, I64(ahead + 64 * line)))
                        x_here = builder.mul(i, I64(4 * stored.columns // inner.columns))
                        inner.step(builder, corner, here, rows, x_here, stored, acc)
                    c = builder.load(chunk)
                    for m, t in enumerate(at_token):
                        place = builder.mul(builder.add(builder.mul(t, chunks), c), I64(4))
                        xsum = splat(builder, load(builder, sums, place, F32))
                        place = builder.mul(builder.add(builder.mul(t, groups), g), I64(4))
                        factor = splat(builder, load(builder, factors, place, F32))
                        for n, v in enumerate(lanes):
                            value = _total(builder, acc[m][n])
                            value = builder.fmul(value, rest) if in_place else value
                            less = builder.fneg(load(builder, shift, I64(64 * v), VF))
                            value = multiply_add(builder, less, xsum, value)
                            if exact:
                                added = builder.add(builder.load(whole[m][n]), builder.fptosi(value, VI))
                            else:
                                by = builder.fmul(load(builder, scale, I64(64 * v), VF), factor)
                                added = multiply_add(builder, value, by, builder.load(whole[m][n]))
                            builder.store(added, whole[m][n])
                    builder.store(builder.add(c, I64(1)), chunk)
                for m in range(tokens):
                    for n in range(len(lanes)):
                        store(builder, builder.load(whole[m][n]), out, places[m][n])
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


stream_1, stream_4 = _stream(1), _stream(4)
