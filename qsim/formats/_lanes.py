"""Two things that a compiled loop can say to LLVM and to the processor. Neither changes a result."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types as nb_types
from numba.extending import intrinsic


def _wide_vectors(typing_context: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        attributes = builder.function.attributes
        if isinstance(attributes, set):  # llvmlite checks names in its own `add`, LLVM takes any string attribute
            set.add(attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return nb_types.void(), codegen


def _prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, value=args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        signature_ir = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer.type,), fnty=signature_ir)
        # for reading, into every level of the cache, data
        builder.call(function, [pointer, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return nb_types.void(array, nb_types.intp), codegen


# `wide_vectors()`: the vectoriser may use 512-bit registers in this function. Without AVX-512 nothing changes.
wide_vectors: Any = intrinsic(_wide_vectors)
# `prefetch(array, i)`: fetch the cache line of array[i], which need not exist: a prefetch never faults.
prefetch: Any = intrinsic(_prefetch)
