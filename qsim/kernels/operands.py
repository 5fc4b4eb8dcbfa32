"""Operands of fused GPU kernels: what a pipeline feeds to the instruction, from codes and scales."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from qsim.arrays import as_plain_array, real_array, whole_array
from qsim.errors import QsimError
from qsim.formats import FloatFormat, decode, encode, get_format
from qsim.scheme import QuantizedTensor, TensorScheme
from qsim.scheme.quantizer import check_finite
from qsim.tensorcore import get_instruction

from .activations import take
from .pipelines import Pipeline

F32, U16, U32 = np.float32, np.uint16, np.uint32
_NAMES = {"bf16": "bfloat16", "e4m3": "float8_e4m3fn"}
_MOST_BLOCK_EXPONENTS = 11  # of mxfp4 in E4M3: beyond, humming rounds small blocks, which nobody has recorded


@numba.njit(cache=True, inline="always")
def _bf16(value: Any) -> Any:
    """BF16 code of a float32 that is not NaN, to nearest even."""
    bits = np.float32(value).view(np.uint32)
    return U16(U32(bits + U32(0x7FFF) + U32(U32(bits >> U32(16)) & U32(1))) >> U32(16))


@numba.njit(cache=True, parallel=True)
def _fold_integers(
    codes: np.ndarray, half: Any, zeros: np.ndarray, scales: np.ndarray, group: Any, out: np.ndarray
) -> None:
    """BF16 of (code - zero) * scale; `half` is 2^(bits-1) for two's complement, 0 for unsigned codes with zeros."""
    for n in numba.prange(codes.shape[0]):
        for g in range(scales.shape[1]):
            scale = scales[n, g]
            zero = zeros[n, g] if half == 0 else F32(half)
            given, made = codes[n, g * group : (g + 1) * group], out[n, g * group : (g + 1) * group]
            for k in range(len(given)):  # of slices, so that no index can be negative and the loop is vectorised
                made[k] = _bf16(F32(F32(F32(np.int32(given[k]) ^ np.int32(half)) - zero) * scale))


@numba.njit(cache=True, parallel=True)
def _fold_table(codes: np.ndarray, table: np.ndarray, scales: np.ndarray, group: Any, out: np.ndarray) -> None:
    """BF16 of table[code] * scale."""
    for n in numba.prange(codes.shape[0]):
        for g in range(scales.shape[1]):
            scale = scales[n, g]
            given, made = codes[n, g * group : (g + 1) * group], out[n, g * group : (g + 1) * group]
            for k in range(len(given)):
                made[k] = _bf16(F32(table[given[k]] * scale))


def weight_operand(row: Pipeline, q: QuantizedTensor) -> tuple[np.ndarray, int]:
    """The instruction's B (N, K) of a weight, and the offset of `exponents` (else 0).

    Raises:
        QsimError: a group_index, a last group that is shorter, scales that the kernel cannot store, block exponents too
            far apart.
    """
    where = f" (layer {q.name})" if q.name else ""
    part = q.tensor_scheme
    if row.operand == "dequantize":
        return np.asarray(encode(q.dequantize(), "bfloat16")), 0
    if q.group_index is not None:
        raise QsimError(f"{row.name} takes groups of consecutive columns: this weight has a group_index{where}")
    group = part.group_size or q.shape[1]
    if q.shape[1] % group:
        raise QsimError(f"{row.name} takes whole groups: got K={q.shape[1]} in groups of {group}{where}")
    _check_scales(row, q, where)
    if row.operand == "codes":
        return (q.integers if part.is_integer else q.codes), 0
    if row.operand == "integers":
        return np.asarray(encode(q.integers.astype(F32), _NAMES[get_instruction(row.instruction).input_b])), 0
    if row.operand == "subnormal":
        return _signed_bytes()[q.integers.view(np.uint8)], 0
    if row.operand == "exponents":
        return _in_e4m3(q, where)
    if row.operand == "fma":
        return _fma(q, group), 0
    out = np.empty(q.shape, U16)
    if part.is_integer:
        half = 1 << (q.element.bits - 1) if q.zeros is None else 0
        zeros = np.empty((0, 0), F32) if q.zeros is None else q.zeros.astype(F32)
        _fold_integers(q.codes, half, zeros, q.scales, group, out)
    else:
        table = np.asarray(decode(np.arange(1 << q.element.bits, dtype=np.uint8), q.element), F32)
        _fold_table(q.codes, table, q.scales, group, out)
    return out, 0


def _check_scales(row: Pipeline, q: QuantizedTensor, where: str) -> None:
    if not row.scale_format:
        return
    fmt = get_format(row.scale_format)
    bad = np.asarray(decode(encode(q.scales, fmt), fmt), F32) != q.scales
    if bad.any():
        index = tuple(int(i[0]) for i in np.nonzero(bad))
        raise QsimError(
            f"{row.name} reads {row.scale_format} scales of the weight: {q.scales[index]!s} in row {index[0]} is none"
            f"{where}; round the scales to {row.scale_format} first (a scheme with scale_format='{row.scale_format}')"
        )


def _signed_bytes() -> np.ndarray:
    """E4M3 codes of c * 2^-9 for c in -8..7, indexed by c as a byte: the magnitude, and the sign bit."""
    c = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int16)
    return (np.abs(c) | np.where(c < 0, 0x80, 0)).astype(np.uint8)


def _in_e4m3(q: QuantizedTensor, where: str) -> tuple[np.ndarray, int]:
    """E2M1 values times 2^(block exponent - offset), as E4M3 codes; and the offset."""
    exponents = np.frexp(q.scales)[1] - 1
    offset = int(exponents.max()) - 4
    spread = int(exponents.max()) - int(exponents.min())
    if spread > _MOST_BLOCK_EXPONENTS:
        raise QsimError(
            f"mxfp4 blocks must have exponents at most {_MOST_BLOCK_EXPONENTS} apart to be exact in E4M3: got {spread}"
            f"{where}; the kernel rounds smaller blocks, which has not been recorded"
        )
    values = np.asarray(decode(np.arange(16, dtype=np.uint8), q.element), F32)
    lines = np.arange(4 - _MOST_BLOCK_EXPONENTS, 5)
    table = np.asarray(encode(np.ldexp(values[None, :], lines[:, None]), "float8_e4m3fn"))
    line = np.repeat(exponents - offset - int(lines[0]), q.tensor_scheme.group_size or 1, axis=1)
    return table[line, q.codes], offset


def _fma(q: QuantizedTensor, group: int) -> np.ndarray:
    """BF16 of (code - 8) * scale + offset, one rounding: sums of 12- and 8-bit numbers, rounded to odd on the way."""
    half = 1 << (q.element.bits - 1)
    if q.zeros is None:
        moved, offsets = q.integers.astype(np.float64), np.zeros_like(q.scales)
    else:
        moved = q.codes.astype(np.float64) - half
        offsets = np.asarray(decode(encode((half - q.zeros.astype(F32)) * q.scales, "bfloat16"), "bfloat16"), F32)
    scale, offset = (np.repeat(v.astype(np.float64), group, axis=1) for v in (q.scales, offsets))
    # float64 holds 53 bits; where scale and offset are farther apart, the sum is within a hair of one of them, and only
    # a tie of BF16 could be missed: a 12-bit product is one when the offset beside it is 2^-40 of it
    exact = moved * scale + offset
    near = exact.astype(F32)
    toward = np.where(near.astype(np.float64) != exact, np.abs(exact), 0)
    cut = np.where(np.abs(near.astype(np.float64)) > toward, np.nextafter(near, F32(0)), near)
    odd = (cut.view(U32) | U32(1)).view(F32)
    return np.asarray(encode(np.where(toward > 0, odd, near), "bfloat16"))


# ---- activations


def bf16_codes(x: Any, k: int) -> np.ndarray:
    """BF16 codes (..., K) of activations: floats rounded to nearest even, or codes (uint16) as they are.

    Raises:
        QsimError: no real floats and no uint16, another number of columns.
    """
    array = as_plain_array(x, "activations")
    if array.dtype != U16:
        array = np.asarray(encode(real_array(array, "activations", dtype=F32), "bfloat16"))
    if array.ndim < 1 or array.shape[-1] != k:
        raise QsimError(f"activations must have {k} columns: got shape {array.shape}")
    return array


def quantized(row: Pipeline, x: Any, how: TensorScheme, k: int, input_scale: float | None) -> tuple[np.ndarray, Any]:
    """Activations as the instruction's A: codes (M, K), int8 or E4M3 as uint8; and their float32 scales, one per row or
    (M, K / group).

    Arguments:
        x: (M, K) floats or BF16 codes, or a tuple of codes and scales: already quantised.
        input_scale: of static schemes.
    """
    if isinstance(x, tuple):
        return _given(x, how, k)
    values = np.asarray(decode(bf16_codes(x, k), "bfloat16"), F32)
    if row.quantize == "scheme":
        act = take(values, how, input_scale=input_scale, activation=None)
        codes = act.given if act.integer else act.codes
        assert codes is not None
        return codes, (act.row if act.group is None else act.group)
    check_finite(values, what="activations")
    top = F32(how.format.max) if isinstance(how.format, FloatFormat) else F32((1 << (how.bits - 1)) - 1)
    scale = np.abs(values).max(axis=1, keepdims=True, initial=0.0) / top
    scale[scale == 0] = 1  # a row of zeros, or of BF16 subnormals: its products are 0 either way
    scaled = np.clip(values * (F32(1) / scale), -top, top)
    if isinstance(how.format, FloatFormat):
        return np.asarray(encode(scaled, how.format)), scale[:, 0]
    return np.rint(scaled).astype(np.int8), scale[:, 0]


def _given(x: tuple[Any, ...], how: TensorScheme, k: int) -> tuple[np.ndarray, np.ndarray]:
    if len(x) != 2:
        raise QsimError(f"quantised activations must be a pair of codes and scales: got {len(x)} parts")
    codes = as_plain_array(x[0], "codes of activations")
    if codes.dtype.name == how.format.name and codes.dtype.kind not in "iu":
        codes = codes.view(np.uint8)
    codes = whole_array(codes, "codes of activations")
    fmt = how.format
    is_float = isinstance(fmt, FloatFormat)
    allowed = (np.uint8,) if is_float else (np.int8, np.uint8)
    if codes.dtype not in allowed or codes.ndim != 2 or codes.shape[1] != k:
        raise QsimError(
            f"codes of activations must be {' or '.join(np.dtype(t).name for t in allowed)} of shape (M, {k}): got "
            f"{codes.dtype} {codes.shape}"
        )
    groups = 1 if how.group_size is None else -(-k // how.group_size)
    scales = as_plain_array(x[1], "scales of activations")
    scales = scales.view(F32) if scales.dtype == U32 else real_array(scales, "scales of activations", dtype=F32)
    one = how.granularity is not None and how.granularity.kind == "tensor"
    if scales.size != (1 if one else len(codes) * groups):
        shape = "(1,)" if one else f"({len(codes)}, {groups})"
        raise QsimError(f"scales of activations must have the shape {shape}: got {scales.shape}")
    if isinstance(fmt, FloatFormat) and bool(((codes & 0x7F) > fmt.max_code).any()):
        raise QsimError("FP8 codes of activations must be finite: at least one is NaN or Inf")
    if not np.isfinite(scales).all():
        raise QsimError("scales of activations must be finite: at least one is NaN or Inf")
    row = np.broadcast_to(scales.reshape(-1), (len(codes),)) if one or groups == 1 else scales.reshape(-1, groups)
    return (codes if is_float else codes.view(np.int8)), row
