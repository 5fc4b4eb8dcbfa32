"""The named formats, and the names that are read by grammar.

Names follow ml_dtypes, `float{bits}_e{E}m{M}[b{bias}][f][n][uz]`; OCP names are aliases, and a bare `e4m3` means
OCP's, float8_e4m3fn. Sources: OCP OFP8 v1.0 (e4m3, e5m2), OCP MX v1.0 tables 1, 4, 5 (fp6, fp4, e8m0, MX blocks),
IEEE 754-2019 3.6, NVIDIA PTX ISA (tf32, NVFP4), arXiv 2305.14314 appendix E (NF4), IEEE P3109 interim report 4.0 4.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError, QsimTypeError, nearest
from qsim.registry import add_installed
from qsim.tables import Table

from .float_format import NanCodes
from .spec import BlockFormat, CodebookFormat, ElementFormat, FloatFormat, Format, IntFormat


def _float(name: str, *aliases: str, e: int, m: int, bias: int, nan: NanCodes = "none", **more: object) -> FloatFormat:
    return FloatFormat(
        name=name,
        exponent_bits=e,
        mantissa_bits=m,
        bias=bias,
        nan=nan,
        aliases=aliases,
        **more,  # type: ignore[arg-type]
    )


ENTRY_POINTS = "qsim.formats"
"""The entry-point group of installed packages: each entry is a format value."""

FormatLike: TypeAlias = str | Format | np.dtype[Any] | type[Any]
"""What `get_format` takes: a name, a format, or a NumPy or ml_dtypes type or dtype."""

# arXiv 2305.14314 (QLoRA), appendix E: quantiles of N(0, 1), as float32
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

_FLOATS = (
    _float("float8_e4m3fn", "e4m3", "e4m3fn", "fp8_e4m3", "fp8", e=4, m=3, bias=7, nan="outermost"),
    _float("float8_e5m2", "e5m2", "fp8_e5m2", e=5, m=2, bias=15, nan="ieee", has_inf=True),
    _float("float8_e4m3", "e4m3_ieee", e=4, m=3, bias=7, nan="ieee", has_inf=True),
    _float("float8_e4m3fnuz", "e4m3fnuz", e=4, m=3, bias=8, nan="negative_zero"),
    _float("float8_e4m3b11fnuz", "e4m3b11fnuz", e=4, m=3, bias=11, nan="negative_zero"),
    _float("float8_e5m2fnuz", "e5m2fnuz", e=5, m=2, bias=16, nan="negative_zero"),
    _float("float8_e3m4", "e3m4", e=3, m=4, bias=3, nan="ieee", has_inf=True),
    _float("float8_e8m0fnu", "e8m0", "ue8m0", e=8, m=0, bias=127, nan="top", signed=False, has_subnormals=False),
    _float("float6_e2m3fn", "e2m3", "fp6_e2m3", e=2, m=3, bias=1),
    _float("float6_e3m2fn", "e3m2", "fp6_e3m2", e=3, m=2, bias=3),
    _float("float4_e2m1fn", "e2m1", "fp4", "fp4_e2m1", e=2, m=1, bias=1),
    _float("float16", "fp16", "half", "e5m10", e=5, m=10, bias=15, nan="ieee", has_inf=True),
    _float("bfloat16", "bf16", "e8m7", e=8, m=7, bias=127, nan="ieee", has_inf=True),
    _float("float32", "fp32", "single", e=8, m=23, bias=127, nan="ieee", has_inf=True),
    _float("tf32", "tfloat32", "e8m10", e=8, m=10, bias=127, nan="ieee", has_inf=True, padding_bits=13),
)

_INTS = tuple(
    IntFormat(name=f"{'' if signed else 'u'}int{bits}", bits=bits, signed=signed)
    for signed in (True, False)
    for bits in range(2, 9)
)

_MXINT8_ELEMENT = IntFormat(name="int8_q6", bits=8, fraction_bits=6, aliases=("mxint8_element",))

_BY_NAME: dict[str, Format] = {}


def _block(name: str, *aliases: str, element: str, scale: str = "float8_e8m0fnu", size: int = 32) -> BlockFormat:
    scale_format = _BY_NAME[scale]
    element_format = _BY_NAME[element]
    assert isinstance(scale_format, FloatFormat)
    assert not isinstance(element_format, BlockFormat)
    return BlockFormat(
        name=name,
        element=element_format,
        scale=scale_format,
        block_size=size,
        tensor_scale=name == "nvfp4",
        aliases=aliases,
    )


def register(fmt: Format, *, replace: bool = False) -> None:
    """Make a format known by its name and aliases: to `get_format`, `list_formats`, schemes and, while this program
    runs, the command line.

    In an installed package an entry point of the group `qsim.formats` does the same for every program:

        [project.entry-points."qsim.formats"]
        mine = "my_package.my_module:FORMAT"

    Raises:
        ValueError: a name is taken by a different format and `replace` is False.
    """
    for name in (fmt.name, *fmt.aliases):
        key = name.lower()
        if not replace and _BY_NAME.get(key, fmt) != fmt:
            raise QsimError(f"format name {name!r} is taken by {_BY_NAME[key].name}; pass replace=True to change it")
    for name in (fmt.name, *fmt.aliases):
        _BY_NAME[name.lower()] = fmt


_ELEMENTS: tuple[Format, ...] = (*_FLOATS, *_INTS, _MXINT8_ELEMENT, CodebookFormat(name="nf4", bits=4, table=_NF4))
for _fmt in _ELEMENTS:
    register(_fmt)
for _fmt in (
    _block("mxfp8_e4m3", "mxfp8", element="float8_e4m3fn"),
    _block("mxfp8_e5m2", element="float8_e5m2"),
    _block("mxfp6_e2m3", "mxfp6", element="float6_e2m3fn"),
    _block("mxfp6_e3m2", element="float6_e3m2fn"),
    _block("mxfp4", "mxfp4_e2m1", element="float4_e2m1fn"),
    _block("mxint8", element="int8_q6"),
    _block("nvfp4", element="float4_e2m1fn", scale="float8_e4m3fn", size=16),
):
    register(_fmt)


@lru_cache(maxsize=1)
def _add_installed() -> None:
    """Formats of installed packages, once, when a name is not known here or all are listed."""
    add_installed("format", ENTRY_POINTS, register)


_FLOAT_NAME = re.compile(r"float(\d+)_e(\d+)m(\d+)(?:b(\d+))?(f?)(n?)(uz)?")
_P3109_NAME = re.compile(r"(?:p3109_)?binary(\d+)p(\d+)([su])([ef])")


def _parse_float(name: str) -> FloatFormat | None:
    match = _FLOAT_NAME.fullmatch(name)
    if match is None:
        return None
    bits, e, m = (int(g) for g in match.group(1, 2, 3))
    finite, nan_outermost, no_negative_zero = (bool(g) for g in match.group(5, 6, 7))
    if e < 1:
        raise QsimError(f"{name}: names by grammar have at least one exponent bit; use an int format")
    if bits != 1 + e + m:
        raise QsimError(f"{name}: the name says {bits} bits, sign + exponent + mantissa make {1 + e + m}")
    bias = int(match[4]) if match[4] else (1 << (e - 1)) - (not no_negative_zero)
    nan: NanCodes
    if no_negative_zero:
        nan = "negative_zero"
    elif not finite and not nan_outermost:
        nan = "ieee"
    # ml_dtypes' own convention: below 8 bits `fn` spends no code on NaN
    elif nan_outermost and (bits >= 8 or not finite):
        nan = "outermost"
    else:
        nan = "none"
    return FloatFormat(name=name, exponent_bits=e, mantissa_bits=m, bias=bias, nan=nan, has_inf=not finite)


def p3109(bits: int, precision: int, *, signed: bool = True, extended: bool = True) -> FloatFormat:
    """A format of the IEEE P3109 family, binary{K}p{P}{s|u}{e|f} (interim report 4.0).

    Arguments:
        bits: K, the width.
        precision: P, significant bits with the hidden one; 1 <= P < K signed, P <= K unsigned.
        signed: with a sign bit.
        extended: with infinities.

    Raises:
        ValueError: P outside its range, or values beyond float64 (small P at K > 11).
    """
    name = f"binary{bits}p{precision}{'s' if signed else 'u'}{'e' if extended else 'f'}"
    if not 1 <= precision < bits + (not signed):
        rule = "1 <= P < K" if signed else "1 <= P <= K"
        raise QsimError(f"{name}: P3109 needs {rule}: got K={bits}, P={precision}")
    exponent_bits = bits - precision + (not signed)
    return FloatFormat(
        name=name,
        exponent_bits=exponent_bits,
        mantissa_bits=precision - 1,
        bias=1 << (exponent_bits - 1),
        signed=signed,
        has_inf=extended,
        nan="negative_zero" if signed else "top",
    )


def _parse_p3109(name: str) -> FloatFormat | None:
    match = _P3109_NAME.fullmatch(name)
    if match is None:
        return None
    return p3109(int(match[1]), int(match[2]), signed=match[3] == "s", extended=match[4] == "e")


def get_format(fmt: FormatLike) -> Format:
    """The format of that name, or the value itself.

    Arguments:
        fmt: a registered name or alias, in any case (`float8_e4m3fn`, `e4m3`, `int4`, `nf4`, `mxfp4`); a name by
            ml_dtypes' grammar (`float7_e3m3fn`, `float8_e4m3b9fnuz`: `fn` below 8 bits has no NaN, as there); a
            P3109 name (`binary8p4se`); a NumPy or ml_dtypes type or dtype (`ml_dtypes.float8_e4m3fn`,
            `numpy.dtype("int8")`), which stands for the format of its name; or a format value, returned as it is.

    Raises:
        ValueError: unknown name; the message lists the nearest ones.
        TypeError: neither a name nor a type nor a format.
    """
    if isinstance(fmt, FloatFormat | IntFormat | CodebookFormat | BlockFormat):
        return fmt
    fmt = _name_of_dtype(fmt)
    if not isinstance(fmt, str):
        raise QsimTypeError(
            f"a format must be a name, a NumPy or ml_dtypes type, or a format value: got {type(fmt).__name__}"
        )
    key = fmt.strip().lower()
    if key in _BY_NAME:
        return _BY_NAME[key]
    for parse in (_parse_float, _parse_p3109):
        parsed = parse(key)
        if parsed is not None:
            return parsed
    _add_installed()
    if key in _BY_NAME:
        return _BY_NAME[key]
    known = nearest("format", fmt, _BY_NAME, cutoff=0.5)
    raise QsimError(f"{known}; names like float7_e3m3fn and binary8p4se are read by their grammar")


def _name_of_dtype(fmt: Any) -> Any:
    """The name of a NumPy or ml_dtypes type or dtype; whatever else is given, as it is."""
    if isinstance(fmt, type) and fmt.__module__.split(".")[0] in ("numpy", "ml_dtypes"):
        try:
            return np.dtype(fmt).name
        except TypeError:
            return fmt
    return fmt.name if isinstance(fmt, np.dtype) else fmt


def get_element_format(fmt: FormatLike) -> ElementFormat:
    """As `get_format`, for a format that codes one element at a time.

    Raises:
        ValueError: the name is of a block format; the message says what to call instead.
    """
    found = get_format(fmt)
    if isinstance(found, BlockFormat):
        raise QsimError(
            f"{found.name} is a block format: use qsim.formats.quantize_blocks(x, {found.name!r}), "
            f"or its element format {found.element.name}"
        )
    return found


def list_formats() -> Table[Format]:
    """The registered formats, in the order of the catalogue, as a table with their limits.

    Iterating gives the formats.
    """
    from .describe import describe

    _add_installed()
    formats = tuple({f.name: f for f in _BY_NAME.values()}.values())
    columns = ("name", "kind", "bits", "layout", "max", "smallest_normal", "smallest_subnormal", "aliases")
    return Table(
        columns=("format", *(c.replace("_", " ") for c in columns[1:])),
        rows=tuple(tuple(row.get(c) for c in columns) for row in map(describe, formats)),
        values=formats,
    )
