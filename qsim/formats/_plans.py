"""Which compiled loop serves a format and its policies, and with which numbers. Made once per call, then cached."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError

from . import _decode as dec
from . import _encode as enc
from . import _encode_general as gen
from .rounding import ROUNDINGS, NanPolicy, Overflow, Rounding
from .spec import CodebookFormat, ElementFormat, FloatFormat, IntFormat

_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_NO_RANDOM = np.zeros(1, np.uint32)


@dataclass(frozen=True, kw_only=True)
class Policy:
    rounding: Rounding = "nearest_even"
    overflow: Overflow = "saturate"
    nan: NanPolicy = "canonical"
    random_bits: int = 32


EncodeLoop: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], bool]
"""`loop(values, out, random)` writes codes and returns whether there was a value without one."""


def code_mask(fmt: ElementFormat) -> int:
    """The bits that a stored code may use."""
    return ((1 << fmt.bits) - 1) << fmt.padding_bits


def special_codes(fmt: ElementFormat, policy: Policy) -> np.ndarray:
    """Stored codes of special results, int64[9], indexed by `_encode_general.S_*`; -1 where the policy has none."""
    nan = -1 if fmt.nan_code is None else fmt.nan_code
    s = np.full(9, -1, np.int64)
    s[gen.S_NAN_POS] = s[gen.S_NAN_NEG] = _nan_result(fmt, policy.nan)
    if isinstance(fmt, FloatFormat):
        sign = fmt.sign_mask << fmt.padding_bits
        s[gen.S_ZERO_POS] = s[gen.S_ZERO_NEG] = 0
        if fmt.has_negative_zero:
            s[gen.S_ZERO_NEG] = sign
        keeps_nan_sign = policy.nan == "keep_sign" and fmt.signed and fmt.nan in ("ieee", "outermost")
        s[gen.S_NAN_NEG] |= sign if keeps_nan_sign else 0
        s[gen.S_BELOW] = nan if policy.overflow == "nonsaturating" else 0
        low = sign | fmt.max_code if fmt.signed else s[gen.S_BELOW]
        # what an overflow becomes, positive and negative, when it may leave the finite range
        if fmt.inf_code is not None:
            beyond = (fmt.inf_code, fmt.inf_code | sign)
        elif fmt.nan == "outermost":
            beyond = (nan, nan | sign)
        else:
            beyond = (nan, nan)
        if not fmt.signed:
            beyond = (beyond[0], int(s[gen.S_BELOW]))
        finite = (fmt.max_code, low)
    else:
        mask = (1 << fmt.bits) - 1
        finite = (fmt.max_code, fmt.min_integer & mask if isinstance(fmt, IntFormat) else 0)
        beyond = (-1, -1)
    infinite = finite
    overflowed = finite
    if policy.overflow == "nonsaturating":
        infinite = beyond
        never = {
            "toward_zero": (True, True),
            "to_odd": (True, True),
            "up": (False, True),
            "down": (True, False),
        }.get(policy.rounding, (False, False))
        if isinstance(fmt, FloatFormat):
            overflowed = (finite[0] if never[0] else beyond[0], finite[1] if never[1] else beyond[1])
        else:  # an integer has no "largest value that rounding toward zero reaches": out of range is out of range
            overflowed = beyond
    elif policy.overflow == "saturate_finite" and fmt.has_inf:
        infinite = beyond
    s[gen.S_OVER_POS], s[gen.S_OVER_NEG] = overflowed
    s[gen.S_INF_POS], s[gen.S_INF_NEG] = infinite
    return s


def _nan_result(fmt: ElementFormat, nan: NanPolicy) -> int:
    if nan == "error":
        return -1
    if nan == "zero":
        if not fmt.has_zero:
            return -1 if fmt.nan_code is None else fmt.nan_code
        return fmt.table.index(0.0) if isinstance(fmt, CodebookFormat) else 0
    if nan == "max":
        return fmt.max_code
    return -1 if fmt.nan_code is None else fmt.nan_code


@lru_cache(maxsize=512)
def encode_plan(fmt: ElementFormat, policy: Policy, carrier: np.dtype) -> EncodeLoop:
    """The loop for values of type `carrier` (float32 or float64)."""
    special = special_codes(fmt, policy)
    loop = _nearest_even(fmt, policy, carrier, special) if policy.rounding == "nearest_even" else None
    return loop or general(fmt, policy, special)


def _nearest_even(fmt: ElementFormat, policy: Policy, carrier: np.dtype, special: np.ndarray) -> EncodeLoop | None:
    """A vectorised loop where one fits, else None."""
    clamps = policy.overflow != "nonsaturating"
    if isinstance(fmt, IntFormat):
        return _integers(fmt, carrier, special) if clamps else None
    if isinstance(fmt, CodebookFormat):
        return _codebook16(fmt, policy, carrier, special) if clamps and fmt.bits == 4 else None
    if fmt.name == "float8_e8m0fnu" and carrier == _F32:
        return _power_of_two(fmt, special)
    if not fmt.signed or not fmt.has_subnormals or fmt.mantissa_bits < 1:
        return None
    if carrier == _F32 and fmt.exponent_bits == 8 and fmt.bias == 127 and fmt.nan == "ieee":
        return _wide(fmt, special)
    mantissa, emax, emin = (23, 126, -126) if carrier == _F32 else (52, 1022, -1022)
    shift = mantissa - fmt.mantissa_bits
    if shift < 1 or fmt.min_exponent < emin or fmt.emax + shift > emax or fmt.padding_bits:
        return None
    return _narrow(fmt, shift, carrier, special, clamps)


def _pattern(value: float, carrier: np.dtype) -> int:
    return int(np.asarray(value, carrier).view(np.uint32 if carrier == _F32 else np.uint64))


def _overflow_pattern(fmt: FloatFormat, carrier: np.dtype) -> int:
    """The lowest pattern of |x| that nearest-even rounds beyond the format's maximum."""
    infinity = _pattern(np.inf, carrier)
    top = fmt.max_magnitude_code
    middle = (fmt.fraction(top) + fmt.fraction(top + 1)) / 2
    limit = Fraction(float(np.finfo(carrier).max))
    if middle > limit or Fraction(float(np.asarray(float(middle), carrier))) != middle:
        return infinity
    return _pattern(float(middle), carrier) + (0 if top & 1 else 1)


def _narrow(fmt: FloatFormat, shift: int, carrier: np.dtype, special: np.ndarray, clamps: bool) -> EncodeLoop:
    f32 = carrier == _F32
    u = np.uint32 if f32 else np.uint64
    loop = enc.narrow_f32 if f32 else enc.narrow_f64
    infinity = _pattern(np.inf, carrier)
    sign = fmt.sign_mask
    # With clamping, only an Inf that is kept differs from the clamped code.
    over_at = infinity if clamps else _overflow_pattern(fmt, carrier)
    over = special[gen.S_INF_POS] if clamps else special[gen.S_OVER_POS]
    over_signed = special[gen.S_INF_NEG if clamps else gen.S_OVER_NEG] != over
    nan = special[gen.S_NAN_POS]
    args: tuple[Any, ...] = (
        u(shift),
        u(_pattern(fmt.smallest_normal, carrier)),
        u(_pattern(fmt.max, carrier)),
        u(over_at),
        u(max(over, 0) & ~sign if over_signed else max(over, 0)),
        u(max(nan, 0)),
        u((32 if f32 else 64) - fmt.bits),
        u(sign),
        u(sign if fmt.has_negative_zero else 0),
        u(sign if over_signed else 0),
        u(sign if special[gen.S_NAN_NEG] != nan else 0),
    )

    if f32:
        args += (bool(clamps and over == fmt.max_code and fmt.has_negative_zero),)

    def run(values: np.ndarray, out: np.ndarray, random: np.ndarray) -> bool:
        largest = int(loop(values.view(u), out, *args))
        return (nan < 0 and largest > infinity) or (over < 0 and over_at <= largest <= infinity)

    return run


def _wide(fmt: FloatFormat, special: np.ndarray) -> EncodeLoop:
    u = np.uint32
    infinity = 0x7F800000
    pad, sign = fmt.padding_bits, fmt.sign_mask
    nan = special[gen.S_NAN_POS]
    args = (
        u(23 - fmt.mantissa_bits),
        u(pad),
        u(_overflow_pattern(fmt, _F32)),
        u(special[gen.S_OVER_POS] >> pad),
        u(special[gen.S_INF_POS] >> pad),
        u(max(nan, 0) >> pad),
        u(32 - fmt.bits),
        u(sign),
        u(sign if special[gen.S_NAN_NEG] != nan else 0),
    )

    def run(values: np.ndarray, out: np.ndarray, random: np.ndarray) -> bool:
        largest = int(enc.wide_f32(values.view(u), out, *args))
        return nan < 0 and largest > infinity

    return run


def _power_of_two(fmt: FloatFormat, special: np.ndarray) -> EncodeLoop:
    u = np.uint32
    nan = special[gen.S_NAN_POS]
    codes = [u(max(special[k], 0)) for k in (gen.S_OVER_POS, gen.S_NAN_POS, gen.S_BELOW)]

    def run(values: np.ndarray, out: np.ndarray, random: np.ndarray) -> bool:
        return int(enc.power_of_two_f32(values.view(u), out, *codes)) > 0x7F800000 and nan < 0

    return run


def _integers(fmt: IntFormat, carrier: np.dtype, special: np.ndarray) -> EncodeLoop:
    f32 = carrier == _F32
    u, f = (np.uint32, np.float32) if f32 else (np.uint64, np.float64)
    loop = enc.integers_f32 if f32 else enc.integers_f64
    nan = special[gen.S_NAN_POS]
    args = (
        f(fmt.min),
        f(fmt.max),
        f(math.ldexp(1.0, fmt.fraction_bits)),
        u((1 << fmt.bits) - 1),
        u(max(nan, 0)),
    )

    def run(values: np.ndarray, out: np.ndarray, random: np.ndarray) -> bool:
        return bool(loop(values, out, *args)) and nan < 0

    return run


def _codebook_thresholds(fmt: CodebookFormat, rounding: Rounding) -> np.ndarray:
    """float64 t[k]: a value from t[k] on has at least index k + 1. Exact for every float64 value."""
    thresholds = []
    for k, (low, high) in enumerate(zip(fmt.table, fmt.table[1:], strict=False)):
        middle = (Fraction(low) + Fraction(high)) / 2
        if rounding == "nearest_even":
            edge, closed = middle, (k + 1) % 2 == 0
        elif rounding == "nearest_away":
            edge, closed = middle, middle > 0
        elif rounding == "down" or (rounding == "toward_zero" and high > 0):
            edge, closed = Fraction(high), True
        elif rounding in ("up", "toward_zero"):
            edge, closed = Fraction(low), False
        elif rounding == "to_odd":
            edge, closed = (Fraction(low), False) if (k + 1) % 2 else (Fraction(high), True)
        else:
            edge, closed = Fraction(high), True  # stochastic: the loop does not read it
        t = float(edge)
        if Fraction(t) < edge or (Fraction(t) == edge and not closed):
            t = math.nextafter(t, math.inf)
        thresholds.append(t)
    return np.array(thresholds)


def _codebook16(fmt: CodebookFormat, policy: Policy, carrier: np.dtype, special: np.ndarray) -> EncodeLoop:
    exact = _codebook_thresholds(fmt, policy.rounding)
    thresholds = exact.astype(carrier)
    below = thresholds.astype(np.float64) < exact  # the first value of the carrier's type at or above
    thresholds[below] = np.nextafter(thresholds[below], np.asarray(np.inf, carrier))
    nan = special[gen.S_NAN_POS]
    nan_code = np.uint32(max(nan, 0))

    def run(values: np.ndarray, out: np.ndarray, random: np.ndarray) -> bool:
        return bool(enc.codebook16(values, out, thresholds, nan_code)) and nan < 0

    return run


def general(fmt: ElementFormat, policy: Policy, special: np.ndarray) -> EncodeLoop:
    """The loop for any format and mode; `special` may hold -1 where `out` is int64."""
    mode = ROUNDINGS.index(policy.rounding)
    n = policy.random_bits
    if isinstance(fmt, FloatFormat):
        if policy.rounding == "nearest_even" and fmt.ties_to_larger:
            mode = ROUNDINGS.index("nearest_away")
        tail = (
            fmt.mantissa_bits,
            fmt.min_exponent,
            fmt.has_zero,
            fmt.max_magnitude_code,
            fmt.sign_mask,
            fmt.padding_bits,
            special,
        )
        return lambda values, out, random: bool(gen.general_float(values, random, n, out, mode, *tail))
    if isinstance(fmt, IntFormat):
        scale = math.ldexp(1.0, fmt.fraction_bits)
        limits = (fmt.min_integer, fmt.max_integer, (1 << fmt.bits) - 1)
        return lambda values, out, random: bool(
            gen.general_integer(values, random, n, out, mode, scale, *limits, special)
        )
    table = np.array(fmt.table)
    thresholds = _codebook_thresholds(fmt, policy.rounding)
    return lambda values, out, random: bool(
        gen.general_codebook(values, random, n, out, mode, table, thresholds, special)
    )


# --- decoding ---------------------------------------------------------------------------------------------


def fits_float32(fmt: ElementFormat) -> bool:
    """Whether every value of the format is a float32."""
    if isinstance(fmt, FloatFormat):
        lowest = fmt.min_exponent - fmt.mantissa_bits
        return fmt.mantissa_bits <= 23 and fmt.emax <= 127 and lowest >= -149
    return bool(np.all(fmt.values.astype(np.float32).astype(np.float64) == fmt.values))


def default_dtype(fmt: ElementFormat) -> np.dtype:
    return _F32 if fits_float32(fmt) else _F64


@lru_cache(maxsize=256)
def decode_plan(fmt: ElementFormat, target: np.dtype) -> Callable[[np.ndarray, np.ndarray], int]:
    """The loop from codes to values of type `target`; it returns the OR of the codes.

    Raises:
        ValueError: float32 for a format whose values it cannot hold.
    """
    if target == _F32 and not fits_float32(fmt):
        raise QsimError(f"{fmt.name} has values that float32 cannot hold; use dtype=numpy.float64")
    f = np.float32 if target == _F32 else np.float64
    if isinstance(fmt, CodebookFormat):
        table = np.array(fmt.table, target)
        loop = dec.codebook16 if fmt.bits == 4 else dec.codebook
        return lambda codes, out: int(loop(codes, out, table))
    if isinstance(fmt, IntFormat):
        args = (np.uint32(1 << (fmt.bits - 1) if fmt.signed else 0), f(math.ldexp(1.0, -fmt.fraction_bits)))
        return lambda codes, out: int(dec.integers(codes, out, *args))
    if target == _F64:
        return _decode_general(fmt)
    if fmt.exponent_bits == 8 and fmt.bias == 127 and fmt.nan == "ieee":
        shift = np.uint32(23 - fmt.mantissa_bits - fmt.padding_bits)
        return lambda codes, out: int(dec.wide_f32(codes, out.view(np.uint32), shift))
    if fmt.name == "float8_e8m0fnu":
        return lambda codes, out: int(dec.power_of_two_f32(codes, out.view(np.uint32)))
    if fmt.min_exponent >= -126 and fmt.has_subnormals and not fmt.padding_bits:
        narrow = _decode_numbers(fmt, 23, 127, 32, np.uint32, np.float32)
        return lambda codes, out: int(dec.narrow_f32(codes, out.view(np.uint32), *narrow))
    wide = _decode_general(fmt)

    def through_float64(codes: np.ndarray, out: np.ndarray) -> int:
        values = np.empty(codes.shape, np.float64)
        seen = wide(codes, values)
        out[...] = values
        return seen

    return through_float64


def _decode_numbers(fmt: FloatFormat, mantissa: int, bias: int, word: int, u: type, f: type) -> tuple:
    absent = (1 << 32) - 1 if word == 32 else (1 << 64) - 1
    field = bias - fmt.bias
    return (
        u(mantissa - fmt.mantissa_bits),
        u((field << mantissa) & absent),
        u(1 << fmt.mantissa_bits if fmt.has_subnormals else 0),
        f(fmt.smallest_normal),
        u(fmt.max_magnitude_code),
        u(fmt.max_magnitude_code + 1 if fmt.has_inf else absent),
        u(fmt.sign_mask if fmt.nan == "negative_zero" else absent),
        u(fmt.sign_mask),
        u(word - fmt.bits),
    )


def _decode_general(fmt: FloatFormat) -> Callable[[np.ndarray, np.ndarray], int]:
    numbers = _decode_numbers(fmt, 52, 1023, 64, np.uint64, np.float64)
    args = (numbers[0], np.uint64(fmt.padding_bits), *numbers[1:])
    return lambda codes, out: int(dec.general_f64(codes, out.view(np.uint64), *args))
