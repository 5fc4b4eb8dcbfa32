"""`linear`: the product of activations with a packed weight, by the fastest kernel that computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from qsim._native.parallel import ALL
from qsim.arrays import real_array
from qsim.errors import QsimError

from . import fits
from .activations import Activation, take
from .features import check_path
from .packing import TOKENS, PackedWeight, tiles_per_task
from .pipelines import Pipeline
from .portable import many
from .stream import loops

F32 = np.float32
# Up to so many tokens stream over the packed weight; more of them, and it is expanded once for all.
STREAM_TOKENS, DOT_STREAM_TOKENS, EXPAND_TOKENS = 16, 8, 4
# The portable product works on EXPAND_BLOCK x EXPAND_DEPTH of x at a time (0.5 MiB, in L2 beside the sums of
# a task's tiles). 512 columns are also few enough for sums of s8 x s8 products to be exact in float32: 2^24 / 2^14.
EXPAND_BLOCK, EXPAND_DEPTH = TOKENS, 512
_SLICE_ROWS = 512  # output features dequantised at a time by formats without a fused kernel
_NO_GROUPS = np.empty((0, 1), F32)
_FLOAT_SUMS, _INT_SUMS = np.empty((0, 0), F32), np.empty((0, 0), np.int32)


def linear(
    x: Any,
    packed: PackedWeight,
    exact: bool = False,
    instruction: str | None = None,
    *,
    activation: str | None = None,
    path: str | None = None,
    kernel: str | Pipeline | None = None,
) -> np.ndarray:
    """x @ w.T + bias for a packed weight w.

    Arguments:
        x: (..., K) activations: float32, float64 (taken to float32), float16 or ml_dtypes bfloat16.
        packed: from `pack`.
        exact: run the same pipeline through a tensor-core instruction of `qsim.tensorcore`, bit for bit.
        instruction: the instruction for `exact`; None chooses the Hopper instruction of the scheme's compute format.
        activation: for weight-only schemes, round `x` to `bfloat16` or `float16` first. None keeps it as it is; a
            bfloat16 `x` may take the CPU's BF16 instructions.
        path: `portable`, `vnni`, `bf16` or `amx`; None is the fastest that this CPU has and `QSIM_KERNELS` allows.
            The result is the same up to the order of float32 additions; integer sums are equal.
        kernel: with `exact`, the fused kernel of a GPU whose bits are wanted: `humming`, or one row of
            `list_pipelines()`. x is rounded to BF16 first; BF16 codes (uint16) are taken as well, and for 8-bit
            activations a tuple of codes (int8, or E4M3 as uint8) and float32 scales, which is quantised already. The
            result holds the kernel's output, BF16 values for nearly all. Choices that change the kernel's order, like
            stream-K, are off.

    Returns:
        (..., N) float32. Weight-only: float32 products and sums. INT8 and INT4 by INT8: exact int32 sums (per group
        where the weight has groups), scaled in float32. FP8 by FP8: exact products, float32 sums. Scales of the weight
        may be negative, zero or subnormal; a group's sum times its scale must stay below 2^128, or the result is Inf.

    Raises:
        ValueError: activations that are no real floats (integers, texts, masked elements), or beyond float32; K that
            does not fit; NaN or Inf where activations are quantised; `instruction` or `kernel` without `exact`; a
            kernel that does not run the scheme (the message says which do), or not with this group size; scales of a
            weight that the kernel cannot store.
    """
    if kernel is not None:
        if not exact or instruction is not None or activation is not None or path is not None:
            raise QsimError("kernel belongs to exact=True and decides the instruction, the activation and the path")
        from .fused_gemm import fused_linear

        return fused_linear(x, packed, kernel)
    source = real_array(x, "activations")
    n, k = packed.shape
    if source.ndim < 1 or source.shape[-1] != k:
        raise QsimError(f"activations of a weight ({n}, {k}) must have {k} columns: got shape {source.shape}")
    if instruction is not None and not exact:
        raise QsimError("instruction names the tensor-core instruction of exact=True: got exact=False")
    rows = source if source.ndim == 2 else source.reshape(-1, k)
    if rows.shape[0] == 0:
        return np.zeros((*source.shape[:-1], n), dtype=F32)
    if exact:
        from .exact import exact_linear

        out = exact_linear(rows, packed, instruction, activation)
    else:
        how = packed.scheme.activation
        act = take(rows, how, input_scale=packed.input_scale, activation=activation)
        out = _multiply(act, packed, check_path(path))
    return out if source.ndim == 2 else out.reshape(*source.shape[:-1], n)


def _multiply(act: Activation, packed: PackedWeight, path: str) -> np.ndarray:
    if packed.kind == "dense" or not _groups_fit(act, packed):
        return _dense(act, packed)
    row = act.row if packed.factor == 1.0 else act.row * F32(packed.factor)
    if path == "portable":
        if act.tokens <= STREAM_TOKENS:
            return _stream(act, packed, _columns(act.values, packed), row)
        return _expand(act, packed, row)
    return _native(act, packed, path, row)


def _native(act: Activation, packed: PackedWeight, path: str, row: np.ndarray) -> np.ndarray:
    """By the best kernel of a path with dot products, or the portable one."""
    ints, few = fits.are_integers(act, packed), act.tokens <= DOT_STREAM_TOKENS
    if not ints and (path == "vnni" or not fits.are_bf16(act)):
        return _multiply(act, packed, "portable")
    x = _columns(act.given if ints else act.values, packed)
    if few:
        if fits.streams_bytes(act, packed):
            return _stream(act, packed, x, row)
        if fits.streams_bf16(act, packed):
            return _stream(act, packed, x.view(np.uint32), row)
        if act.tokens < EXPAND_TOKENS:
            return _stream(act, packed, _columns(act.values, packed), row)
    if path == "amx" and not few and fits.amx_fits(act, packed):
        from .amx.call import multiply

        return multiply(act, packed, x, row)
    from .dot.call import multiply

    return multiply(act, packed, x, row)


def _groups_fit(act: Activation, packed: PackedWeight) -> bool:
    """Whether activation groups are weight groups, or the weight has one scale per row and none crosses a group."""
    return act.group is None or act.group_size == packed.group


def _columns(values: np.ndarray, packed: PackedWeight) -> np.ndarray:
    """Activations in the order in which the columns of the weight are stored."""
    return values if packed.columns is None else np.ascontiguousarray(values[:, packed.columns])


def _stream(act: Activation, packed: PackedWeight, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Few tokens; the dtype of x chooses the instructions."""
    integer_sums = fits.are_integers(act, packed)
    step = min(packed.group, loops.EXACT_COLUMNS if integer_sums else loops.FLOAT_COLUMNS)
    exact = integer_sums and packed.one_scale and act.group is None
    out = np.empty((act.tokens, packed.shape[0]), F32)
    multiply: Any = loops.stream_matmul
    multiply(packed.weights, x, _NO_GROUPS if act.group is None else act.group, row, step,
             _INT_SUMS if exact else _FLOAT_SUMS, numba.get_num_threads(), out)  # fmt: skip
    return out


def stream_floats(packed: PackedWeight) -> Callable[[np.ndarray], np.ndarray] | None:
    """`linear` for a caller that multiplies a few tokens again and again, and knows what it gives.

    Returns:
        a function of x (M, K) float32, row-major, with M from 1 to `STREAM_TOKENS`: (M, N) float32, the bits of
        `linear(x, packed)`. None where that does more than to stream the weight: the scheme quantises activations, the
        format has no fused kernel, the columns are stored in another order.
    """
    if packed.kind == "dense" or packed.scheme.activation.is_quantized or packed.columns is not None:
        return None
    weights, n, step = packed.weights, packed.shape[0], min(packed.group, loops.FLOAT_COLUMNS)
    rows = np.full(STREAM_TOKENS, packed.factor, F32)
    multiply: Any = loops.stream_matmul

    def product(x: np.ndarray) -> np.ndarray:
        out = np.empty((len(x), n), F32)
        multiply(weights, x, _NO_GROUPS, rows[: len(x)], step, _FLOAT_SUMS, numba.get_num_threads(), out)
        return out

    return product


def _expand(act: Activation, packed: PackedWeight, row: np.ndarray) -> np.ndarray:
    """Many tokens, portable."""
    tokens, (n, k), padded = act.tokens, packed.shape, packed.padded_k
    x = _columns(act.values, packed)
    last = tokens % EXPAND_BLOCK
    rows = tokens - last + (max(last + last % 2, 4) if last else 0)
    if padded != k or rows != tokens or act.group is not None:
        wide = np.zeros((rows, padded), F32)
        wide[:tokens, :k] = x
        x = wide
    if act.group is not None:
        x[:tokens] *= np.repeat(act.group, packed.group, axis=1)
    exact = fits.are_integers(act, packed) and packed.one_scale and act.group is None
    out = np.empty((tokens, n), F32)
    tiles = tiles_per_task(packed)
    multiply: Any = many.expand_matmul
    for m in range(0, tokens, EXPAND_BLOCK):
        here = slice(m, m + EXPAND_BLOCK)
        multiply(ALL, numba.get_num_threads(), np.zeros(1, np.int64), packed.weights, x[here], row[here], EXPAND_DEPTH,
                 _INT_SUMS if exact else _FLOAT_SUMS, exact, tiles, out[here])  # fmt: skip
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
