"""The fused pipeline through a tensor-core instruction of `qsim.tensorcore`: the bits a GPU gives.

Three stages, as a GPU's fused kernel has them. Weights are dequantised to the instruction's input format with one
rounding to nearest even (integers and FP8 that the instruction takes as they are stay codes); the instruction forms the
sums; the epilogue multiplies scales and adds the bias in float32. With one scale per row it is one chain over K; with
group scales that stay codes, one chain per group, promoted by a fused multiply-add with the scales, as cuBLASLt,
DeepGEMM and humming do it. What a given library's kernel returns is a row of `pipelines`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError

from .activations import Activation, take
from .groups import integer_groups
from .packing import PackedWeight

F32 = np.float32
_DEFAULT = {
    "bfloat16": "hopper.wgmma.f32.bf16",
    "float16": "hopper.wgmma.f32.f16",
    "float32": "hopper.wgmma.f32.tf32",
    "tf32": "hopper.wgmma.f32.tf32",
    "int8": "hopper.wgmma.s32.s8",
    "float8_e4m3fn": "hopper.wgmma.f32.e4m3",
    "float8_e5m2": "hopper.wgmma.f32.e5m2",
}
_FORMATS = {
    "bf16": "bfloat16",
    "f16": "float16",
    "tf32": "tf32",
    "s8": "int8",
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
}


def exact_linear(x: np.ndarray, packed: PackedWeight, instruction: str | None, activation: str | None) -> np.ndarray:
    """As `linear(..., exact=True)` for x (M, K).

    Raises:
        ValueError: an instruction whose inputs do not fit the scheme.
    """
    from qsim.tensorcore import get_instruction

    scheme = packed.scheme
    assert scheme.compute is not None
    name = instruction or _DEFAULT.get(scheme.compute.name, _DEFAULT["bfloat16"])
    ins = get_instruction(name)
    formats = (_FORMATS.get(ins.input_a), _FORMATS.get(ins.input_b))
    if None in formats or ins.output not in ("f32", "s32"):
        raise QsimError(
            f"exact=True takes an instruction of bf16, f16, tf32, s8, e4m3 or e5m2 with f32 or s32 sums: got {name}"
        )
    act = take(x, scheme.activation, input_scale=packed.input_scale, activation=activation)
    wanted = scheme.weight.format.name
    if formats[0] == "int8":
        if not act.integer or not scheme.weight.is_integer:
            raise QsimError(f"{name} multiplies integers: got {act.format_name} by {wanted}")
        out = _scaled_chains(act.given, _integers(packed), act, packed, name)
    elif act.codes is not None and formats == (act.format_name, wanted):
        out = _scaled_chains(act.codes, packed.source.codes, act, packed, name)
    else:
        out = _dequantised(act, packed, name, formats)
    return out if packed.bias is None else out + packed.bias


def _dequantised(act: Activation, packed: PackedWeight, name: str, formats: Any) -> np.ndarray:
    from qsim.formats import encode
    from qsim.tensorcore import matmul

    values = act.values
    if act.group is not None:
        assert act.group_size is not None
        values = values * np.repeat(act.group, act.group_size, axis=1)[:, : values.shape[1]]
    a, b = encode(values, formats[0]), encode(packed.source.dequantize(), formats[1])
    return matmul(a, b, instruction=name).view(F32) * act.row[:, None]


def _integers(packed: PackedWeight) -> np.ndarray:
    """Signed integers; codes with a zero point less 2^(bits-1), which the epilogue puts back."""
    q = packed.source
    if q.zeros is None:
        return q.integers
    return (q.codes.astype(np.int16) - (1 << (q.element.bits - 1))).astype(np.int8)


def _scaled_chains(a: np.ndarray, b: np.ndarray, act: Activation, packed: PackedWeight, name: str) -> np.ndarray:
    """One chain over K and then the scales; or, with scales for groups of K, a chain for each group, which joins the
    float32 register by fma(chain, activation scale * weight scale, register)."""
    q, k = packed.source, packed.shape[1]
    part = q.tensor_scheme
    assert part.granularity is not None
    if q.group_index is not None:
        raise QsimError(
            "exact=True cannot keep integers as codes when group_index scatters the groups; use a "
            "floating-point instruction"
        )
    sizes = [s for s in (part.group_size, act.group_size) if s]
    step = min(sizes) if sizes else k
    scales = _per_chain(q.scales, part, packed.shape, step)
    shifts = None
    if q.zeros is not None:
        shifts = _per_chain(q.zeros, part, packed.shape, step).astype(np.float64) - (1 << (q.element.bits - 1))
    if step >= k:
        total = _one_chain(a, b, act, shifts, name) * scales[:, 0]
        return total * (act.row[:, None] if act.group is None else act.group)
    rows = None
    if act.group is not None:
        assert act.group_size is not None
        rows = np.repeat(act.group, act.group_size // step, axis=1)[:, : scales.shape[1]]
    if act.integer:
        total = integer_groups(a, b, step, scales, rows=rows, shifts=shifts)
    else:
        total = _joined(a, b, name, step, np.ones((len(a), scales.shape[1]), F32) if rows is None else rows, scales)
    return total * act.row[:, None]


def _one_chain(a: np.ndarray, b: np.ndarray, act: Activation, shifts: np.ndarray | None, name: str) -> np.ndarray:
    from qsim.tensorcore import matmul

    bits = matmul(a, b, instruction=name)
    sums = bits if bits.dtype == np.int32 else bits.view(F32)
    if shifts is not None:
        # float64: exact for integer zero points, and for any fraction far closer than the float32 that follows
        sums = sums - act.given.sum(axis=1, dtype=np.int64)[:, None] * shifts[:, 0]
    return sums.astype(F32)


def _joined(a: np.ndarray, b: np.ndarray, name: str, step: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    from qsim.tensorcore import Preset, get_instruction, matmul

    if get_instruction(name).arithmetic == "emulated":
        raise QsimError(
            f"{name} is made of other instructions and has no chains to scale by groups: use a native one, such as "
            "hopper.wgmma.f32.e4m3"
        )
    how = Preset(name="scaled groups", instruction=name, promote_every=step, promotion="ffma", block=(1, 1, step))
    return matmul(a, b, preset=how, scale_a=rows, scale_b=columns).view(F32)


def _per_chain(values: np.ndarray, part: Any, shape: tuple[int, int], step: int) -> np.ndarray:
    """(N, chains) float32 from the scales or zero points of any granularity."""
    n, k = shape
    group = part.group_size or k
    per_row = _per_group(values.astype(F32), part, (n, -(-k // group)))
    return np.repeat(per_row, group // step if group > step else 1, axis=1)[:, : -(-k // step)]


def _per_group(values: np.ndarray, part: Any, shape: tuple[int, int]) -> np.ndarray:
    """(N, G) from the scales of any granularity."""
    if part.granularity.kind == "tensor":
        return np.broadcast_to(values.reshape(1, 1), shape)
    if part.granularity.kind == "block":
        return np.repeat(values, part.granularity.rows, axis=0)[: shape[0]]
    return values
