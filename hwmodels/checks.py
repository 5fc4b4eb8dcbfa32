"""Numbers that callers give: what is no number, not finite or out of range is one sentence with its name."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError

LARGEST_COUNT = 1 << 53
"""Beyond it float64, in which all times and bytes are computed, no longer counts in ones."""
LARGEST_RANK = 16
"""NumPy 1 has 32 axes at most, and prices of kernels add some of their own."""


def as_numbers(name: str, value: Any, rule: str = "must be finite") -> np.ndarray:
    """A number, or an array or list of numbers, as float64; `rule` is what infinities and NaN break.

    Raises:
        QsimError: empty, not made of real numbers (texts, truth values, complex numbers, objects), or not finite.
    """
    try:
        array = np.asarray(value)
        numbers = array.astype(np.float64, copy=False) if array.dtype.kind in "iuf" or _are_integers(array) else None
    except (TypeError, ValueError, OverflowError):
        numbers = None
    if numbers is None:
        raise QsimError(f"{name} must be a number or an array of numbers: got {_short(value)}")
    if numbers.ndim > LARGEST_RANK:
        raise QsimError(f"{name} must have at most {LARGEST_RANK} axes: got {numbers.ndim}")
    if numbers.size == 0:
        raise QsimError(f"{name} is empty: at least one number is needed")
    if not np.isfinite(numbers).all():
        raise QsimError(f"{name} {rule}: got {_short(value)}")
    return numbers


def _are_integers(array: np.ndarray) -> bool:
    """Whether an array of objects holds integers that only int64 is too small for."""
    return array.dtype == object and all(type(v) is int for v in array.reshape(-1))


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}" if value.size > 8 else repr(value.tolist())
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def check_number(**values: Any) -> None:
    """Refuse what is not one finite number, by name."""
    for name, value in values.items():
        if as_numbers(name, value).ndim:
            raise QsimError(f"{name} must be one number: got {_short(value)}")


def check_positive(**values: Any) -> None:
    """Refuse sizes that are not positive, finite numbers (arrays of them are accepted), by name."""
    for name, value in values.items():
        array = as_numbers(name, value, "must be positive")
        if (array <= 0).any():
            raise QsimError(f"{name} must be positive: got {array[array <= 0].reshape(-1)[0]:g}")


def check_not_negative(**values: Any) -> None:
    """Refuse amounts that are negative or no finite numbers (arrays of them are accepted), by name."""
    for name, value in values.items():
        array = as_numbers(name, value)
        if (array < 0).any():
            raise QsimError(f"{name} must not be negative: got {array[array < 0].reshape(-1)[0]:g}")


def check_steps(**values: Any) -> None:
    """Refuse counts of sequences or tokens below 1 (arrays are accepted; averages may be fractions), by name."""
    for name, value in values.items():
        array = as_numbers(name, value)
        if (array < 1).any():
            raise QsimError(f"{name} must be at least 1: got {array[array < 1].reshape(-1)[0]:g}")
        if (array > LARGEST_COUNT).any():
            raise QsimError(f"{name} must be at most {LARGEST_COUNT}: got {array.max():g}")


def check_count(**values: Any) -> None:
    """Refuse what is not a single whole number of at least 1, by name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise QsimError(f"{name} must be a whole number: got {_short(value)}")
        if value < 1:
            raise QsimError(f"{name} must be at least 1: got {value}")
        if value > LARGEST_COUNT:
            raise QsimError(f"{name} must be at most {LARGEST_COUNT}: got {_short(value)}")
