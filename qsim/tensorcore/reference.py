"""Matrix instructions one output at a time, in exact integers: slow and obviously right.

The algorithms are those of MMA-Sim (arXiv:2511.10909) and of Khattak & Mikaitis (arXiv:2512.07004), as confirmed bit
for bit by recordings on an NVIDIA H200. `exact`, `fast` and `other` hold the fast twins; only tests and teaching call
this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from qsim.formats import BlockFormat, FloatFormat

from .model import CANONICAL_NAN, Instruction, Rounding, get_instruction


@dataclass(frozen=True, kw_only=True)
class Operand:
    """A decoded number: (-1)^negative * significand * 2^(exponent - fraction_bits). Subnormals are not normalised."""

    kind: Literal["finite", "inf", "nan"]
    negative: bool
    significand: int
    exponent: int
    fraction_bits: int

    @property
    def value(self) -> Fraction:
        magnitude = self.significand * Fraction(2) ** (self.exponent - self.fraction_bits)
        return -magnitude if self.negative else magnitude


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a step after alignment: `aligned` units of 2^(Emax - F), `lost` is what truncation dropped."""

    label: str
    negative: bool
    significand: int
    fraction_bits: int
    exponent: int
    is_zero: bool
    aligned: int
    lost: Fraction


@dataclass(frozen=True, kw_only=True)
class Step:
    """One fused dot product: its terms, the largest exponent, the exact sum of the aligned terms, and the result.

    `terms` is empty when an Inf or NaN decides the result.
    """

    terms: tuple[Term, ...]
    max_exponent: int
    unit_exponent: int
    total: int
    bits: int
    note: str = ""


def decode(fmt: FloatFormat, code: int) -> Operand:
    """A code to sign, significand and exponent; padding bits (the low 13 of a TF32 word) are cleared first."""
    code >>= fmt.padding_bits
    negative = bool(code & fmt.sign_mask)
    magnitude = code & ~fmt.sign_mask
    m = fmt.mantissa_bits
    kind: Literal["finite", "inf", "nan"] = "finite"
    if is_nan(fmt, code):
        kind = "nan"
    elif fmt.has_inf and magnitude << fmt.padding_bits == fmt.inf_code:
        kind = "inf"
    field, mantissa = magnitude >> m, magnitude & ((1 << m) - 1)
    normal = field > 0 or not fmt.has_subnormals
    return Operand(
        kind=kind,
        negative=negative,
        significand=mantissa + (1 << m if normal else 0),
        exponent=(field if normal else 1) - fmt.bias,
        fraction_bits=m,
    )


def is_nan(fmt: FloatFormat, code: int) -> bool:
    """Whether an unpadded code is a NaN."""
    magnitude = code & ~fmt.sign_mask
    match fmt.nan:
        case "none":
            return False
        case "negative_zero":
            return code == fmt.sign_mask
        case "ieee":
            return magnitude > fmt.max_magnitude_code + 1
        case _:  # outermost, top
            return magnitude == (1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1


def special_result(pairs: Sequence[tuple[Operand, ...]], c: Operand, fmt: FloatFormat, nan: int) -> int | None:
    """The result's bits when an Inf or NaN takes part, else None. `pairs` are the factors of each product."""
    infinities = set()
    for factors in (*pairs, (c,)):
        if any(f.kind == "nan" for f in factors):
            return nan
        if any(f.kind == "inf" for f in factors):
            if any(f.kind == "finite" and f.significand == 0 for f in factors):
                return nan
            infinities.add(sum(f.negative for f in factors) % 2)
    if len(infinities) == 2:
        return nan
    if infinities:
        return _infinity(infinities.pop() == 1, fmt)
    return None


def _infinity(negative: bool, fmt: FloatFormat) -> int:
    assert fmt.inf_code is not None
    return (fmt.sign_mask if negative else 0) | fmt.inf_code


def round_sum(total: int, exponent: int, rounding: Rounding, fmt: FloatFormat, *, negative_zero: bool = False) -> int:
    """total * 2^exponent rounded to `rounding` and stored as a code of `fmt`. A zero result is +0 unless asked."""
    negative, magnitude = total < 0, abs(total)
    sign = fmt.sign_mask if negative else 0
    if magnitude == 0:
        return 0
    top = magnitude.bit_length() - 1 + exponent
    unit = max(top, fmt.min_exponent) - rounding.fraction_bits
    shift = exponent - unit
    if shift >= 0:
        quotient = magnitude << shift
    else:
        quotient, rest = magnitude >> -shift, magnitude & ((1 << -shift) - 1)
        half = 1 << (-shift - 1)
        if rounding.to_nearest and (rest > half or (rest == half and quotient & 1)):
            quotient += 1
    if quotient == 0:
        return sign if negative_zero else 0
    top = quotient.bit_length() - 1 + unit
    if top > fmt.emax:
        return _infinity(negative, fmt)
    shift = unit - (max(top, fmt.min_exponent) - fmt.mantissa_bits)
    significand = quotient << shift if shift >= 0 else quotient >> -shift  # exact: bits below the rounding are zero
    if top < fmt.min_exponent:
        return sign | significand
    return sign | (top + fmt.bias) << fmt.mantissa_bits | (significand - (1 << fmt.mantissa_bits))


def _align(label: str, negative: bool, m: int, p: int, e: int, zero: bool, unit_exponent: int) -> Term:
    """Shift a term m * 2^(e - p) onto the unit 2^unit_exponent, dropping what is below (magnitudes, no sticky bit)."""
    shift = e - p - unit_exponent
    aligned = m << shift if shift >= 0 else m >> -shift
    lost = (m - (aligned << -shift)) * Fraction(2) ** (e - p) if shift < 0 else Fraction(0)
    return Term(
        label=label,
        negative=negative,
        significand=m,
        fraction_bits=p,
        exponent=e,
        is_zero=zero,
        aligned=aligned,
        lost=lost,
    )


def truncated_step(
    ins: Instruction, a: Sequence[int], b: Sequence[int], c: int, scales: Sequence[tuple[Operand, Operand]] = ()
) -> Step:
    """One step of the truncated fused dot product; with `scales` (one pair per product) of the block-scaled one."""
    fmt_a, fmt_b, fmt_c = ins.format_a, ins.format_b, ins.output_format
    assert isinstance(fmt_a, FloatFormat)
    assert isinstance(fmt_b, FloatFormat)
    factors = [(decode(fmt_a, x), decode(fmt_b, y)) for x, y in zip(a, b, strict=True)]
    addend = decode(fmt_c, c)
    with_scales = [(*f, *s) for f, s in zip(factors, scales, strict=True)] if scales else factors
    special = special_result(with_scales, addend, fmt_c, CANONICAL_NAN[ins.output])
    if special is not None:
        return Step(terms=(), max_exponent=0, unit_exponent=0, total=0, bits=special, note="Inf or NaN among the terms")
    raw = []  # (label, negative, significand, fraction bits, exponent, zero)
    if ins.group:
        raw += list(_grouped_terms(factors, scales, ins.group))
    else:
        for i, term in enumerate(with_scales):
            m, e, p = math.prod(f.significand for f in term), sum(f.exponent for f in term), _fractions(term)
            raw.append((f"{i}", sum(f.negative for f in term) % 2 == 1, m, p, e, m == 0))
    raw.append(
        ("c", addend.negative, addend.significand, addend.fraction_bits, addend.exponent, addend.significand == 0)
    )
    zero_exponent = ins.zero_exponent
    exponents = [e if not zero else zero_exponent for *_, e, zero in raw if not (zero and zero_exponent is None)]
    e_max = max((e for e in exponents if e is not None), default=0)
    unit = e_max - ins.fraction_bits
    terms = tuple(
        _align(label, neg, m, p, e if not zero or zero_exponent is None else zero_exponent, zero, unit)
        for label, neg, m, p, e, zero in raw
    )
    total = sum(-t.aligned if t.negative else t.aligned for t in terms)
    bits = round_sum(total, unit, ins.sum_rounding, fmt_c)
    return Step(terms=terms, max_exponent=e_max, unit_exponent=unit, total=total, bits=bits)


def _fractions(factors: Sequence[Operand]) -> int:
    return sum(f.fraction_bits for f in factors)


def _grouped_terms(
    factors: Sequence[tuple[Operand, Operand]], scales: Sequence[tuple[Operand, Operand]], group: int
) -> Iterator[tuple[str, bool, int, int, int, bool]]:
    """mxf4nvf4: the products of a group are summed exactly, times the scale significands, at the scales' exponent."""
    for start in range(0, len(factors), group):
        members = factors[start : start + group]
        scale = scales[start]
        # every product on the unit 2^(2*min_exponent - fractions), which all of them are multiples of
        unit = min(sum(f.exponent for f in pair) for pair in members)
        p = _fractions(members[0])
        total = sum(
            math.prod(-f.significand if f.negative else f.significand for f in pair)
            << (sum(f.exponent for f in pair) - unit)
            for pair in members
        )
        m = total * math.prod(s.significand for s in scale)
        # a group whose products cancel is not a zero term: it keeps the scales' exponent
        all_zero = all(f.significand == 0 or g.significand == 0 for f, g in members)
        zero = all_zero or any(s.significand == 0 for s in scale)
        # exact sum sits at the scales' exponent; `unit` only moves the binary point
        yield (
            f"{start}..{start + group - 1}",
            m < 0,
            abs(m),
            p + _fractions(scale) - unit,
            sum(s.exponent for s in scale),
            zero,
        )


def steps(
    ins: Instruction, a: Sequence[int], b: Sequence[int], c: int, scales: Sequence[tuple[Operand, Operand]] = ()
) -> Iterator[Step]:
    """The chain of steps of one output over all of K, in the order of the hardware."""
    for start in range(0, len(a), ins.products):
        part = slice(start, start + ins.products)
        step = truncated_step(ins, a[part], b[part], c, scales[part] if scales else ())
        yield step
        c = step.bits


def dot(
    ins: Instruction, a: Sequence[int], b: Sequence[int], c: int, scales: Sequence[tuple[Operand, Operand]] = ()
) -> int:
    """One output d = a . b + c: codes and bits in, bits out."""
    from .reference_other import OTHER  # the models beside the truncated sum

    if ins.arithmetic in ("truncated", "scaled", "grouped"):
        for step in steps(ins, a, b, c, scales):
            c = step.bits
        return c
    return OTHER[ins.arithmetic](ins, a, b, c)


def mma(
    instruction: str | Instruction,
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    scale_a: np.ndarray | None = None,
    scale_b: np.ndarray | None = None,
) -> np.ndarray:
    """What `qsim.tensorcore.mma` computes, for two-dimensional arrays and without checks."""
    ins = get_instruction(instruction)
    out = np.empty_like(c)
    rows, columns, k = a.shape[0], b.shape[0], a.shape[1]
    row_scales = _scales(ins.block_a, scale_a, rows, k)
    column_scales = _scales(ins.block_b, scale_b, columns, k)
    a_codes, b_codes = a.tolist(), b.tolist()
    for i in range(rows):
        for j in range(columns):
            pairs = list(zip(row_scales[i], column_scales[j], strict=True)) if row_scales else []
            out[i, j] = dot(ins, a_codes[i], b_codes[j], int(c[i, j]), pairs)
    return out


def _scales(block: BlockFormat | None, scales: np.ndarray | None, rows: int, k: int) -> list[list[Operand]]:
    """The decoded scale of every element of every row."""
    if block is None:
        return []
    assert scales is not None
    # UE4M3 scales are E4M3 codes whose sign bit is ignored
    mask = ~block.scale.sign_mask
    return [
        [decode(block.scale, int(scales[i, kk // block.block_size]) & mask) for kk in range(k)] for i in range(rows)
    ]
