"""AMX as Numba intrinsics. Importing this is harmless; compiling a caller needs the CPU features.

AMX multiplies a tile A (16 tokens x 64 bytes of K) by a tile B (64 bytes of K x 16 features) in one instruction. LLVM's
own tile type does not pass through Numba, so the tile registers are named in assembly text, which no other code here
uses.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from qsim._native.vectors import CONTRACT, F32, I64, VF, VI, array, intrinsic, load, splat, store

llvm.initialize_native_asmparser()  # without it, inline assembly ends the process


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
            ap, _ = array(context, builder, signature, args, 0)
            bp, _ = array(context, builder, signature, args, 3)
            cp, _ = array(context, builder, signature, args, 7)
            cp = builder.gep(cp, [args[8]])

            def emit(text: str, constraints: str, operands: list[Any]) -> None:
                kind = ir.FunctionType(ir.VoidType(), [o.type for o in operands])
                builder.asm(kind, text, constraints + "~{memory}", operands, side_effect=True)

            def each_c(what: str) -> None:
                for i in range(4):
                    tile = f"%tmm{i}"
                    order = f"($0,$1,1), {tile}" if what == "tileloadd" else f"{tile}, ($0,$1,1)"
                    emit(f"{what} {order}", "r,r,", [builder.gep(cp, [I64(1024 * i)]), I64(64)])

            with builder.if_else(args[9]) as (then, otherwise):
                with then:
                    each_c("tileloadd")
                with otherwise:
                    emit(zero, "", [])
            rows = [builder.gep(ap, [args[1]]), builder.gep(ap, [args[2]])]
            columns = [builder.gep(bp, [args[4]]), builder.gep(bp, [args[5]])]
            with cgutils.for_range(builder, args[6]) as loop:
                at = builder.mul(loop.index, I64(1024))
                places = [builder.gep(p, [at]) for p in (*rows, *columns)]
                emit(body, "r,r,r,r,r,", [*places, I64(64)])
            each_c("tilestored")
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(a, i64, i64, b, i64, i64, i64, c, i64, types.boolean), codegen

    return block


def _apply_tile(integer: bool, full: bool) -> Any:
    """An intrinsic apply(c, c0, scale, zero, g, column, xsum, xgroup, chunk, m0, total).

    For the 16 x 16 tile at byte c0 of c (int32 when `integer`, else float32), l = column + lane and m = m0 + r:

        total[m, l] += scale[g, l] * (c[r, lane] - zero[g, l] * xsum[chunk, m]) * xgroup[g, m]

    Without `full` the zero point is 0 and xgroup 1. `total` is (M, 64) float32.
    """

    @intrinsic
    def apply(
        typingctx: Any, c: Any, c0: Any, scale: Any, zero: Any, g: Any, column: Any, xsum: Any, xgroup: Any, chunk: Any,
        m0: Any, total: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cp, s, z, t = (array(context, builder, signature, args, i)[0] for i in (0, 2, 3, 10))
            sums, (_, tokens) = array(context, builder, signature, args, 6)
            factors, _ = array(context, builder, signature, args, 7)
            place = builder.mul(builder.add(builder.mul(args[4], I64(64)), args[5]), I64(4))
            sv, zv = load(builder, s, place, VF), load(builder, z, place, VF)
            out = builder.mul(builder.add(builder.mul(args[9], I64(64)), args[5]), I64(4))
            for r in range(16):
                value = load(builder, cp, builder.add(args[1], I64(64 * r)), VI if integer else VF)
                value = builder.sitofp(value, VF) if integer else value
                scaled = sv
                if full:
                    token = builder.add(args[9], I64(r))
                    at = builder.mul(builder.add(builder.mul(args[8], tokens), token), I64(4))
                    shift = builder.fmul(zv, splat(builder, load(builder, sums, at, F32)), flags=CONTRACT)
                    value = builder.fsub(value, shift, flags=CONTRACT)
                    at = builder.mul(builder.add(builder.mul(args[4], tokens), token), I64(4))
                    scaled = builder.fmul(sv, splat(builder, load(builder, factors, at, F32)))
                here = builder.add(out, I64(256 * r))
                term = builder.fmul(scaled, value, flags=CONTRACT)
                whole = builder.fadd(load(builder, t, here, VF), term, flags=CONTRACT)
                store(builder, whole, t, here)
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


block_s8, block_bf16 = _block("tdpbssd"), _block("tdpbf16ps")
apply_int, apply_float = _apply_tile(True, False), _apply_tile(False, False)
apply_int_full, apply_float_full = _apply_tile(True, True), _apply_tile(False, True)
