"""A cast's decision in words, and numbers and codes as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .spec import ElementFormat, FloatFormat

if TYPE_CHECKING:
    from .explain import CastExplanation, Neighbour


def say(e: CastExplanation) -> str:
    """The decision of a cast in words (`CastExplanation.decision`)."""
    x, result, name = number(e.value), number(e.result), e.format.name
    if e.case == "nan":
        return _say_nan(e)
    if e.case == "exact":
        if e.value == 0 and math.copysign(1, e.value) != math.copysign(1, e.result):
            return f"-0 becomes 0: {name} has one zero."
        return f"{x} is a value of {name}: nothing to round."
    if e.case == "outside":
        why = f"{name} has no negative values"
        if e.value >= 0:
            why = f"{name} has no zero; its smallest is {number(e.format.smallest_subnormal)}"
        return f"{x} is outside: {why}. {_overflow_rule(e)}"
    if e.case == "overflow":
        end = e.format.max if e.value > 0 else e.format.min
        if math.isinf(e.value):
            return f"{x} is infinite. {_overflow_rule(e)}"
        beyond = e.above if e.value > 0 else e.below
        where = f"{x} is beyond the {_end_name(e)} finite value {number(end)}"
        if beyond is not None:
            where += f" and rounds on to {number(beyond.value)}, which {name} does not have"
        return f"{where}. {_overflow_rule(e)}"
    if e.below is None or e.above is None:  # a directed mode far beyond the end
        return f"{x} is beyond the {_end_name(e)} finite value, and {e.rounding} stops there: {result}."
    taken, other = (e.below, e.above) if e.result == e.below.value else (e.above, e.below)
    between = f"{x} lies {_ulps(e, e.below)} above {_place(e.below)} and {_ulps(e, e.above)} below {_place(e.above)}"
    if e.case == "nearest":
        underflow = " (underflow)" if e.result == 0 and isinstance(e.format, FloatFormat) else ""
        return f"{between}; the nearer is {result}{underflow}."
    if e.case == "tie":
        between = f"{x} is half-way between {_place(e.below)} and {_place(e.above)}"
        if e.rounding == "nearest_away":
            return f"{between}: a tie, and nearest_away takes the one further from zero, {result}."
        return f"{between}: a tie, and nearest_even takes the even code, {hex_code(e.code, e.format)} = {result}."
    if e.case == "to_odd":
        return f"{between}; it is not exact, so to_odd takes the odd code, {hex_code(e.code, e.format)} = {result}."
    if e.case == "stochastic":
        return f"{between}; {_say_chance(e)}"
    nearer = "" if taken.distance_ulp <= other.distance_ulp else f", although {number(other.value)} is nearer"
    return f"{between}; {e.rounding} takes {result}{nearer}."


def _end_name(e: CastExplanation) -> str:
    return "largest" if e.value > 0 else "most negative"


def _say_nan(e: CastExplanation) -> str:
    name, code = e.format.name, hex_code(e.code, e.format)
    if math.isnan(e.result):
        kept = "with the sign of the input" if e.nan == "keep_sign" else "the sign and payload of the input are dropped"
        return f"NaN becomes the NaN of {name}, {code}; {kept} (nan={e.nan})."
    return f"NaN becomes {number(e.result)} because nan={e.nan} was asked for."


def _overflow_rule(e: CastExplanation) -> str:
    result = number(e.result)
    if e.overflow == "nonsaturating":
        what = "the format's infinity" if math.isinf(e.result) else "NaN, since the format has no infinity to give"
        if math.isfinite(e.result):
            what = f"{result}, since {e.rounding} does not overflow"
        return f"overflow=nonsaturating gives {what}."
    if math.isinf(e.result):
        return f"overflow={e.overflow} keeps an infinity that was one."
    return f"overflow={e.overflow} gives the end of the range, {result}."


def _say_chance(e: CastExplanation) -> str:
    assert e.below is not None
    assert e.above is not None
    assert e.fraction is not None
    away = e.fraction if e.value > 0 else 1 - e.fraction
    went = abs(e.result) > abs(e.value)
    sums, goes = ("reach 1", "away from zero") if went else ("stay below 1", "toward zero")
    share = (e.random_value or 0) / 2 ** (e.random_bits or 0)
    return (
        f"stochastic goes away from zero with probability {away:.4g}: the discarded fraction and R / 2^{e.random_bits} "
        f"= {share:.4g} together {sums}, so it goes {goes}, {number(e.result)}."
    )


def _ulps(e: CastExplanation, n: Neighbour) -> str:
    text = f"{n.distance_ulp:.4g}"
    if e.case == "tie" or text not in ("0.5", "0", "1"):
        return f"{text} ulp"
    if text == "0.5" and n.distance_ulp == 0.5 and e.case != "nearest":
        return "0.5 ulp"
    if text == "0.5":
        # a near-tie that double rounding gets wrong; say so rather than show a tie
        other = e.above if n is e.below else e.below
        assert other is not None
        nearer = e.result == n.value if n.distance_ulp == other.distance_ulp else n.distance_ulp < other.distance_ulp
        return f"a little {'less' if nearer else 'more'} than 0.5 ulp"
    return f"almost {text} ulp"


def _place(n: Neighbour) -> str:
    return number(n.value) if n.code is not None else f"{number(n.value)} (which the format no longer has)"


# --- codes and numbers as text --------------------------------------------------------------------------------------


def hex_code(code: int, fmt: ElementFormat) -> str:
    """A code in hexadecimal, as wide as the format: 0x2A, 0x3F80."""
    return f"0x{code:0{-(-fmt.storage_bits // 4)}X}"


def number(x: float) -> str:
    """A float in a short exact form: integers without a point, long powers of two as such, Inf and NaN as words."""
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "Inf" if x > 0 else "-Inf"
    if x == int(x) and abs(x) < 1e16:
        return f"{'-' if math.copysign(1, x) < 0 else ''}{abs(int(x))}"
    mantissa, exponent = math.frexp(x)
    if abs(mantissa) == 0.5 and len(repr(x)) > 12:  # a power of two says more than its digits
        return f"{'-' if x < 0 else ''}2^{exponent - 1}"
    return repr(x)
