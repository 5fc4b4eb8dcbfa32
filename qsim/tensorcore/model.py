"""What a matrix instruction is: a frozen value with the parameters of its arithmetic, and the table of known ones.

Nothing here multiplies: `reference` does it slowly, `kernels` fast.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from qsim.errors import QsimError, QsimTypeError, nearest
from qsim.formats import BlockFormat, FloatFormat, IntFormat, get_format
from qsim.tables import Table

Arithmetic: TypeAlias = Literal[
    "truncated",
    "scaled",
    "grouped",
    "integer",
    "fma",
    "exact",
    "flushed_pairs",
    "floored",
    "floored_even_odd",
    "emulated",
]
Accumulator: TypeAlias = Literal["f32", "f16", "s32", "f64"]

ACCUMULATOR_DTYPE: dict[str, np.dtype] = {
    "f32": np.dtype(np.uint32),
    "f16": np.dtype(np.uint16),
    "s32": np.dtype(np.int32),
    "f64": np.dtype(np.uint64),
}
"""The NumPy type of C and D: bit patterns, but for s32, which is a number."""

CANONICAL_NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF}
"""The only NaN a tensor core writes (recorded on an H200)."""

_FORMAT_OF = {"f16": "float16", "f32": "float32", "s8": "int8", "u8": "uint8", "s4": "int4", "u4": "uint4"}
_FORMAT_OF["bf16_1k"] = "bfloat16"  # AMD's name of the bf16 instructions with groups of four
_WITH_ALIGNMENT = ("truncated", "scaled", "grouped", "floored", "floored_even_odd")
_OUTPUTS = {
    "truncated": ("f32", "f16"),
    "scaled": ("f32", "f16"),
    "grouped": ("f32", "f16"),
    "fma": ("f32", "f64"),
    "exact": ("f32",),
    "flushed_pairs": ("f32",),
    "floored": ("f32",),
    "floored_even_odd": ("f32",),
}
MAX_FRACTION_BITS = 46
"""F of a generic instruction: its sum of up to 2^12 terms must stay exact in 62 bits."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How the exact sum of a step becomes the accumulator: `rz` or `rne` to E bits of exponent and N of fraction."""

    to_nearest: bool
    fraction_bits: int

    @classmethod
    def parse(cls, text: str, accumulator: Accumulator) -> Rounding:
        """Read `rz_f32`, `rne_f32`, `rz_e8m13`, `rne_f16`, ...; e8mN is kept in a float32 word."""
        match = re.fullmatch(r"(rz|rne)_(?:(f16|f32|f64)|e8m(\d+))", text)
        widths = {"f16": 10, "f32": 23, "f64": 52}
        if match is None or (match[2] or "f32") != accumulator or (match[3] and not 1 <= int(match[3]) <= 23):
            raise QsimError(
                f"rounding must be rz_ or rne_ followed by the accumulator ({accumulator}), or e8m1..e8m23 with an f32 "
                f"accumulator: got {text!r}"
            )
        return cls(to_nearest=match[1] == "rne", fraction_bits=int(match[3]) if match[3] else widths[match[2]])


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One matrix instruction D = A B^T + C, or a made-up one.

    Arguments:
        name: `<architecture>.<operation>.<output>.<input>[.<second input>]`; anything for a generic one.
        arithmetic: which model of `reference`; "truncated" is NVIDIA's fused dot product.
        input_a, input_b: format names as the table writes them (`e4m3`, `bf16`, `tf32`, `s8`, `mxfp4`, `f64`).
        output: accumulator type of C and D.
        products: L, products fused into one step; K must be a multiple of it.
        k: K of one instruction, a multiple of L.
        fraction_bits: F, fraction bits kept when terms are aligned to the largest exponent.
        zero_exponent: e0, the exponent of a zero term; None when zeros do not take part.
        rounding: of each step's sum, see `Rounding`.
        k_order: positions inside one instruction in the order in which they are fused, or empty for ascending.
        emulated_by: name of the instruction that does the work ("emulated": from +0, then C is added).
        group: products summed exactly before alignment ("grouped").
        sum_fraction_bits: fraction bits of the second alignment ("floored").
        satfinite: clamp s32 sums to the ends of the range instead of wrapping modulo 2^32.
        shape, opcode, status, source: provenance; `status` is established, vectors, source or generic.

    Raises:
        ValueError: fields that do not fit together.
    """

    name: str
    arithmetic: Arithmetic
    input_a: str
    input_b: str
    output: Accumulator
    products: int
    k: int
    rounding: str = ""
    fraction_bits: int = 0
    zero_exponent: int | None = None
    k_order: tuple[int, ...] = ()
    emulated_by: str = ""
    group: int = 0
    sum_fraction_bits: int = 0
    satfinite: bool = False
    shape: str = ""
    opcode: str = ""
    status: str = "generic"
    source: str = ""

    def __post_init__(self) -> None:
        if self.arithmetic not in get_args(Arithmetic):
            raise QsimError(f"{self.name}: arithmetic must be one of {get_args(Arithmetic)}: got {self.arithmetic!r}")
        if self.output not in ACCUMULATOR_DTYPE:
            raise QsimError(f"{self.name}: output must be one of {[*ACCUMULATOR_DTYPE]}: got {self.output!r}")
        if not 1 <= self.products <= 4096 or self.k % self.products:
            raise QsimError(
                f"{self.name}: products must be 1..4096 and divide k: got products={self.products}, k={self.k}"
            )
        if self.arithmetic in _WITH_ALIGNMENT and not 1 <= self.fraction_bits <= MAX_FRACTION_BITS:
            raise QsimError(
                f"{self.name}: fraction_bits must be 1..{MAX_FRACTION_BITS}: got {self.fraction_bits}; "
                "for more use arithmetic='exact'"
            )
        if self.zero_exponent is not None and not -400 <= self.zero_exponent <= 400:
            raise QsimError(f"{self.name}: zero_exponent must be -400..400 or None: got {self.zero_exponent}")
        if self.k_order and sorted(self.k_order) != list(range(self.k)):
            raise QsimError(f"{self.name}: k_order must hold each of 0..{self.k - 1} once: got {self.k_order}")
        if self.arithmetic not in ("integer", "emulated"):
            rounding = Rounding.parse(self.rounding, self.output)
            if self.arithmetic == "fma" and not rounding.to_nearest:
                raise QsimError(f"{self.name}: a chain of FMAs rounds to nearest: got rounding {self.rounding!r}")
        if (self.arithmetic == "integer") != (self.output == "s32"):
            raise QsimError(f"{self.name}: integer arithmetic and s32 output go together: got output {self.output}")
        if self.arithmetic in _OUTPUTS and self.output not in _OUTPUTS[self.arithmetic]:
            allowed = " or ".join(_OUTPUTS[self.arithmetic])
            raise QsimError(
                f"{self.name}: arithmetic {self.arithmetic!r} must have {allowed} accumulators: got {self.output}"
            )
        for fmt in (self.format_a, self.format_b):
            if isinstance(fmt, IntFormat) != (self.arithmetic == "integer"):
                raise QsimError(f"{self.name}: {fmt.name} operands do not fit arithmetic {self.arithmetic!r}")

    @cached_property
    def format_a(self) -> FloatFormat | IntFormat:
        """Format of A's codes (the element format for block-scaled inputs; float64 has none and reads as float32)."""
        return _element(self.input_a)

    @cached_property
    def format_b(self) -> FloatFormat | IntFormat:
        return _element(self.input_b)

    @cached_property
    def block_a(self) -> BlockFormat | None:
        """The block format of A, or None when the operand has no block scales."""
        return _block(self.input_a)

    @cached_property
    def block_b(self) -> BlockFormat | None:
        return _block(self.input_b)

    @cached_property
    def code_dtype_a(self) -> np.dtype:
        """The NumPy type of A's codes."""
        return _code_dtype(self.input_a)

    @cached_property
    def code_dtype_b(self) -> np.dtype:
        return _code_dtype(self.input_b)

    @property
    def output_dtype(self) -> np.dtype:
        return ACCUMULATOR_DTYPE[self.output]

    @property
    def output_format(self) -> FloatFormat:
        """Float format of C and D (f16 and f32 outputs only)."""
        fmt = get_format(_FORMAT_OF[self.output])
        assert isinstance(fmt, FloatFormat)
        return fmt

    @cached_property
    def sum_rounding(self) -> Rounding:
        return Rounding.parse(self.rounding, self.output)

    @property
    def architecture(self) -> str:
        return self.name.split(".")[0]

    def with_satfinite(self, satfinite: bool) -> Instruction:
        """The same instruction with .satfinite set or cleared; only integer ones have it."""
        if satfinite and self.arithmetic != "integer":
            raise QsimError(f"satfinite applies to s32 outputs only: got {self.name}")
        return self if satfinite == self.satfinite else dataclasses.replace(self, satfinite=satfinite)


@lru_cache(maxsize=64)
def _element(name: str) -> FloatFormat | IntFormat:
    fmt = get_format(_FORMAT_OF.get(name, "float32" if name == "f64" else name))
    if isinstance(fmt, BlockFormat):
        fmt = fmt.element
    if not isinstance(fmt, FloatFormat | IntFormat):
        raise QsimError(f"a matrix instruction reads float or integer codes: got format {name!r}")
    return fmt


@lru_cache(maxsize=64)
def _block(name: str) -> BlockFormat | None:
    fmt = get_format(_FORMAT_OF.get(name, "float32" if name == "f64" else name))
    return fmt if isinstance(fmt, BlockFormat) else None


def _code_dtype(name: str) -> np.dtype:
    if name == "f64":
        return np.dtype(np.uint64)
    fmt = _element(name)
    if isinstance(fmt, IntFormat):
        return np.dtype(np.int8 if fmt.signed else np.uint8)
    return fmt.code_dtype


def _expand(family: dict[str, Any]) -> list[Instruction]:
    """One table of the file to its instructions."""
    family = dict(family)
    architectures = family.pop("architecture")
    operation, output = family.pop("operation"), family.pop("output")
    status, emulated_by = family.pop("status"), family.pop("emulated_by", "")
    names = family.pop("pairs_of", None)
    inputs = [f"{a}.{b}" if a != b else a for a in names for b in names] if names else family.pop("inputs")
    skipped, unrecorded = family.pop("except", []), family.pop("unrecorded", [])
    rows = []
    for architecture in [architectures] if isinstance(architectures, str) else architectures:
        for text in inputs:
            if text in skipped:
                continue
            first, _, second = text.partition(".")
            known = status if isinstance(status, str) else status[architecture]
            rows.append(
                Instruction(
                    name=f"{architecture}.{operation}.{output}.{text}",
                    input_a=first,
                    input_b=second or first,
                    output=output,
                    status="source" if text in unrecorded else known,
                    emulated_by=f"{architecture}.{emulated_by}" if emulated_by else "",
                    k_order=tuple(family.get("k_order", ())),
                    **{key: value for key, value in family.items() if key != "k_order"},
                )
            )
    return rows


@lru_cache(maxsize=1)
def _table() -> dict[str, Instruction]:
    with resources.files(__package__).joinpath("instructions.toml").open("rb") as file:
        families = tomllib.load(file)["family"]
    table: dict[str, Instruction] = {}
    for number, family in enumerate(families):
        for row in _expand(family):
            if row.name in table:
                raise QsimError(f"instructions.toml: family {number} defines {row.name} a second time")
            table[row.name] = row
    return table


def list_instructions(prefix: str = "") -> Table[str]:
    """The instructions whose names start with `prefix`, in the order of the file, as a table of what sets their bits.

    Iterating gives the names.
    """
    found = tuple(row for name, row in _table().items() if name.startswith(prefix))
    return Table(
        columns=("instruction", "arithmetic", "products", "K", "fraction bits", "rounding", "status"),
        rows=tuple(
            (i.name, i.arithmetic, i.products, i.k, i.fraction_bits or None, i.rounding, i.status) for i in found
        ),
        values=tuple(i.name for i in found),
    )


def get_instruction(instruction: str | Instruction) -> Instruction:
    """The instruction of that name, or the value itself.

    Raises:
        ValueError: a name that is not in the table; the message says which instructions exist instead.
        TypeError: neither a name nor an Instruction.
    """
    if isinstance(instruction, Instruction):
        return instruction
    if not isinstance(instruction, str):
        raise QsimTypeError(f"an instruction must be a name or an Instruction: got {type(instruction).__name__}")
    table = _table()
    if instruction in table:
        return table[instruction]
    raise QsimError(_unknown(instruction))


def _unknown(name: str) -> str:
    parts = name.split(".")
    architectures = sorted({row.architecture for row in _table().values()})
    if parts[0] not in architectures:
        return f"{nearest('instruction', name, _table(), cutoff=0.5)}; architectures are {', '.join(architectures)}"
    operations = sorted({n.split(".")[1] for n in list_instructions(parts[0] + ".")})
    if len(parts) < 2 or parts[1] not in operations:
        return (
            f"{parts[0]} has no operation {'.'.join(parts[1:2])!r}: it has {', '.join(operations)}; asked for {name!r}"
        )
    prefix = ".".join(parts[:2])
    exist = ", ".join(n.removeprefix(prefix + ".") for n in list_instructions(prefix + "."))
    elsewhere = [n for n in _table() if n.split(".")[2:] == parts[2:] and n.split(".")[0] != parts[0]]
    other = f"; other architectures have {', '.join(elsewhere)}" if elsewhere else ""
    return f"{prefix} has no {'.'.join(parts[2:])}: it has {exist}{other}"


def generic(
    *,
    input: str,
    input_b: str | None = None,
    products: int = 16,
    fraction_bits: int = 25,
    zero_exponent: int | None = -133,
    output: Accumulator = "f32",
    rounding: str | None = None,
    arithmetic: Arithmetic = "truncated",
    k: int | None = None,
    name: str = "generic",
) -> Instruction:
    """An instruction with parameters of your own, for a hypothetical accelerator or a question of the kind "what if".

    Arguments:
        input, input_b: operand formats (any float format name, `s8`, `u4`, ...); `input_b` defaults to `input`.
        products: L. A chain of plain float32 FMAs is `arithmetic="fma"` (L = 1); exact accumulation of L products and
            one rounding is `arithmetic="exact"`; INT32 is `arithmetic="integer", output="s32"`.
        fraction_bits, zero_exponent: F and e0 of the truncated sum.
        output, rounding: accumulator type and rounding; by default rz_f32, rne_f16, or nearest for fma and exact.
        k: K of one instruction; L by default.

    Raises:
        ValueError: parameters that do not fit together.
    """
    if arithmetic == "fma":
        products = 1
    if rounding is None and arithmetic != "integer":
        rounding = "rne_f16" if output == "f16" else f"{'rz' if arithmetic == 'truncated' else 'rne'}_{output}"
    aligned = arithmetic in _WITH_ALIGNMENT
    return Instruction(
        name=name,
        arithmetic=arithmetic,
        input_a=input,
        input_b=input if input_b is None else input_b,
        output=output,
        products=products,
        k=products if k is None else k,
        rounding=rounding or "",
        fraction_bits=fraction_bits if aligned else 0,
        zero_exponent=zero_exponent if aligned else None,
        source="given by the caller",
    )
