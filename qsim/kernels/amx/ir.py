"""AMX as Numba intrinsics. Importing this is harmless; compiling a caller needs the CPU features.

AMX multiplies a tile A (16 tokens x 64 bytes of K) by a tile B (64 bytes of K x 16 features) in one instruction. LLVM's
own tile type does not pass through Numba, so the tile registers are named in assembly text, which no other code here
uses.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from qsim._native.vectors import CONTRACT, F32, I64, VF, VI, array, intrinsic, load, splat, store

llvm.initialize_native_asmparser()  # without it, inline assembly ends the process

# 64 bytes for ldtilecfg: palette 1, then 16 rows of 64 bytes for each of the eight tiles (Intel SDM, LDTILECFG)
TILE_TABLE = np.zeros(64, dtype=np.uint8)
TILE_TABLE[0] = 1
TILE_TABLE[16:32:2] = 64
TILE_TABLE[48:56] = 16


@intrinsic
def configure_tiles(typingctx: Any, table: Any) -> Any:
    """Load the tile configuration, 64 bytes; for each thread before its first tile instruction."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, _ = array(context, builder, signature, args, 0)
        builder.asm(
            ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t]),
            "ldtilecfg ($0)",
            "r,~{memory}",
            [pointer],
            side_effect=True,
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


def _emit(builder: Any, text: str, operands: list[Any]) -> None:
    """Assembly text that reads its operands, pointers and strides, from registers and may change memory."""
    kind = ir.FunctionType(ir.VoidType(), [o.type for o in operands])
    builder.asm(kind, text, "r," * len(operands) + "~{memory}", operands, side_effect=True)


def _emit_each(builder: Any, what: str, c: Any) -> None:
    """`what`, a load or a store, for the four tiles of sums at pointer c."""
    for i in range(4):
        tile = f"%tmm{i}"
        order = f"($0,$1,1), {tile}" if what == "tileloadd" else f"{tile}, ($0,$1,1)"
        _emit(builder, f"{what} {order}", [builder.gep(c, [I64(1024 * i)]), I64(64)])


_ZERO = "; ".join(f"tilezero %tmm{i}" for i in range(4))


def _emit_products(builder: Any, product: str, a: Any, b: Any, places: Any, steps: Any) -> None:
    """The four tiles of sums += the 2 x 2 tiles A0, A1 x B0, B1 over `steps` consecutive tiles of 1 KiB.

    places: byte offsets of A0 and A1 from pointer a, of B0 and B1 from b. Loads stand between products: it hides them.
    """
    loads = [f"tileloadd (${i},$4,1), %tmm{4 + i}" for i in range(4)]
    body = "; ".join([
        loads[2], loads[0], f"{product} %tmm6, %tmm4, %tmm0",
        loads[3], f"{product} %tmm7, %tmm4, %tmm1",
        loads[1], f"{product} %tmm6, %tmm5, %tmm2", f"{product} %tmm7, %tmm5, %tmm3",
    ])  # fmt: skip
    starts = [builder.gep(base, [place]) for base, place in zip((a, a, b, b), places, strict=True)]
    with cgutils.for_range(builder, steps) as loop:
        at = builder.mul(loop.index, I64(1024))
        _emit(builder, body, [*(builder.gep(p, [at]) for p in starts), I64(64)])


@intrinsic
def block_s8(
    typingctx: Any, a: Any, a0: Any, a1: Any, b: Any, b0: Any, b1: Any, steps: Any, c: Any, c0: Any, keep: Any
) -> Any:
    """c (4, 16, 16) int32, at byte c0, [+]= the 2 x 2 tiles at bytes a0, a1 of `a` by those at b0, b1 of `b`.

    Over `steps` consecutive tiles of 1 KiB; `keep` starts from what is in c.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (ap, _), (bp, _), (cp, _) = (array(context, builder, signature, args, i) for i in (0, 3, 7))
        cp = builder.gep(cp, [args[8]])
        with builder.if_else(args[9]) as (then, otherwise):
            with then:
                _emit_each(builder, "tileloadd", cp)
            with otherwise:
                _emit(builder, _ZERO, [])
        _emit_products(builder, "tdpbssd", ap, bp, (args[1], args[2], args[4], args[5]), args[6])
        _emit_each(builder, "tilestored", cp)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, b, i64, i64, i64, c, i64, types.boolean), codegen


@intrinsic
def start_bf16(typingctx: Any, a: Any, a0: Any, a1: Any, b: Any, b0: Any, b1: Any, steps: Any) -> Any:
    """As `block_s8` for BF16 and float32 sums from 0, which stay in the tile registers until `store_sums`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (ap, _), (bp, _) = (array(context, builder, signature, args, i) for i in (0, 3))
        _emit(builder, _ZERO, [])
        _emit_products(builder, "tdpbf16ps", ap, bp, (args[1], args[2], args[4], args[5]), args[6])
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, b, i64, i64, i64), codegen


@intrinsic
def store_sums(typingctx: Any, c: Any, c0: Any) -> Any:
    """The four tiles of sums to c (4, 16, 16) at byte c0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cp, _ = array(context, builder, signature, args, 0)
        _emit_each(builder, "tilestored", builder.gep(cp, [args[1]]))
        return context.get_dummy_value()

    return types.void(c, types.int64), codegen


def _apply_tile(integer: bool, full: bool) -> Any:
    """An intrinsic apply(c, c0, scale, zero, s, column, xsum, chunk, xgroup, g, m0, total, t0).

    For the 16 x 16 tile at byte c0 of c (int32 when `integer`, else float32), l = column + lane:

        total[t0 + r, l] += scale[s, l] * (c[r, lane] - zero[s, l] * xsum[chunk, m0 + r]) * xgroup[g, m0 + r]

    Without `full` the zero point is 0 and xgroup 1. `total` is (T, 64) float32.
    """

    @intrinsic
    def apply(
        typingctx: Any, c: Any, c0: Any, scale: Any, zero: Any, s: Any, column: Any, xsum: Any, chunk: Any, xgroup: Any,
        g: Any, m0: Any, total: Any, t0: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cp, scales, zeros, t = (array(context, builder, signature, args, i)[0] for i in (0, 2, 3, 11))
            sums, (_, tokens) = array(context, builder, signature, args, 6)
            factors, _ = array(context, builder, signature, args, 8)

            def at(row: Any, columns: Any, column: Any) -> Any:
                return builder.mul(builder.add(builder.mul(row, columns), column), I64(4))

            place = at(args[4], I64(64), args[5])
            sv, zv = load(builder, scales, place, VF), load(builder, zeros, place, VF)
            out = at(args[12], I64(64), args[5])
            for r in range(16):
                value = load(builder, cp, builder.add(args[1], I64(64 * r)), VI if integer else VF)
                value = builder.sitofp(value, VF) if integer else value
                scaled = sv
                if full:
                    token = builder.add(args[10], I64(r))
                    added = splat(builder, load(builder, sums, at(args[7], tokens, token), F32))
                    value = builder.fsub(value, builder.fmul(zv, added, flags=CONTRACT), flags=CONTRACT)
                    factor = load(builder, factors, at(args[9], tokens, token), F32)
                    scaled = builder.fmul(sv, splat(builder, factor))
                here = builder.add(out, I64(256 * r))
                term = builder.fmul(scaled, value, flags=CONTRACT)
                whole = builder.fadd(load(builder, t, here, VF), term, flags=CONTRACT)
                store(builder, whole, t, here)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(c, i64, scale, zero, i64, i64, xsum, i64, xgroup, i64, i64, total, i64), codegen

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
        cp, s, z, b, o = (array(context, builder, signature, args, i)[0] for i in (0, 2, 3, 7, 9))
        four = I64(4)
        lane_at = builder.mul(args[4], four)
        total = load(builder, cp, builder.mul(args[1], four), VI)
        shift = builder.mul(load(builder, z, lane_at, VI), splat(builder, args[5]))
        value = builder.sitofp(builder.sub(total, shift), VF)
        value = builder.fmul(builder.fmul(value, load(builder, s, lane_at, VF)), splat(builder, args[6]))
        value = builder.fadd(value, load(builder, b, builder.mul(args[8], four), VF))
        store(builder, value, o, builder.mul(args[10], four))
        return context.get_dummy_value()

    i64, f32 = types.int64, types.float32
    return types.void(c, i64, scale, zero, i64, types.int32, f32, bias, i64, out, i64), codegen


apply_int, apply_float = _apply_tile(True, False), _apply_tile(False, False)
apply_int_full, apply_float_full = _apply_tile(True, True), _apply_tile(False, True)
