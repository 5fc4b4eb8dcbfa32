"""What a binary floating-point format is, with everything that follows from its few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.reprs import one_line

NanCodes: TypeAlias = Literal["none", "ieee", "outermost", "negative_zero", "top"]
"""Where a float format keeps its NaNs.

* `none`: no NaN.
* `ieee`: the top exponent field; mantissa 0 is Inf when the format has Inf, everything above it NaN.
* `outermost`: only the all-ones magnitude, of either sign (the `fn` of ml_dtypes).
* `negative_zero`: the code that would be -0; the format has no -0 (the `uz` of ml_dtypes, signed P3109).
* `top`: the highest code of an unsigned format (E8M0, unsigned P3109).
"""


def dtype_for(bits: int) -> np.dtype:
    return np.dtype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32)


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A binary floating-point format: value = (-1)^sign * 2^(max(field, 1) - bias) * significand.

    Arguments:
        name: how the registry calls it.
        exponent_bits, mantissa_bits: field widths E and M (the trailing bits, without the hidden one).
        bias: exponent bias.
        signed: whether the top bit is a sign.
        has_inf: whether +Inf (and, signed, -Inf) exists; it is the code just above the largest finite one.
        nan: where the NaN codes are, see `NanCodes`.
        has_subnormals: whether exponent field 0 means subnormals and zero. Without (E8M0) it is one more binade
            and the format has no zero.
        padding_bits: low bits of the stored word that are always 0. tf32 is kept in a float32 word (13 of them),
            which is what a tensor core reads.
        aliases: other names.

    Raises:
        ValueError: fields that do not fit together, or values beyond float64's range or 32 bits.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    signed: bool = True
    has_inf: bool = False
    nan: NanCodes = "none"
    has_subnormals: bool = True
    padding_bits: int = 0
    aliases: tuple[str, ...] = field(default=(), compare=False)

    __repr__ = one_line

    def __post_init__(self) -> None:
        e, m = self.exponent_bits, self.mantissa_bits
        if e < 0 or m < 0 or e + m < 1:
            raise QsimError(f"{self.name}: exponent and mantissa widths must be >= 0 and not both 0: got E={e}, M={m}")
        if self.storage_bits > 32:
            raise QsimError(f"{self.name}: codes must fit 32 bits: got {self.storage_bits}")
        if self.nan == "ieee" and not (self.has_inf and e and m):
            raise QsimError(f"{self.name}: nan='ieee' needs has_inf, an exponent field and a mantissa bit")
        if self.nan == "negative_zero" and not self.signed:
            raise QsimError(f"{self.name}: an unsigned format has no -0 to use as NaN; use nan='top'")
        if self.nan == "top" and self.signed:
            raise QsimError(f"{self.name}: nan='top' is for unsigned formats; use 'outermost' or 'negative_zero'")
        if e == 0 and not self.has_subnormals:
            raise QsimError(f"{self.name}: a format without exponent bits consists of subnormals")
        if self.max_magnitude_code < 1:
            raise QsimError(f"{self.name}: no finite non-zero value is left beside the special codes")
        if self.emax > 1023 or self.min_exponent < -1022:
            raise QsimError(
                f"{self.name}: every value must be a float64: normal exponents run from {self.min_exponent} "
                f"to {self.emax}, float64 has -1022 to 1023; choose another bias"
            )

    # --- layout -----------------------------------------------------------------------------------------

    @property
    def bits(self) -> int:
        """Bits of information in one element (what packing and traffic count)."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def storage_bits(self) -> int:
        """Bits of the word that holds a code, padding included."""
        return self.bits + self.padding_bits

    @property
    def code_dtype(self) -> np.dtype:
        """The NumPy type of codes: uint8, uint16 or uint32."""
        return dtype_for(self.storage_bits)

    @property
    def sign_mask(self) -> int:
        """The sign bit of an unpadded code; 0 when unsigned."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def precision(self) -> int:
        """Significant bits of a normal number, p = M + 1."""
        return self.mantissa_bits + 1

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number (and of the subnormals' leading position)."""
        return (1 if self.has_subnormals else 0) - self.bias

    @property
    def emax(self) -> int:
        """Exponent of the largest finite number: floor(log2(max))."""
        return self._exponent_of(self.max_magnitude_code)

    def _exponent_of(self, magnitude_code: int) -> int:
        e_field = magnitude_code >> self.mantissa_bits
        if self.has_subnormals and e_field == 0:
            return magnitude_code.bit_length() - 1 - self.mantissa_bits + 1 - self.bias
        return e_field - self.bias

    @property
    def ties_to_larger(self) -> bool:
        """Whether `nearest_even` sends a tie to the larger magnitude: in E8M0 every significand is 1, none is even.

        IEEE 754-2019 4.3.1 says so for one significant digit; ml_dtypes and torch agree. P3109's formats of precision 1
        have a zero and take the even code, as that standard says.
        """
        return self.mantissa_bits == 0 and not self.has_subnormals

    # --- special codes ----------------------------------------------------------------------------------

    @property
    def max_magnitude_code(self) -> int:
        """The unpadded code of the largest finite number."""
        e, m = self.exponent_bits, self.mantissa_bits
        if self.nan == "ieee":
            return (((1 << e) - 1) << m) - 1
        top = (1 << (e + m)) - 1
        return top - (self.nan in ("outermost", "top")) - self.has_inf

    @property
    def has_nan(self) -> bool:
        return self.nan != "none"

    @property
    def has_negative_zero(self) -> bool:
        return self.signed and self.nan != "negative_zero"

    @property
    def has_zero(self) -> bool:
        return self.has_subnormals

    @cached_property
    def nan_codes(self) -> tuple[int, ...]:
        """Every stored code that decodes to NaN, ascending.

        Raises:
            ValueError: formats wider than 20 bits; float32 has 2^24 of them.
        """
        if self.bits > 20:
            raise QsimError(
                f"{self.name} has too many NaN codes to list; they lie above inf_code and have nan_code last"
            )
        mags: list[int]
        n = 1 << (self.exponent_bits + self.mantissa_bits)
        if self.nan == "none":
            return ()
        if self.nan == "negative_zero":
            return (self.sign_mask << self.padding_bits,)
        if self.nan in ("outermost", "top"):
            mags = [n - 1]
        else:
            mags = list(range(self.max_magnitude_code + 1 + self.has_inf, n))
        signs = (0, self.sign_mask) if self.signed else (0,)
        return tuple((s | m) << self.padding_bits for s in signs for m in mags)

    @property
    def nan_code(self) -> int | None:
        """The canonical NaN, as NVIDIA hardware writes it: all magnitude bits set (0x7F, 0x7FFF), sign clear.

        For `negative_zero` formats it is their only NaN, 0x80. None when the format has none.
        """
        if self.nan == "none":
            return None
        if self.nan == "negative_zero":
            return self.sign_mask << self.padding_bits
        return ((1 << (self.exponent_bits + self.mantissa_bits)) - 1) << self.padding_bits

    @property
    def inf_code(self) -> int | None:
        """The stored code of +Inf, or None."""
        return (self.max_magnitude_code + 1) << self.padding_bits if self.has_inf else None

    @property
    def max_code(self) -> int:
        """The stored code of the largest finite value."""
        return self.max_magnitude_code << self.padding_bits

    # --- values -----------------------------------------------------------------------------------------

    def fraction(self, magnitude_code: int) -> Fraction:
        """The exact value of a finite, unpadded, non-negative code."""
        m = self.mantissa_bits
        e_field, mantissa = magnitude_code >> m, magnitude_code & ((1 << m) - 1)
        hidden = 0 if (self.has_subnormals and e_field == 0) else 1 << m
        exponent = max(e_field, 1 if self.has_subnormals else 0) - self.bias - m
        return Fraction(hidden + mantissa) * Fraction(2) ** exponent

    @property
    def max(self) -> float:
        """Largest finite value."""
        return float(self.fraction(self.max_magnitude_code))

    @property
    def min(self) -> float:
        """Smallest (most negative) finite value; for an unsigned format 0, or E8M0's 2^-127."""
        return -self.max if self.signed else float(self.fraction(0))

    @property
    def smallest_normal(self) -> float:
        return math.ldexp(1.0, self.min_exponent)

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value. Without subnormals it is the smallest normal, as in `numpy.finfo`."""
        return math.ldexp(1.0, self.min_exponent - (self.mantissa_bits if self.has_subnormals else 0))

    @property
    def tiny(self) -> float:
        """`numpy.finfo`'s name for `smallest_normal`."""
        return self.smallest_normal

    @property
    def eps(self) -> float:
        """Spacing just above 1: 2^-M."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        return self.eps

    @property
    def nmant(self) -> int:
        """`numpy.finfo`'s name for `mantissa_bits`."""
        return self.mantissa_bits

    @property
    def nexp(self) -> int:
        """`numpy.finfo`'s name for `exponent_bits`."""
        return self.exponent_bits

    @property
    def minexp(self) -> int:
        """`numpy.finfo`'s name for `min_exponent`."""
        return self.min_exponent

    @property
    def maxexp(self) -> int:
        """`numpy.finfo`'s meaning: the smallest power of two that overflows, emax + 1."""
        return self.emax + 1

    @property
    def finite_count(self) -> int:
        """Number of distinct finite values; +0 and -0 count once."""
        n = self.max_magnitude_code + 1
        return 2 * n - 1 if self.signed else n

    @cached_property
    def values(self) -> np.ndarray:
        """All distinct finite values in ascending order, float64, shape (finite_count,).

        Raises:
            ValueError: formats wider than 20 bits, whose table would not be of use.
        """
        if self.bits > 20:
            raise QsimError(f"{self.name} has {self.finite_count} values; a table is made for up to 20 bits")
        m = self.mantissa_bits
        codes = np.arange(self.max_magnitude_code + 1)
        e_field, mantissa = codes >> m, codes & ((1 << m) - 1)
        subnormal = (e_field == 0) & self.has_subnormals
        significand = np.where(subnormal, mantissa, mantissa + (1 << m)).astype(np.float64)
        exponent = np.maximum(e_field, int(self.has_subnormals)) - self.bias - m
        positive = np.ldexp(significand, exponent)
        table = np.concatenate([-positive[:0:-1], positive]) if self.signed else positive
        table.setflags(write=False)
        return table
