"""The one scale rule of weights with minima or superblocks: GGUF's Q4_1, Q5_1 and its K-quants.

A minimum is subtracted after scaling, value = code * scale - minimum. In a superblock scales (and minima) are integers
times one float16 number, so that small groups cost little: Q4_K has groups of 32 with 6-bit scales and minima, 256
values to a superblock, 4.5 bits in all.

Every code is the nearest to its value under the scale as it is stored, rounded to float16 or to an integer of the
superblock; scales are those of a short search with the smallest square error, as llama.cpp's quantisers do it.

Source of the shapes: ggml's `ggml-common.h`; of the searches: `ggml-quants.c`, `make_qkx2_quants`, `make_qx_quants`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsim.errors import QsimError
from qsim.formats import IntFormat, get_format

from .bits import bits_of
from .tensor_scheme import TensorScheme

F32, U8 = np.float32, np.uint8
ABOVE = get_format("float16")
"""The format of a superblock's number."""
_PIECE = 1 << 18  # values at a time: the steps stay in the cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """B superblocks of S values in groups of g; without a superblock, S is g.

    Arguments:
        codes: (B, S) uint8; two's complement where there is no minimum.
        scales, minima: (B, S/g) float32: the integers of a superblock, or float16 numbers without one; `minima` is None
            for symmetric codes.
        super_scales, super_minima: (B, 1) float32, what a superblock's integers are multiplied by; else None.
    """

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray | None = None
    super_scales: np.ndarray | None = None
    super_minima: np.ndarray | None = None

    def fields(self, shape: tuple[int, ...], how: TensorScheme) -> dict[str, np.ndarray | None]:
        """The arrays of a `QuantizedTensor` of that shape and scheme. Its scales are codes, those of a superblock the
        integers; its minima are products, which are exact."""

        def rows(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else np.ascontiguousarray(values, F32).reshape(*shape[:-1], -1)

        def product(values: np.ndarray | None, above: np.ndarray | None) -> np.ndarray | None:
            return rows(values if values is None or above is None else above * values)

        fmt = how.scale_format
        scales = unsigned(self.scales, fmt) if isinstance(fmt, IntFormat) else bits_of(self.scales, fmt, "scale")
        return {
            "codes": np.ascontiguousarray(self.codes).reshape(shape), "scale_codes": scales.reshape(*shape[:-1], -1),
            "minima": product(self.minima, self.super_minima), "super_scales": rows(self.super_scales),
            "super_minima": rows(self.super_minima),
        }  # fmt: skip


def find(x: np.ndarray, how: TensorScheme) -> dict[str, np.ndarray | None]:
    """Codes and scales of float32 values (..., K) under a scheme with a rule of its own: fields of `QuantizedTensor`.

    Raises:
        QsimError: values that need a scale beyond float16.
    """
    size = _size(how)
    blocks = np.ascontiguousarray(x, F32).reshape(-1, size)
    step = max(_PIECE // size, 1)
    pieces = [blocks[i : i + step] for i in range(0, len(blocks), step)]
    found = [blocks_of(piece, how).fields(piece.shape, how) for piece in pieces]
    joined = {key: [array for one in found if (array := one[key]) is not None] for key in found[0]}
    return {key: np.concatenate(some).reshape(*x.shape[:-1], -1) if some else None for key, some in joined.items()}


def _size(how: TensorScheme) -> int:
    size = how.superblock or how.group_size
    assert size is not None, "such a scheme has groups"
    return size


def blocks_of(x: np.ndarray, how: TensorScheme) -> Blocks:
    """As `find`, for superblocks (B, S) float32."""
    assert how.group_size is not None
    parts, bits = x.reshape(-1, how.group_size), how.bits
    scale_format = how.scale_format if isinstance(how.scale_format, IntFormat) else None
    count = (x.shape[0], -1)
    if how.symmetric:
        half = 1 << (bits - 1)
        wanted = symmetric_scales(parts, half).reshape(count)
        assert scale_format is not None
        lowest = 1 << (scale_format.bits - 1)
        d = halves(largest(wanted) / F32(-lowest))
        scales = nearest(wanted, d, -lowest, lowest - 1)
        codes = nearest(parts, (d * scales).reshape(-1, 1), -half, half - 1).astype(np.int8).view(U8)
        return Blocks(codes=(codes & U8((1 << bits) - 1)).reshape(x.shape), scales=scales, super_scales=d)
    top = (1 << bits) - 1
    scales, minima = (found.reshape(count) for found in affine(parts, top))
    if scale_format is None:
        lost = scales > 0
        scales, minima = halves(scales), halves(minima)
        minima = np.where(lost & (scales == 0), F32(0), minima)
        codes = nearest(parts + minima, scales, 0, top).astype(U8)
        return Blocks(codes=codes, scales=scales, minima=minima)
    most = (1 << scale_format.bits) - 1
    d, low = (halves(found.max(axis=1, keepdims=True) / F32(most)) for found in (scales, minima))
    lost = (d == 0) & (scales.max(axis=1, keepdims=True) > 0)  # below float16's smallest number
    low = np.where(lost, F32(0), low)  # zeros, not the minimum everywhere
    scales, minima = nearest(scales, d, 0, most), nearest(minima, low, 0, most)
    codes = nearest(parts + (low * minima).reshape(-1, 1), (d * scales).reshape(-1, 1), 0, top).astype(U8)
    return Blocks(codes=codes.reshape(x.shape), scales=scales, minima=minima, super_scales=d, super_minima=low)


def products(integers: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Scales or minima (..., G) from their integers and the number of each superblock (..., G/n): float32, exact."""
    return np.repeat(above, integers.shape[-1] // above.shape[-1], axis=-1) * integers.astype(F32)


def signed(codes: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """Integers of codes, which are two's complement where the format is signed."""
    half = 1 << (fmt.bits - 1)
    return (codes.astype(np.int16) ^ half) - half if fmt.signed else codes.astype(np.int16)


def unsigned(integers: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """The inverse of `signed`: uint8 codes of whole numbers."""
    return integers.astype(np.int16).astype(U8) & U8((1 << fmt.bits) - 1)


def integers(values: np.ndarray, above: np.ndarray, fmt: IntFormat, what: str) -> np.ndarray:
    """The integers of superblocks: `values` (..., G) over the float16 number of each superblock (..., G/n).

    Returns:
        float32 (..., G), whole numbers.

    Raises:
        QsimError: a product that is none of an integer of the format.
    """
    wide = np.repeat(above, values.shape[-1] // above.shape[-1], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(wide == 0, F32(0), np.rint(values / wide)).astype(F32)
    low, high = (-(1 << (fmt.bits - 1)), (1 << (fmt.bits - 1)) - 1) if fmt.signed else (0, (1 << fmt.bits) - 1)
    wrong = (found * wide != values) | (found < low) | (found > high)
    if wrong.any():
        raise QsimError(
            f"{what} of a superblock must be integers from {low} to {high} times its float16 number: "
            f"{values[wrong][0]!s} is none"
        )
    return found


# --- searches ---------------------------------------------------------------------------------------------------


def halves(scales: np.ndarray) -> np.ndarray:
    """Scales rounded to float16, as float32.

    Raises:
        QsimError: one is beyond float16.
    """
    with np.errstate(over="ignore"):
        rounded = scales.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise QsimError(
            f"blocks have float16 scales, up to 65504: values need one of {np.abs(scales).max():.4g}; use f32, or "
            "scale the tensor down"
        )
    return rounded.astype(F32)


def inverse(scales: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 for a scale of 0."""
    with np.errstate(divide="ignore", over="ignore"):
        found = np.where(scales == 0, F32(0), F32(1) / scales)
    return np.where(np.isfinite(found), found, F32(0)).astype(F32)


def nearest(x: np.ndarray, scales: np.ndarray, low: int, high: int) -> np.ndarray:
    """The nearest codes from `low` to `high` for a scale per row, float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.clip(np.rint(x * inverse(scales)), low, high).astype(F32)


def best_scales(x: np.ndarray, candidates: np.ndarray, low: int, high: int) -> np.ndarray:
    """Of each row's candidates (B, n), the scale whose nearest codes leave the smallest square error: (B, 1)."""
    best, least = candidates[:, :1], np.full((x.shape[0], 1), np.inf)
    for i in range(candidates.shape[1]):
        scale = candidates[:, i : i + 1]
        gap = x - nearest(x, scale, low, high) * scale
        error = np.square(gap, dtype=np.float64).sum(axis=1, keepdims=True)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return best


def largest(x: np.ndarray) -> np.ndarray:
    """The value of the largest magnitude of each row, with its sign: (B, 1)."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)


def symmetric_scales(x: np.ndarray, half: int) -> np.ndarray:
    """Scales (B, 1) of rows with codes -half to half - 1: the largest value has the lowest, or is a little beyond."""
    top, span = largest(x), F32(2 if half >= 16 else 1)
    candidates = np.concatenate([top / (F32(-half) + span * F32(step / 8)) for step in range(9)], axis=1).astype(F32)
    return best_scales(x, candidates, -half, half - 1)


def affine(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum >= 0 of each row of (B, n), for x = scale * code - minimum with codes 0 to `top`.

    A code for each of some ranges; scale and minimum that fit these codes best follow from least squares.
    """
    low = np.minimum(x.min(axis=1, keepdims=True), 0)
    high = np.maximum(x.max(axis=1, keepdims=True), low)
    count = F32(x.shape[1])
    sum_x = x.sum(axis=1, keepdims=True)
    best_scale, best_min = (high - low) / F32(top), -low
    least = np.full((x.shape[0], 1), np.inf)

    def consider(scale: np.ndarray, minimum: np.ndarray) -> None:
        nonlocal best_scale, best_min, least
        q = np.clip(np.rint((x + minimum) * inverse(scale)), 0, top)
        error = np.square(q * scale - minimum - x, dtype=np.float64).sum(axis=1, keepdims=True)
        better = (error < least) & np.isfinite(error)
        best_scale, best_min = np.where(better, scale, best_scale), np.where(better, minimum, best_min)
        least = np.where(better, error, least)

    consider(best_scale, best_min)
    for step in range(-10, 11):
        guess = (high - low) / F32(top + 0.1 * step)
        q = np.clip(np.rint((x - low) * inverse(guess)), 0, top)
        sum_q, sum_qq = q.sum(axis=1, keepdims=True), np.square(q).sum(axis=1, keepdims=True)
        sum_qx = (q * x).sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scale = (count * sum_qx - sum_q * sum_x) / (count * sum_qq - sum_q * sum_q)
            minimum = (sum_q * scale - sum_x) / count
            alone = sum_qx / sum_qq  # the best scale where the minimum must be 0
        wrong = (minimum < 0) | ~np.isfinite(minimum)
        scale, minimum = np.where(wrong, alone, scale), np.where(wrong, 0, minimum)
        usable = np.isfinite(scale) & (scale > 0)
        consider(np.where(usable, scale, best_scale).astype(F32), np.where(usable, minimum, best_min).astype(F32))
    return best_scale.astype(F32), best_min.astype(F32)
