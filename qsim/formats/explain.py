"""Why a number became that code: the decision of one cast as a record, and a format's limits as a record.

Pure data for lessons: the command line prints it, a notebook can take it apart. The bits come from the exact
reference codec; `_words` finds the words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias

from . import reference
from ._words import hex_code, number, say
from .catalogue import get_element_format
from .rounding import NanPolicy, Overflow, Rounding
from .spec import BlockFormat, CodebookFormat, ElementFormat, FloatFormat, Format, IntFormat

Case: TypeAlias = Literal["exact", "nearest", "tie", "directed", "to_odd", "stochastic", "overflow", "outside", "nan"]
"""What decided a cast.

* `exact`: the format has the value.
* `nearest`, `tie`: one neighbour is nearer, or both are equally near.
* `directed`, `to_odd`, `stochastic`: the rounding mode of that name (directed: toward zero, up, down).
* `overflow`: it rounds beyond the largest finite value, or is infinite; the overflow rule decides.
* `outside`: no neighbour on one side for another reason: negative into an unsigned format, 0 into one without zero.
* `nan`: the NaN policy decides.
"""

# Smaller than half the spacing of any format (their values are float64), so x -+ this is strictly between codes.
_STEP_ASIDE = Fraction(1, 1 << 1200)


@dataclass(frozen=True, kw_only=True)
class BitField:
    """One field of a code: `name` (sign, exponent, mantissa, integer, index, padding), its bits, what they say."""

    name: str
    bits: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A representable value next to the input.

    Arguments:
        value: the value.
        code: its code; None for the first value that the format no longer has, beyond its largest.
        distance_ulp: from the input, in units of the spacing there.
    """

    value: float
    code: int | None
    distance_ulp: float


@dataclass(frozen=True, kw_only=True)
class CastExplanation:
    """One cast, step by step.

    Arguments:
        value: what was to be cast.
        format: the format it went to.
        rounding, overflow, nan: the choices in force.
        code, result: the code and the value it decodes to.
        fields: the bits of the code from the top.
        below, above: the representable values next to the input; for an exact input the next lower and next higher.
            None where there is none.
        ulp: spacing between representable values where the input is; None for NaN, Inf and outside.
        fraction: where the input stands between `below` (0) and `above` (1); None when it stands on neither side.
        case: what decided, see `Case`.
        decision: the same in one or two sentences.
        random_value, random_bits: of stochastic rounding, else None.
        via: the stage before this one, if any; this stage then rounded `via.result`.
        direct_code: with `via`, the code that one rounding would have given.
    """

    value: float
    format: ElementFormat
    rounding: Rounding
    overflow: Overflow
    nan: NanPolicy
    code: int
    result: float
    fields: tuple[BitField, ...]
    below: Neighbour | None
    above: Neighbour | None
    ulp: float | None
    fraction: float | None
    case: Case
    decision: str
    random_value: int | None = None
    random_bits: int | None = None
    via: CastExplanation | None = None
    direct_code: int | None = None

    @property
    def bits(self) -> str:
        """The code in binary."""
        return "".join(f.bits for f in self.fields)

    @property
    def error(self) -> float:
        """result - value, with its sign; NaN when either is not finite and they differ."""
        return 0.0 if self.result == self.value else self.result - self.value

    @property
    def absolute_error(self) -> float:
        return abs(self.error)

    @property
    def relative_error(self) -> float:
        """|result - value| / |value|: 0 when they are equal, inf when only the value is 0."""
        if self.error == 0.0:
            return 0.0
        return math.inf if self.value == 0 else self.absolute_error / abs(self.value)

    def as_dict(self) -> dict[str, Any]:
        """Plain types throughout (the format by name), with the derived properties; for JSON or a data frame."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out["format"] = self.format.name
        out["code_hex"] = hex_code(self.code, self.format)
        out["bits"] = self.bits
        out["fields"] = [dataclasses.asdict(f) for f in self.fields]
        for side in ("below", "above"):
            neighbour = getattr(self, side)
            out[side] = None if neighbour is None else dataclasses.asdict(neighbour)
        out["absolute_error"] = self.absolute_error
        out["relative_error"] = self.relative_error
        out["via"] = None if self.via is None else self.via.as_dict()
        return out


def explain(
    x: float,
    fmt: str | Format,
    *,
    rounding: Rounding = "nearest_even",
    overflow: Overflow = "saturate",
    nan: NanPolicy = "canonical",
    via: str | Format | Sequence[str | Format] = (),
    random_value: int = 0,
    random_bits: int = 32,
) -> CastExplanation:
    """Cast one number and say why it went where it went.

    Arguments:
        x: a number; taken as float64.
        fmt: an element format, by name or value.
        rounding, overflow, nan: as in `qsim.formats.encode`.
        via: formats in between, as a pipeline has that holds bfloat16 before it makes FP8; each rounds to nearest
            even and does not saturate, as in `qsim.formats.encode`. The explanation is of the last stage, its `via`
            of the one before.
        random_value, random_bits: R and N of stochastic rounding (P3109 stochastic A).

    Returns:
        A `CastExplanation`, pure data.

    Raises:
        ValueError: unknown format or choice, a block format, or a value for which the policies leave no code.

    Example:
        >>> e = explain(0.3, "e4m3")
        >>> hex(e.code), e.result, e.case
        ('0x2a', 0.3125, 'nearest')
    """
    x = float(x)
    fmt = get_element_format(fmt)
    choices: dict[str, Any] = {"rounding": rounding, "overflow": overflow, "nan": nan}
    chance: dict[str, Any] = {"random_value": random_value, "random_bits": random_bits}
    stages = [via] if isinstance(via, str | FloatFormat | IntFormat | CodebookFormat | BlockFormat) else list(via)
    if stages:
        earlier = explain(x, stages[-1], overflow="nonsaturating", via=stages[:-1])
        last = explain(earlier.result, fmt, **choices, **chance)
        direct = reference.encode(x, fmt, **choices, **chance)
        return dataclasses.replace(last, value=x, via=earlier, direct_code=direct)
    code = reference.encode(x, fmt, **choices, **chance)
    below, above, ulp, fraction = _surroundings(x, fmt)
    case = _case(x, fmt, code, fraction, rounding, chance)
    undecided = CastExplanation(
        value=x,
        format=fmt,
        **choices,
        code=code,
        result=float(reference.decode(code, fmt)),
        fields=bit_fields(code, fmt),
        below=below,
        above=above,
        ulp=None if ulp is None else float(ulp),
        fraction=None if fraction is None else float(fraction),
        case=case,
        decision="",
        random_value=random_value if rounding == "stochastic" else None,
        random_bits=random_bits if rounding == "stochastic" else None,
    )
    return dataclasses.replace(undecided, decision=say(undecided))


# --- the neighbourhood --------------------------------------------------------------------------------------------


def _surroundings(
    x: float, fmt: ElementFormat
) -> tuple[Neighbour | None, Neighbour | None, Fraction | None, Fraction | None]:
    """The values below and above, the spacing between them, and where x stands."""
    if not math.isfinite(x):
        return None, None, None, None
    exact = Fraction(x)
    low, high = _representable(exact, fmt, "down"), _representable(exact, fmt, "up")
    ulp, fraction = None, None
    if low is not None and low == high:  # on the grid: the neighbours are the next ones
        low, high = _representable(exact - _STEP_ASIDE, fmt, "down"), _representable(exact + _STEP_ASIDE, fmt, "up")
        # the spacing away from zero, as `numpy.spacing` has it; at the end of the range the one toward zero
        inner, outer = (low, high) if exact >= 0 else (high, low)
        step = outer if outer is not None else inner
        ulp = abs(step - exact) if step is not None else None
    else:
        beyond_low, beyond_high = _ends(fmt)
        if high is None and beyond_high is not None and exact <= beyond_high:
            high = beyond_high
        if low is None and beyond_low is not None and exact >= beyond_low:
            low = beyond_low
        if low is not None and high is not None:
            ulp = high - low
            fraction = (exact - low) / ulp
    return _neighbour(low, exact, ulp, fmt), _neighbour(high, exact, ulp, fmt), ulp, fraction


def _representable(x: Fraction, fmt: ElementFormat, side: Literal["down", "up"]) -> Fraction | None:
    """The representable value nearest to x on that side, x included."""
    value = Fraction(reference.decode(reference.encode(x, fmt, rounding=side), fmt))
    # saturation answers with the end of the range when that side is empty
    return value if (value <= x if side == "down" else value >= x) else None


def _ends(fmt: ElementFormat) -> tuple[Fraction | None, Fraction | None]:
    """The first points of the unbounded grid that the format no longer has, below and above.

    What lies between them and the ends still rounds to a neighbour; what they attract overflows.
    """
    if isinstance(fmt, CodebookFormat):
        return None, None
    if isinstance(fmt, IntFormat):
        unit = Fraction(1, 1 << fmt.fraction_bits)
        return (fmt.min_integer - 1) * unit, (fmt.max_integer + 1) * unit
    high = fmt.fraction(fmt.max_magnitude_code + 1)
    if fmt.signed:
        return -high, high
    return -Fraction(fmt.smallest_subnormal) if fmt.has_zero else None, high


def _neighbour(value: Fraction | None, x: Fraction, ulp: Fraction | None, fmt: ElementFormat) -> Neighbour | None:
    if value is None:
        return None
    code = reference.encode(value, fmt)
    exists = reference.decode(code, fmt) == value  # otherwise it is one past the end
    return Neighbour(
        value=float(value), code=code if exists else None, distance_ulp=float(abs(value - x) / ulp) if ulp else math.nan
    )


# --- the decision -------------------------------------------------------------------------------------------------


def _case(
    x: float, fmt: ElementFormat, code: int, fraction: Fraction | None, rounding: Rounding, chance: dict[str, Any]
) -> Case:
    if math.isnan(x):
        return "nan"
    if reference.decode(code, fmt) == x:
        return "exact"
    if x < 0 <= fmt.min or (not fmt.has_zero and abs(x) < fmt.smallest_subnormal):
        if fraction is None or _leaves(x, fmt, rounding, chance):
            return "outside"
    elif not fmt.min <= x <= fmt.max and _leaves(x, fmt, rounding, chance):
        return "overflow"
    if rounding in ("nearest_even", "nearest_away"):
        return "tie" if fraction == Fraction(1, 2) else "nearest"
    if rounding in ("to_odd", "stochastic"):
        return "to_odd" if rounding == "to_odd" else "stochastic"
    return "directed"


def _leaves(x: float, fmt: ElementFormat, rounding: Rounding, chance: dict[str, Any]) -> bool:
    """Whether x rounds out of the range, so that the overflow rule has a say: asked for no saturation, it is not
    an end of the range."""
    try:
        code = reference.encode(x, fmt, rounding=rounding, overflow="nonsaturating", **chance)
    except ValueError:
        return True
    return reference.decode(code, fmt) not in (fmt.min, fmt.max)


# --- the bits --------------------------------------------------------------------------------------------------


def bit_fields(code: int, fmt: str | Format) -> tuple[BitField, ...]:
    """The fields of one code from the top, each with its meaning.

    Arguments:
        code: a code of the format.
        fmt: an element format.

    Raises:
        ValueError: a code outside the format.
    """
    fmt = get_element_format(fmt)
    value = reference.decode(code, fmt)
    if isinstance(fmt, IntFormat):
        scaled = f" x 2^-{fmt.fraction_bits}" if fmt.fraction_bits else ""
        kind = "two's complement" if fmt.signed else "unsigned"
        integer = int(value * (1 << fmt.fraction_bits))
        return (BitField(name="integer", bits=f"{code:0{fmt.bits}b}", meaning=f"{kind} {integer}{scaled}"),)
    if isinstance(fmt, CodebookFormat):
        return (BitField(name="index", bits=f"{code:0{fmt.bits}b}", meaning=f"entry {code} of {len(fmt.table)}"),)
    return _float_fields(code, fmt, float(value))


def _float_fields(code: int, fmt: FloatFormat, value: float) -> tuple[BitField, ...]:
    e, m, word = fmt.exponent_bits, fmt.mantissa_bits, code >> fmt.padding_bits
    exponent, mantissa = (word >> m) & ((1 << e) - 1), word & ((1 << m) - 1)
    subnormal = fmt.has_subnormals and exponent == 0
    special = None if math.isfinite(value) else f"this pattern is {number(value)}"
    fields = []
    if fmt.signed:
        negative = bool(word & fmt.sign_mask)
        fields.append(BitField(name="sign", bits=str(int(negative)), meaning="negative" if negative else "positive"))
    if e:
        power = fmt.min_exponent if subnormal else exponent - fmt.bias
        means = f"2^{power}, subnormal" if subnormal else f"{exponent} - bias {fmt.bias} = {power}: 2^{power}"
        if special:
            means = str(exponent) if m else special
        fields.append(BitField(name="exponent", bits=f"{exponent:0{e}b}", meaning=means))
    if m:
        hidden = 0 if subnormal else 1
        means = f"{hidden} + {mantissa}/{1 << m} = {number(hidden + mantissa / (1 << m))}"
        fields.append(BitField(name="mantissa", bits=f"{mantissa:0{m}b}", meaning=special or means))
    if fmt.padding_bits:
        fields.append(BitField(name="padding", bits="0" * fmt.padding_bits, meaning="always 0 in the stored word"))
    return tuple(fields)
