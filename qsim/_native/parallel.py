"""A compiled function on several threads, without the price of `prange`.

A loop over `prange` compiles slowly: Numba analyses the whole function for it and compiles the body once more, which
took 1 to 3 s of every kernel, for every type of its arguments. `on_threads` lets a function call itself from Numba's
own pool of threads, at the same cost at run time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import callconv, cgutils

from .vectors import I32, I64, intrinsic

_POINTER = cgutils.voidptr_t
_SHARE = ir.FunctionType(ir.VoidType(), [_POINTER.as_pointer(), I64.as_pointer(), I64.as_pointer(), _POINTER])
# Numba's pool: function, base addresses, [count], [step], data, then how many inner dimensions, addresses and threads
_FOR = ir.FunctionType(ir.VoidType(), [_POINTER, _POINTER.as_pointer(), I64.as_pointer(), I64.as_pointer(), _POINTER,
                                       I64, I64, I64])  # fmt: skip
ALL = -1
"""As `thread` of a function that calls `on_threads`: all of them."""


@cache
def start_pool() -> None:
    """Start Numba's threads, without which code that calls `on_threads` cannot be loaded from the disk."""
    numba.get_num_threads()


@intrinsic
def on_threads(typingctx: Any, threads: Any) -> Any:
    """Have the function in which this stands done by every thread of range(threads), side by side.

    In compiled code only, in this form:

        @njit
        def work(thread, threads, ...):  # called from Python as work(ALL, numba.get_num_threads(), ...)
            if on_threads(threads):
                return
            ...  # the share of one thread

    `thread`, an integer, is the first argument; all others are passed on as they are. `threads` is at
    most `numba.get_num_threads()`; who does not ask that before the call must call `start_pool`. With 1 the pool is not
    used. The function returns nothing.

    Returns:
        bool: whether `thread` was `ALL` and every thread's share is done.

    Raises:
        MemoryError: a thread raised. It has no other reason to.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start_pool()
        function = builder.function
        given = function.args  # where a result goes, where an exception goes, then the arguments
        kind = ir.LiteralStructType([I32, *(a.type for a in given[3:])])
        held = cgutils.alloca_once(builder, kind)
        base, count, step = (cgutils.alloca_once(builder, t) for t in (_POINTER, I64, I64))
        # compared here and not by whoever calls this: Numba drops a branch on an argument that it takes for a constant
        every = builder.icmp_signed("==", given[2], given[2].type(ALL))
        with builder.if_then(every):
            for i, value in enumerate([I32(0), *given[3:]]):
                builder.store(value, cgutils.gep_inbounds(builder, held, 0, i))
            for place, value in ((base, ir.Constant(_POINTER, None)), (count, args[0]), (step, I64(1))):
                builder.store(value, place)
            share, data = _share(builder.module, function, kind), builder.bitcast(held, _POINTER)
            with builder.if_else(builder.icmp_signed(">", args[0], I64(1))) as (several, one):
                with several:
                    pool = cgutils.get_or_insert_function(builder.module, _FOR, "numba_parallel_for")
                    work = builder.bitcast(share, _POINTER)
                    builder.call(pool, [work, base, count, step, data, I64(0), I64(1), args[0]])
                with one:
                    builder.call(share, [base, count, step, data])
            failed = builder.load(cgutils.gep_inbounds(builder, held, 0, 0))
            with cgutils.if_unlikely(builder, cgutils.is_not_null(builder, failed)):
                context.call_conv.return_user_exc(builder, MemoryError, ("a thread found no memory",))
        return every

    return types.boolean(types.int64), codegen


def _share(module: Any, work: Any, kind: Any) -> Any:
    """What the pool calls. The number of the first thread is the first address: the base is 0 and a step is 1."""
    share = ir.Function(module, _SHARE, module.get_unique_name("share"))
    share.linkage = "internal"
    builder = ir.IRBuilder(share.append_basic_block())
    addresses, counts, _, data = share.args
    first = builder.ptrtoint(builder.load(addresses), I64)
    held = builder.bitcast(data, kind.as_pointer())
    values = [builder.load(cgutils.gep_inbounds(builder, held, 0, i)) for i in range(1, len(kind.elements))]
    result, exception = (cgutils.alloca_once(builder, a.type.pointee) for a in work.args[:2])
    with cgutils.for_range(builder, builder.load(counts)) as loop:
        status = builder.call(work, [result, exception, builder.add(first, loop.index), *values])
        fine = [builder.icmp_signed("==", status, code) for code in (callconv.RETCODE_OK, callconv.RETCODE_NONE)]
        with cgutils.if_unlikely(builder, builder.not_(builder.or_(*fine))):
            builder.store(I32(1), cgutils.gep_inbounds(builder, held, 0, 0))
    builder.ret_void()
    return share
