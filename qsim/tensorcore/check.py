"""What the public functions accept: codes of the right type and shape, or a sentence that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError, QsimTypeError
from qsim.formats import BlockFormat, IntFormat

from .model import Instruction


def codes(array: Any, name: str, ins: Instruction, which: str) -> np.ndarray:
    """`array` as contiguous codes of operand `which` ("a" or "b") of the instruction.

    ml_dtypes and NumPy float arrays of the operand's format are taken by their bits.

    Raises:
        TypeError: another dtype.
        ValueError: codes outside a format narrower than its type.
    """
    given = as_plain_array(array, name)
    dtype = ins.code_dtype_a if which == "a" else ins.code_dtype_b
    fmt = ins.format_a if which == "a" else ins.format_b
    text = ins.input_a if which == "a" else ins.input_b
    if given.dtype != dtype:
        if given.dtype.name == (fmt.name if text != "f64" else "float64"):
            given = given.view(dtype)
        else:
            raise QsimTypeError(
                f"{name} of {ins.name} holds {text} codes as {dtype.name}: got an array of {given.dtype.name}"
                f"{'; encode floats first' if given.dtype.kind == 'f' else ''}"
            )
    if isinstance(fmt, IntFormat):
        low, high = fmt.min_integer, fmt.max_integer
        if fmt.bits < 8 and given.size and (given.min() < low or given.max() > high):
            raise QsimError(
                f"{name} of {ins.name} holds {text} values from {low} to {high}: got {given.min()} to {given.max()}"
            )
    elif (
        text != "f64" and fmt.storage_bits < dtype.itemsize * 8 and given.size and int(given.max()) >> fmt.storage_bits
    ):
        raise QsimError(f"{name} of {ins.name} holds {fmt.bits}-bit {text} codes: got code {int(given.max()):#x}")
    return np.ascontiguousarray(given)


def accumulator(array: Any, ins: Instruction, shape: tuple[int, ...]) -> np.ndarray:
    """C as contiguous bits of the accumulator type and the given shape.

    Raises:
        TypeError, ValueError: another dtype, another shape.
    """
    given = as_plain_array(array, "c")
    if given.dtype != ins.output_dtype:
        floats = {"f32": np.float32, "f16": np.float16, "f64": np.float64}
        if ins.output in floats and given.dtype == floats[ins.output]:
            given = given.view(ins.output_dtype)
        else:
            raise QsimTypeError(
                f"c of {ins.name} holds {ins.output} as {ins.output_dtype.name}: got an array of {given.dtype.name}"
            )
    if given.shape != shape:
        raise QsimError(f"c must have the shape of the result, {shape}: got {given.shape}")
    return np.ascontiguousarray(given)


def block_scale(array: Any, name: str, block: BlockFormat | None, rows: tuple[int, ...], k: int) -> np.ndarray | None:
    """Block-scale codes of one operand, shape (..., rows, K / block size), or None where there are no block scales.

    Raises:
        ValueError, TypeError: missing, not wanted, or of another shape or dtype.
    """
    if block is None:
        return None
    if array is None:
        raise QsimError(
            f"{name} is missing: {block.name} operands have one {block.scale.name} code per {block.block_size}"
        )
    given = as_plain_array(array, name)
    if given.dtype.name == block.scale.name:
        given = given.view(np.uint8)
    if given.dtype != np.uint8:
        raise QsimTypeError(f"{name} holds {block.scale.name} codes as uint8: got an array of {given.dtype.name}")
    shape = (*rows, k // block.block_size)
    if given.shape != shape:
        raise QsimError(f"{name} must have shape {shape}, one code per {block.block_size} of K: got {given.shape}")
    return np.ascontiguousarray(given)


def operands(a: Any, b: Any, ins: Instruction, *, batched: bool) -> tuple[np.ndarray, np.ndarray]:
    """Both operands' codes, with shapes that chain.

    Raises:
        TypeError, ValueError: dtype, codes or shapes that do not fit.
    """
    x, y = codes(a, "a", ins, "a"), codes(b, "b", ins, "b")
    if (x.ndim < 2 or y.ndim < 2) if batched else (x.ndim != 2 or y.ndim != 2):
        wanted = "(..., M, K) and (..., N, K)" if batched else "(M, K) and (N, K)"
        raise QsimError(f"a and b must have shapes {wanted}: got {x.shape} and {y.shape}")
    if x.shape[-1] != y.shape[-1]:
        raise QsimError(f"a (M, K) and b (N, K) must share K: got {x.shape} and {y.shape}")
    return x, y
