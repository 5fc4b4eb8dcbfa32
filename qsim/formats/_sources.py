"""What comes in: arrays of values and arrays of codes, checked, and read piecewise in a type that the loops take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError

from . import _plans
from .catalogue import FormatLike, get_element_format
from .spec import ElementFormat, IntFormat

_ACCEPTED = "float16, bfloat16, float32, float64, integers of up to 64 bits, and ml_dtypes types"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Values to encode. `load(start, stop)` gives a flat, contiguous piece of type `carrier`, which holds each exactly
    (64-bit integers beyond 2^53: rounded to odd, so that the rounding that follows is still right)."""

    shape: tuple[int, ...]
    size: int
    carrier: np.dtype
    direct: bool
    load: Callable[[int, int], np.ndarray]


def _ml_format(dtype: np.dtype) -> ElementFormat | None:
    """The format of an ml_dtypes type, by its name; None for any other type. ml_dtypes need not be installed."""
    if (dtype.type.__module__ or "").split(".")[0] != "ml_dtypes":
        return None
    try:
        return get_element_format(dtype.name)
    except ValueError:
        raise QsimError(f"the ml_dtypes type {dtype.name} has no format here; accepted are {_ACCEPTED}") from None


def _clean(codes: np.ndarray, fmt: ElementFormat) -> np.ndarray:
    """Codes without the sign bits that ml_dtypes repeats above its 2- and 4-bit integers."""
    return codes if fmt.bits == fmt.storage_bits and fmt.bits >= 8 else codes & codes.dtype.type(_plans.code_mask(fmt))


def _round_to_odd(v: np.ndarray) -> np.ndarray:
    """64-bit integers as float64 with the discarded bits kept as a sticky one."""
    if v.dtype.kind == "u":
        odd = (v & ~np.uint64(0x7FF)) | ((v & np.uint64(0x7FF)) != 0).astype(np.uint64) << np.uint64(11)
        return np.where(v >> np.uint64(53), odd, v).astype(np.float64)
    negative = v < 0
    magnitude = np.where(negative, -v.view(np.uint64), v.view(np.uint64))
    return np.where(negative, -1.0, 1.0) * _round_to_odd(magnitude)


def open_source(x: Any, what: str = "encode") -> Source:
    """Look at an array of values.

    Raises:
        ValueError: a type that is not a real number of at most 64 bits; masked elements.
    """
    array = as_plain_array(x, what)
    flat = array.reshape(-1) if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(-1)
    dtype = array.dtype
    fmt = _ml_format(dtype)
    carrier: np.dtype = np.dtype(np.float32)
    direct = False
    load: Callable[[int, int], np.ndarray]
    if fmt is not None:
        codes = _clean(flat.view(fmt.code_dtype), fmt)
        plan = _plans.decode_plan(fmt, carrier)

        def load(start: int, stop: int) -> np.ndarray:
            values = np.empty(stop - start, np.float32)
            plan(codes[start:stop], values)
            return values

    elif dtype in (np.float32, np.float64):
        carrier, direct = dtype, True

        def load(start: int, stop: int) -> np.ndarray:
            return flat[start:stop]

    elif dtype == np.float16 or (dtype.kind in "iu" and dtype.itemsize <= 2):

        def load(start: int, stop: int) -> np.ndarray:
            with np.errstate(invalid="ignore"):  # a signalling float16 NaN
                return flat[start:stop].astype(np.float32)

    elif dtype.kind in "iu" and dtype.itemsize <= 8:
        carrier = np.dtype(np.float64)

        def load(start: int, stop: int) -> np.ndarray:
            piece = flat[start:stop]
            return piece.astype(np.float64) if piece.itemsize <= 4 else _round_to_odd(piece)

    else:
        raise QsimError(f"{what} takes {_ACCEPTED}: got an array of dtype {dtype}")
    return Source(shape=array.shape, size=array.size, carrier=carrier, direct=direct, load=load)


def open_codes(codes: Any, fmt: FormatLike | None) -> tuple[np.ndarray, ElementFormat]:
    """Codes as a contiguous unsigned array, and their format.

    Raises:
        ValueError: no format given and none in the array's type; an array of another format; not integers; negative
            integers for a format that is not a signed integer.
    """
    array = as_plain_array(codes, "decode")
    own = _ml_format(array.dtype)
    if own is not None:
        element = own if fmt is None else get_element_format(fmt)
        if element != own:
            raise QsimError(f"decode: the array holds {own.name}, the format asked for is {element.name}")
        return _clean(np.ascontiguousarray(array).view(element.code_dtype), element).reshape(array.shape), element
    if fmt is None:
        raise QsimError("decode needs a format: only ml_dtypes arrays carry their own")
    element = get_element_format(fmt)
    if array.size == 0 and array.dtype.kind == "f":  # numpy.asarray([]) is float64
        array = array.astype(element.code_dtype)
    if array.dtype.kind not in "iu":
        raise QsimError(f"decode takes integer codes of {element.name}: got an array of dtype {array.dtype}")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        if not isinstance(element, IntFormat) or not element.signed:
            raise_foreign_codes(array, element, _plans.code_mask(element))
        low = -(1 << (element.bits - 1))
        if array.min() < low or array.max() > element.max_integer:
            bad = np.flatnonzero((array < low) | (array > element.max_integer))
            where = _index(array.shape, int(bad[0]))
            raise QsimError(
                f"decode: {array.reshape(-1)[bad[0]]} at index {where} is outside {element.name} ({low} to "
                f"{element.max_integer})"
            )
        array = array.astype(np.int64) & _plans.code_mask(element)
    if array.dtype != element.code_dtype:
        if array.size and int(array.max()) >> element.storage_bits:
            raise_foreign_codes(array, element, _plans.code_mask(element))
        array = array.astype(element.code_dtype)
    return np.ascontiguousarray(array).reshape(array.shape), element


def raise_foreign_codes(array: np.ndarray, fmt: ElementFormat, mask: int) -> NoReturn:
    """Raise the error for codes with bits outside `mask`: how many, and where the first is."""
    flat = array.reshape(-1)
    bad = np.flatnonzero((flat < 0) | (flat.astype(np.uint64) & np.uint64(~mask & (1 << 64) - 1) != 0))
    code = int(flat[bad[0]])
    raise QsimError(
        f"decode: {bad.size} of {flat.size} codes are outside {fmt.name}, which has {fmt.bits} bits"
        f"{f' above {fmt.padding_bits} zero ones' if fmt.padding_bits else ''}; the first is "
        f"{code if code < 0 else hex(code)} at index {_index(array.shape, int(bad[0]))}"
    )


def raise_unencodable(source: Source, fmt: ElementFormat, policy: _plans.Policy, load: Callable) -> None:
    """Raise the error for values without a code: how many of each kind, and where the first is.

    `load(start, stop)` gives the values that reach the format.
    """
    if policy.rounding == "stochastic":  # whatever the random bits were, these overflow or would with others
        policy = _plans.Policy(rounding="nearest_away", overflow=policy.overflow, nan=policy.nan)
    special = _plans.special_codes(fmt, policy)
    run = _plans.general(fmt, policy, special)
    nans = others = 0
    first: tuple[int, float] | None = None
    step = 1 << 16
    for start in range(0, source.size, step):
        values = load(start, min(start + step, source.size))
        codes = np.empty(values.shape, np.int64)
        run(values, codes, np.zeros(values.shape, np.uint32))
        bad = np.flatnonzero(codes == -1)
        nan_count = int(np.count_nonzero(np.isnan(values[bad])))
        nans, others = nans + nan_count, others + bad.size - nan_count
        if bad.size and first is None:
            first = (start + int(bad[0]), float(values[bad[0]]))
    where = "" if first is None else f"; the first is {first[1]!r} at index {_index(source.shape, first[0])}"
    parts = []
    if nans:
        rule = f"nan={policy.nan!r} forbids it" if fmt.has_nan else f"{fmt.name} has no NaN"
        parts.append(f"{nans} NaN value{'s' * (nans > 1)} ({rule}; nan='zero' or 'max' replaces)")
    if others:
        parts.append(
            f"{others} value{'s' * (others > 1)} outside {fmt.min!r} to {fmt.max!r} ({fmt.name} has neither Inf nor "
            "NaN; overflow='saturate' clamps)"
        )
    raise QsimError(f"encode: of {source.size} values, {' and '.join(parts) or 'some'} have no code{where}")


def _index(shape: tuple[int, ...], flat_index: int) -> str:
    index = tuple(int(i) for i in np.unravel_index(flat_index, shape)) if shape else ()
    return str(index[0]) if len(index) == 1 else str(index)
