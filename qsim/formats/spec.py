"""What a number format is: frozen values with derived properties.

A format is data. Nothing here rounds or looks at an array: `codec` does that, `reference` does it slowly.

`code` is the unsigned integer that stores one element. For a float format its bits are, from the top, sign,
exponent, mantissa; for an integer format two's complement; for a codebook the index.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.reprs import one_line

from .float_format import FloatFormat, dtype_for


@dataclass(frozen=True, kw_only=True)
class IntFormat:
    """A two's complement or unsigned integer, optionally with fraction bits: value = integer * 2^-fraction_bits.

    Arguments:
        bits: 2..8.
        signed: two's complement when True.
        fraction_bits: position of the binary point (the MXINT8 element has 6).
        symmetric: encode never produces the most negative code, so the range is +-max; decode still reads it.
    """

    name: str
    bits: int
    signed: bool = True
    fraction_bits: int = 0
    symmetric: bool = False
    aliases: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise QsimError(f"{self.name}: integer formats must have 2 to 8 bits: got {self.bits}")
        if self.symmetric and not self.signed:
            raise QsimError(f"{self.name}: symmetric applies to signed formats only")
        if not 0 <= self.fraction_bits <= 64:
            raise QsimError(f"{self.name}: fraction_bits must be 0 to 64: got {self.fraction_bits}")

    padding_bits: ClassVar[int] = 0
    has_inf: ClassVar[bool] = False
    has_nan: ClassVar[bool] = False
    has_negative_zero: ClassVar[bool] = False
    has_zero: ClassVar[bool] = True
    nan_codes: ClassVar[tuple[int, ...]] = ()
    nan_code: ClassVar[None] = None
    inf_code: ClassVar[None] = None

    @property
    def storage_bits(self) -> int:
        return self.bits

    @property
    def code_dtype(self) -> np.dtype:
        return dtype_for(self.bits)

    @property
    def max_integer(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def min_integer(self) -> int:
        """The most negative integer that encode produces."""
        return -(1 << (self.bits - 1)) + self.symmetric if self.signed else 0

    @property
    def max_code(self) -> int:
        return self.max_integer

    @property
    def max(self) -> float:
        return math.ldexp(self.max_integer, -self.fraction_bits)

    @property
    def min(self) -> float:
        return math.ldexp(self.min_integer, -self.fraction_bits)

    @property
    def emax(self) -> int:
        """floor(log2(max)): 0 for the MXINT8 element."""
        return self.max_integer.bit_length() - 1 - self.fraction_bits

    @property
    def eps(self) -> float:
        """The constant spacing."""
        return math.ldexp(1.0, -self.fraction_bits)

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value, so that float and integer formats answer alike."""
        return self.eps

    @property
    def finite_count(self) -> int:
        return self.max_integer - self.min_integer + 1

    @cached_property
    def values(self) -> np.ndarray:
        """All values that encode produces, ascending, float64."""
        table = np.ldexp(np.arange(self.min_integer, self.max_integer + 1).astype(np.float64), -self.fraction_bits)
        table.setflags(write=False)
        return table


@dataclass(frozen=True, kw_only=True)
class CodebookFormat:
    """A table of values indexed by code (NF4). The table ascends, starts at code 0 and has 2^bits entries."""

    name: str
    bits: int
    table: tuple[float, ...]
    aliases: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise QsimError(f"{self.name}: codebooks must have 1 to 8 bits: got {self.bits}")
        if len(self.table) != 1 << self.bits:
            raise QsimError(
                f"{self.name}: a {self.bits}-bit codebook must have {1 << self.bits} entries: got {len(self.table)}"
            )
        if not all(math.isfinite(v) for v in self.table) or any(
            a >= b for a, b in zip(self.table, self.table[1:], strict=False)
        ):
            raise QsimError(f"{self.name}: codebook values must be finite and strictly ascending")

    padding_bits: ClassVar[int] = 0
    signed: ClassVar[bool] = True
    has_inf: ClassVar[bool] = False
    has_nan: ClassVar[bool] = False
    has_negative_zero: ClassVar[bool] = False
    nan_codes: ClassVar[tuple[int, ...]] = ()
    nan_code: ClassVar[None] = None
    inf_code: ClassVar[None] = None

    __repr__ = one_line

    @property
    def storage_bits(self) -> int:
        return self.bits

    @property
    def code_dtype(self) -> np.dtype:
        return dtype_for(self.bits)

    @property
    def has_zero(self) -> bool:
        return 0.0 in self.table

    @property
    def max_code(self) -> int:
        return len(self.table) - 1

    @property
    def max(self) -> float:
        return self.table[-1]

    @property
    def min(self) -> float:
        return self.table[0]

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value."""
        return min(v for v in self.table if v > 0)

    @property
    def emax(self) -> int:
        return math.frexp(self.max)[1] - 1

    @property
    def finite_count(self) -> int:
        return len(self.table)

    @cached_property
    def values(self) -> np.ndarray:
        table = np.array(self.table, dtype=np.float64)
        table.setflags(write=False)
        return table


ElementFormat: TypeAlias = FloatFormat | IntFormat | CodebookFormat


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """Blocks of `block_size` elements that share one scale: value = scale * element [* tensor scale].

    Arguments:
        element: format of the elements.
        scale: format of the block scale: float8_e8m0fnu (MX) or float8_e4m3fn (NVFP4).
        block_size: elements per block, along one axis.
        tensor_scale: whether a float32 scale for the whole tensor stands above the block scales (NVFP4).
    """

    name: str
    element: ElementFormat
    scale: FloatFormat
    block_size: int
    tensor_scale: bool = False
    aliases: tuple[str, ...] = field(default=(), compare=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise QsimError(f"{self.name}: block_size must be at least 1: got {self.block_size}")

    @property
    def bits(self) -> int:
        """Bits of one element, without its share of the scale."""
        return self.element.bits

    @property
    def bits_per_element(self) -> float:
        """Bits of one element with its share of the block scale (the tensor scale is not counted)."""
        return self.element.bits + self.scale.bits / self.block_size

    @property
    def max(self) -> float:
        """Largest finite value: the largest element under the largest block scale (tensor scale 1)."""
        return self.element.max * self.scale.max

    def with_block_size(self, block_size: int) -> BlockFormat:
        """The same format with blocks of another size; its name gains the size."""
        if block_size == self.block_size:
            return self
        return dataclasses.replace(self, name=f"{self.name}_b{block_size}", block_size=block_size, aliases=())


Format: TypeAlias = FloatFormat | IntFormat | CodebookFormat | BlockFormat
