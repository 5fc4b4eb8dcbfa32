"""`linear`: the product of activations with a packed weight, by the fastest kernel that computes it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import portable
from .activations import Activation, take
from .features import check_path
from .packing import PackedWeight

F32 = np.float32
DECODE_TOKENS = 16  # up to here every token streams over the packed weight; above, it is expanded once and multiplied
# Prefill works on PREFILL_TOKENS x PREFILL_DEPTH of x at a time (0.5 MiB, in L2 beside the sums of PREFILL_TILES
# tiles).
# 512 columns are also few enough for sums of s8 x s8 products to be exact in float32: 2^24 / 2^14 = 1024.
PREFILL_TOKENS, PREFILL_DEPTH, PREFILL_TILES = 256, 512, 4
AMX_TOKENS = 8  # tile registers hold 16 tokens: with fewer than this the packed weight streams faster without them
_SLICE_ROWS = 512  # output features dequantised at a time by formats without a fused kernel


def linear(
    x: Any,
    packed: PackedWeight,
    exact: bool = False,
    instruction: str | None = None,
    *,
    activation: str | None = None,
    path: str | None = None,
) -> np.ndarray:
    """x @ w.T + bias for a packed weight w.

    Arguments:
        x: (..., K) activations: float32, float64 (taken to float32), float16 or ml_dtypes bfloat16.
        packed: from `pack`.
        exact: run the same pipeline through a tensor-core instruction of `qsim.tensorcore`, bit for bit.
        instruction: the instruction for `exact`; None chooses the Hopper instruction of the scheme's compute format.
        activation: for weight-only schemes, round `x` to `bfloat16` or `float16` first. None keeps it as it is; a
            bfloat16 `x` may take the CPU's BF16 instructions.
        path: `portable`, `vnni` or `amx`; None is the fastest that this CPU has and `QSIM_KERNELS` allows. The result
        is
            the same up to the order of float32 additions; integer sums are equal.

    Returns:
        (..., N) float32. Weight-only: float32 products and sums. INT8 and INT4 by INT8: exact int32 sums (per group
        where
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
        out = _multiply(act, packed, check_path(path))
    return out.reshape(*source.shape[:-1], n)


def _multiply(act: Activation, packed: PackedWeight, path: str) -> np.ndarray:
    if packed.kind == "dense" or not _groups_fit(act, packed):
        return _dense(act, packed)
    if path != "portable":
        from . import special

        if path == "amx" and act.tokens > AMX_TOKENS and special.amx_fits(act, packed):
            return special.amx(act, packed)
        if special.vnni_fits(act, packed):
            return special.vnni(act, packed)
    if act.tokens <= DECODE_TOKENS:
        return _decode(act, packed)
    return _prefill(act, packed)


def _groups_fit(act: Activation, packed: PackedWeight) -> bool:
    """Whether activation groups are weight groups, or the weight has one scale a row and none crosses a group."""
    return act.group is None or act.group_size == packed.group


def columns(values: np.ndarray, packed: PackedWeight) -> np.ndarray:
    return values if packed.columns is None else np.ascontiguousarray(values[:, packed.columns])


def bias_of(packed: PackedWeight) -> np.ndarray:
    return np.zeros(packed.shape[0], F32) if packed.bias is None else packed.bias


def _decode(act: Activation, packed: PackedWeight) -> np.ndarray:
    padded = packed.padded_k
    tokens, groups = act.tokens, padded // packed.group
    integer_sums = act.integer and packed.kind == "uint"
    step = min(packed.group, portable.EXACT_COLUMNS if integer_sums else portable.FLOAT_COLUMNS)
    chunks = groups * -(-packed.group // step)
    xs, xsum = np.empty((tokens, padded), F32), np.empty((tokens, chunks), F32)
    portable.prepare(columns(act.values, packed), packed.number, packed.group, step, xs, xsum)
    xgroup = np.ones((tokens, groups), F32) if act.group is None else act.group
    row = act.row * F32({9: 2.0**60, 10: 2.0**56}.get(packed.number, 1.0))
    integer = integer_sums and groups == 1 and act.group is None
    out = np.empty((tokens, packed.shape[0]), F32)
    portable.decode_matmul(
        packed.words, packed.scales, packed.scale_kind, packed.rows_per_scale, packed.zeros, packed.zero_bits,
        F32(packed.zero), xs, xsum, xgroup, row, bias_of(packed), packed.group, step, packed.number, integer, out,
    )  # fmt: skip
    return out


def _prefill(act: Activation, packed: PackedWeight) -> np.ndarray:
    tokens, (n, k), padded = act.tokens, packed.shape, packed.padded_k
    x = columns(act.values, packed)
    if padded != k or act.group is not None:
        wide = np.zeros((tokens, padded), F32)
        wide[:, :k] = x
        x = wide
    if act.group is not None:
        x *= np.repeat(act.group, packed.group, axis=1)
    integer = act.integer and packed.kind == "uint" and padded == packed.group and act.group is None
    out = np.empty((tokens, n), F32)
    block = min(tokens, PREFILL_TOKENS)
    for m in range(0, tokens, block):
        portable.prefill_matmul(
            packed.words, packed.scales, packed.scale_kind, packed.rows_per_scale, packed.zeros, packed.zero_bits,
            F32(packed.zero), x[m : m + block], act.row[m : m + block], bias_of(packed), packed.group, PREFILL_DEPTH,
            packed.number, integer, PREFILL_TILES, out[m : m + block],
        )  # fmt: skip
    return out


def _dense(act: Activation, packed: PackedWeight) -> np.ndarray:
    """Formats without a fused kernel: dequantise rows a slice at a time, then a float32 product."""
    values = act.values
    if act.group is not None:
        assert act.group_size is not None
        values = values * np.repeat(act.group, act.group_size, axis=1)[:, : values.shape[1]]
    n = packed.shape[0]
    granularity = packed.scheme.weight.granularity
    rows = granularity.rows if granularity is not None and granularity.rows else 1
    step = max(_SLICE_ROWS // rows, 1) * rows
    out = np.empty((values.shape[0], n), F32)
    for first in range(0, n, step):
        out[:, first : first + step] = values @ packed.source[first : first + step].dequantize().T
    out *= act.row[:, None]
    return out if packed.bias is None else out + packed.bias
