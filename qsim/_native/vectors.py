"""LLVM's own language, for the intrinsics of the formats, the tensor cores and the kernels: vectors, and hints.

LLVM lowers `<16 x float>` to whatever the CPU has (one AVX-512 register, two AVX2, four NEON), so code made of these is
as portable as Numba itself. What it buys over a loop that LLVM must vectorise: accumulators stay in registers, widths
are not halved on CPUs that LLVM tunes to 256 bits, and the result does not hang on what the optimiser finds.

Vectors have 16 lanes of 32 bits where a function does not take their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.np import arrayobj

intrinsic: Any = extending.intrinsic  # its annotation is of the compiler's side, not of the call

AHEAD = 16384
"""Bytes between a load and the prefetch before it. A packed weight is one stream, but a kernel that computes between
its loads does not keep enough of them in flight: without this the 4-bit product reached 19 of 38 GB/s on a Xeon, with
it 26. 1 to 6 KiB measured alike there; on Zen 5 16 KiB is 5 % better than 4."""
NEAR_AHEAD = 4096
"""The same for loops of AVX2, which take longer for what they load: 8-bit products take 5 to 15 % less time than with
`AHEAD` (Zen 4 with 256-bit registers)."""

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
VI, VF = ir.VectorType(I32, 16), ir.VectorType(F32, 16)
CONTRACT = ("contract",)  # a * b + c may become one fused operation
LINE = 64  # bytes of a vector and of a cache line


def splat_int(value: int) -> ir.Constant:
    """A constant in all lanes."""
    return ir.Constant(VI, [value & 0xFFFFFFFF] * 16)


def splat_float(value: float) -> ir.Constant:
    """A constant in all lanes."""
    return ir.Constant(VF, [float(value)] * 16)


def splat(builder: Any, scalar: Any, lanes: int = 16) -> Any:
    """A scalar in all lanes."""
    kind = ir.VectorType(scalar.type, lanes)
    undefined = ir.Constant(kind, ir.Undefined)
    vector = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def call(builder: Any, name: str, result: Any, operands: Sequence[Any]) -> Any:
    """The result, of that LLVM type, of an LLVM intrinsic."""
    kind = ir.FunctionType(result, [o.type for o in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def at(builder: Any, base: Any, byte: Any, element: Any) -> Any:
    """Pointer to `element` values at `byte` bytes from a void pointer."""
    return builder.bitcast(builder.gep(base, [byte]), element.as_pointer())


def load(builder: Any, base: Any, byte: Any, element: Any, align: int = 4) -> Any:
    """A value or vector at `byte` bytes from a void pointer."""
    return builder.load(at(builder, base, byte, element), align=align)


def store(builder: Any, value: Any, base: Any, byte: Any) -> None:
    """The inverse of `load`."""
    builder.store(value, at(builder, base, byte, value.type), align=4)


def array(
    context: Any, builder: Any, signature: Any, args: Sequence[Any], position: int
) -> tuple[Any, tuple[Any, ...]]:
    """(void pointer to the data, shape) of a C-contiguous array argument."""
    value = arrayobj.make_array(signature.args[position])(context, builder, args[position])
    return builder.bitcast(value.data, cgutils.voidptr_t), cgutils.unpack_tuple(builder, value.shape)


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one operation where the CPU has it."""
    return builder.fadd(builder.fmul(a, b, flags=CONTRACT), c, flags=CONTRACT)


def lane_sum(builder: Any, vector: Any) -> Any:
    """Sum of the 16 float lanes, pairwise."""
    width = 16
    while width > 1:
        width //= 2
        kind = ir.VectorType(I32, width)
        undefined = ir.Constant(vector.type, ir.Undefined)
        low = builder.shuffle_vector(vector, undefined, ir.Constant(kind, list(range(width))))
        high = builder.shuffle_vector(vector, undefined, ir.Constant(kind, list(range(width, 2 * width))))
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, I32(0))


def prefetch_line(builder: Any, base: Any, byte: Any, near: int = 3) -> None:
    """Ask for the cache line at `byte` bytes from a void pointer, see `prefetch_at`."""
    prefetch_at(builder, builder.gep(base, [byte]), near)


def prefetch_at(builder: Any, pointer: Any, near: int = 3) -> None:
    """Ask for the cache line of a void pointer, for reading: into all levels, with `near` 2 all but the first."""
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(function, [pointer, I32(0), I32(near), I32(1)])


@intrinsic
def prefetch_lines(typingctx: Any, data: Any, byte: Any, lines: Any) -> Any:
    """Ask for cache lines from a byte of an array on, into the second level; beyond its end is harmless."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base, _ = array(context, builder, signature, args, 0)
        with cgutils.for_range(builder, args[2]) as loop:
            prefetch_line(builder, base, builder.add(args[1], builder.mul(loop.index, I64(LINE))), near=2)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.int64), codegen


@intrinsic
def take_next(typingctx: Any, counters: Any, i: Any) -> Any:
    """counters[i]++ of an int64 array, atomically; returns the value before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        base, _ = array(context, builder, signature, args, 0)
        place = at(builder, base, builder.mul(args[1], I64(8)), I64)
        return builder.atomic_rmw("add", place, I64(1), "monotonic")

    return types.int64(counters, types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, data: Any, index: Any) -> Any:
    """Fetch the cache line of data[index], which need not exist: a prefetch never faults."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.gep(data_of(context, builder, data, args[0]), [args[1]])
        prefetch_at(builder, builder.bitcast(pointer, cgutils.voidptr_t))
        return context.get_dummy_value()

    return types.void(data, types.intp), codegen


def data_of(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Pointer to the elements of an array of that Numba type."""
    return context.make_array(kind)(context, builder, value).data


@intrinsic
def wide_vectors(typingctx: Any) -> Any:
    """The vectoriser may use 512-bit registers in this function. Without AVX-512 nothing changes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        attributes = builder.function.attributes
        if isinstance(attributes, set):  # llvmlite checks names in its own `add`, LLVM takes any string attribute
            set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


TOWARD_ZERO, TO_NEAREST = 0, 1  # modes of `set_rounding`: arguments of llvm.set.rounding, as C's FLT_ROUNDS


@intrinsic
def set_rounding(typingctx: Any, mode: Any) -> Any:
    """Set this thread's floating-point rounding mode: `TOWARD_ZERO` or `TO_NEAREST`. Always set it back."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call(builder, "llvm.set.rounding", ir.VoidType(), [args[0]])
        return context.get_dummy_value()

    return types.void(types.int32), codegen
