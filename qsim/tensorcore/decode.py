"""Codes as integers times powers of two: the operands of the exact loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np

from qsim.formats import FloatFormat

from .reference import is_nan

INF, NAN = 20000, 20001
"""Exponents that mark an infinity and a NaN; no finite operand comes near."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How codes become signed significands and exponents: tables for codes up to 16 bits, fields for 32-bit words."""

    significand: np.ndarray  # int32, indexed by code
    exponent: np.ndarray  # int16
    value: np.ndarray  # float64; 0 for Inf and NaN
    fraction_bits: int
    rises: bool = False  # whether a larger magnitude code never has a smaller exponent (32-bit words: not looked at)


@lru_cache(maxsize=64)
def decoder(fmt: FloatFormat) -> Decoder:
    """Tables over all codes of a format, or over the exponent field for 32-bit words (a sign bit above it)."""
    if fmt.storage_bits == 32:
        field = np.arange(512) & 255
        exponent = (np.maximum(field, 1) - 127).astype(np.int16)
        # the significand's hidden bit and sign, to which the word's low 23 bits are added
        significand = np.where(field > 0, 1 << 23, 0).astype(np.int32)
        return Decoder(
            significand=significand, exponent=exponent, value=np.ldexp(1.0, exponent.astype(int) - 23), fraction_bits=23
        )
    codes = np.arange(1 << fmt.storage_bits)
    magnitude = (codes >> fmt.padding_bits) & ~fmt.sign_mask
    negative = ((codes >> fmt.padding_bits) & fmt.sign_mask) != 0
    field, mantissa = magnitude >> fmt.mantissa_bits, magnitude & ((1 << fmt.mantissa_bits) - 1)
    normal = (field > 0) | (not fmt.has_subnormals)
    significand = mantissa + (normal << fmt.mantissa_bits)
    exponent = np.where(normal, field, 1) - fmt.bias
    significand = np.where(negative, -significand, significand)
    value = np.ldexp(significand.astype(np.float64), exponent - fmt.mantissa_bits)
    nan = np.array([is_nan(fmt, int(c) >> fmt.padding_bits) for c in codes])
    infinite = (magnitude << fmt.padding_bits == fmt.inf_code) if fmt.has_inf else np.zeros(len(codes), bool)
    exponent = np.where(nan, NAN, np.where(infinite, INF, exponent))
    positive = exponent[: 1 << (fmt.storage_bits - 1)]
    return Decoder(
        significand=np.where(infinite, np.where(negative, -1, 1), significand).astype(np.int32),
        exponent=exponent.astype(np.int16),
        value=np.where(nan | infinite, 0.0, value),
        fraction_bits=fmt.mantissa_bits,
        rises=bool((np.diff(positive) >= 0).all() and (exponent[len(positive) :] == positive).all()),
    )


def cleared_bits(fmt: FloatFormat) -> int:
    """Mask of the bits of a code that the tensor core reads (TF32 drops the low 13)."""
    return ((1 << fmt.storage_bits) - 1) & ~((1 << fmt.padding_bits) - 1)


@numba.njit(cache=True, nogil=True)
def decode_row(
    codes: np.ndarray,
    k_index: np.ndarray,
    table: np.ndarray,
    exponents: np.ndarray,
    keep: Any,
    scale_exponent: np.ndarray,
    block: Any,
    significand_out: np.ndarray,
    exponent_out: np.ndarray,
) -> None:
    """One row of codes to signed significands and exponents in the order of `k_index` (-1 is a padding zero).

    `scale_exponent` is empty, or holds the exponents of the row's block scales, one for `block` elements (NAN for NaN).
    """
    for n in range(len(k_index)):
        k = k_index[n]
        if k < 0:
            significand_out[n] = 0
            exponent_out[n] = 0
            continue
        code = np.int64(codes[k]) & np.int64(keep)
        if codes.itemsize < 4:
            significand_out[n] = table[code]
            exponent_out[n] = exponents[code]
        else:
            field = (code >> 23) & 255
            mantissa = code & 0x7FFFFF
            if field == 255:
                significand_out[n] = 1
                exponent_out[n] = NAN if mantissa else INF
            else:
                significand_out[n] = table[field] + mantissa
                exponent_out[n] = exponents[field]
            if code >> 31:
                significand_out[n] = -significand_out[n]
        if len(scale_exponent):
            scale = scale_exponent[k // block]
            if scale == NAN:
                exponent_out[n] = NAN
            elif exponent_out[n] < INF:
                exponent_out[n] += scale


@numba.njit(cache=True, nogil=True)
def decode_rows(
    codes: np.ndarray,
    k_index: np.ndarray,
    significand: np.ndarray,
    exponent: np.ndarray,
    keep: Any,
    s: np.ndarray,
    e: np.ndarray,
) -> None:
    no_scale = np.empty(0, np.int16)
    for i in range(len(codes)):
        decode_row(codes[i], k_index, significand, exponent, keep, no_scale, 1, s[i], e[i])
