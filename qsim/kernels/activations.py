"""Activations on their way into a product: as they are, rounded to 16 bits, or quantised as the scheme says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.formats import BlockFormat, FloatFormat, IntFormat, get_format
from qsim.scheme import TensorScheme, encode_with, find_parameters, get_rule
from qsim.scheme.quantizer import check_finite

F32 = np.float32
_ONES = np.ones(1024, F32)
_ONES.setflags(write=False)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """An activation (M, K) whose value is `values * row[:, None]`, times `group` in groups of `group_size` columns.

    Arguments:
        given: int8 when the scheme quantises to integers, else float32; FP8 are their exact values.
        row: (M,) float32.
        group: (M, G) float32 or None.
        format_name: what the values are values of.
        codes: their codes when they are FP8, for the exact path.
    """

    given: np.ndarray
    row: np.ndarray
    group: np.ndarray | None = None
    group_size: int | None = None
    format_name: str = "float32"
    codes: np.ndarray | None = None

    @property
    def integer(self) -> bool:
        return self.given.dtype == np.int8

    @property
    def tokens(self) -> int:
        return self.given.shape[0]

    @property
    def values(self) -> np.ndarray:
        """float32 (M, K), exact."""
        return self.given.astype(F32) if self.integer else self.given


def take(x: Any, how: TensorScheme, *, input_scale: float | None, activation: str | None) -> Activation:
    """Bring `x` (M, K) to the activation of a scheme.

    Unquantised schemes: a float32 `x` stays float32 unless `activation` names a 16-bit format; a float16 or ml_dtypes
    bfloat16 `x` is exact in float32. Quantised: dynamic scales per tensor, token or group, or the static `input_scale`;
    integers by the rule `smoothquant` (amax / 127, nearest even), floats by `amax` with saturation.

    Raises:
        ValueError: what is no array of real floats or beyond float32; NaN or Inf to quantise; a static scheme without
            `input_scale`.
    """
    source = real_array(x, "activations")
    ones = _ONES[: source.shape[0]] if source.shape[0] <= _ONES.size else np.ones(source.shape[0], F32)
    if activation is None and source.dtype == F32 and not how.is_quantized:  # decode is short: no detours
        return Activation(given=np.ascontiguousarray(source), row=ones)
    if not how.is_quantized:
        name = activation or ("bfloat16" if source.dtype.name == "bfloat16" else source.dtype.name)
        values = real_array(source, "activations", dtype=F32)
        if activation is not None and activation != "float32":
            from qsim.formats import cast

            values = np.asarray(cast(values, activation), dtype=F32)
        return Activation(given=values, row=ones, format_name=get_format(name).name if name != "float64" else "float32")
    if activation is not None:
        raise QsimError(
            f"the scheme quantises activations to {how.format.name}: activation={activation!r} does not belong to it"
        )
    values = real_array(source, "activations", dtype=F32)
    if how.granularity is not None and how.granularity.kind == "token" and how.dynamic and how.symmetric:
        from . import codes

        if isinstance(how.format, IntFormat):
            ints, row = codes.quantize_tokens(values, how.format.bits)
            return Activation(given=ints, row=row, format_name=how.format.name)
        exact_scale = how.scale_format is not None and how.scale_format.name == "float32"
        if isinstance(how.format, FloatFormat) and how.format.name in codes.FLOATS and exact_scale:
            fp8, decoded, row = codes.quantize_floats(values, how.format)
            return Activation(given=decoded, row=row, format_name=how.format.name, codes=fp8)
    check_finite(values, what="activations")
    if isinstance(how.format, BlockFormat):
        return _blocks(values, how.format, ones)
    return _scaled(values, how, ones, input_scale)


def _scaled(values: np.ndarray, how: TensorScheme, ones: np.ndarray, input_scale: float | None) -> Activation:
    granularity = how.granularity
    assert granularity is not None
    if not how.symmetric:
        raise QsimError(f"activations with a zero point have no kernel: got {how.format.name}; use a symmetric scheme")
    rule = get_rule("smoothquant" if isinstance(how.format, IntFormat) else None, how)
    if how.dynamic:
        scale, _, _ = find_parameters(values, how, rule)
    else:
        if input_scale is None:
            raise QsimError(
                "a static activation scheme needs the scale that calibration found: quantize(..., input_scale=...)"
            )
        if granularity.kind != "tensor":
            raise QsimError(f"static activation scales must be per tensor: got {granularity}")
        scale = np.array([input_scale], dtype=F32)
    codes = encode_with(values, how, scale, None, rule)
    if isinstance(how.format, IntFormat):
        shift = 8 - how.format.bits
        decoded = (codes << shift).view(np.int8) >> shift
    else:
        from qsim.formats import decode

        decoded = np.asarray(decode(codes, how.format), dtype=F32)
    common: dict[str, Any] = {
        "given": decoded, "format_name": how.format.name, "codes": codes,
    }  # fmt: skip
    if granularity.kind == "group":
        return Activation(row=ones, group=scale, group_size=granularity.columns, **common)
    return Activation(row=np.broadcast_to(scale.reshape(-1), ones.shape).astype(F32), **common)


def _blocks(values: np.ndarray, fmt: BlockFormat, ones: np.ndarray) -> Activation:
    from qsim.formats import dequantize_blocks, quantize_blocks

    assert isinstance(fmt.scale, FloatFormat)
    q = quantize_blocks(values, fmt, ragged=True)
    return Activation(given=np.asarray(dequantize_blocks(q), dtype=F32), row=ones, format_name=fmt.name)
