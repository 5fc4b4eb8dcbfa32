"""Quantised tensors as GGUF's blocks and back, for the types whose codes and scales are a scheme's, one to one."""

from __future__ import annotations

import numpy as np

from qsim.errors import QsimError
from qsim.formats import BlockFormat
from qsim.safetensors import exactly
from qsim.scheme import QuantizedTensor, Scheme, get_scheme

from ..layout import Layer
from .decode import five_bit_codes, halves, nibbles
from .encode import half_bytes, pack_nibbles, pack_q5_0
from .types import TYPES, TensorType

U8 = np.uint8
_EXACT = {one.name: one for one in TYPES.values() if one.scheme is not None}
_INTEGERS = {4: "q4_0", 5: "q5_0", 8: "q8_0"}


def type_of(scheme: Scheme) -> TensorType | None:
    """The type that holds a scheme's weights code by code; None when none does."""
    w = scheme.weight
    if isinstance(w.format, BlockFormat):
        return _EXACT["mxfp4"] if w.format.name == "mxfp4" else None
    if not w.is_integer or not w.symmetric or w.bits not in _INTEGERS or w.group_size != 32:
        return None
    return _EXACT[_INTEGERS[w.bits]] if w.scale_format is not None and w.scale_format.name == "float16" else None


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
        names = ", ".join(str(one.scheme) for one in _EXACT.values())
        what = w.format.name if w.granularity is None else f"{w.format.name} in {w.granularity}"
        return f"gguf holds {names} code by code, with float16 scales: got {what}"
    if layer.shape is not None and layer.shape[-1] % 32:
        return f"gguf needs groups that divide K: got K={layer.shape[-1]}"
    if layer.act_order:
        return "gguf has no place for act order"
    if layer.tensor is not None and not isinstance(w.format, BlockFormat):
        if exactly(layer.tensor.scales, "float16") is None:
            return "gguf stores float16 scales: these scales are not float16 numbers"
    return None


def to_blocks(qt: QuantizedTensor) -> np.ndarray:
    """The blocks of a tensor that is not refused: uint8 (N, bytes of a row)."""
    kind = type_of(qt.scheme)
    assert kind is not None, "the caller has asked for the reason first"
    codes = qt.codes.reshape(-1, 32)
    if kind.name == "mxfp4":
        scales = exactly(qt.scales, "float8_e8m0fnu")
        assert scales is not None, "scales of an MX format are E8M0 numbers"
        blocks = np.concatenate([scales.bits.reshape(-1, 1), pack_nibbles(codes, 16)], axis=1)
    else:
        first = half_bytes(qt.scales.reshape(-1, 1))
        if kind.name == "q8_0":
            blocks = np.concatenate([first, codes], axis=1)
        elif kind.name == "q4_0":
            blocks = np.concatenate([first, pack_nibbles(codes ^ U8(8), 16)], axis=1)
        else:
            blocks = pack_q5_0(qt.scales.reshape(-1, 1), codes ^ U8(16))
    return blocks.reshape(qt.shape[0], -1)


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
    if kind.name == "mxfp4":
        codes, e = nibbles(b[:, 1:], 16), b[:, 0]
        bad = e == 255
        scales = np.ldexp(np.float32(1), e.astype(np.int32) - 127)
    else:
        scales = halves(b[:, :2])[:, 0]
        bad = ~np.isfinite(scales)
        if kind.name == "q8_0":
            codes = b[:, 2:]
        elif kind.name == "q4_0":
            codes = nibbles(b[:, 2:], 16) ^ U8(8)
        else:
            codes = five_bit_codes(b)
    if bad.any():
        raise QsimError(f"{int(bad.sum())} scales are NaN or Inf")
    return QuantizedTensor(
        codes=np.ascontiguousarray(codes).reshape(shape),
        scales=scales.astype(np.float32).reshape(shape[0], -1),
        scheme=get_scheme(kind.scheme),
        name=name,
    )
