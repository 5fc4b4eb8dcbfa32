"""The models beside NVIDIA's truncated sum, one output at a time: integers, FMA chains, AMD's CDNA, emulation.

Source of the CDNA models: MMA-Sim, arXiv:2511.10909 (not checked on hardware by us).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from qsim.formats import FloatFormat

from .model import CANONICAL_NAN, Instruction, get_instruction
from .reference import Operand, decode, dot, round_sum, special_result


def _decoded(ins: Instruction, a: Sequence[int], b: Sequence[int]) -> list[tuple[Operand, Operand]]:
    assert isinstance(ins.format_a, FloatFormat)
    assert isinstance(ins.format_b, FloatFormat)
    return [(decode(ins.format_a, x), decode(ins.format_b, y)) for x, y in zip(a, b, strict=True)]


def _product(factors: tuple[Operand, Operand]) -> tuple[int, int, int]:
    """Signed significand, exponent and fraction bits of a product, not renormalised."""
    x, y = factors
    m = x.significand * y.significand
    return (-m if x.negative != y.negative else m), x.exponent + y.exponent, x.fraction_bits + y.fraction_bits


def _on_common_unit(values: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Exact sum of (integer, exponent of its unit) pairs, as one such pair."""
    unit = min(u for _, u in values)
    return sum(v << (u - unit) for v, u in values), unit


def _integer(ins: Instruction, a: Sequence[int], b: Sequence[int], c: int) -> int:
    """Exact int32 accumulation, one instruction (K of the row) after another; wraps modulo 2^32 or clamps."""
    for start in range(0, len(a), ins.k):
        c += sum(x * y for x, y in zip(a[start : start + ins.k], b[start : start + ins.k], strict=True))
        c = max(-(2**31), min(2**31 - 1, c)) if ins.satfinite else (c + 2**31) % 2**32 - 2**31
    return c


def _fma_step(ins: Instruction, factors: tuple[Operand, Operand], addend: Operand) -> int:
    fmt = ins.output_format
    special = special_result([factors], addend, fmt, CANONICAL_NAN[ins.output])
    if special is not None:
        return special
    m, e, p = _product(factors)
    product_negative = factors[0].negative != factors[1].negative
    c = -addend.significand if addend.negative else addend.significand
    total, unit = _on_common_unit([(m, e - p), (c, addend.exponent - addend.fraction_bits)])
    if total == 0:  # IEEE 754: the sum of two zeros of one sign keeps it, every other exact zero is +0
        return fmt.sign_mask if (m == 0 and c == 0 and product_negative and addend.negative) else 0
    return round_sum(total, unit, ins.sum_rounding, fmt, negative_zero=True)


def _fma64(a: float, b: float, c: float) -> float:
    """A float64 fused multiply-add through exact fractions."""
    if not all(np.isfinite(v) for v in (a, b, c)):
        with np.errstate(invalid="ignore", over="ignore"):
            product = np.sign(a) * np.sign(b) * np.inf if not (np.isfinite(a) and np.isfinite(b)) else 0.0
            if (a == 0 or b == 0) and not (np.isfinite(a) and np.isfinite(b)):
                return float("nan")
            return float(np.float64(product) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        with np.errstate(under="ignore"):
            zero_product = a == 0 or b == 0
            sign = np.copysign(1.0, a) * np.copysign(1.0, b)
            return -0.0 if zero_product and sign < 0 and np.signbit(c) else 0.0
    try:
        # Fraction to float is correctly rounded to nearest even
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _fma(ins: Instruction, a: Sequence[int], b: Sequence[int], c: int) -> int:
    """A chain of fused multiply-adds in k order: IEEE 754, round to nearest even."""
    if ins.output == "f64":
        x, y = (np.array(v, np.uint64).view(np.float64).tolist() for v in (a, b))
        acc = float(np.uint64(c).view(np.float64))
        for xk, yk in zip(x, y, strict=True):
            acc = _fma64(xk, yk, acc)
        return 0x7FF8000000000000 if acc != acc else int(np.float64(acc).view(np.uint64))
    for factors in _decoded(ins, a, b):
        c = _fma_step(ins, factors, decode(ins.output_format, c))
    return c


def _exact(ins: Instruction, a: Sequence[int], b: Sequence[int], c: int) -> int:
    """Exact sum of L products and C, then one rounding (CDNA1; ideal hardware)."""
    fmt = ins.output_format
    factors = _decoded(ins, a, b)
    for start in range(0, len(a), ins.products):
        part, addend = factors[start : start + ins.products], decode(fmt, c)
        special = special_result(part, addend, fmt, CANONICAL_NAN[ins.output])
        if special is not None:
            c = special
            continue
        terms = [(m, e - p) for m, e, p in map(_product, part)]
        terms.append(
            (-addend.significand if addend.negative else addend.significand, addend.exponent - addend.fraction_bits)
        )
        total, unit = _on_common_unit(terms)
        c = round_sum(total, unit, ins.sum_rounding, fmt)
    return c


def _emulated(ins: Instruction, a: Sequence[int], b: Sequence[int], c: int) -> int:
    """mma.sync FP8 on sm_90 and sm_100: FP16 instructions from +0 over a permuted k, then C is added, to nearest."""
    worker = get_instruction(ins.emulated_by)
    fmt_a, fmt_b, fmt_c = ins.format_a, ins.format_b, ins.output_format
    assert isinstance(fmt_a, FloatFormat)
    assert isinstance(fmt_b, FloatFormat)
    for start in range(0, len(a), ins.k):
        order = [start + position for position in ins.k_order]
        x = [_as_f16(fmt_a, a[k]) for k in order]
        y = [_as_f16(fmt_b, b[k]) for k in order]
        c = add(dot(worker, x, y, 0), c, fmt_c, CANONICAL_NAN[ins.output])
    return c


def _as_f16(fmt: FloatFormat, code: int) -> int:
    """An FP8 code as an f16 code: cvt.rn.f16x2.e4m3x2, exact."""
    x = decode(fmt, code)
    sign = 0x8000 if x.negative else 0
    if x.kind == "nan":
        return 0x7FFF
    if x.kind == "inf":
        return sign | 0x7C00
    value = float(abs(x.value))
    return sign | int(np.float16(value).view(np.uint16))


def add(x: int, y: int, fmt: FloatFormat, nan: int) -> int:
    """IEEE addition of two codes, to nearest even (FADD, HADD2), with NVIDIA's canonical NaN."""
    first, second = decode(fmt, x), decode(fmt, y)
    one = Operand(kind="finite", negative=False, significand=1, exponent=0, fraction_bits=0)
    special = special_result([(first, one)], second, fmt, nan)
    if special is not None:
        return special
    values = [(-v.significand if v.negative else v.significand, v.exponent - v.fraction_bits) for v in (first, second)]
    total, unit = _on_common_unit(values)
    if total == 0:
        return fmt.sign_mask if first.negative and second.negative else 0
    from .model import Rounding

    return round_sum(total, unit, Rounding(to_nearest=True, fraction_bits=fmt.mantissa_bits), fmt, negative_zero=True)


def _floor_shift(value: int, shift: int) -> int:
    return value << shift if shift >= 0 else value >> -shift  # Python's >> rounds to minus infinity


def _truncate_shift(value: int, shift: int) -> int:
    if shift >= 0:
        return value << shift
    return -(-value >> -shift) if value < 0 else value >> -shift


def _truncated_products(ins: Instruction, products: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Sum of products truncated at F bits below the largest exponent; zeros do not take part. (total, exponent)."""
    nonzero = [e for m, e, _ in products if m]
    if not nonzero:
        return 0, -999
    e_max = max(nonzero)
    return sum(_truncate_shift(m, ins.fraction_bits + e - e_max - p) for m, e, p in products), e_max


def _floored(ins: Instruction, a: Sequence[int], b: Sequence[int], c: int) -> int:
    """CDNA3: products truncated and summed, the sum and C re-aligned with floor, then to nearest even."""
    fmt, big_f, wide = ins.output_format, ins.fraction_bits, ins.sum_fraction_bits
    factors = _decoded(ins, a, b)
    for start in range(0, len(a), ins.products):
        part, addend = factors[start : start + ins.products], decode(fmt, c)
        infinite = _overflowing(part) if ins.arithmetic == "floored" else part
        special = special_result(infinite, addend, fmt, CANONICAL_NAN[ins.output])
        if special is not None:
            c = special
            continue
        products = [_product(f) for f in part]
        if ins.arithmetic == "floored":
            dot_sum, e_dot = _truncated_products(ins, products)
        else:
            halves = [_truncated_products(ins, products[parity::2]) for parity in (0, 1)]
            e_dot = max(e for _, e in halves)
            dot_sum = sum(_floor_shift(s, e - e_dot) for s, e in halves)
        e_c = addend.exponent
        e_max = max(e_dot, e_c)
        dot_aligned = _floor_shift(dot_sum, e_dot - e_max + wide + 1 - big_f)  # unit 2^(e_max - wide - 1)
        signed_c = -addend.significand if addend.negative else addend.significand
        c_aligned = _floor_shift(signed_c, e_c - e_max + big_f - addend.fraction_bits)  # unit 2^(e_max - F)
        if ins.arithmetic == "floored_even_odd" and e_c < e_max - big_f - 1:
            c_aligned = 0
        total = dot_aligned + (c_aligned << (wide + 1 - big_f))
        if total:
            unit = e_max - wide - 1
            top = max(abs(total).bit_length() - 1 + unit, fmt.min_exponent)
            total, unit = _floor_shift(total, unit - (top - wide)), top - wide
            c = round_sum(total, unit, ins.sum_rounding, fmt, negative_zero=True)
        else:
            c = 0
    return c


def _overflowing(part: Sequence[tuple[Operand, Operand]]) -> list[tuple[Operand, ...]]:
    """CDNA3 16-bit products of 2^128 and more count as infinite."""
    out: list[tuple[Operand, ...]] = []
    for x, y in part:
        if x.kind == "finite" and y.kind == "finite" and abs(x.value * y.value) >= Fraction(2) ** 128:
            x = Operand(kind="inf", negative=x.negative, significand=1, exponent=0, fraction_bits=0)
        out.append((x, y))
    return out


def _flushed(value: np.float32, keep_sign: bool) -> np.float32:
    if abs(value) < np.float32(2.0**-126):
        return np.float32(value * np.float32(0.0)) if keep_sign else np.float32(0.0)
    return value


def _flushed_pairs(ins: Instruction, a: Sequence[int], b: Sequence[int], c: int) -> int:
    """CDNA2: float32 products and pairwise float32 sums of 2 or 4, subnormal inputs and results flushed to zero."""
    with np.errstate(all="ignore"):
        acc = _flushed(np.uint32(c).view(np.float32), False)
        products = [_flushed_product(x, y, ins) for x, y in _decoded(ins, a, b)]
        for start in range(0, len(products), ins.products):
            part = products[start : start + ins.products]
            while len(part) > 1:
                part = [_flushed(part[i] + part[i + 1], True) for i in range(0, len(part), 2)]
            acc = _flushed(np.float32(acc + part[0]), True)
        return CANONICAL_NAN["f32"] if np.isnan(acc) else int(np.float32(acc).view(np.uint32))


def _flushed_product(x: Operand, y: Operand, ins: Instruction) -> np.float32:
    values = []
    for operand, fmt in ((x, ins.format_a), (y, ins.format_b)):
        assert isinstance(fmt, FloatFormat)
        if operand.kind == "nan":
            values.append(np.float32(np.nan))
        elif operand.kind == "inf":
            values.append(np.float32(-np.inf if operand.negative else np.inf))
        else:
            value = np.float32(float(operand.value))
            if operand.significand == 0 and operand.negative:
                value = np.float32(-0.0)
            values.append(np.float32(0.0) if abs(value) < 2.0**fmt.min_exponent else value)
    return _flushed(np.float32(values[0] * values[1]), True)


OTHER: dict[str, Callable[[Instruction, Sequence[int], Sequence[int], int], int]] = {
    "integer": _integer,
    "fma": _fma,
    "exact": _exact,
    "emulated": _emulated,
    "floored": _floored,
    "floored_even_odd": _floored,
    "flushed_pairs": _flushed_pairs,
}
