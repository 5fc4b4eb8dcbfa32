"""Block formats: elements that share a scale (MXFP8, MXFP6, MXFP4, MXINT8, NVFP4).

Sources: OCP Microscaling Formats v1.0 clause 6.3 (MX, `floor`); PTX ISA and cuBLAS block scaling (`rceil`, NVFP4);
torchao ScaleCalculationMode (`ceil`, `even`). Exponents are read from the bits: log2 in floating point gives the wrong
integer just below a power of two.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numba as nb
import numpy as np

from qsim._native.threads import for_chunks
from qsim.arrays import as_plain_array
from qsim.errors import QsimError

from . import _plans, _sources
from ._block_scales import block_amax, float32, nvfp4_factors, nvfp4_ratios, nvfp4_tensor_scale
from ._encode import f64, u64
from .catalogue import FormatLike, get_format
from .codec import decode
from .packing import packed_size
from .rounding import OVERFLOWS, ROUNDINGS, Overflow, Rounding, check_choice
from .spec import BlockFormat, FloatFormat

ScaleRule: TypeAlias = Literal["floor", "ceil", "even", "rceil"]
"""How an E8M0 scale 2^e follows from a block's largest magnitude; emax is the element format's largest exponent.

* `floor`: e = floor(log2(amax)) - emax. OCP's rule; clips when amax's significand exceeds the element's.
* `ceil`: e = ceil(log2(amax)) - emax.
* `even`: as floor, after amax has been rounded to the element's precision.
* `rceil`: the smallest e with amax <= 2^e * max: nothing clips. NVIDIA's rule.
"""

BlockNan: TypeAlias = Literal["block", "zero", "error"]
"""A NaN makes its whole block NaN (the OCP rule: the scale is NaN), counts as +0, or is an error."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockQuantized:
    """What `quantize_blocks` gives.

    Arguments:
        fmt: the block format.
        codes: element codes, uint8, shape of the original array.
        scales: scale codes, uint8; the same shape with ceil(K / block_size) along `axis`.
        tensor_scale: float32 scale of the whole tensor, None for formats without.
        axis: the axis along which blocks run, non-negative.
    """

    fmt: BlockFormat
    codes: np.ndarray
    scales: np.ndarray
    tensor_scale: float | None
    axis: int

    @property
    def nbytes(self) -> int:
        """Bytes with elements packed: codes, scales and the tensor scale."""
        length = self.codes.shape[self.axis]
        rows = self.codes.size // length if length else 0
        return rows * packed_size(length, self.fmt.element) + self.scales.size + 4 * self.fmt.tensor_scale

    def dequantize(self, dtype: Any = np.float32) -> np.ndarray:
        """As `dequantize_blocks(self)`."""
        return dequantize_blocks(self, dtype=dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Its values, for NumPy: float64 when that is asked for, else float32 taken to `dtype`.

        Raises:
            ValueError: `copy` is False: the values are computed, so they cannot be a view.
        """
        if copy is False:
            raise QsimError("the values of quantised blocks are computed: there is no array to share without a copy")
        wide = dtype is not None and np.dtype(dtype) == np.float64
        values = self.dequantize(np.float64 if wide else np.float32)
        return values if dtype is None else values.astype(dtype, copy=False)


def quantize_blocks(
    x: Any,
    fmt: FormatLike,
    *,
    axis: int = -1,
    scale_rule: ScaleRule | None = None,
    rounding: Rounding = "nearest_even",
    overflow: Overflow = "saturate",
    nan: BlockNan = "block",
    block_size: int | None = None,
    tensor_scale: float | None = None,
    ragged: bool = False,
) -> BlockQuantized:
    """Quantise blocks of an array that share a scale.

    Arguments:
        x: array as `encode` takes it, at least 1-d.
        fmt: block format by name or value.
        axis: the axis along which blocks run.
        scale_rule: for E8M0 scales, default `floor`. NVFP4 has one rule, see below, and takes none.
        rounding, overflow: of the elements; `stochastic` is not offered.
        nan: see `BlockNan`.
        block_size: another one than the format's own.
        tensor_scale: NVFP4's float32 tensor scale; default amax / (448 * 6), 1 for an all-zero tensor.
        ragged: allow a shorter last block.

    Returns:
        Codes and scales. An all-zero block has scale code 0 (MX: 2^-127).

    NVFP4: the scale of a block is amax / (6 * tensor_scale) rounded to E4M3, at least E4M3's smallest number 2^-9
    unless the block is zero; elements are x / (tensor_scale * scale), rounded once from the exact quotient. Libraries
    that multiply by a reciprocal in float32 differ in rare bits.

    Inf: under an E8M0 scale the block's scale saturates at 2^127, its Inf follows `overflow`, the rest is far below
    the grid. NVFP4 has no sensible scale for it and refuses. Finite values beyond 2^127 times the largest element (only
    float64 has them) follow `overflow` in the same way.

    Raises:
        ValueError: not a block format; an axis that block_size does not divide (without `ragged`); NaN with
            nan="error"; Inf into NVFP4; values whose tensor scale float32 cannot hold (above 9.1e41); a scale rule for
            NVFP4; a tensor scale that is not a positive float32.
    """
    block = _block_format(fmt, block_size)
    check_choice("rounding", rounding, tuple(r for r in ROUNDINGS if r != "stochastic"))
    check_choice("overflow", overflow, OVERFLOWS)
    check_choice("nan policy for blocks", nan, get_args(BlockNan))
    if scale_rule is not None:
        if block.tensor_scale:
            raise QsimError(f"{block.name} has its own scale rule: got scale_rule={scale_rule!r}; leave it out")
        check_choice("scale rule", scale_rule, get_args(ScaleRule))
    if tensor_scale is not None and not (block.tensor_scale and 0 < float32(tensor_scale) < math.inf):
        rule = (
            "must be positive, finite and within float32's range"
            if block.tensor_scale
            else f"is not part of {block.name}"
        )
        raise QsimError(f"tensor_scale {rule}: got {tensor_scale}")
    array = as_plain_array(x, "quantize_blocks")
    if array.ndim == 0:
        raise QsimError("quantize_blocks needs at least one axis: got a 0-d array")
    if not -array.ndim <= axis < array.ndim:
        raise QsimError(f"axis must be in -{array.ndim} to {array.ndim - 1}: got {axis}")
    axis %= array.ndim
    length = array.shape[axis]
    if length % block.block_size and not ragged:
        raise QsimError(
            f"block_size must divide the axis: got block_size={block.block_size}, length {length} of axis {axis}; "
            "pass ragged=True for a shorter last block"
        )
    rows, lead = _rows(array, axis, block.block_size)
    codes = np.empty(rows.shape, np.uint8)
    scales = np.empty((rows.shape[0], rows.shape[1] // block.block_size), np.uint8)
    source = _sources.open_source(rows, "quantize_blocks")
    policy = _plans.Policy(rounding=rounding, overflow=overflow)
    if block.tensor_scale:
        tensor_scale = (
            nvfp4_tensor_scale(source, block, rows.shape[1])
            if tensor_scale is None
            else float(np.float32(tensor_scale))
        )
    _quantize(source, block, policy, scale_rule or "floor", nan, tensor_scale, codes, scales)
    return BlockQuantized(
        fmt=block,
        codes=_back(codes[:, :length], lead, axis),
        scales=_back(scales, lead, axis),
        tensor_scale=tensor_scale,
        axis=axis,
    )


def dequantize_blocks(q: BlockQuantized, *, dtype: Any = np.float32) -> np.ndarray:
    """The values of block-quantised codes: element * scale [* tensor scale].

    Arguments:
        q: from `quantize_blocks`, or built from codes and scales of another source.
        dtype: float32 or float64. float64 is always exact for MX; float32 is too, up to its own range: an element
            above 2^128 becomes Inf there. NVFP4's product with the tensor scale is rounded to `dtype`.

    Raises:
        ValueError: codes outside the formats; scales whose shape does not belong to the codes.
    """
    target = np.dtype(dtype)
    size = q.fmt.block_size
    expected = list(q.codes.shape)
    expected[q.axis] = -(-expected[q.axis] // size)
    if list(q.scales.shape) != expected:
        raise QsimError(
            f"{q.fmt.name}: codes of shape {q.codes.shape} need scales of shape {tuple(expected)} "
            f"(blocks of {size} along axis {q.axis}): got {q.scales.shape}"
        )
    elements = decode(q.codes, q.fmt.element, dtype=target)
    scale = decode(q.scales, q.fmt.scale, dtype=target)
    spread = np.repeat(scale, size, axis=q.axis)
    spread = np.take(spread, np.arange(q.codes.shape[q.axis]), axis=q.axis)
    with np.errstate(over="ignore", invalid="ignore"):
        values = elements * spread
        if q.tensor_scale is not None:
            values *= target.type(q.tensor_scale)
    return values


def _block_format(fmt: FormatLike, block_size: int | None) -> BlockFormat:
    found = get_format(fmt)
    if not isinstance(found, BlockFormat):
        raise QsimError(f"{found.name} is not a block format: use qsim.encode, or a name like mxfp8_e4m3 or nvfp4")
    if block_size is None:
        return found
    if not isinstance(block_size, int | np.integer) or block_size < 1:
        raise QsimError(f"block_size must be a positive integer: got {block_size!r}")
    return found.with_block_size(int(block_size))


def _rows(array: np.ndarray, axis: int, size: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """The array as contiguous rows along `axis`, zero-padded to whole blocks; and the shape of the other axes."""
    moved = np.moveaxis(array, axis, -1)
    lead, length = moved.shape[:-1], moved.shape[-1]
    padded = -(-length // size) * size
    if padded == length:
        rows = np.ascontiguousarray(moved).reshape(math.prod(lead), length)
    else:
        rows = np.zeros((math.prod(lead), padded), array.dtype)
        rows[:, :length] = moved.reshape(-1, length)
    return rows, lead


def _back(rows: np.ndarray, lead: tuple[int, ...], axis: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(rows.reshape(*lead, rows.shape[-1]), -1, axis))


def _quantize(
    source: _sources.Source,
    block: BlockFormat,
    policy: _plans.Policy,
    rule: ScaleRule,
    nan: BlockNan,
    tensor_scale: float | None,
    codes: np.ndarray,
    scales: np.ndarray,
) -> None:
    size = block.block_size
    flat_codes, flat_scales = codes.reshape(-1), scales.reshape(-1)
    # Nearest rounding of x * 2^-e is right in float32, whose underflow lies far below any element's half ulp; the
    # directed modes need to know that a tiny value is not zero.
    exact = policy.rounding not in ("nearest_even", "nearest_away") or block.tensor_scale
    carrier = np.dtype(np.float64) if exact else source.carrier
    plan = _plans.encode_plan(block.element, policy, carrier)
    numbers = _rule_numbers(block, rule)
    chunk = max(1, (1 << 16) // size) * size
    kept = threading.local()
    encode_scale = _plans.encode_plan(block.scale, _plans.Policy(), np.dtype(np.float64))
    decode_scale = _plans.decode_plan(block.scale, np.dtype(np.float32))
    refused = []

    def work(start: int, stop: int) -> None:
        values = source.load(start, stop)
        if nan == "zero":
            values = np.where(np.isnan(values), values.dtype.type(0), values)
        part = flat_scales[start // size : stop // size]
        rows = values.reshape(-1, size)
        if getattr(kept, "scaled", None) is None:  # fresh memory for every piece would cost as much as the arithmetic
            kept.scaled = np.empty(chunk, carrier)
        scaled = kept.scaled[: values.size]
        room = scaled.reshape(-1, size)
        amax = block_amax(rows)
        if nan == "error" and np.isnan(amax).any():
            raise QsimError(_nan_message(source, block))
        if tensor_scale is None:
            (_mx_sticky if exact else _mx)(rows, amax, *numbers, part, room)
        else:
            unit = float(np.float32(tensor_scale)) * block.element.max
            encode_scale(nvfp4_ratios(amax, unit, block.scale.smallest_subnormal), part, _NO_RANDOM)
            factor = np.empty(part.size, np.float32)
            decode_scale(part, factor)
            _divide(rows, nvfp4_factors(factor, np.float32(tensor_scale)), room)
        refused.append(plan(scaled, flat_codes[start:stop], _NO_RANDOM))

    for_chunks(source.size, work, chunk=chunk)
    if any(refused):
        raise QsimError(
            f"{block.element.name} has neither Inf nor NaN, and values exceed its range under their block's scale; "
            "use overflow='saturate' or scale_rule='rceil'"
        )


_NO_RANDOM = np.zeros(1, np.uint32)


def _nan_message(source: _sources.Source, block: BlockFormat) -> str:
    values = source.load(0, source.size)
    bad = np.flatnonzero(np.isnan(values))
    index = tuple(int(i) for i in np.unravel_index(bad[0], source.shape))
    return f"quantize_blocks to {block.name}: {bad.size} NaN values, the first in row {index[0]} at {index[1]}"


def _rule_numbers(block: BlockFormat, rule: ScaleRule) -> tuple[int, int]:
    """(emax, fraction): e = floor(log2(amax)) - emax, plus 1 where amax's 52-bit fraction reaches `fraction`."""
    element = block.element
    one = 1 << 52
    if rule == "floor":
        return element.emax, one
    if rule == "ceil":
        return element.emax, 1
    if rule == "even":
        mantissa = element.mantissa_bits if isinstance(element, FloatFormat) else element.bits - 2
        return element.emax, one - (1 << (52 - mantissa - 1))
    significand = math.ldexp(element.max, -element.emax)  # in [1, 2), exact
    return element.emax, int((significand - 1.0) * one) + 1


@nb.njit(nogil=True, cache=True)
def _mx_scale(amax: Any, emax: Any, fraction_limit: Any) -> Any:
    """E8M0 code of a block. A float64 subnormal has exponent field 0 and lands at code 0 as it must."""
    bits = u64(f64(amax).view(np.uint64))
    carry = np.int64(1) if np.int64(bits & u64(0xFFFFFFFFFFFFF)) >= fraction_limit else np.int64(0)
    code = np.int64(bits >> u64(52)) - 1023 - emax + carry + 127
    return min(max(code, np.int64(0)), np.int64(254))


@nb.njit(nogil=True, cache=True)
def _mx(values: Any, amax: Any, emax: Any, fraction_limit: Any, scales: Any, out: Any) -> Any:
    """Scale codes of rows, and the rows times 2^-e; zeros in a NaN block."""
    size = values.shape[1]
    for k in range(values.shape[0]):
        top = f64(amax[k])
        if top != top:
            scales[k] = 255
            out[k, :] = 0
            continue
        code = _mx_scale(top, emax, fraction_limit)
        scales[k] = code
        factor = out.dtype.type(f64(u64(u64(1023 + 127 - code) << u64(52)).view(np.float64)))
        if size == 32:  # a known count is unrolled into vectors
            for i in range(32):
                out[k, i] = values[k, i] * factor
        else:
            for i in range(size):
                out[k, i] = values[k, i] * factor


@nb.njit(nogil=True, cache=True)
def _mx_sticky(values: Any, amax: Any, emax: Any, fraction_limit: Any, scales: Any, out: Any) -> Any:
    """As `_mx` in float64 where nothing becomes 0: the directed modes must see that a value was not zero."""
    _mx(values, amax, emax, fraction_limit, scales, out)
    for k in range(values.shape[0]):
        for i in range(values.shape[1]):
            v = values[k, i]
            if out[k, i] == 0.0 and v != 0.0 and scales[k] != 255:
                out[k, i] = f64(5e-324) if v > 0.0 else f64(-5e-324)


@nb.njit(nogil=True, cache=True)
def _divide(values: Any, factors: Any, out: Any) -> Any:
    """Row k over factors[k]; zeros where the factor is 0 (an all-zero block) or NaN."""
    size = values.shape[1]
    for k in range(factors.size):
        factor = factors[k]
        if not factor > 0.0:
            out[k, :] = 0.0
        elif size == 16:
            for i in range(16):
                out[k, i] = f64(values[k, i]) / factor
        else:
            for i in range(size):
                out[k, i] = f64(values[k, i]) / factor
