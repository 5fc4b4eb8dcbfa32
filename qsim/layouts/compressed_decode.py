"""Tensors of compressed-tensors as a quantised weight; `compressed` says how they lie."""

from __future__ import annotations

import numpy as np

from qsim.errors import QsimError
from qsim.formats import BlockFormat, get_format, unpack
from qsim.safetensors import DTYPE_OF
from qsim.scheme import QuantizedTensor, Scheme, encode_with, get_rule
from qsim.scheme.bits import values_of

from .compressed_config import FORMATS
from .parts import Notes, Parts, from_int8, signed_codes, with_scale_format
from .words import dense_count, unpack_dense, unpack_whole, whole_count

_SCALES = ("F32", "F16", "BF16")
_VALUES = ("F32", "F16", "BF16", "F64")


def packs_zeros(scheme: Scheme) -> bool:
    """Whether zero points are packed in words too."""
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
        scales, stored_as = parts.scale_codes("weight_scale", (dtype, "U8") if dtype == "F8_E8M0" else (dtype,), region)
    else:
        scales, stored_as = parts.scale_codes("weight_scale", _SCALES, region)
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
        codes = _rounded(parts, scheme, values_of(scales, get_format(stored_as)), zeros)
        notes.add("weights are stored as floats beside their scales: rounded with these, as the library runs them")
    tensor_scale = _reciprocal(parts, "weight_global_scale") if whole.format.name == "nvfp4" else None
    return QuantizedTensor(
        codes=codes,
        scale_codes=scales,
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
    if found.dtype == "I8" or not packs_zeros(scheme):
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
