"""Quantised tensors as GGUF's blocks and back, for the types whose codes and scales are a scheme's, one to one."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, get_scheme
from qsim.scheme.bits import values_of
from qsim.scheme.superblock import Blocks

from ..layout import Layer
from .decode import UNPACK, five_bit_codes, nibbles
from .encode import PACK, pack_nibbles, pack_q5_0
from .types import TYPES, TensorType

U8 = np.uint8
_EXACT = {one.name: one for one in TYPES.values() if one.scheme is not None}


def type_of(scheme: Scheme) -> TensorType | None:
    """The type that holds a scheme's weights code by code; None when none does."""
    weight = replace(scheme.weight, ragged=False) if scheme.weight.is_quantized else scheme.weight
    return _of_weight().get(weight)


@lru_cache(maxsize=1)
def _of_weight() -> dict[TensorScheme, TensorType]:
    return {get_scheme(str(one.scheme)).weight: one for one in _EXACT.values()}


def refuses(layer: Layer) -> str | None:
    """Why GGUF cannot hold a layer as it is quantised; None when it can."""
    scheme, w = layer.scheme, layer.scheme.weight
    if scheme.kv_cache.is_quantized:
        return f"gguf has no place for a quantised KV cache: got {scheme.kv_cache.format.name}"
    if not w.is_quantized:
        return None
    if scheme.activation.is_quantized:
        return f"gguf holds weights only: activations are {scheme.activation.format.name}"
    if type_of(scheme) is None:
        names = ", ".join(str(one.scheme) for one in sorted(_EXACT.values(), key=lambda one: one.number))
        what = w.format.name if w.granularity is None else f"{w.format.name} in {w.granularity}"
        return f"gguf holds {names} code by code, with float16 scales: got {what}"
    if layer.shape is not None and layer.shape[-1] % (w.superblock or 32):
        what = "groups" if w.superblock is None else f"superblocks of {w.superblock}"
        return f"gguf needs {what} that divide K: got K={layer.shape[-1]}"
    if layer.act_order:
        return "gguf has no place for act order"
    return None


def to_blocks(qt: QuantizedTensor) -> np.ndarray:
    """The blocks of a tensor that is not refused: uint8 (N, bytes of a row)."""
    kind = type_of(qt.scheme)
    assert kind is not None, "the caller has asked for the reason first"
    if qt.tensor_scheme.has_own_rule:
        return PACK[kind.name](_blocks(qt, kind.values)).reshape(qt.shape[0], -1)
    codes = qt.codes.reshape(-1, 32)
    if kind.name == "mxfp4":
        blocks = np.concatenate([qt.scale_codes.reshape(-1, 1), pack_nibbles(codes, 16)], axis=1)
    else:
        first = np.ascontiguousarray(qt.scale_codes).reshape(-1, 1).view(U8)  # the bytes of float16 numbers
        if kind.name == "q8_0":
            blocks = np.concatenate([first, codes], axis=1)
        elif kind.name == "q4_0":
            blocks = np.concatenate([first, pack_nibbles(codes ^ U8(8), 16)], axis=1)
        else:
            blocks = pack_q5_0(first, codes ^ U8(16))
    return blocks.reshape(qt.shape[0], -1)


def _blocks(qt: QuantizedTensor, values: int) -> Blocks:
    """A tensor with minima or superblocks, block by block."""
    codes = qt.codes.reshape(-1, values)

    def by_block(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else array.reshape(codes.shape[0], -1)

    above = {"super_scales": by_block(qt.super_scales), "super_minima": by_block(qt.super_minima)}
    minima = qt.minima if qt.minima is None or qt.super_minima is None else qt.integers_of("minima")
    scales = by_block(qt.scales if qt.super_scales is None else qt.integers_of("scales"))
    assert scales is not None
    return Blocks(codes=codes, scales=scales, minima=by_block(minima), **above)


def from_blocks(kind: TensorType, raw: np.ndarray, name: str) -> QuantizedTensor:
    """A tensor from its blocks, the inverse of `to_blocks`.

    Arguments:
        kind: a type that has a scheme.
        raw: uint8 (N, bytes of a row).
        name: the layer.

    Raises:
        QsimError: a scale that is NaN or Inf.
    """
    assert kind.scheme is not None, "only such types stay quantised"
    b = raw.reshape(-1, kind.size)
    shape = (raw.shape[0], raw.shape[1] // kind.size * kind.values)
    scheme = get_scheme(kind.scheme)
    if scheme.weight.has_own_rule:
        found = UNPACK[kind.name](b)
        above = found.super_scales is not None
        _refuse_specials(*((found.super_scales, found.super_minima) if above else (found.scales, found.minima)))
        return QuantizedTensor(**found.fields(shape, scheme.weight), scheme=scheme, name=name)  # type: ignore[arg-type]
    if kind.name == "mxfp4":
        codes, scales = nibbles(b[:, 1:], 16), b[:, 0]
    else:
        scales = np.ascontiguousarray(b[:, :2]).view(np.uint16)
        if kind.name == "q8_0":
            codes = b[:, 2:]
        elif kind.name == "q4_0":
            codes = nibbles(b[:, 2:], 16) ^ U8(8)
        else:
            codes = five_bit_codes(b)
    fmt = scheme.weight.scale_format
    _refuse_specials(values_of(scales, fmt))
    return QuantizedTensor(
        codes=np.ascontiguousarray(codes).reshape(shape),
        scale_codes=np.ascontiguousarray(scales).reshape(shape[0], -1),
        scheme=scheme,
        name=name,
    )


def _refuse_specials(*scales: np.ndarray | None) -> None:
    bad = sum(int((~np.isfinite(one)).sum()) for one in scales if one is not None)
    if bad:
        raise QsimError(f"{bad} scales are NaN or Inf")
