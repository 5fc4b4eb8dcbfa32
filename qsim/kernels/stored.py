"""What a word of a packed weight holds, and how its fields become numbers.

Words reach the kernels as records with one uint32 field, whose name says what is stored: `uint4`, `e4m3`, ... Numba
compiles a kernel anew for each type, so a kernel holds the code of one format and no branch.

A word of integers is never unpacked. Field j stays where it is, `float32(word & (mask << b*j))`, and the activation
that it meets is scaled by 2^-(b*j) beforehand: a field has at most 8 significant bits and the scale is a power of two,
so every product is the one that unpacking would give. The top field is shifted down.

An FP8 code becomes the top of a float32 by two shifts and a mask; its exponent is then too small by 2^120 (E4M3) or
2^112 (E5M2). Smaller floats have so few exponents that zero and subnormals are common, and some CPUs multiply float32
subnormals in a hundred cycles. They get the exponent bits above them filled, y = +-2^e (1 + m), in which code 0 is a
normal number too; the value is the lesser of |y| and 2 |y| - 2^(1 + least e), which is y for normal codes and moves
the subnormal ones down to where they belong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim._native.vectors import VF, VI, multiply_add, splat_float, splat_int

Field = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A format as it lies in 32-bit words.

    Arguments:
        name: name of the records' field.
        bits: bits of a field; integers of 5 to 7 bits and 6-bit floats lie in 8.
        exponent, mantissa: bits of a float; 0 for integers.
        bias: exponent bias of a float.
    """

    name: str
    bits: int
    exponent: int = 0
    mantissa: int = 0
    bias: int = 0

    @property
    def is_float(self) -> bool:
        return self.exponent > 0

    @property
    def words(self) -> int:
        """Words of one step of a kernel's loop."""
        return 3 if self.bits == 3 else 1

    @property
    def columns(self) -> int:
        """Columns of one step."""
        return 32 if self.bits == 3 else 32 // self.bits

    @property
    def dtype(self) -> np.dtype:
        return np.dtype([(self.name, "<u4")])

    @property
    def is_small_float(self) -> bool:
        """A float whose subnormals are made normal, see above."""
        return 0 < self.exponent <= 3

    @property
    def _least(self) -> int:
        """Exponent of the least y of a small float: the filled bits are those above its own."""
        return 1 - (1 << self.exponent)

    @property
    def shift(self) -> int:
        """Values are those of `fields` times 2^shift."""
        if self.is_small_float:
            return -self.bias - self._least
        return 127 - self.bias if self.is_float else 0

    def field_shift(self, j: int) -> int:
        """The in-place field of column j is its code times 2^field_shift."""
        if self.is_float or j >= 30:
            return 0
        per_word = 10 if self.bits == 3 else self.columns
        last = self.bits != 3 and j == self.columns - 1
        return 0 if last else self.bits * (j % per_word)


STORED = {
    s.name: s
    for s in (
        *(Stored(name=f"uint{b}", bits=b) for b in (2, 3, 4, 8)),
        Stored(name="e4m3", bits=8, exponent=4, mantissa=3, bias=7),
        Stored(name="e5m2", bits=8, exponent=5, mantissa=2, bias=15),
        Stored(name="e2m3", bits=8, exponent=2, mantissa=3, bias=1),
        Stored(name="e3m2", bits=8, exponent=3, mantissa=2, bias=3),
        Stored(name="e2m1", bits=4, exponent=2, mantissa=1, bias=1),
    )
}


def stored_of(words: Any) -> Stored:
    """The format of an argument's Numba type (an array of records)."""
    (name,) = words.dtype.fields
    return STORED[name]


def fields(builder: Any, words: Sequence[Any], stored: Stored, *, in_place: bool = False) -> list[Field]:
    """For each column of a step, what computes its 16 float32 values; true values are these times 2^shift.

    `in_place`: without shifting an integer down, see the module's text.
    """
    if stored.is_small_float:
        return [lambda j=j: _small_float(builder, words[0], j, stored) for j in range(stored.columns)]  # type: ignore[misc]
    if stored.is_float:
        return [lambda j=j: _float8(builder, words[0], j, stored) for j in range(4)]  # type: ignore[misc]
    codes = integers(builder, words, stored, in_place=in_place)
    return [lambda code=code: builder.sitofp(code(), VF) for code in codes]  # type: ignore[misc]


def integers(builder: Any, words: Sequence[Any], stored: Stored, *, in_place: bool = False) -> list[Field]:
    """For each column of a step, what computes its 16 codes as int32."""
    bits, mask = stored.bits, (1 << stored.bits) - 1

    def field(word: Any, j: int) -> Any:
        if bits * (j + 1) == 32:
            return builder.lshr(word, splat_int(32 - bits))
        if in_place:
            return builder.and_(word, splat_int(mask << (bits * j)))
        return builder.and_(builder.lshr(word, splat_int(bits * j)) if j else word, splat_int(mask))

    def split(i: int) -> Any:
        """Columns 30 and 31 of 3 bits: two bits on top of word i, the third on top of word 2."""
        low = builder.lshr(words[i], splat_int(30))
        return builder.or_(low, builder.and_(builder.lshr(words[2], splat_int(29 - i)), splat_int(4)))

    if bits == 3:
        thirty = [lambda w=w, j=j: field(words[w], j) for w in range(3) for j in range(10)]  # type: ignore[misc]
        return [*thirty, lambda: split(0), lambda: split(1)]
    return [lambda j=j: field(words[0], j) for j in range(stored.columns)]  # type: ignore[misc]


def _float8(builder: Any, word: Any, j: int, stored: Stored) -> Any:
    top = builder.shl(word, splat_int(24 - 8 * j)) if j < 3 else word
    down = 8 - stored.exponent
    mask = 0x80000000 | (((1 << (stored.exponent + stored.mantissa)) - 1) << (23 - stored.mantissa))
    return builder.bitcast(builder.and_(builder.ashr(top, splat_int(down)), splat_int(mask)), VF)


def _small_float(builder: Any, word: Any, j: int, stored: Stored) -> Any:
    size, to = stored.exponent + stored.mantissa, 23 - stored.mantissa
    low = stored.bits * j
    sign = low + size
    moved = builder.shl(word, splat_int(to - low)) if low <= to else builder.lshr(word, splat_int(low - to))
    magnitude = builder.and_(moved, splat_int(((1 << size) - 1) << to))
    y = builder.bitcast(builder.or_(magnitude, splat_int((127 + stored._least) << 23)), VF)
    lower = multiply_add(builder, y, splat_float(2.0), splat_float(-(2.0 ** (stored._least + 1))))
    ordered = builder.fcmp_ordered("<", lower, y)
    value = builder.bitcast(builder.select(ordered, lower, y), VI)
    signs = builder.shl(word, splat_int(31 - sign)) if sign < 31 else word
    return builder.bitcast(builder.or_(value, builder.and_(signs, splat_int(0x80000000))), VF)
