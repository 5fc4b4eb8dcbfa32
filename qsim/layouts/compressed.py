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

Packed words are dense from release 0.19 on (`three_bit="dense"`); before, a word held floor(32 / b) codes and no more
(`three_bit="whole"`). The two differ for 3, 5, 6 and 7 bits and are told apart by their shapes.

Source: compressed-tensors 0.20.0, `compressors/`; the release of October 2025 for whole words.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.formats import BlockFormat, FloatFormat, IntFormat, pack, unpack
from qsim.safetensors import DTYPE_OF, Stored, exactly, integers, words
from qsim.scheme import QuantizedTensor, Scheme, encode_with, get_rule

from .compressed_config import (
    BLOCK_LAYOUTS,
    FORMATS,
    PACKED,
    compressed_layout,
    from_config,
    read_groups,
    to_config,
    write_config,
)
from .config import said
from .layout import Layer, LayerPlan, Layout, Plan, Reading
from .parts import Notes, Parts, as_int8, from_int8, no_own_rule, signed_codes, unsigned_codes, with_scale_format
from .words import dense_count, pack_dense, pack_whole, unpack_dense, unpack_whole, whole_count

Words: TypeAlias = Literal["dense", "whole"]
WHO = "compressed-tensors"
_SCALES = ("F32", "F16", "BF16")
_VALUES = ("F32", "F16", "BF16", "F64")


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
    if exactly(qt.scales, scale_format) is None:
        return f"{WHO} stores {scale_format.name} scales: these scales are not numbers of that format"
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
    scales = exactly(qt.scales, how.scale_format)
    assert scales is not None
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
        if _packs_zeros(qt.scheme):
            out["weight_zero_point"] = words(pack_words(np.ascontiguousarray(qt.zeros.T), bits).T)
        else:
            out["weight_zero_point"] = Stored(dtype="I8", bits=as_int8(qt.zeros, bits))
    return out


def _packs_zeros(scheme: Scheme) -> bool:
    granularity = scheme.weight.granularity
    return granularity is not None and granularity.kind in ("group", "channel")


def decode(parts: Parts, scheme: Scheme, notes: Notes, *, fmt: str) -> QuantizedTensor:
    """A layer's weight. What is stored decides: codes, packed or not, or floats beside the scales to round them with.

    Arguments:
        parts: its tensors.
        scheme: from the config group that the layer belongs to.
        fmt: the group's format, one of `FORMATS`.

    Raises:
        ValueError: a tensor that is missing, or whose dtype or shape does not fit.
    """
    if fmt not in FORMATS:
        raise QsimError(f"compressed-tensors formats read here are {', '.join(FORMATS)}: got {fmt!r}")
    if "input_zero_point" in parts and parts.stored["input_zero_point"].bits.any():
        raise QsimError(f"tensor {parts.name}.input_zero_point is not 0: activations with a zero point are not read")
    whole = scheme.weight
    element = whole.format.element if isinstance(whole.format, BlockFormat) else whole.format
    stored_float = "weight" in parts and parts.stored["weight"].dtype in _VALUES
    if stored_float and isinstance(whole.format, BlockFormat):
        raise QsimError(
            f"tensor {parts.name}.weight is {parts.stored['weight'].dtype} beside its scales: weights of "
            f"{whole.format.name} are read as codes; save the checkpoint compressed"
        )
    if stored_float:
        codes = np.zeros(parts.get("weight", _VALUES, 2).shape, np.uint8)  # found below, from the stored scales
    elif isinstance(whole.format, BlockFormat):
        codes = _block_codes(parts, fmt, element.bits)
    elif whole.is_integer:
        codes = _integer_codes(parts, fmt, whole.bits)
    else:
        codes = parts.get("weight", ("F8_E4M3",), 2).bits
    whole.check_shape(codes.shape, parts.name)
    assert whole.granularity is not None
    region = whole.granularity.scale_shape(codes.shape)
    if isinstance(whole.format, BlockFormat):
        dtype = DTYPE_OF[whole.format.scale.name]
        scales, stored_as = parts.scales("weight_scale", (dtype, "U8") if dtype == "F8_E8M0" else (dtype,), region)
    else:
        scales, stored_as = parts.scales("weight_scale", _SCALES, region)
        scheme = with_scale_format(scheme, stored_as)
    zeros = None
    if whole.is_integer:
        symmetric = whole.symmetric
        zeros = _zeros(parts, scheme, codes.shape, region)
        if symmetric and zeros is not None and (zeros != 1 << (whole.bits - 1)).any():
            notes.add("the config says symmetric, the stored zero points are not: read as asymmetric", parts.name)
            unsigned = f"uint{whole.bits}"
            scheme = with_scale_format(scheme, stored_as, symmetric=False, format=unsigned, zero_point_format=unsigned)
        elif symmetric:
            zeros, codes = None, signed_codes(codes, whole.bits)
    if stored_float:
        codes = _rounded(parts, scheme, scales, zeros)
        notes.add("weights are stored as floats beside their scales: rounded with these, as the library runs them")
    tensor_scale = _reciprocal(parts, "weight_global_scale") if whole.format.name == "nvfp4" else None
    return QuantizedTensor(
        codes=codes,
        scales=scales,
        zeros=zeros,
        scheme=scheme,
        tensor_scale=tensor_scale,
        input_scale=_input_scale(parts, scheme),
        group_index=_group_index(parts, scheme, codes.shape[1]),
        name=parts.name,
    )


def _rounded(parts: Parts, scheme: Scheme, scales: np.ndarray, zeros: np.ndarray | None) -> np.ndarray:
    """Codes of a weight that is stored as floats beside its scales, which is how a model that was calibrated but not
    compressed is saved (quantization_status `frozen`); the library rounds such a weight whenever it is used."""
    values = parts.get("weight", _VALUES, 2).values()
    if not np.isfinite(values).all():
        raise QsimError(
            f"tensor {parts.name}.weight has {int((~np.isfinite(values)).sum())} values that are NaN or Inf"
        )
    if not (scales > 0).all():
        raise QsimError(
            f"tensor {parts.name}.weight_scale must be positive to round the stored weight with: got {scales.min()}; "
            "calibrate the checkpoint and save it compressed"
        )
    if _group_index(parts, scheme, values.shape[1]) is not None:
        raise QsimError(
            f"tensor {parts.name}.weight is stored as floats and has act order (weight_g_idx): such weights are read "
            "as codes; save the checkpoint compressed"
        )
    rule = get_rule("compressed-tensors", scheme.weight)
    with np.errstate(over="ignore"):  # beyond the format's range a code saturates
        return encode_with(values, scheme.weight, scales, zeros, rule)


def _input_scale(parts: Parts, scheme: Scheme) -> float | None:
    activation = scheme.activation
    if "input_global_scale" in parts:
        return _reciprocal(parts, "input_global_scale")
    scale = parts.scalar("input_scale")
    if activation.is_quantized and not activation.dynamic and scale is None:
        raise QsimError(f"tensor {parts.name}.input_scale is missing: the config says that activations are static")
    return scale


def _reciprocal(parts: Parts, key: str) -> float:
    value = parts.scalar(key)
    if value is None or not value > 0:
        what = "is missing" if value is None else f"must be positive: got {value}"
        raise QsimError(f"tensor {parts.name}.{key} {what}")
    return 1.0 / value


def _block_codes(parts: Parts, fmt: str, bits: int) -> np.ndarray:
    if fmt == "mxfp8-quantized":
        return parts.get("weight", ("F8_E4M3",), 2).bits
    packed = parts.get("weight_packed", ("U8",), 2).bits
    return unpack(packed, bits)


def _integer_codes(parts: Parts, fmt: str, bits: int) -> np.ndarray:
    """Codes counted from the lowest, packed or one to a byte, whichever is stored."""
    if "weight_packed" not in parts and ("weight" in parts or fmt != "pack-quantized"):
        values = parts.get("weight", ("I8",), 2).bits
        half = 1 << (bits - 1)
        if bits < 8 and values.size and (int(values.min()) < -half or int(values.max()) >= half):
            raise QsimError(
                f"tensor {parts.name}.weight holds {values.min()} to {values.max()}: {bits} bits hold {-half} to "
                f"{half - 1}"
            )
        return from_int8(values, bits)
    packed = parts.get("weight_packed", ("I32",), 2)
    n, columns = packed.shape
    if "weight_shape" in parts:
        shape = tuple(int(size) for size in parts.get("weight_shape", ("I64", "I32")).bits.reshape(-1))
        if len(shape) != 2 or shape[0] != n:
            raise QsimError(f"tensor {parts.name}.weight_shape says {shape}, weight_packed has {n} rows")
        k = shape[1]
    else:
        k = columns * 32 // bits
    return _unpack(parts, "weight_packed", packed.bits, bits, k)


def _unpack(parts: Parts, key: str, packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Fields of rows of `count` codes, packed in either of the two ways."""
    have, dense, whole = packed.shape[1], dense_count(count, bits), whole_count(count, bits)
    if have not in (dense, whole):
        raise QsimError(
            f"tensor {parts.name}.{key} has {have} words for {count} codes of {bits} bits: dense words are {dense}, "
            f"words of {32 // bits} codes {whole}"
        )
    if dense != whole:
        return (unpack_dense if have == dense else unpack_whole)(packed, bits, count)
    if 32 % bits == 0:
        return unpack_dense(packed, bits, count)
    # Rows so short that both ways take as many words: whole words leave their top bits 0, dense ones use them.
    used = bits * (32 // bits)
    top = np.ascontiguousarray(packed).view(np.uint32) >> np.uint32(used)
    return (unpack_dense if top.any() else unpack_whole)(packed, bits, count)


def _zeros(parts: Parts, scheme: Scheme, shape: tuple[int, ...], region: tuple[int, ...]) -> np.ndarray | None:
    """Zero points counted from the lowest code, of the shape of the scales; None when none are stored."""
    key, bits = "weight_zero_point", scheme.weight.bits
    if key not in parts:
        if scheme.weight.symmetric:
            return None
        raise QsimError(f"tensor {parts.name}.{key} is missing: the config says asymmetric")
    found = parts.get(key, ("I32", "I8"))
    if found.dtype == "I8" or not _packs_zeros(scheme):
        if found.bits.size != int(np.prod(region)):
            raise QsimError(f"tensor {parts.name}.{key} has shape {found.shape}, expected {region}")
        return from_int8(np.ascontiguousarray(found.bits.reshape(region).astype(np.int8)), bits)
    if len(found.shape) != 2 or found.shape[1] != region[1]:
        raise QsimError(f"tensor {parts.name}.{key} has shape {found.shape}, expected {region[1]} columns")
    rows = _unpack(parts, key, np.ascontiguousarray(found.bits.T), bits, shape[0])
    return np.ascontiguousarray(rows.T)


def _group_index(parts: Parts, scheme: Scheme, k: int) -> np.ndarray | None:
    if "weight_g_idx" not in parts:
        return None
    group = scheme.weight.group_size or k
    index = parts.shaped("weight_g_idx", ("I32", "I64"), (k,)).bits.astype(np.int32)
    groups = -(-k // group)
    if index.min() < 0:  # -1 everywhere is how the library says that there is no order
        return None
    if index.max() >= groups:
        raise QsimError(f"tensor {parts.name}.weight_g_idx must have groups 0 to {groups - 1}: got {index.max()}")
    return None if np.array_equal(index, np.arange(k) // group) else index


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
