"""Random and adversarial codes for any operand format."""

from __future__ import annotations

import numpy as np

from qsim.formats import FloatFormat
from qsim.tensorcore import Instruction

KINDS = ("normal", "wide", "cancel", "subnormal", "raw", "zeros")


def operand(ins: Instruction, which: str, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Codes of one operand. `raw` is any bit pattern (Inf and NaN included), the others are finite."""
    dtype = ins.code_dtype_a if which == "a" else ins.code_dtype_b
    name = ins.input_a if which == "a" else ins.input_b
    fmt = ins.format_a if which == "a" else ins.format_b
    if name == "f64":
        return floats64(kind, shape, rng)
    if not isinstance(fmt, FloatFormat):
        return rng.integers(fmt.min_integer, fmt.max_integer + 1, shape).astype(dtype)
    return float_codes(fmt, kind, shape, rng)


def float_codes(fmt: FloatFormat, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    m = fmt.mantissa_bits
    if kind == "raw":
        return rng.integers(0, 1 << fmt.storage_bits, shape, dtype=np.uint64).astype(fmt.code_dtype)
    top = (fmt.max_magnitude_code >> m) - 1  # below the exponent field that may hold NaN
    middle = min(max(fmt.bias, 1), top)
    low, high = {
        "normal": (max(middle - 2, 0), min(middle + 1, top)),
        "wide": (max(middle - 30, 0), min(middle + 30, top)),
        "cancel": (min(middle, top), min(middle, top)),
        "subnormal": (0, min(1, top)),
        "zeros": (0, top),
    }[kind]
    field = rng.integers(low, high + 1, shape)
    codes = (field << m) | rng.integers(0, 1 << m, shape)
    if kind == "zeros":
        codes = np.where(rng.random(shape) < 0.7, 0, codes)
    if fmt.signed:
        codes = codes | (rng.integers(0, 2, shape) * fmt.sign_mask)
    codes = codes << fmt.padding_bits
    if fmt.padding_bits:  # a TF32 word's low bits are there and are not read
        codes = codes | rng.integers(0, 1 << fmt.padding_bits, shape)
    return codes.astype(fmt.code_dtype)


def floats64(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if kind == "raw":
        return rng.integers(0, 1 << 64, shape, dtype=np.uint64)
    spread = {"normal": 2, "wide": 200, "cancel": 0, "subnormal": 2, "zeros": 20}[kind]
    shift = -500 if kind == "subnormal" else 0
    x = np.ldexp(rng.standard_normal(shape), rng.integers(-spread, spread + 1, shape) + shift)
    return np.where(rng.random(shape) < (0.5 if kind == "zeros" else 0), 0.0, x).view(np.uint64)


def addend(ins: Instruction, kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """C in the accumulator's type."""
    if ins.output == "s32":
        return rng.integers(-(2**31), 2**31, shape).astype(np.int32)
    if ins.output == "f64":
        return floats64(kind, shape, rng)
    return float_codes(ins.output_format, kind, shape, rng)


def scales(ins: Instruction, which: str, rows: int, k: int, kind: str, rng: np.random.Generator) -> np.ndarray | None:
    """Block-scale codes; `raw` holds NaN scales as well."""
    block = ins.block_a if which == "a" else ins.block_b
    if block is None:
        return None
    shape = (rows, k // block.block_size)
    if kind == "raw":
        return rng.integers(0, 256, shape).astype(np.uint8)
    if block.scale.name == "float8_e8m0fnu":
        spread = 60 if kind == "wide" else 3
        return rng.integers(127 - spread, 128 + spread, shape).astype(np.uint8)
    return rng.integers(1, 0x7E, shape).astype(np.uint8)
