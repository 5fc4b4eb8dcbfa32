"""A format as rows of a table: its limits, its codes, its binades. Plain types, for printing, CSV and data frames."""

from __future__ import annotations

import math
from typing import Any

from qsim.errors import QsimError

from . import reference
from ._words import hex_code
from .catalogue import get_element_format, get_format
from .explain import bit_fields
from .spec import BlockFormat, CodebookFormat, ElementFormat, FloatFormat, Format, IntFormat


def describe(fmt: str | Format) -> dict[str, Any]:
    """The limits of a format, one row of `qsim formats`.

    Arguments:
        fmt: any format, by name or value.

    Returns:
        name, kind (`float`, `int`, `codebook`, `block`), bits, layout and limits. What a kind does not have is None:
        an integer has no smallest normal number, a block no code table.
    """
    fmt = get_format(fmt)
    row: dict[str, Any] = {"name": fmt.name, "kind": _KINDS[type(fmt)], "bits": fmt.bits, "layout": _layout(fmt)}
    if isinstance(fmt, BlockFormat):
        return row | {
            "element": fmt.element.name,
            "scale": fmt.scale.name,
            "block_size": fmt.block_size,
            "bits_per_element": fmt.bits_per_element,
            "tensor_scale": fmt.tensor_scale,
            "max": fmt.max,
            "aliases": " ".join(fmt.aliases),
        }
    no_subnormals = isinstance(fmt, FloatFormat) and not fmt.has_subnormals
    return row | {
        "bias": fmt.bias if isinstance(fmt, FloatFormat) else None,
        "max": fmt.max,
        "min": fmt.min,
        "smallest_normal": fmt.smallest_normal if isinstance(fmt, FloatFormat) else None,
        "smallest_subnormal": None if no_subnormals else fmt.smallest_subnormal,
        "eps": None if isinstance(fmt, CodebookFormat) else fmt.eps,
        "has_inf": fmt.has_inf,
        "nan_codes": nan_count(fmt),
        "has_negative_zero": fmt.has_negative_zero,
        "finite_values": fmt.finite_count,
        "aliases": " ".join(fmt.aliases),
    }


def nan_count(fmt: ElementFormat) -> int:
    """Number of NaN codes, without listing them: float32 has 2^24 - 2."""
    if not isinstance(fmt, FloatFormat):
        return 0
    numbers = (2 if fmt.signed else 1) * (fmt.max_magnitude_code + 1 + fmt.has_inf)
    return (1 << fmt.bits) - numbers + (fmt.nan == "negative_zero")


_KINDS = {FloatFormat: "float", IntFormat: "int", CodebookFormat: "codebook", BlockFormat: "block"}


def _layout(fmt: Format) -> str:
    if isinstance(fmt, BlockFormat):
        above = " x float32" if fmt.tensor_scale else ""
        return f"{fmt.block_size} x {fmt.element.name} + {fmt.scale.name}{above}"
    if isinstance(fmt, FloatFormat):
        return f"{int(fmt.signed)}-{fmt.exponent_bits}-{fmt.mantissa_bits}"
    if isinstance(fmt, IntFormat):
        point = f", {fmt.fraction_bits} fraction bits" if fmt.fraction_bits else ""
        return ("two's complement" if fmt.signed else "unsigned") + point
    return "table"


def codes(fmt: str | Format) -> list[dict[str, Any]]:
    """Every code of a format with its bits and value, in the order of the codes.

    Raises:
        ValueError: a block format, or more than 16 bits.
    """
    fmt = get_element_format(fmt)
    if fmt.storage_bits > 16:
        raise QsimError(f"{fmt.name} has 2^{fmt.bits} codes; a table of codes is made for up to 16 bits")
    return [code_row(code, fmt) for code in range(1 << fmt.bits)]


def code_row(code: int, fmt: ElementFormat) -> dict[str, Any]:
    """One code: hexadecimal, bits by field, value and class (`zero`, `subnormal`, `normal`, `infinite`, `nan`)."""
    value = float(reference.decode(code, fmt))
    return {
        "code": hex_code(code, fmt),
        "bits": " ".join(f.bits for f in bit_fields(code, fmt) if f.name != "padding"),
        "value": value,
        "class": _class(value, fmt),
    }


def _class(value: float, fmt: ElementFormat) -> str:
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "infinite"
    if value == 0:
        return "zero"
    subnormal = isinstance(fmt, FloatFormat) and fmt.has_subnormals and abs(value) < fmt.smallest_normal
    return "subnormal" if subnormal else "normal"


def special_codes(fmt: FloatFormat) -> list[dict[str, Any]]:
    """The landmarks of a float format: zeros, ends of the subnormals and normals, 1, infinities, NaN."""
    pad, first_normal = fmt.padding_bits, 1 << fmt.mantissa_bits
    marks: list[tuple[str, int | None]] = []
    if fmt.has_subnormals:
        marks.append(("zero", 0))
        if fmt.mantissa_bits:
            marks += [("smallest subnormal", 1 << pad), ("largest subnormal", (first_normal - 1) << pad)]
        marks.append(("smallest normal", first_normal << pad))
    else:
        marks.append(("smallest normal", 0))
    if fmt.min_exponent <= 0 <= fmt.emax:
        marks.append(("one", reference.encode(1, fmt)))
    marks += [("largest finite", fmt.max_code), ("infinity", fmt.inf_code), ("NaN", fmt.nan_code)]
    if fmt.has_negative_zero:
        marks.insert(1, ("negative zero", fmt.sign_mask << pad))
    return [{"landmark": name, **code_row(code, fmt)} for name, code in marks if code is not None]


def binades(fmt: FloatFormat) -> list[dict[str, Any]]:
    """The binades of a float format: `exponent`, first and last value with their codes, spacing, relative spacing.

    The subnormals are the row whose `exponent` is that of the smallest normal and whose `class` is `subnormal`.
    The relative spacing is that at the first value of the binade, its largest.
    """
    m, rows = fmt.mantissa_bits, []
    first_field = 1 if fmt.has_subnormals else 0
    if fmt.has_subnormals and m:
        rows.append(_binade(fmt, 1, (1 << m) - 1, "subnormal"))
    for e_field in range(first_field, (fmt.max_magnitude_code >> m) + 1):
        rows.append(_binade(fmt, e_field << m, min(((e_field + 1) << m) - 1, fmt.max_magnitude_code), "normal"))
    return rows


def _binade(fmt: FloatFormat, first: int, last: int, kind: str) -> dict[str, Any]:
    low, spacing = fmt.fraction(first), fmt.fraction(first + 1) - fmt.fraction(first)
    return {
        "class": kind,
        "exponent": max(first >> fmt.mantissa_bits, int(fmt.has_subnormals)) - fmt.bias,
        "first_code": hex_code(first << fmt.padding_bits, fmt),
        "first": float(low),
        "last_code": hex_code(last << fmt.padding_bits, fmt),
        "last": float(fmt.fraction(last)),
        "values": last - first + 1,
        "spacing": float(spacing),
        "relative_spacing": float(spacing / low),
    }
