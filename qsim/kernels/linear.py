"""`linear`: the product of activations with a packed weight, by the fastest kernel that computes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import portable
from .activations import Activation, take
from .packing import PackedWeight

F32 = np.float32
DECODE_TOKENS = 16  # up to here every token streams over the packed weight; above, it is expanded once and multiplied
_SLICE_COLUMNS = 512  # output features expanded at a time in prefill: 8 MiB at K = 4096
_EXACT_INTEGERS = 1024  # 2^24 / 2^14: columns whose s8 x s8 products sum exactly in float32


def linear(
    x: Any,
    packed: PackedWeight,
    exact: bool = False,
    instruction: str | None = None,
    *,
    activation: str | None = None,
) -> np.ndarray:
    """x @ w.T + bias for a packed weight w.

    Arguments:
        x: (..., K) activations: float32, float64 (taken to float32), float16 or ml_dtypes bfloat16.
        packed: from `pack`.
        exact: run the same pipeline through a tensor-core instruction of `qsim.tensorcore`, bit for bit.
        instruction: the instruction for `exact`; None chooses the Hopper instruction of the scheme's compute format.
        activation: for weight-only schemes, round `x` to `bfloat16` or `float16` first. None keeps it as it is; a
            bfloat16 `x` may take the CPU's BF16 instructions.

    Returns:
        (..., N) float32. Weight-only: float32 products and sums. INT8 and INT4 by INT8: exact int32 sums (per group where
        the weight has groups), scaled in float32. FP8 by FP8: exact products, float32 sums.

    Raises:
        ValueError: K that does not fit; NaN or Inf where activations are quantised; `instruction` without `exact`.
    """
    source = np.asarray(x)
    n, k = packed.shape
    if source.ndim < 1 or source.shape[-1] != k:
        raise ValueError(f"activations of a weight ({n}, {k}) have {k} columns: got shape {source.shape}")
    if instruction is not None and not exact:
        raise ValueError("instruction names the tensor-core instruction of exact=True: got exact=False")
    rows = source.reshape(-1, k)
    if rows.shape[0] == 0:
        return np.zeros((*source.shape[:-1], n), dtype=F32)
    if exact:
        from .exact import exact_linear

        out = exact_linear(rows, packed, instruction, activation)
    else:
        how = packed.scheme.activation
        act = take(rows, how, input_scale=packed.input_scale, activation=activation)
        out = _multiply(act, packed)
    return out.reshape(*source.shape[:-1], n)


def _multiply(act: Activation, packed: PackedWeight) -> np.ndarray:
    if packed.kind == "dense" or not _groups_fit(act, packed):
        return _dense(act, packed)
    if act.values.shape[0] <= DECODE_TOKENS:
        return _decode(act, packed)
    return _prefill(act, packed)


def _groups_fit(act: Activation, packed: PackedWeight) -> bool:
    """Whether activation groups are weight groups, or the weight has one scale a row and none crosses a group."""
    return act.group is None or act.group_size == packed.group


def _columns(values: np.ndarray, packed: PackedWeight) -> np.ndarray:
    return values if packed.columns is None else np.ascontiguousarray(values[:, packed.columns])


def _bias(packed: PackedWeight) -> np.ndarray:
    return np.zeros(packed.shape[0], F32) if packed.bias is None else packed.bias


def _decode(act: Activation, packed: PackedWeight) -> np.ndarray:
    padded = packed.padded_k
    tokens, groups = act.values.shape[0], padded // packed.group
    integer_sums = act.integer and packed.kind == "uint"
    step = min(packed.group, portable.EXACT_COLUMNS if integer_sums else portable.FLOAT_COLUMNS)
    chunks = groups * -(-packed.group // step)
    xs, xsum = np.empty((tokens, padded), F32), np.empty((tokens, chunks), F32)
    portable.prepare(_columns(act.values, packed), packed.number, packed.group, step, xs, xsum)
    xgroup = np.ones((tokens, groups), F32) if act.group is None else act.group
    row = act.row * F32({9: 2.0**60, 10: 2.0**56}.get(packed.number, 1.0))
    integer = integer_sums and groups == 1 and act.group is None
    out = np.empty((tokens, packed.shape[0]), F32)
    portable.decode_matmul(
        packed.words, packed.scales, packed.scale_kind, packed.rows_per_scale, packed.zeros, packed.zero_bits,
        F32(packed.zero), xs, xsum, xgroup, row, _bias(packed), packed.group, step, packed.number, integer, out,
    )  # fmt: skip
    return out


def _prefill(act: Activation, packed: PackedWeight) -> np.ndarray:
    n, k = packed.shape
    padded = packed.padded_k
    values = np.zeros((act.values.shape[0], padded), F32)
    values[:, :k] = _columns(act.values, packed)
    groups = padded // packed.group
    if act.group is not None:
        values *= np.repeat(act.group, packed.group, axis=1)
    exact_row = act.integer and groups == 1
    out = np.empty((act.values.shape[0], n), F32)
    tiles = packed.words.shape[0]
    per_slice = _SLICE_COLUMNS // 64
    buffer = np.empty((_EXACT_INTEGERS if exact_row else padded, _SLICE_COLUMNS), F32)
    for first in range(0, tiles, per_slice):
        here = min(per_slice, tiles - first)
        width = min(here * 64, n - first * 64)
        at = slice(first * 64, first * 64 + width)
        if exact_row:
            total = np.zeros((values.shape[0], here * 64), np.int32)
            for k0 in range(0, padded, _EXACT_INTEGERS):
                depth = min(_EXACT_INTEGERS, padded - k0)
                w = buffer[:depth, : here * 64] if here == per_slice else np.empty((depth, here * 64), F32)
                _expand(packed, first, k0, False, w)
                total += np.dot(values[:, k0 : k0 + depth], w).astype(np.int32)
            scale = _row_scale(packed, first, here)
            out[:, at] = (total.astype(F32) * scale)[:, :width]
        else:
            w = buffer if here == per_slice else np.empty((padded, here * 64), F32)
            _expand(packed, first, 0, True, w)
            out[:, at] = np.dot(values, w)[:, :width]
    out *= act.row[:, None]
    if packed.bias is not None:
        out += packed.bias
    return out


def _expand(packed: PackedWeight, first: int, k0: int, scaled: bool, out: np.ndarray) -> None:
    portable.expand(
        packed.words, packed.scales, packed.scale_kind, packed.rows_per_scale, packed.zeros, packed.zero_bits,
        F32(packed.zero), first, k0, packed.group, packed.number, scaled, out,
    )  # fmt: skip


def _row_scale(packed: PackedWeight, first: int, tiles: int) -> np.ndarray:
    out = np.empty((tiles, 1, 64), F32)
    for t in range(tiles):
        portable.tile_scales(packed.scales, packed.scale_kind, packed.rows_per_scale, first + t, out[t])
    return out.reshape(-1)


def _dense(act: Activation, packed: PackedWeight) -> np.ndarray:
    """Formats without a fused kernel: dequantise rows a slice at a time, then a float32 product."""
    values = act.values
    if act.group is not None:
        assert act.group_size is not None
        values = values * np.repeat(act.group, act.group_size, axis=1)[:, : values.shape[1]]
    n = packed.shape[0]
    granularity = packed.scheme.weight.granularity
    rows = granularity.rows if granularity is not None and granularity.rows else 1
    step = max(_SLICE_COLUMNS // rows, 1) * rows
    out = np.empty((values.shape[0], n), F32)
    for first in range(0, n, step):
        out[:, first : first + step] = values @ packed.source[first : first + step].dequantize().T
    out *= act.row[:, None]
    return out if packed.bias is None else out + packed.bias
