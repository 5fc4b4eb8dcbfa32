"""Floats in, floats out: encode to the instruction's formats, multiply, read the bits as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import FloatFormat, encode

from .gemm import matmul
from .model import Instruction, get_instruction
from .presets import get_preset

_RESULT = {"f32": np.float32, "f16": np.float16, "f64": np.float64}


def encode_operand(x: Any, ins: Instruction, which: str) -> np.ndarray:
    """Values to codes of operand "a" or "b": to nearest even, finite values saturate; integers are clipped."""
    fmt = ins.format_a if which == "a" else ins.format_b
    text = ins.input_a if which == "a" else ins.input_b
    values = np.asarray(x)
    if text == "f64":
        return values.astype(np.float64).view(np.uint64)
    if not isinstance(fmt, FloatFormat):
        return np.clip(np.rint(values), fmt.min_integer, fmt.max_integer).astype(np.int8 if fmt.signed else np.uint8)
    return encode(values, fmt, overflow="saturate_finite")


def _unit_scales(ins: Instruction, rows: int, k: int, which: str) -> np.ndarray | None:
    block = ins.block_a if which == "a" else ins.block_b
    if block is None:
        return None
    return np.full((rows, k // block.block_size), encode(np.float32(1.0), block.scale), np.uint8)


def matmul_floats(a: Any, b: Any, *, instruction: Any = None, preset: Any = None, **arguments: Any) -> np.ndarray:
    """`matmul` of values: a (M, K) and b (N, K) are rounded to the instruction's formats first.

    Arguments:
        a, b: numbers.
        instruction, preset, arguments: as in `matmul`. Block scales are 1 unless given, so round to the block format
            yourself when they should not be.

    Returns:
        (M, N) float32, float16, float64 or int32: the accumulators as numbers (`out_format` is not accepted).
    """
    if arguments.get("out_format") is not None:
        raise QsimError("matmul_floats returns the accumulators as numbers; use matmul for out_format")
    given = instruction if instruction is not None else get_preset(preset).instruction
    ins = get_instruction(given)
    x, y = encode_operand(a, ins, "a"), encode_operand(b, ins, "b")
    for name, codes, which in (("scale_a", x, "a"), ("scale_b", y, "b")):
        if arguments.get(name) is None and ins.block_a is not None:
            arguments[name] = _unit_scales(ins, len(codes), codes.shape[1], which)
    bits = matmul(x, y, instruction=ins, preset=preset, **arguments)
    return bits if ins.output == "s32" else bits.view(_RESULT[ins.output])
