"""`from_codes`: a `QuantizedTensor` from codes, scales and zero points that exist already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsim.arrays import as_plain_array, real_array, whole_array
from qsim.errors import QsimError
from qsim.formats import BlockFormat, FloatFormat, IntFormat, decode, encode, get_format

from .granularity import Granularity
from .presets import get_scheme
from .scheme import Scheme
from .tensor import QuantizedTensor
from .tensor_scheme import TensorScheme

F32 = np.float32
_ROW = Granularity(kind="channel")


def from_codes(
    codes: Any,
    scheme: str | Scheme,
    scales: Any,
    zero_points: Any = None,
    tensor_scale: Any = None,
    *,
    name: str = "",
) -> QuantizedTensor:
    """A weight from what a kernel or a checkpoint holds of it: nothing is rounded.

    Arguments:
        codes: (N, K), one code per element. Integers: a signed type holds the values (-8..7 of INT4), an unsigned type
            holds them with the offset 2^(bits-1) (0..15), as kernels store them. Floats: their codes as bytes, two
            E2M1 codes in two bytes; an ml_dtypes array of the format is taken too.
        scheme: a name or a `Scheme`. Its scale format is what the scales are: where they are no values of it, the
            result's scheme says bfloat16 or float32 instead. Where it has groups and there is one scale per row, the
            result's scheme says so.
        scales: of the scheme's shape, (N, K / group) or (N, 1); (N,) is one per row. Values as floats of any type, or
            stored codes: uint8 of E8M0 and E4M3 scales, uint16 of BF16 scales (float16 has a type of its own).
        zero_points: of the shape of `scales`, on the scale of the codes: unsigned codes have unsigned zero points,
            and value = (code - zero point) * scale. A symmetric integer scheme becomes the one with zero points.
        tensor_scale: the scale over the whole tensor that NVFP4 multiplies last; for no other scheme. A number, or the
            uint32 code of a float32.
        name: the layer, for messages.

    Raises:
        QsimError: a code out of range, shapes that do not fit, a scale that is NaN or Inf or no value of a block
            format's scale, a tensor scale that is missing or does not belong.
    """
    where = f" (layer {name})" if name else ""
    wanted = get_scheme(scheme)
    if not wanted.weight.is_quantized:
        raise QsimError(f"the weight of scheme {wanted.name!r} is {wanted.weight.format.name}: it has no codes{where}")
    if wanted.weight.has_own_rule:
        raise QsimError(
            f"{wanted.name or wanted.weight.summary} has minima or superblocks, which from_codes does not take: make a "
            f"QuantizedTensor of codes, scales and these{where}"
        )
    how = _with_zero_points(wanted.weight, zero_points is not None, where)
    element = how.format.element if isinstance(how.format, BlockFormat) else how.format
    given = _byte_codes(codes, element, where)
    if given.ndim != 2 or 0 in given.shape:
        raise QsimError(f"codes of a weight must have the shape (N, K): got {given.shape}{where}")
    values, stored_as = _scale_values(scales, how, where)
    how, values = _with_shape(how, values, given.shape, where)
    how = _with_scale_format(how, values, stored_as, where)
    zeros = None
    if zero_points is not None:
        zeros = _integer_codes(zero_points, element, given.dtype.kind == "i", "zero points", where)
        if zeros.size != values.size:
            raise QsimError(f"zero_points must have the shape of scales, {values.shape}: got {zeros.shape}{where}")
        zeros = zeros.reshape(values.shape)
    if isinstance(element, IntFormat):
        stored = _integer_codes(given, element, given.dtype.kind == "i", "codes", where)
        if element.signed:  # two's complement in the low bits
            stored = (stored - (1 << (element.bits - 1))) & np.uint8((1 << element.bits) - 1)
    else:
        stored = np.ascontiguousarray(given, np.uint8)
    same = how == wanted.weight
    return QuantizedTensor(
        codes=stored.astype(element.code_dtype),
        scales=values,
        zeros=zeros,
        scheme=wanted if same else replace(wanted, weight=how, name=""),
        tensor_scale=_tensor_scale(tensor_scale, how, where),
        name=name,
    )


def _with_zero_points(how: TensorScheme, given: bool, where: str) -> TensorScheme:
    """The scheme with or without zero points, as they are given."""
    if given == (not how.symmetric):
        return how
    if not isinstance(how.format, IntFormat) or how.format.fraction_bits:
        raise QsimError(f"zero_points belong to integer codes: {how.format.name} has none{where}")
    if not given:
        raise QsimError(
            f"{how.format.name} codes have zero points: give zero_points, or name a symmetric scheme (-sym){where}"
        )
    return replace(how, format=get_format(f"uint{how.bits}"), symmetric=False, zero_point_format=None)


def _byte_codes(codes: Any, element: Any, where: str) -> np.ndarray:
    array = as_plain_array(codes, f"codes{where}")
    if array.dtype.name == element.name and array.dtype.itemsize == 1 and array.dtype.kind not in "iu":
        array = array.view(np.uint8)
    array = whole_array(array, f"codes{where}")
    if isinstance(element, IntFormat):
        return array
    top = (1 << element.bits) - 1
    if array.size and (int(array.min()) < 0 or int(array.max()) > top):
        wrong = int(array.min()) if int(array.min()) < 0 else int(array.max())
        raise QsimError(f"codes of {element.name} must be from 0 to {top}: got {wrong}{where}")
    return array


def _integer_codes(given: Any, element: Any, signed: bool, what: str, where: str) -> np.ndarray:
    """Unsigned codes 0 .. 2^bits - 1 as uint8."""
    array, half = whole_array(given, f"{what}{where}"), 1 << (element.bits - 1)
    low, high = (-half, half - 1) if signed else (0, 2 * half - 1)
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        wrong = int(array.min()) if int(array.min()) < low else int(array.max())
        rule = f"{what} of {element.bits} bits in {'a signed' if signed else 'an unsigned'} type must be"
        hint = "; codes with an offset must have an unsigned type" if signed and wrong <= 2 * half - 1 else ""
        raise QsimError(f"{rule} from {low} to {high}: got {wrong}{where}{hint}")
    return (array.astype(np.int16) + (half if signed else 0)).astype(np.uint8)


def _scale_values(scales: Any, how: TensorScheme, where: str) -> tuple[np.ndarray, str | None]:
    """Float32 values, and the name of the format when the array says it."""
    array = as_plain_array(scales, f"scales{where}")
    fmt = how.scale_format
    assert fmt is not None
    if array.dtype == np.uint16:
        return np.asarray(decode(array, "bfloat16"), F32), "bfloat16"
    if array.dtype == np.uint8:
        if fmt.bits != 8:
            raise QsimError(
                f"scales as bytes must be codes of an 8-bit format, but the scheme has {fmt.name} scales: give float "
                f"values, or BF16 codes as uint16{where}"
            )
        return np.asarray(decode(array, fmt), F32), fmt.name
    named = array.dtype.name if array.dtype.name in ("bfloat16", "float16") else None
    return real_array(array, f"scales{where}", dtype=F32), named


def _with_shape(
    how: TensorScheme, values: np.ndarray, shape: tuple[int, ...], where: str
) -> tuple[TensorScheme, np.ndarray]:
    granularity = how.granularity
    assert granularity is not None
    if values.shape in ((shape[0],), (shape[0], 1)) and granularity.kind == "group" and granularity.columns != shape[1]:
        if isinstance(how.format, BlockFormat):
            raise QsimError(f"{how.format.name} must have one scale per {granularity.columns} of K: got one per row")
        granularity = _ROW
        how = replace(how, granularity=granularity)
    how.check_shape(shape, where.removeprefix(" (layer ").removesuffix(")"))
    expected = granularity.scale_shape(shape)
    fits = values.shape == expected or (values.size == int(np.prod(expected)) and 1 in (*expected, values.ndim))
    if not fits:
        raise QsimError(
            f"scales of {granularity} of a weight {shape} must have the shape {expected}: got {values.shape}{where}; "
            "another group size has another scheme, like w4a16-g64-sym"
        )
    values = np.ascontiguousarray(values.reshape(expected))
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
        raise QsimError(f"scales must be finite: {int((~finite).sum())} are not, the first in row {row}{where}")
    return how, values


def _with_scale_format(how: TensorScheme, values: np.ndarray, stored_as: str | None, where: str) -> TensorScheme:
    """The scheme whose scale format holds all values."""
    fmt = how.scale_format
    assert isinstance(fmt, FloatFormat)
    if isinstance(how.format, BlockFormat):
        if not _holds(values, fmt):
            bad = np.asarray(decode(encode(values, fmt), fmt), F32) != values
            raise QsimError(
                f"scales of {how.format.name} must be values of {fmt.name}: {values[bad][0]!s} is none{where}"
            )
        return how
    names = [stored_as] if stored_as else [fmt.name, "bfloat16", "float32"]
    found = next(name for name in names if name and (name == stored_as or _holds(values, get_format(name))))
    return how if found == fmt.name else replace(how, scale_format=get_format(found))  # type: ignore[arg-type]


def _holds(values: np.ndarray, fmt: Any) -> bool:
    return bool((np.asarray(decode(encode(values, fmt), fmt), F32) == values).all())


def _tensor_scale(value: Any, how: TensorScheme, where: str) -> float | None:
    wanted = isinstance(how.format, BlockFormat) and how.format.tensor_scale
    if value is None:
        if wanted:
            raise QsimError(f"{how.format.name} has a scale over the whole tensor: give tensor_scale{where}")
        return None
    if not wanted:
        raise QsimError(f"tensor_scale belongs to NVFP4: {how.format.name} has none{where}")
    if isinstance(value, np.ndarray | np.generic) and value.dtype == np.uint32:
        value = np.asarray(value).view(F32)
    array = real_array(value, f"tensor_scale{where}", dtype=F32)
    if array.size != 1 or not np.isfinite(array).all():
        raise QsimError(f"tensor_scale must be one finite number: got {array.reshape(-1)[:4].tolist()}{where}")
    return float(array.reshape(()))
