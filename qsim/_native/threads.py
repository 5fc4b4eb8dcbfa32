"""Calls of one compiled function on all of Numba's threads, without `parallel=True`.

With `parallel=True` Numba builds the body of a loop, a wrapper for it and the function around them as three libraries,
and all that the body calls is optimised and turned into machine code again in each: the function took longer to compile
than all that it calls. What runs in threads here is one call for each of so many tasks, and that needs no more than a
call: `on_threads` writes it straight for the thread pool that Numba has anyway, in one library.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.np.ufunc.parallel import _launch_threads

intrinsic: Any = extending.intrinsic  # its annotation is of the compiler's side, not of the call

_I32, _I64, _BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
# void (char **args, size_t *counts, size_t *steps, void *data): what the pool calls
_TASKS = ir.FunctionType(ir.VoidType(), [_BYTES.as_pointer(), _I64.as_pointer(), _I64.as_pointer(), _BYTES])
_RUN = ir.FunctionType(ir.VoidType(), [_BYTES] * 5 + [_I64] * 3)

_launch_threads()  # puts the pool's functions where compiled code, also from the cache, finds them


def on_threads(kernel: Any) -> Any:
    """For use in compiled code: `run = on_threads(kernel)`, then `run(tasks, (a, b, ...))`.

    It calls kernel(i, a, b, ...) for every i from 0 to tasks - 1, i an int64, each thread a run of consecutive i, and
    returns when all are done. `kernel` is a function of `numba.njit` that returns nothing. Numba's number of threads
    (`numba.set_num_threads`) holds.

    Raises:
        MemoryError: in the compiled code; a task failed, and for want of memory is all that it can fail for when
            bounds are not checked.
    """

    @intrinsic
    def run(typingctx: Any, tasks: Any, given: Any) -> Any:
        kinds = getattr(given, "types", None)
        if kinds is None:  # no tuple
            return None
        called = (types.int64, *(types.unliteral(one) for one in kinds))
        typed = typingctx.resolve_value_type(kernel).get_call_type(typingctx, called, {})
        arguments = types.Tuple(called[1:])

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            compiled = kernel.get_compile_result(typed)
            context.add_linking_libs([compiled.library])
            data = cgutils.alloca_once(builder, ir.LiteralStructType([args[1].type, _I32]))
            builder.store(args[1], cgutils.gep_inbounds(builder, data, 0, 0))
            builder.store(_I32(0), cgutils.gep_inbounds(builder, data, 0, 1))
            body = ir.Function(builder.module, _TASKS, builder.module.get_unique_name(f"tasks.{kernel.__name__}"))
            body.linkage = "internal"
            _fill(body, data.type, context, compiled, typed)

            first = cgutils.alloca_once_value(builder, ir.Constant(_BYTES, None))
            count = cgutils.alloca_once_value(builder, args[0])
            step = cgutils.alloca_once_value(builder, _I64(1))
            threads = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I64, []), "get_num_threads")
            pool = cgutils.get_or_insert_function(builder.module, _RUN, "numba_parallel_for")
            pointers = [builder.bitcast(one, _BYTES) for one in (body, first, count, step, data)]
            builder.call(pool, [*pointers, _I64(0), _I64(1), builder.call(threads, [])])
            failed = builder.load(cgutils.gep_inbounds(builder, data, 0, 1))
            with cgutils.if_unlikely(builder, builder.icmp_signed("!=", failed, _I32(0))):
                context.call_conv.return_user_exc(builder, MemoryError, (f"{kernel.__name__}: no memory in a thread",))
            return context.get_dummy_value()

        return types.void(types.int64, arguments), codegen

    return run


def _fill(body: ir.Function, data_type: Any, context: Any, compiled: Any, typed: Any) -> None:
    """The function that the pool calls: so many tasks from the one whose number it is given as an address."""
    args, counts, _, data = body.args
    builder = ir.IRBuilder(body.append_basic_block())
    # the pool adds to an argument's address the number of the first task times the step: 0 + task * 1
    first = builder.ptrtoint(builder.load(args), _I64)
    mine = builder.bitcast(data, data_type)
    values = cgutils.unpack_tuple(builder, builder.load(cgutils.gep_inbounds(builder, mine, 0, 0)))
    with cgutils.for_range(builder, builder.load(counts), intp=_I64) as loop:
        task = builder.add(first, loop.index)
        status, _ = context.call_internal_no_propagate(builder, compiled.fndesc, typed, [task, *values])
        with cgutils.if_unlikely(builder, status.is_error):
            builder.store(_I32(1), cgutils.gep_inbounds(builder, mine, 0, 1))
    builder.ret_void()
