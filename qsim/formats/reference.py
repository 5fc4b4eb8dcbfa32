"""The slow, exact codec: one element at a time, in rational arithmetic.

It shares no code with the fast one (`codec`): neighbours are found by bisection over the exact values of the codes.
Tests and teaching call it, nothing else does.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from fractions import Fraction

from qsim.errors import QsimError

from .catalogue import get_element_format
from .rounding import NAN_POLICIES, OVERFLOWS, ROUNDINGS, NanPolicy, Overflow, Rounding, check_choice
from .spec import CodebookFormat, ElementFormat, FloatFormat, Format, IntFormat


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The two grid points around a value, as positions on the format's unbounded grid.

    `low` and `high` are integers: magnitude codes for floats, integers for ints, indices for codebooks. They are equal
    when the value is on the grid. `fraction` is where the value stands between them, in [0, 1).
    """

    low: int
    high: int
    fraction: Fraction


def decode(code: int, fmt: str | Format) -> Fraction | float:
    """The exact value of one code: a Fraction, or a float for NaN, the infinities and -0.

    Raises:
        ValueError: a code outside the format.
    """
    fmt = get_element_format(fmt)
    if not 0 <= code < 1 << fmt.storage_bits or code & ((1 << fmt.padding_bits) - 1):
        raise QsimError(f"{code:#x} is not a code of {fmt.name} ({fmt.storage_bits} bits)")
    if isinstance(fmt, CodebookFormat):
        return Fraction(fmt.table[code])
    if isinstance(fmt, IntFormat):
        integer = code - (1 << fmt.bits) if fmt.signed and code >> (fmt.bits - 1) else code
        return Fraction(integer, 1 << fmt.fraction_bits)
    nan_code = fmt.nan_code
    code >>= fmt.padding_bits
    negative = bool(code & fmt.sign_mask)
    magnitude = code & ~fmt.sign_mask
    # not `in nan_codes`: float32 has 2^24 of them
    if magnitude > fmt.max_magnitude_code + fmt.has_inf or code << fmt.padding_bits == nan_code:
        return math.nan
    if magnitude > fmt.max_magnitude_code:
        return -math.inf if negative else math.inf
    if magnitude == 0 and fmt.has_zero:
        return -0.0 if negative else Fraction(0)
    return -fmt.fraction(magnitude) if negative else fmt.fraction(magnitude)


def _around(magnitude: Fraction, fmt: FloatFormat) -> Neighbours:
    """Neighbours of a non-negative value on the grid that goes on above the format's maximum."""
    high = 1
    while fmt.fraction(high) <= magnitude:
        high *= 2
    low = high // 2 if high > 1 else 0
    if fmt.fraction(low) > magnitude:  # only a format without zero: the value is below the smallest
        return Neighbours(low=-1, high=0, fraction=magnitude / fmt.fraction(0))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fmt.fraction(middle) <= magnitude else (low, middle)
    below, above = fmt.fraction(low), fmt.fraction(low + 1)
    if below == magnitude:
        return Neighbours(low=low, high=low, fraction=Fraction(0))
    return Neighbours(low=low, high=low + 1, fraction=(magnitude - below) / (above - below))


def _goes_up(n: Neighbours, rounding: Rounding, negative: bool, random_value: int, random_bits: int) -> bool:
    """Whether the magnitude rounds to `n.high`. `negative` is the sign of the value."""
    half = Fraction(1, 2)
    match rounding:
        case "nearest_even":
            return n.fraction > half or (n.fraction == half and n.high % 2 == 0)
        case "nearest_away":
            return n.fraction >= half
        case "toward_zero":
            return False
        case "up":
            return not negative
        case "down":
            return negative
        case "to_odd":
            return n.high % 2 == 1
        case "stochastic":
            return math.floor(n.fraction * 2**random_bits) + random_value >= 2**random_bits


def encode(
    x: float | int | Fraction,
    fmt: str | Format,
    *,
    rounding: Rounding = "nearest_even",
    overflow: Overflow = "saturate",
    nan: NanPolicy = "canonical",
    random_value: int = 0,
    random_bits: int = 32,
) -> int:
    """One value to its code; arguments and corner cases as in `qsim.formats.encode`.

    Arguments:
        x: a float, an integer or an exact Fraction.
        random_value: R of the stochastic rule, an integer below 2^random_bits.

    Raises:
        ValueError: a NaN or an overflow for which the format and the policies have no code.
    """
    fmt = get_element_format(fmt)
    check_choice("rounding", rounding, ROUNDINGS)
    check_choice("overflow", overflow, OVERFLOWS)
    check_choice("nan policy", nan, NAN_POLICIES)
    if isinstance(x, float) and math.isnan(x):
        return _nan(math.copysign(1.0, x) < 0, fmt, nan)
    if rounding == "nearest_even" and isinstance(fmt, FloatFormat) and fmt.ties_to_larger:
        rounding = "nearest_away"
    if isinstance(fmt, IntFormat | CodebookFormat):
        return _encode_on_list(x, fmt, rounding, overflow, random_value, random_bits)
    return _encode_float(x, fmt, rounding, overflow, random_value, random_bits)


def _encode_float(
    x: float | int | Fraction, fmt: FloatFormat, rounding: Rounding, overflow: Overflow, r: int, n_bits: int
) -> int:
    negative = math.copysign(1.0, x) < 0 if isinstance(x, float) else x < 0
    if isinstance(x, float) and math.isinf(x):
        position, infinite = 0, True
    else:
        n, infinite = _around(abs(Fraction(x)), fmt), False
        # below the smallest value of a format without zero there is one neighbour only, and 0 has none
        below_all = n.low < 0
        position = n.high if n.high != n.low and _goes_up(n, rounding, negative, r, n_bits) else n.low
        if below_all and x != 0 and rounding in ("nearest_even", "nearest_away", "stochastic", "to_odd"):
            position = n.high

    if not infinite and (position < 0 or (negative and not fmt.signed and not (position == 0 and fmt.has_zero))):
        if overflow == "nonsaturating":
            return _no_value(fmt, x)
        return 0
    if negative and not fmt.signed and infinite:
        return 0 if overflow != "nonsaturating" else _no_value(fmt, x)
    sign = fmt.sign_mask if negative else 0
    if infinite:
        keeps_inf = overflow == "nonsaturating" or (overflow == "saturate_finite" and fmt.has_inf)
    else:
        if position <= fmt.max_magnitude_code:
            if position == 0 and not fmt.has_negative_zero:
                sign = 0
            return (sign | position) << fmt.padding_bits
        never = {"toward_zero": True, "to_odd": True, "up": negative, "down": not negative}.get(rounding, False)
        keeps_inf = overflow == "nonsaturating" and not never
    if not keeps_inf:
        return (sign | fmt.max_magnitude_code) << fmt.padding_bits
    if fmt.inf_code is not None:
        return (sign << fmt.padding_bits) | fmt.inf_code
    if fmt.nan == "outermost":  # NaN of an overflow keeps the sign, as ml_dtypes and the CUDA headers' NOSAT do
        assert fmt.nan_code is not None
        return (sign << fmt.padding_bits) | fmt.nan_code
    return _no_value(fmt, x)


def _encode_on_list(
    x: float | int | Fraction,
    fmt: IntFormat | CodebookFormat,
    rounding: Rounding,
    overflow: Overflow,
    r: int,
    n_bits: int,
) -> int:
    """Integers and codebooks: positions on an ascending list of values."""
    if isinstance(fmt, IntFormat):
        first, last, mask = fmt.min_integer, fmt.max_integer, (1 << fmt.bits) - 1
    else:
        first, last, mask = 0, len(fmt.table) - 1, (1 << fmt.bits) - 1
    if isinstance(x, float) and math.isinf(x):
        position = last + 1 if x > 0 else first - 1
    else:
        value = Fraction(x)
        position = (
            _round_int(value, fmt, rounding, r, n_bits)
            if isinstance(fmt, IntFormat)
            else _round_codebook(value, fmt, rounding, r, n_bits)
        )
    if first <= position <= last:
        return position & mask
    if overflow == "nonsaturating":
        return _no_value(fmt, x)
    return (last if position > last else first) & mask


def _round_int(value: Fraction, fmt: IntFormat, rounding: Rounding, r: int, n_bits: int) -> int:
    scaled = abs(value) * (1 << fmt.fraction_bits)
    low = math.floor(scaled)
    n = Neighbours(low=low, high=low + 1, fraction=scaled - low)
    magnitude = n.high if n.fraction and _goes_up(n, rounding, value < 0, r, n_bits) else n.low
    return -magnitude if value < 0 else magnitude


def _round_codebook(value: Fraction, fmt: CodebookFormat, rounding: Rounding, r: int, n_bits: int) -> int:
    table = [Fraction(v) for v in fmt.table]
    high = bisect.bisect_left(table, value)
    if high == len(table):
        return high  # above the last
    if table[high] == value:
        return high
    if high == 0:
        return -1  # below the first
    n = Neighbours(low=high - 1, high=high, fraction=(value - table[high - 1]) / (table[high] - table[high - 1]))
    # positions ascend with the value, not with its magnitude: "away" and "toward zero" turn round below zero
    if rounding == "nearest_away":
        half = Fraction(1, 2)
        return n.high if n.fraction > half or (n.fraction == half and value > 0) else n.low
    if rounding == "toward_zero":
        return n.low if value > 0 else n.high
    if rounding in ("up", "down"):
        return n.high if rounding == "up" else n.low
    return n.high if _goes_up(n, rounding, False, r, n_bits) else n.low


def _nan(negative: bool, fmt: ElementFormat, nan: NanPolicy) -> int:
    if nan == "zero" and fmt.has_zero:
        return encode(0, fmt)
    if nan == "max":
        return fmt.max_code
    if nan == "error" or fmt.nan_code is None:
        raise QsimError(f"NaN into {fmt.name}, which has no code for it under nan={nan!r}")
    if nan == "keep_sign" and negative and isinstance(fmt, FloatFormat) and fmt.nan in ("ieee", "outermost"):
        return fmt.nan_code | (fmt.sign_mask << fmt.padding_bits)
    return fmt.nan_code


def _no_value(fmt: ElementFormat, x: object) -> int:
    """The code for a value that the format cannot hold: its NaN."""
    if fmt.nan_code is None:
        raise QsimError(f"{x} overflows {fmt.name}, which has neither Inf nor NaN; use overflow='saturate'")
    return fmt.nan_code
