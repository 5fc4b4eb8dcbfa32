"""Run a row of `pipelines.toml`: the bits that the fused kernel of a GPU returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError
from qsim.formats import decode, encode
from qsim.scheme import QuantizedTensor
from qsim.tensorcore import Preset, get_instruction, matmul

from .groups import integer_groups
from .operands import bf16_codes, quantized, weight_operand
from .packing import PackedWeight
from .pipelines import Pipeline, choose

F32 = np.float32
_SUBNORMAL = F32(2.0**9)  # what brings sums of the operand `subnormal` back


def fused_linear(x: Any, packed: PackedWeight, kernel: str | Pipeline) -> np.ndarray:
    """As `linear(..., exact=True, kernel=...)`.

    Raises:
        QsimError: see there.
    """
    first = x[0] if isinstance(x, tuple) and x else x
    leading = as_plain_array(first, "activations").shape[:-1]
    if 0 in leading:
        choose(kernel, packed.scheme, 1)
        return np.zeros((*leading, packed.shape[0]), F32)
    row, a, scales, b, offset = operands_of(x, packed, kernel)
    out = epilogue(row, sums(row, a, b, scales, packed.source), scales, packed.source, offset)
    return out.reshape(*leading, packed.shape[0])


def operands_of(
    x: Any, packed: PackedWeight, kernel: str | Pipeline
) -> tuple[Pipeline, np.ndarray, np.ndarray | None, np.ndarray, int]:
    """The row that runs, A (M, K) and its scales, B (N, K), and the offset of block exponents.

    Raises:
        QsimError: what `linear` refuses.
    """
    k = packed.shape[1]
    if packed.bias is not None:
        raise QsimError("kernel= computes what the kernel returns, which has no bias: pack without it and add it")
    pair, how = isinstance(x, tuple), packed.scheme.activation
    leading = as_plain_array(x[0] if pair and x else x, "activations").shape[:-1]
    row = choose(kernel, packed.scheme, int(np.prod(leading, dtype=np.int64)))
    if pair and not how.is_quantized:
        raise QsimError(f"{row.name} takes {row.activation} activations: codes with scales belong to 8-bit ones")
    if how.is_quantized:
        flat = x if pair else bf16_codes(x, k).reshape(-1, k)
        a, scales = quantized(row, flat, how, k, packed.input_scale)
    else:
        a, scales = bf16_codes(x, k).reshape(-1, k), None
    b, offset = weight_operand(row, packed.source)
    return row, a, scales, b, offset


def columns_of(q: QuantizedTensor, columns: np.ndarray) -> QuantizedTensor:
    """Ascending columns of a weight, for `sums`. Where they are no whole groups, the weight is left as it is: its
    scales are in the operands then."""
    group = q.tensor_scheme.group_size
    codes = np.ascontiguousarray(q.codes[:, columns])
    if group is None:
        return replace(q, codes=codes)
    numbers = np.unique(columns // group)
    if len(columns) != len(numbers) * group:
        return q
    zeros = None if q.zeros is None else np.ascontiguousarray(q.zeros[:, numbers])
    return replace(q, codes=codes, scale_codes=np.ascontiguousarray(q.scale_codes[:, numbers]), zeros=zeros)


def sums(row: Pipeline, a: np.ndarray, b: np.ndarray, scales: np.ndarray | None, q: QuantizedTensor) -> np.ndarray:
    """The float32 registers (M, N) when the last instruction is done; group scales are in them."""
    k, group = a.shape[1], row.chain
    if row.promotion in ("", "add"):
        order, lengths = order_of(row, k)
        bits = matmul(a, b, instruction=row.instruction, promote_every=group or None, k_order=order, split_k=lengths)
        return bits.astype(F32) if bits.dtype == np.int32 else bits.view(F32)
    per_row = q.tensor_scheme.granularity
    rows = 1 if per_row is None or per_row.rows is None else per_row.rows
    if get_instruction(row.instruction).output == "s32":
        return integer_groups(a, b, group, q.scales)
    shared = _SUBNORMAL if row.operand == "subnormal" else F32(1)
    left = np.full((len(a), k // group), shared, F32) if scales is None or scales.ndim == 1 else scales
    how = Preset(name=row.name, instruction=row.instruction, block=(1, rows, group))
    return matmul(
        a,
        b,
        preset=how,
        promote_every=group,
        promotion=row.promotion,  # type: ignore[arg-type]
        scale_a=left,
        scale_b=q.scales,
    ).view(F32)


def order_of(row: Pipeline, k: int) -> tuple[np.ndarray | None, list[int] | int]:
    """K in the order of the kernel, and the lengths of what runs apart."""
    if row.slices > 1:
        whole = np.arange(k).reshape(-1, row.slice_block) if k % row.slice_block == 0 else None
        if whole is None:
            raise QsimError(f"{row.name} takes K in blocks of {row.slice_block}: got K={k}")
        parts = [whole[i :: row.slices].reshape(-1) for i in range(row.slices)]
        parts = [p for p in parts if len(p)]
        return np.concatenate(parts), [len(p) for p in parts]
    if row.k_order:
        if k % len(row.k_order):
            raise QsimError(f"{row.name} takes K in blocks of {len(row.k_order)}: got K={k}")
        return np.array(row.k_order), 1
    return None, 1


def epilogue(row: Pipeline, out: np.ndarray, scales: np.ndarray | None, q: QuantizedTensor, offset: int) -> np.ndarray:
    """What follows the sums, step by step in float32; `trace` shows the same steps of one element."""
    with np.errstate(all="ignore"):
        for step in row.epilogue:
            if step == "round to bfloat16":
                out = np.asarray(decode(encode(out, "bfloat16", overflow="nonsaturating"), "bfloat16"), F32)
            else:
                out = out * factor(step, scales, q, offset)
    return out


def factor(step: str, scales: np.ndarray | None, q: QuantizedTensor, offset: int) -> Any:
    """What a step of an epilogue multiplies by, to be broadcast over (M, N)."""
    token = F32(1) if scales is None or scales.ndim != 1 else scales[:, None]
    channel = q.scales.reshape(1, -1)
    if step == "times token scale":
        return token
    if step == "times channel scale":
        return channel
    if step == "times token scale * channel scale":
        return token * channel
    if step == "times 2^offset":
        return F32(2.0**offset)
    assert step == "times tensor scale"
    return F32(1 if q.tensor_scale is None else q.tensor_scale)
