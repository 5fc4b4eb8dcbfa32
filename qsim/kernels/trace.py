"""One output element of a fused kernel, step by step from codes to its result: what `qsim mma --pipeline` shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import decode, encode
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, quantize
from qsim.tensorcore import get_instruction, matmul

from .fused_gemm import columns_of, epilogue, factor, order_of, sums
from .operands import bf16_codes, quantized, weight_operand
from .pipelines import Pipeline, get_pipeline

F32 = np.float32
_BLOCK = 128  # rows of the example: a whole block of a block-scaled weight


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of the dot product: the numbers given and the operands that the instruction reads."""

    k: int
    x: float
    a: float
    code: int
    zero: float | None
    scale: float | None
    b: float
    b_code: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of K in the kernel's order: what it gives and what the accumulator or register holds after it."""

    label: str
    sum: float | None
    scale: float | None
    after: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the epilogue."""

    what: str
    by: float | None
    value: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """How one element comes about.

    Arguments:
        row: the kernel.
        scheme: of the example's weight and activation.
        products: the first few products.
        token_scale: scale of the activation's row, when it has one.
        parts: the sums.
        steps: the epilogue.
        result: the element; `code` its BF16 or float32 code.
        exact: the product of the values before any operand is rounded, in float64.
    """

    row: Pipeline
    scheme: Scheme
    products: tuple[Product, ...]
    token_scale: float | None
    parts: tuple[Part, ...]
    steps: tuple[Step, ...]
    result: float
    code: int
    exact: float


def example_scheme(row: Pipeline) -> Scheme:
    """A scheme that a row takes: its first format and granularity, scales in its scale format."""
    fmt = "int4" if row.weight[0] == "any" else row.weight[0]
    name, _, where = row.activation.partition(" ")
    activation = TensorScheme(format=name, granularity=where, dynamic=True) if where else TensorScheme(format=name)  # type: ignore[arg-type]
    if fmt.startswith(("mxfp4", "nvfp4")):
        return Scheme(weight=TensorScheme(format=fmt), activation=activation)  # type: ignore[arg-type]
    granularity = row.granularity[0] if row.granularity else "group(128)"
    weight = TensorScheme(format=fmt, granularity=granularity, scale_format=row.scale_format or None)  # type: ignore[arg-type]
    return Scheme(weight=weight, activation=activation)


def trace(pipeline: str | Pipeline, *, k: int = 256, seed: int = 0, shown: int = 4) -> Trace:
    """The first element of a random example: weights and activations from a normal distribution.

    Arguments:
        pipeline: a row or its name.
        k: input features, a multiple of 128.
        seed: of the example.
        shown: how many products.

    Raises:
        QsimError: an unknown row; K that is no multiple of 128.
    """
    row = get_pipeline(pipeline)
    if k < 128 or k % 128:
        raise QsimError(f"the example's K must be a multiple of 128: got {k}")
    rng = np.random.default_rng(seed)
    scheme = example_scheme(row)
    q = quantize(rng.standard_normal((_BLOCK, k)).astype(F32), scheme)
    x = np.asarray(decode(encode(rng.standard_normal((1, k)).astype(F32), "bfloat16"), "bfloat16"), F32)
    if scheme.activation.is_quantized:
        a, scales = quantized(row, x, scheme.activation, k, None)
    else:
        a, scales = bf16_codes(x, k), None
    b, offset = weight_operand(row, q)
    ins = get_instruction(row.instruction)
    left, right = _values(a[:1], ins.input_a), _values(b[:1], ins.input_b)
    out = sums(row, a, b, scales, q)
    steps, value = [], out
    for what in row.epilogue:
        one = replace(row, epilogue=(what,), output="bfloat16" if what.startswith("round") else "float32")
        value = epilogue(one, value, scales, q, offset)
        by = None if what.startswith("round") else factor(what, scales, q, offset)
        steps.append(Step(what=what, by=None if by is None else _first(by), value=float(value[0, 0])))
    result = value[0, 0]
    bits = int(result.view(np.uint32))
    group = q.tensor_scheme.group_size or k
    products = tuple(
        Product(
            k=i,
            x=float(x[0, i]),
            a=float(left[0, i]),
            code=int((q.integers if q.tensor_scheme.is_integer else q.codes)[0, i]),
            zero=None if q.zeros is None else float(q.zeros[0, i // group]),
            scale=_scale_of(row, q, i // group),
            b=float(right[0, i]),
            b_code=int(b[0, i]) & (0xFFFF if b.dtype == np.uint16 else 0xFF),
        )
        for i in range(shown)
    )
    return Trace(
        row=row,
        scheme=scheme,
        products=products,
        token_scale=None if scales is None or scales.ndim != 1 else float(scales[0]),
        parts=tuple(_parts(row, a, b, scales, q)),
        steps=tuple(steps),
        result=float(result),
        code=bits >> 16 if row.output == "bfloat16" else bits,
        exact=float(x[0].astype(np.float64) @ q.dequantize()[0].astype(np.float64)),
    )


def _first(value: Any) -> float:
    return float(np.asarray(value).reshape(-1)[0])


def _values(codes: np.ndarray, name: str) -> np.ndarray:
    if codes.dtype == np.int8:
        return codes.astype(F32)
    return np.asarray(decode(codes, {"bf16": "bfloat16", "e4m3": "float8_e4m3fn"}[name]), F32)


def _scale_of(row: Pipeline, q: QuantizedTensor, group: int) -> float | None:
    """The scale that goes into the operand, or None when it comes later."""
    if row.operand in ("fold", "fma", "dequantize", "exponents"):
        return float(q.scales.reshape(len(q.scales), -1)[0, group])
    return None


def _parts(row: Pipeline, a: np.ndarray, b: np.ndarray, scales: Any, q: QuantizedTensor) -> list[Part]:
    """The chain after every stretch of K; with promotion the chain of a stretch, its scale, and the register."""
    k, found = a.shape[1], []
    order, lengths = order_of(row, k)
    if row.slices > 1:
        assert order is not None
        assert isinstance(lengths, list)
        total, start = F32(0), 0
        plain = replace(row, slices=1, slice_block=0)
        for number, length in enumerate(lengths):
            here = order[start : start + length]
            part = sums(plain, a[:, here], b[:, here], scales, q)[0, 0]
            total, start = F32(total + part), start + length
            found.append(Part(label=f"part {number + 1}", sum=float(part), scale=None, after=float(total)))
        return found
    step = row.chain if row.chain >= 64 else 64
    for end in range(step, k + 1, step):
        so_far = sums(row, a[:, :end], b[:, :end], _cut(scales, end, k), columns_of(q, np.arange(end)))[0, 0]
        chain, scale = None, None
        if row.chain >= 64:
            bits = matmul(a[:1, end - step : end], b[:1, end - step : end], instruction=row.instruction)
            chain = float((bits if bits.dtype == np.int32 else bits.view(F32))[0, 0])
            scale = _group_scale(row, scales, q, end // step - 1)
        found.append(Part(label=f"k {end - step}..{end - 1}", sum=chain, scale=scale, after=float(so_far)))
    return found


def _group_scale(row: Pipeline, scales: Any, q: QuantizedTensor, number: int) -> float | None:
    """What a chain is multiplied by on its way to the register; None when it is added as it is."""
    if row.promotion == "add":
        return None
    weight = q.scales[0, number] * F32(2.0**9 if row.operand == "subnormal" else 1.0)
    return float(weight * scales[0, number]) if scales is not None and scales.ndim == 2 else float(weight)


def _cut(scales: Any, end: int, k: int) -> Any:
    return scales if scales is None or scales.ndim == 1 else scales[:, : scales.shape[1] * end // k]
