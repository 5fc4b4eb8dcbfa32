"""Explicit vector code for Numba: fused multiply-adds, the rounding mode, and the inner loop of the fast kernel.

Numba vectorises loops but cannot keep a block of accumulators in registers, and it has no FMA. So the one loop that
takes the time is written here as LLVM vectors, which every CPU has in some width; all else is ordinary Numba.

**The truncated sum as two FMAs.** A term is |a b| truncated to a multiple of u = 2^(Emax - F). A float accumulator
that holds M = 2^p u (p its fraction bits, 23 or 52) has its last bit at u, so with rounding toward zero
`fma(a, b, M + s)` adds a positive product truncated exactly so, and `fma(a, b, -M + s)` a negative one. One accumulator
takes the positive products, the other the negative ones; their sum is the exact sum of truncated terms. B is packed as
its positive and its negative part, and the sign of a says which part goes to which accumulator: two FMAs per product,
no conversion and no multiply.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from qsim._native.vectors import I8, I16, I32, I64, TO_NEAREST, TOWARD_ZERO, call, data_of, set_rounding, splat

_HAS_512 = bool(llvm.get_host_cpu_features().get("avx512f", False))
VECTOR_BITS = 512 if _HAS_512 else 256
PANEL_VECTORS = 8 if _HAS_512 else 4
"""Vectors of columns that one pass of the inner loop holds in registers: FMA latency x ports is 8, and two accumulators
of 8 leave registers for A, B and C. With 16 registers two of 4 do; their exponents then fill one register."""

L1_PRODUCTS = 32
"""K of a stretch of a panel that stays in the L1: 32 x 2 x 64 float64 or 128 float32 are 32 KiB."""

TAIL_VECTORS = PANEL_VECTORS // 2
"""The width of a last panel that is at most half full."""


class _Vectors:
    """Short names for vector instructions of one width."""

    def __init__(self, builder: Any, float_type: Any, bits: int) -> None:
        self.builder = builder
        self.lanes = VECTOR_BITS // bits
        self.scalar = float_type
        self.float = ir.VectorType(float_type, self.lanes)
        self.int = ir.VectorType(ir.IntType(bits), self.lanes)
        self.suffix = f"v{self.lanes}f{bits}"

    def splat(self, scalar: Any, lanes: int | None = None) -> Any:
        return splat(self.builder, scalar, lanes or self.lanes)

    def load(self, pointer: Any, vector: Any) -> Any:
        bits = getattr(vector.element, "width", 32 if vector.element == ir.FloatType() else 64)
        return self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()), align=bits // 8)

    def store(self, value: Any, pointer: Any) -> None:
        bits = getattr(value.type.element, "width", 32 if value.type.element == ir.FloatType() else 64)
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()), align=bits // 8)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return call(self.builder, f"llvm.fma.{self.suffix}", self.float, [a, b, c])

    def larger(self, a: Any, b: Any) -> Any:
        """Larger of two floats that are not NaN; compiles to one instruction."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def smaller(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), a, b)

    def slice(self, wide: Any, start: int) -> Any:
        index = ir.Constant(ir.VectorType(I32, self.lanes), list(range(start, start + self.lanes)))
        return self.builder.shuffle_vector(wide, ir.Constant(wide.type, ir.Undefined), index)


def _max_signed(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


def _largest_exponents(v: _Vectors, columns: int, exp_type: Any, p: dict[str, Any]) -> Any:
    """Largest exponent of the step's products in every column, as one wide vector of small integers.

    int8 exponents mark a zero by -64, so a sum below -40 means "no product"; it becomes the floor.
    """
    builder = v.builder
    wide = ir.VectorType(exp_type, columns)
    floor = v.splat(p["floor"], columns)
    largest = cgutils.alloca_once_value(builder, floor if exp_type == I16 else v.splat(exp_type(-128), columns))
    with cgutils.for_range(builder, p["products"], intp=I64) as loop:
        ea = v.splat(builder.load(builder.gep(p["ea"], [loop.index])), columns)
        eb = v.load(builder.gep(p["eb"], [builder.mul(loop.index, I64(columns))]), wide)
        builder.store(_max_signed(builder, builder.load(largest), builder.add(ea, eb)), largest)
    found = builder.load(largest)
    if exp_type == I8:
        none = builder.icmp_signed("<", found, v.splat(I8(-40), columns))
        found = _max_signed(builder, builder.select(none, floor, found), floor)
    return found


def _accumulate(v: _Vectors, columns: int, positive: list[Any], negative: list[Any], p: dict[str, Any]) -> None:
    """The loop that takes the time: products of one sign into `positive`, of the other into `negative`."""
    builder = v.builder
    bits = 32 if v.scalar == ir.FloatType() else 64
    word = ir.IntType(bits)
    with cgutils.for_range(builder, p["products"], intp=I64) as loop:
        a_pointer = builder.gep(p["a"], [loop.index])
        a = builder.load(a_pointer)
        is_negative = builder.lshr(builder.bitcast(a, word), word(bits - 1))
        is_negative = builder.zext(is_negative, I64) if bits == 32 else is_negative
        row = builder.gep(p["b"], [builder.mul(loop.index, I64(2 * columns))])
        swap = builder.mul(is_negative, I64(columns))
        same = builder.gep(row, [swap])
        other = builder.gep(row, [builder.sub(I64(columns), swap)])
        splat = v.splat(a)
        for i, (pos, neg) in enumerate(zip(positive, negative, strict=True)):
            offset = [I64(i * v.lanes)]
            builder.store(v.fma(splat, v.load(builder.gep(same, offset), v.float), builder.load(pos)), pos)
            builder.store(v.fma(splat, v.load(builder.gep(other, offset), v.float), builder.load(neg)), neg)


def _base32(v: _Vectors, c: Any, exponents: Any, p: dict[str, Any]) -> Any:
    """M = 2^(Emax - F + 23) in float32 lanes. The floor on Emax is -126, so a subnormal C needs no care."""
    builder = v.builder
    c_exponent = builder.and_(builder.bitcast(c, v.int), v.splat(I32(0x7F800000)))
    biased = builder.add(builder.sext(exponents, v.int), v.splat(I32(127)))
    largest = _max_signed(builder, builder.shl(biased, v.splat(I32(23))), c_exponent)
    return builder.bitcast(builder.add(largest, v.splat(builder.trunc(p["shift"], I32))), v.float)


def _base64(v: _Vectors, c: Any, exponents: Any, p: dict[str, Any], careful: bool) -> Any:
    """M = 2^(Emax - F + 52) in float64 lanes.

    C's exponent has the accumulator's minimum and a zero C has none; both matter only to a `careful` step.
    """
    builder = v.builder
    exponent_mask = v.splat(I64(0x7FF0000000000000))
    c_power = builder.bitcast(builder.and_(builder.bitcast(c, v.int), exponent_mask), v.float)
    if careful:
        c_power = v.larger(c_power, v.splat(p["c_smallest"]))
        zero = ir.Constant(v.float, None)
        c_power = builder.select(builder.fcmp_unordered("!=", c, zero), c_power, zero)
    biased = builder.add(builder.sext(exponents, v.int), v.splat(I64(1023)))
    power = builder.bitcast(builder.shl(biased, v.splat(I64(52))), v.float)
    return builder.fmul(v.larger(power, c_power), v.splat(p["scale"]))


def _cut64(v: _Vectors, total: Any, p: dict[str, Any], careful: bool) -> Any:
    """float64 lanes to the kept bits of a float32, toward zero. Without care for subnormals that is a mask."""
    builder = v.builder
    if not careful:
        wide_mask = builder.shl(builder.sext(p["mask"], I64), I64(29))
        return builder.bitcast(builder.and_(builder.bitcast(total, v.int), v.splat(wide_mask)), v.float)
    # the conversion rounds toward zero, float32 subnormals included
    narrow = builder.fptrunc(total, ir.VectorType(ir.FloatType(), v.lanes))
    bits = builder.and_(builder.bitcast(narrow, ir.VectorType(I32, v.lanes)), v.splat(p["mask"]))
    return builder.fadd(builder.fpext(builder.bitcast(bits, narrow.type), v.float), ir.Constant(v.float, None))


def _nearest_even_f16(v: _Vectors, x: Any, c: Any) -> Any:
    """float64 lanes rounded to f16, ties to even, while the rounding mode is toward zero; an infinite C stays."""
    builder = v.builder
    magnitude_mask, exponent_mask = I64(0x7FFFFFFFFFFFFFFF), I64(0x7FF0000000000000)
    bits = builder.bitcast(x, v.int)
    sign = builder.and_(bits, v.splat(I64(-0x8000000000000000)))
    magnitude = builder.bitcast(builder.and_(bits, v.splat(magnitude_mask)), v.float)
    power = builder.bitcast(builder.and_(bits, v.splat(exponent_mask)), v.float)
    unit = builder.fmul(v.larger(power, v.splat(ir.DoubleType()(2.0**-14))), v.splat(ir.DoubleType()(2.0**-10)))
    # adding 2^52 units cuts at the unit; the rest decides
    base = builder.fmul(unit, v.splat(ir.DoubleType()(2.0**52)))
    shifted = builder.fadd(magnitude, base)
    low = builder.fsub(shifted, base)
    rest = builder.fsub(magnitude, low)
    half = builder.fmul(unit, v.splat(ir.DoubleType()(0.5)))
    odd = builder.trunc(builder.bitcast(shifted, v.int), ir.VectorType(ir.IntType(1), v.lanes))
    tie_up = builder.and_(builder.fcmp_ordered("==", rest, half), odd)
    up = builder.or_(builder.fcmp_ordered(">", rest, half), tie_up)
    rounded = builder.select(up, builder.fadd(low, unit), low)
    infinity = v.splat(ir.DoubleType()(float("inf")))
    rounded = builder.select(builder.fcmp_ordered(">=", rounded, v.splat(ir.DoubleType()(65536.0))), infinity, rounded)
    is_zero = builder.fcmp_ordered("==", rounded, ir.Constant(v.float, None))
    signed = builder.or_(builder.bitcast(rounded, v.int), sign)
    result = builder.bitcast(builder.select(is_zero, ir.Constant(v.int, None), signed), v.float)
    c_magnitude = builder.bitcast(builder.and_(builder.bitcast(c, v.int), v.splat(magnitude_mask)), v.float)
    return builder.select(builder.fcmp_ordered("==", c_magnitude, infinity), c, result)


def _one_step(v: _Vectors, columns: int, exp_type: Any, state_bits: int, c: list[Any], p: dict[str, Any]) -> None:
    """c <- step(a, b, c) for every column of the panel; `c` are stack slots that LLVM turns into registers."""
    builder = v.builder
    exponents = _largest_exponents(v, columns, exp_type, p)
    positive = [cgutils.alloca_once(builder, v.float) for _ in c]
    negative = [cgutils.alloca_once(builder, v.float) for _ in c]

    def begin(careful: bool) -> None:
        zero = ir.Constant(v.float, None)
        for i, slot in enumerate(c):
            old, largest = builder.load(slot), v.slice(exponents, i * v.lanes)
            single = v.scalar == ir.FloatType()
            base = _base32(v, old, largest, p) if single else _base64(v, old, largest, p, careful)
            # C is a term like the others: into the accumulator of its sign, truncated by the rounding mode
            builder.store(builder.fadd(base, v.larger(old, zero)), positive[i])
            builder.store(builder.fsub(v.smaller(old, zero), base), negative[i])

    def end(careful: bool) -> None:
        for slot, pos, neg in zip(c, positive, negative, strict=True):
            total = builder.fadd(builder.load(pos), builder.load(neg))
            if v.scalar == ir.FloatType():
                bits = builder.and_(builder.bitcast(total, v.int), v.splat(p["mask"]))
                # a negative sum that is cut to nothing is +0
                total = builder.fadd(builder.bitcast(bits, v.float), ir.Constant(v.float, None))
            elif state_bits == 32:
                total = _cut64(v, total, p, careful)
            else:
                total = _nearest_even_f16(v, total, builder.load(slot))
            builder.store(total, slot)

    if v.scalar == ir.FloatType() or state_bits == 64:
        begin(True)
        _accumulate(v, columns, positive, negative, p)
        end(True)
        return
    # Above 2^-100 no sum of aligned terms is a float32 subnormal, and neither e0 nor a subnormal C can be the largest
    tiny = builder.icmp_signed("<", exponents, v.splat(exp_type(-100), columns))
    careful = builder.icmp_unsigned("!=", builder.bitcast(tiny, ir.IntType(columns)), ir.IntType(columns)(0))
    for phase in (begin, end):
        with builder.if_else(careful) as (then, otherwise):
            with then:
                phase(True)
            with otherwise:
                phase(False)
        if phase is begin:
            _accumulate(v, columns, positive, negative, p)


def _chain_steps(
    typingctx: Any,
    a: Any,
    a_exponent: Any,
    a_start: Any,
    b: Any,
    b_exponent: Any,
    vectors: Any,
    state: Any,
    state_start: Any,
    steps: Any,
    products: Any,
    floor: Any,
    fraction_bits: Any,
    mask: Any,
    c_smallest: Any,
) -> Any:
    """A chain of truncated fused dot products for one row of A and one panel of columns of B.

    Call with the rounding mode toward zero. All operands finite, and no sum may reach 2^128.

    Arguments:
        a, a_exponent: flat arrays of A's values (float32 or float64) and exponents (int8 or int16, zeros marked);
            the row's products start at index a_start.
        b, b_exponent: the packed panel: (K, 2, columns) values, positive and negative parts; (K, columns) exponents.
        vectors: a tuple whose length is the number of vectors of columns in the panel (a type, so known when compiled).
        state, state_start: accumulators, read and written: float32, or float64 holding f16 values (then results are
            rounded to f16, to nearest even).
        steps, products: number of steps, and L.
        floor: smallest Emax, of the exponents' type.  fraction_bits: F.
        mask: uint32 bits of a float32 result to keep.  c_smallest: 2^(minimum exponent of the accumulator).
    """
    float_bits, exp_bits, state_bits = a.dtype.bitwidth, a_exponent.dtype.bitwidth, state.dtype.bitwidth
    signature = types.void(
        a,
        a_exponent,
        types.int64,
        b,
        b_exponent,
        vectors,
        state,
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.int64,
        types.uint32,
        types.float64,
    )

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        (a_, ea_, a0, b_, eb_, _, state_, state0, n_steps, n_products, floor_, f_, mask_, c_smallest_) = args
        exp_type = ir.IntType(exp_bits)
        v = _Vectors(builder, ir.FloatType() if float_bits == 32 else ir.DoubleType(), float_bits)
        columns = vectors.count * v.lanes
        a_data, b_data = (data_of(context, builder, t, x) for t, x in ((sig.args[0], a_), (sig.args[3], b_)))
        ea_data, eb_data = (data_of(context, builder, t, x) for t, x in ((sig.args[1], ea_), (sig.args[4], eb_)))
        state_data = builder.gep(data_of(context, builder, sig.args[6], state_), [state0])
        stored = ir.VectorType(ir.FloatType() if state_bits == 32 else ir.DoubleType(), v.lanes)
        common = {
            "products": n_products,
            "floor": builder.trunc(floor_, exp_type),
            "mask": mask_,
            "c_smallest": c_smallest_,
            # 2^(p - F), as a shift of the exponent field in float32, as a factor in float64
            "shift": builder.shl(builder.sub(I64(23), f_), I64(23)),
            "scale": builder.bitcast(
                builder.shl(builder.add(builder.sub(I64(52), f_), I64(1023)), I64(52)), ir.DoubleType()
            ),
        }
        c = []
        for i in range(columns // v.lanes):
            value = v.load(builder.gep(state_data, [I64(i * v.lanes)]), stored)
            value = value if stored == v.float else builder.fpext(value, v.float)
            c.append(cgutils.alloca_once_value(builder, value))
        with cgutils.for_range(builder, n_steps, intp=I64) as loop:
            k = builder.mul(loop.index, n_products)
            a_at = builder.add(a0, k)
            _one_step(
                v,
                columns,
                exp_type,
                state_bits,
                c,
                {
                    **common,
                    "a": builder.gep(a_data, [a_at]),
                    "ea": builder.gep(ea_data, [a_at]),
                    "b": builder.gep(b_data, [builder.mul(k, I64(2 * columns))]),
                    "eb": builder.gep(eb_data, [builder.mul(k, I64(columns))]),
                },
            )
        for i, slot in enumerate(c):
            value = builder.load(slot)
            value = value if stored == v.float else builder.fptrunc(value, stored)
            v.store(value, builder.gep(state_data, [I64(i * v.lanes)]))
        return context.get_dummy_value()

    return signature, codegen


chain_steps: Any = intrinsic(_chain_steps)


@numba.njit(inline="always")
def run_panel(
    a: np.ndarray,
    a_exponent: np.ndarray,
    b: np.ndarray,
    b_exponent: np.ndarray,
    state: np.ndarray,
    first: Any,
    columns: Any,
    vectors: tuple[int, ...],
    k: Any,
    products: Any,
    floor: Any,
    fraction_bits: Any,
    mask: Any,
    c_smallest: Any,
) -> None:
    """`chain_steps` for every row of A against one packed panel, whose columns of `state` start at `first`.

    A stretch of the panel that fits the L1 meets all rows before the next one: two FMAs read 128 bytes a cycle, which
    the L2 cannot deliver. In between the accumulators wait in `state`.
    """
    rows, wide = state.shape
    flat = state.reshape(rows * wide)
    stretch = max(L1_PRODUCTS // products, 1)
    set_rounding(np.int32(TOWARD_ZERO))
    for step in range(0, k // products, stretch):
        start = step * products
        for i in range(rows):
            chain_steps(
                a,
                a_exponent,
                i * k + start,
                b[2 * columns * start :],
                b_exponent[columns * start :],
                vectors,
                flat,
                i * wide + first,
                min(stretch, k // products - step),
                products,
                floor,
                fraction_bits,
                np.uint32(mask),
                c_smallest,
            )
    set_rounding(np.int32(TO_NEAREST))
