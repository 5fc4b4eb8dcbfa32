"""The one place where what a user gives becomes an array of numbers, or is refused with a sentence.

`numpy.asarray` takes everything: texts and dates become arrays of texts and dates, which later turn into numbers
(a date is a count of days), complex numbers lose their imaginary part, and the mask of a masked array is dropped with
what lies beneath it taken for data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError

F32 = np.float32
_KINDS = {"b": "true and false", "c": "complex numbers", "m": "time spans", "M": "dates", "O": "Python objects",
          "S": "bytes", "U": "texts", "V": "records"}  # fmt: skip


def as_plain_array(x: Any, what: str) -> np.ndarray:
    """`x` as a NumPy array of whatever type.

    Arguments:
        x: an array, or anything that `numpy.asarray` makes one.
        what: how messages name it, in the plural (`weights`), the layer included.

    Raises:
        QsimError: masked elements, also in a list of masked arrays; what is no array (lists of unequal lengths).
    """
    parts = x if isinstance(x, list | tuple) else (x,)
    if any(isinstance(part, np.ma.MaskedArray) and np.ma.is_masked(part) for part in parts):
        raise QsimError(f"{what}: the array has masked elements, which have no value; fill them first")
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        raise QsimError(f"{what} must be an array of numbers: got {type(x).__name__} ({error})") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def real_array(x: Any, what: str, *, integers: bool = False, dtype: Any = None) -> np.ndarray:
    """`x` as an array of real numbers.

    Arguments:
        x: float16, bfloat16, float32, float64 or an ml_dtypes float, of any shape; a masked array without masked
            elements.
        what: as in `as_plain_array`.
        integers: take integers as well.
        dtype: float32 or float64 to convert to, row-major, each value rounded once; None leaves the type.

    Raises:
        QsimError: another type of element (texts, dates, complex numbers, booleans, objects), masked elements, a finite
            value that `dtype` cannot hold.
    """
    if dtype in (np.float32, np.float64) and type(x) is np.ndarray and x.dtype == dtype and x.flags.c_contiguous:
        return x
    array = as_plain_array(x, what)
    of_ml_dtypes = (array.dtype.type.__module__ or "").split(".")[0] == "ml_dtypes"
    whole = array.dtype.kind in "iu" or (of_ml_dtypes and "int" in array.dtype.name)
    real = (array.dtype.kind == "f" and array.dtype.itemsize <= 8) or (of_ml_dtypes and not whole)
    if not real and not (integers and whole):
        raise QsimError(
            f"{what} must be real floating-point numbers{' or integers' * integers}: got {_elements(array.dtype)}"
        )
    return array if dtype is None else _converted(array, np.dtype(dtype), what)


def whole_array(x: Any, what: str) -> np.ndarray:
    """`x` as an array of integers, of any integer type; an empty array may be of any type.

    Raises:
        QsimError: elements that are no integers, masked elements.
    """
    array = as_plain_array(x, what)
    if array.size == 0 and array.dtype.kind == "f":  # numpy.asarray([]) is float64
        return array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise QsimError(f"{what} must be whole numbers: got {_elements(array.dtype)}")
    return array


def _elements(dtype: np.dtype) -> str:
    """What an array of that type holds."""
    if dtype.kind not in _KINDS or (dtype.kind == "V" and dtype.names is None):  # ml_dtypes' are of kind V
        return dtype.name
    return _KINDS[dtype.kind]


def _converted(array: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is refused below; a signalling NaN stays a NaN
        out = np.ascontiguousarray(array, dtype).reshape(array.shape)
    if array.dtype == np.float64 and dtype == np.float32:
        lost = np.isinf(out) & np.isfinite(array)
        if lost.any():
            first = tuple(int(i[0]) for i in np.nonzero(lost)) if lost.ndim else ()
            raise QsimError(
                f"{what} must be within float32's range, +-3.4028e38: {int(lost.sum())} of {array.size} are not, the "
                f"first is {array[first]!s} at index {first[0] if len(first) == 1 else first}"
            )
    return out
