"""Inputs that show what a fused kernel does: single products for its scales and roundings, sums that cancel for the
order in which it adds."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.formats import BlockFormat, FloatFormat, cast, decode, encode
from qsim.scheme import QuantizedTensor, Scheme, from_codes

F32 = np.float32
_BLOCK, _FEW = 128, 16  # output features: a whole block of a weight with blocks, else few


def products(scheme: Scheme, tokens: int, seed: int) -> tuple[Any, QuantizedTensor]:
    """x (tokens, K) with one element in each row, and a weight of random codes and scales: K = 256.

    A scale of a token or of all of them brings a result close to the middle of two BF16 numbers, so that the order in
    which float32 scales are multiplied decides to which of them it is rounded."""
    rng = np.random.default_rng(seed)
    k = 2 * _BLOCK
    weight = _weight(scheme, rng, _codes(scheme, rng, (_features(scheme), k)), alike=False)
    values = rng.uniform(1, 2, tokens) * np.exp2(rng.integers(-3, 4, tokens)) * rng.choice((-1, 1), tokens)
    x = np.zeros((tokens, k))
    place = rng.integers(0, k, tokens)
    x[np.arange(tokens), place] = values * (1 if scheme.activation.format.bits == 16 else 16)
    given = _activation(scheme, rng, x)
    if isinstance(given, tuple):
        codes, scales = given
        values = decode(codes, scheme.activation.format) if codes.dtype == np.uint8 else codes
        exact = np.asarray(values, np.float64) @ weight.dequantize().T.astype(np.float64)
        column = rng.integers(0, exact.shape[1], tokens)
        result = np.abs(exact[np.arange(tokens), column])[: len(scales)]
        middle = (1 + (2 * rng.integers(0, 128, len(scales)) + 1) / 256) * np.exp2(np.rint(np.log2(result)))
        rows = scales.reshape(len(scales), -1)
        rows[np.arange(len(rows)), place[: len(rows)] * rows.shape[1] // k] = middle / result
    return given, weight


def sums(scheme: Scheme, tokens: int, seed: int) -> tuple[Any, QuantizedTensor]:
    """x (tokens, K) whose large elements cancel and leave small ones, by a weight of which every second row holds one
    code and one scale, so that what cancels in x cancels in the products: K = 2048.

    Pairs that cancel stand a few, dozens or hundreds of columns apart; in every sixth row the last quarter of K cancels
    the first, so that a float32 register is large while it takes small sums."""
    rng = np.random.default_rng(seed)
    k = 16 * _BLOCK
    codes = _codes(scheme, rng, (_features(scheme), k))
    codes[::2] = codes[::2, :1]
    weight = _weight(scheme, rng, codes, alike=True)
    x = np.empty((tokens, k))
    scale = 1.0 if scheme.activation.format.name == "bfloat16" else 16.0
    for row in range(tokens):
        small = 2.0 ** -((3, 8, 14, 18, 22) if scale == 1 else (3, 6, 9, 11, 13))[row % 5]
        x[row] = rng.choice((-1, 1), k) * rng.uniform(1, 2, k) * small
        if row % 6 == 5:
            x[row, : k // 4] = rng.uniform(1, 27, k // 4)
            x[row, -(k // 4) :] = -x[row, : k // 4]
            continue
        for _ in range(k // (8, 64, 512)[row % 3]):
            i = int(rng.integers(0, k))
            j = (i + 1 + int(rng.integers(0, (16, 48, 200, k)[row % 4]))) % k
            if i != j:
                x[row, i] = rng.uniform(1, 2) * 2.0 ** int(rng.integers(-2, 3))
                x[row, j] = -x[row, i]
    return _activation(scheme, rng, x * scale), weight


def _features(scheme: Scheme) -> int:
    granularity = scheme.weight.granularity
    return _BLOCK if granularity is not None and granularity.kind == "block" else _FEW


def _codes(scheme: Scheme, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    how = scheme.weight
    if how.is_integer:
        if how.symmetric:
            half = 1 << (how.bits - 1)
            codes = rng.integers(-half, half, shape, np.int8)
            codes[codes == 0] = 1
            return codes
        return rng.integers(0, 1 << how.bits, shape, np.uint8)
    element = how.format.element if isinstance(how.format, BlockFormat) else how.format
    if element.bits == 8:  # E4M3 around 1, where an accumulator's range holds all products
        return np.asarray(encode((rng.choice((-1, 1), shape) * rng.uniform(0.25, 8, shape)).astype(F32), element))
    codes = rng.integers(0, 1 << element.bits, shape, np.uint8)
    codes[codes % (1 << (element.bits - 1)) == 0] += 1
    return codes


def _weight(scheme: Scheme, rng: np.random.Generator, codes: np.ndarray, alike: bool) -> QuantizedTensor:
    """`alike`: every second row has one scale and one zero point."""
    how = scheme.weight
    assert how.granularity is not None
    shape = how.granularity.scale_shape(codes.shape)
    fmt: Any = how.scale_format
    scales = np.exp2(rng.integers(-3, 2, shape)) if fmt.name == "float8_e8m0fnu" else rng.uniform(0.25, 2, shape)
    zeros = None if how.symmetric else rng.integers(1, (1 << how.bits) - 1, shape)
    for values in (scales, zeros):
        if alike and values is not None and len(shape) == 2:
            values[::2] = values[::2, :1]
    tensor = F32(rng.uniform(0.5, 1)) if isinstance(how.format, BlockFormat) and how.format.tensor_scale else None
    return from_codes(codes, scheme, np.asarray(cast(scales.astype(F32), fmt), F32), zeros, tensor)


def _activation(scheme: Scheme, rng: np.random.Generator, x: np.ndarray) -> Any:
    how = scheme.activation
    if not how.is_quantized:
        return np.asarray(cast(x.astype(F32), "bfloat16"), F32)
    tokens, k = x.shape
    groups = 1 if how.group_size is None else k // how.group_size
    one = how.granularity is not None and how.granularity.kind == "tensor"
    scales = rng.uniform(0.25, 2, (1,) if one else (tokens, groups)).astype(F32)
    if isinstance(how.format, FloatFormat):
        return np.asarray(encode(x.astype(F32), how.format)), scales
    return np.clip(np.rint(x), -127, 127).astype(np.int8), scales


def values_of(y: Any) -> np.ndarray:
    """float32 bits (uint32) of outputs: floats, or BF16 codes as uint16."""
    given = np.asarray(y)
    floats = decode(given, "bfloat16") if given.dtype == np.uint16 else given
    return np.ascontiguousarray(floats, F32).view(np.uint32)
