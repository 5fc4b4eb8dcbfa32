"""compressed-tensors: what llm-compressor writes, in the formats of its `format` key.

With N output and K input features, b bits and G = K / g groups:

    pack-quantized        weight_packed int32 [N, ceil(K b / 32)] along K, weight_shape int64 [2],
                          weight_zero_point int32 [ceil(N b / 32), G] along N (with one scale per tensor or block,
                          int8 of the shape of weight_scale)
    int-quantized         weight int8 [N, K], weight_zero_point int8
    float-quantized       weight float8_e4m3fn [N, K]
    naive-quantized       either of the two above
    nvfp4-pack-quantized  weight_packed uint8 [N, K / 2], weight_scale E4M3, weight_global_scale float32 [1]
    mxfp4-pack-quantized  weight_packed uint8 [N, K / 2], weight_scale uint8, the E8M0 code
    mxfp6-pack-quantized  weight_packed uint8 [N, 3 K / 4] of E2M3
    mxfp8-quantized       weight float8_e4m3fn [N, K], weight_scale uint8

weight_scale is [1], [N, 1], [N, G] or one per block; input_scale [1] belongs to static activations. Integers are stored
as q - 2^(b-1) with zero points likewise (packed fields count from the lowest code). The global scale of NVFP4 divides:
value = e2m1 * (scale / global_scale).

Packed words are dense from release 0.19 on (`packing="dense"`); before, a word held floor(32 / b) codes and no more
(`packing="whole"`). The two differ for 3, 5, 6 and 7 bits and are told apart by their shapes.

Source: compressed-tensors 0.20.0, `compressors/`; the release of October 2025 for whole words.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import BlockFormat, FloatFormat, IntFormat, pack
from qsim.safetensors import Stored, integers, words
from qsim.scheme import QuantizedTensor, Scheme

from .compressed_config import (
    BLOCK_LAYOUTS,
    PACKED,
    compressed_layout,
    from_config,
    read_groups,
    to_config,
    write_config,
)
from .compressed_decode import decode, packs_zeros
from .config import said
from .layout import Layer, LayerPlan, Layout, Plan, Reading
from .parts import as_int8, no_own_rule, stored_scales, unsigned_codes
from .words import pack_dense, pack_whole

Words: TypeAlias = Literal["dense", "whole"]
WHO = "compressed-tensors"


def refuses(layer: Layer) -> str | None:
    """Why compressed-tensors cannot hold a layer; None when it can."""
    wrong = _refuses_scheme(layer.scheme)
    if wrong is None and layer.shape is not None:
        granularity, k = layer.scheme.weight.granularity, layer.shape[1]
        assert granularity is not None
        if granularity.kind == "group" and granularity.columns is not None and k % granularity.columns:
            return f"{WHO} needs groups that divide K: got group_size={granularity.columns}, K={k}"
    if wrong is None and layer.act_order:
        return f"{WHO} has dropped act order with groups that are not consecutive (actorder=group)"
    return _refuses_tensor(layer.tensor, layer.scheme) if wrong is None and layer.tensor is not None else wrong


def _refuses_scheme(scheme: Scheme) -> str | None:
    w = scheme.weight
    if isinstance(w.format, BlockFormat):
        if w.format.name not in BLOCK_LAYOUTS:
            return f"{WHO} holds the block formats {', '.join(BLOCK_LAYOUTS)}: got {w.format.name}"
    elif isinstance(w.format, IntFormat):
        if w.has_own_rule:
            return no_own_rule(scheme, WHO)
        if w.zero_point_format not in (None, w.format):
            assert w.zero_point_format is not None
            return f"{WHO} stores zero points as integers: got {w.zero_point_format.name}"
    elif w.format.name != "float8_e4m3fn":
        return f"{WHO} holds integers, float8_e4m3fn, MX and NVFP4: got {w.format.name}"
    if not isinstance(w.format, BlockFormat):
        assert w.scale_format is not None
        if w.scale_format.name not in ("float32", "float16", "bfloat16"):
            return f"{WHO} stores scales of {w.format.name} as 16- or 32-bit floats: got {w.scale_format.name}"
    a = scheme.activation
    if a.is_quantized and not a.symmetric:
        return f"{WHO} activations with a zero point are not written here: got {a.format.name}"
    if a.is_quantized and not a.dynamic and a.granularity is not None and a.granularity.kind != "tensor":
        return f"{WHO} has one static activation scale per layer: got {a.granularity}"
    try:
        said(scheme, WHO, to_config, from_config)
    except QsimError as error:
        return str(error)
    return None


def _refuses_tensor(qt: QuantizedTensor, scheme: Scheme) -> str | None:
    scale_format, activation = scheme.weight.scale_format, scheme.activation
    assert isinstance(scale_format, FloatFormat)
    if qt.tensor_scale is not None and _global_scale(qt.tensor_scale) is None:
        return (
            f"{WHO} stores NVFP4's tensor scale as its reciprocal, and {qt.tensor_scale!r} is not the reciprocal of a "
            "float32; quantise with tensor_scale = 1 / float32"
        )
    if activation.is_quantized and qt.input_scale is None:
        if not activation.dynamic:
            return f"{WHO} stores the scale of static activations, and this layer has no input_scale; calibrate first"
        if isinstance(activation.format, BlockFormat) and activation.format.tensor_scale:
            return (
                f"{WHO} stores the tensor scale of {activation.format.name} activations, and this layer has no "
                "input_scale; calibrate first"
            )
    return None


def _global_scale(tensor_scale: float) -> np.float32 | None:
    """The float32 whose float32 reciprocal is this scale, the nearest to 1 / scale; None when there is none."""
    wanted = np.float32(tensor_scale)
    first = np.float32(1.0 / float(tensor_scale))
    below, above = np.nextafter(first, np.float32(0)), np.nextafter(first, np.float32(np.inf))
    return next((g for g in (first, below, above) if g > 0 and np.float32(1.0 / float(g)) == wanted), None)


def encode(qt: QuantizedTensor, *, fmt: str | None = None, packing: Words = "dense") -> dict[str, Stored]:
    """The tensors of a layer, by their last name. The caller has asked for the reasons first.

    Arguments:
        fmt: one of `FORMATS`; None is the one that the library chooses for the scheme.
        packing: `whole` for releases before 0.19; it differs from `dense` for 3, 5, 6 and 7 bits.
    """
    fmt = fmt or compressed_layout(qt.scheme)
    how = qt.tensor_scheme
    assert isinstance(how.scale_format, FloatFormat)
    scales = stored_scales(qt)
    if isinstance(how.format, BlockFormat):
        out = _encode_blocks(qt, fmt, scales)
    elif not how.is_integer:
        out = {"weight": Stored(dtype="F8_E4M3", bits=qt.codes), "weight_scale": scales}
    else:
        out = _encode_integers(qt, fmt, packing) | {"weight_scale": scales}
    if qt.input_scale is not None and qt.scheme.activation.is_quantized:
        activation = qt.scheme.activation.format
        if isinstance(activation, BlockFormat):
            if activation.tensor_scale:
                inverse = np.array([1.0 / float(qt.input_scale)], np.float32)
                out["input_global_scale"] = Stored(dtype="F32", bits=inverse)
        elif not qt.scheme.activation.dynamic:
            out["input_scale"] = Stored(dtype="F32", bits=np.array([qt.input_scale], np.float32))
    return out


def _encode_blocks(qt: QuantizedTensor, fmt: str, scales: Stored) -> dict[str, Stored]:
    if fmt in PACKED:
        out = {"weight_packed": Stored(dtype="U8", bits=pack(qt.codes, qt.element.bits))}
    else:
        out = {"weight": Stored(dtype="F8_E4M3", bits=qt.codes)}
    e8m0 = scales.dtype == "F8_E8M0"
    out["weight_scale"] = Stored(dtype="U8", bits=scales.bits) if e8m0 else scales
    if qt.tensor_scale is not None:
        out["weight_global_scale"] = Stored(dtype="F32", bits=np.array([_global_scale(qt.tensor_scale)], np.float32))
    return out


def _encode_integers(qt: QuantizedTensor, fmt: str, packing: Words) -> dict[str, Stored]:
    bits, codes = qt.element.bits, unsigned_codes(qt)
    if fmt != "pack-quantized":
        out = {"weight": Stored(dtype="I8", bits=as_int8(codes, bits))}
        if qt.zeros is not None:
            out["weight_zero_point"] = Stored(dtype="I8", bits=as_int8(qt.zeros, bits))
        return out
    pack_words = pack_dense if packing == "dense" else pack_whole
    out = {"weight_packed": words(pack_words(codes, bits)), "weight_shape": integers(np.array(qt.shape), "I64")}
    if qt.zeros is not None:
        if packs_zeros(qt.scheme):
            out["weight_zero_point"] = words(pack_words(np.ascontiguousarray(qt.zeros.T), bits).T)
        else:
            out["weight_zero_point"] = Stored(dtype="I8", bits=as_int8(qt.zeros, bits))
    return out


def plan(keys: Fields, reading: Reading) -> Plan:
    """How the config says that layers are stored."""
    groups = read_groups(keys, reading.notes)

    def layer(name: str) -> LayerPlan | None:
        group = groups.group_of(name)
        if group is None:
            return None
        return LayerPlan(scheme=group.scheme, decode=partial(decode, fmt=group.layout), skipped=groups.is_ignored(name))

    return Plan(layout=LAYOUT, layer=layer, kv_cache=groups.kv_cache)


# First in the order of preference: it holds most, and every engine reads it.
LAYOUT = Layout(
    name=WHO,
    says="what llm-compressor writes: integers, FP8, MX and NVFP4, also with quantised activations",
    order=10,
    quant_method=WHO,
    refuses=refuses,
    encode=encode,
    to_config=to_config,
    from_config=from_config,
    plan=plan,
    write_config=write_config,
    parts=("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
           "weight_global_scale", "input_scale", "input_zero_point", "input_global_scale"),
    marks=("weight_packed", "weight_scale"),
    scale=("weight_scale",),
    is_legacy=lambda config: "config_groups" in config,
    kv_cache_alone=True,
    casts_scales=True,
)  # fmt: skip
