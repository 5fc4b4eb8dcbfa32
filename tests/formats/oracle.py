"""Oracles that share no code with the codec, and the inputs that every comparison uses."""

from __future__ import annotations

import numpy as np

from qsim.formats import ElementFormat, FloatFormat

ALL_ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd")


def bfloat16_patterns() -> np.ndarray:
    """All 65,536 bfloat16 patterns as float32."""
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


def float16_patterns() -> np.ndarray:
    """All 65,536 float16 patterns as float32 (NaN payloads are not kept)."""
    with np.errstate(invalid="ignore"):
        return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def edges(fmt: ElementFormat, dtype: type) -> np.ndarray:
    """Every value, every midpoint, and what lies beside them in `dtype`; the end of the range, and specials."""
    values = np.unique(fmt.values)
    spacing = values[-1] - values[-2]
    beyond = np.array(
        [values[-1] + spacing, values[-1] + spacing / 2, values[-1] * 4, values[0] - spacing, values[0] * 4]
    )
    middles = (values[:-1] + values[1:]) / 2
    tiny = np.array([np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny, fmt.smallest_subnormal / 4])
    points = np.concatenate([values, middles, beyond, beyond + spacing / 4, tiny, -tiny, [0.0, -0.0, 1e30, -1e30]])
    with np.errstate(over="ignore"):
        points = points.astype(dtype)
    around = [np.nextafter(points, dtype(np.inf)), np.nextafter(points, dtype(-np.inf))]
    limits = np.array([np.finfo(dtype).max, -np.finfo(dtype).max, np.inf, -np.inf], dtype)
    return np.unique(np.concatenate([points, *around, limits]))


def nearest_even_by_table(x: np.ndarray, fmt: FloatFormat, overflow: str) -> np.ndarray:
    """Codes by search over the table of exact values: midpoints are exact in float64 for formats up to 16 bits."""
    positive = np.array([float(fmt.fraction(c)) for c in range(fmt.max_magnitude_code + 1)])
    over = float((fmt.fraction(fmt.max_magnitude_code) + fmt.fraction(fmt.max_magnitude_code + 1)) / 2)
    magnitude = np.abs(x.astype(np.float64))
    middles = np.append((positive[:-1] + positive[1:]) / 2, over)
    low = np.searchsorted(middles, magnitude, side="left")  # a tie counts as below
    tie = magnitude == middles[np.minimum(low, middles.size - 1)]
    codes = low + (tie & (low % 2 == 1))
    negative = np.signbit(x)
    too_large = codes > fmt.max_magnitude_code
    sign = np.where(negative, fmt.sign_mask, 0)
    if overflow == "saturate":
        codes = np.minimum(codes, fmt.max_magnitude_code)
    else:
        special = fmt.max_magnitude_code + 1 if fmt.has_inf else fmt.nan_code
        codes = np.where(too_large, special, codes)
        if fmt.nan == "negative_zero" and not fmt.has_inf:
            sign = np.where(too_large, 0, sign)
    if not fmt.has_negative_zero:
        sign = np.where(codes == 0, 0, sign)
    return (codes | sign) << fmt.padding_bits
