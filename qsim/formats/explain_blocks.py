"""Why a block got that scale: block quantisation as a record, one scale rule beside another.

The bits come from `quantize_blocks`; this module measures what they did and finds the words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from qsim.errors import QsimError

from ._words import hex_code, number
from .blocks import ScaleRule, dequantize_blocks, quantize_blocks
from .catalogue import get_format
from .rounding import Overflow, Rounding
from .spec import BlockFormat, FloatFormat, Format


@dataclass(frozen=True, kw_only=True)
class BlockExplanation:
    """One block under one scale rule.

    Arguments:
        format: the block format.
        scale_rule: floor, ceil, even or rceil; None for a format that has a rule of its own (NVFP4).
        block: index of the block; its values are `values`.
        amax: largest magnitude in it.
        scale_code, scale: the block's scale, without the tensor scale.
        tensor_scale: NVFP4's scale of the whole tensor, else None.
        codes: element codes.
        results: what the codes mean: element * scale [* tensor scale].
        clipped: how many values lie beyond the largest element under this scale.
        rms_error: root mean square of results - values.
        decision: how the scale came about.
    """

    format: BlockFormat
    scale_rule: ScaleRule | None
    block: int
    values: tuple[float, ...]
    amax: float
    scale_code: int
    scale: float
    tensor_scale: float | None
    codes: tuple[int, ...]
    results: tuple[float, ...]
    clipped: int
    rms_error: float
    decision: str

    def as_dict(self) -> dict[str, Any]:
        """Plain types, the format by name."""
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return out | {"format": self.format.name, "scale_code_hex": hex_code(self.scale_code, self.format.scale)}


def explain_blocks(
    values: Sequence[float],
    fmt: str | Format,
    *,
    scale_rules: Sequence[ScaleRule] | None = None,
    rounding: Rounding = "nearest_even",
    overflow: Overflow = "saturate",
) -> list[BlockExplanation]:
    """Quantise a list of numbers in blocks and say how each scale came about.

    Arguments:
        values: numbers, cut into blocks of the format's size; the last may be shorter.
        fmt: a block format, by name or value.
        scale_rules: rules to show side by side; None: all of them. A format with its own rule (NVFP4) takes none.
        rounding, overflow: of the elements, as in `quantize_blocks`.

    Returns:
        One record a block and rule, blocks first.

    Raises:
        ValueError: not a block format, no values, and what `quantize_blocks` refuses.
    """
    block_format = get_format(fmt)
    if not isinstance(block_format, BlockFormat):
        raise QsimError(f"{block_format.name} is not a block format: use explain")
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if x.size == 0:
        raise QsimError("explain_blocks needs at least one value")
    rules: Sequence[ScaleRule | None] = get_args(ScaleRule) if scale_rules is None else scale_rules
    if block_format.tensor_scale and scale_rules is None:
        rules = [None]
    found = [_explain_rule(x, block_format, rule, rounding, overflow) for rule in rules]
    return [e for same_block in zip(*found, strict=True) for e in same_block]


def _explain_rule(
    x: np.ndarray, fmt: BlockFormat, rule: ScaleRule | None, rounding: Rounding, overflow: Overflow
) -> list[BlockExplanation]:
    q = quantize_blocks(x, fmt, scale_rule=rule, rounding=rounding, overflow=overflow, ragged=True)
    results = dequantize_blocks(q, dtype=np.float64)
    out = []
    for k, code in enumerate(q.scales.tolist()):
        part = slice(k * fmt.block_size, (k + 1) * fmt.block_size)
        scale = math.nan if code in fmt.scale.nan_codes else float(fmt.scale.fraction(code))
        step = scale * (1.0 if q.tensor_scale is None else q.tensor_scale)
        amax = float(np.max(np.abs(x[part])))
        beyond = (x[part] > fmt.element.max * step) | (x[part] < fmt.element.min * step)
        with np.errstate(invalid="ignore"):
            rms = float(np.sqrt(np.mean(np.square(results[part] - x[part]))))
        out.append(
            BlockExplanation(
                format=fmt,
                scale_rule=rule,
                block=k,
                values=tuple(x[part].tolist()),
                amax=amax,
                scale_code=code,
                scale=scale,
                tensor_scale=q.tensor_scale,
                codes=tuple(q.codes[part].tolist()),
                results=tuple(results[part].tolist()),
                clipped=int(np.count_nonzero(beyond)),
                rms_error=rms,
                decision=_say_scale(fmt, rule, amax, code, scale, q.tensor_scale),
            )
        )
    return out


def _say_scale(
    fmt: BlockFormat, rule: ScaleRule | None, amax: float, code: int, scale: float, tensor_scale: float | None
) -> str:
    if math.isnan(amax):
        return "a NaN in the block makes its scale NaN"
    if amax == 0:
        return "all zero: the smallest scale"
    if math.isinf(amax):
        return "an Inf in the block: the largest scale"
    if tensor_scale is not None:
        ratio = amax / (fmt.element.max * tensor_scale)
        return f"amax / ({number(fmt.element.max)} x tensor scale) = {ratio:.6g}, in {fmt.scale.name}: {number(scale)}"
    mantissa, exponent = math.frexp(amax)
    log2, emax, exact = exponent - 1, fmt.element.emax, mantissa == 0.5
    e = code - fmt.scale.bias
    ends = {0: "the smallest scale there is", fmt.scale.max_code: "the largest scale there is"}
    if code in ends:
        return f"2^{e}: {ends[code]}"
    less = f"- {emax}" if emax >= 0 else f"+ {-emax}"
    if rule == "ceil":
        return f"ceil(log2 amax) {less} = {log2 if exact else log2 + 1} {less} = {e}"
    if rule == "even":
        bits = fmt.element.mantissa_bits if isinstance(fmt.element, FloatFormat) else fmt.element.bits - 2
        return f"amax to {bits + 1} significant bits; floor(log2) {less} = {e + emax} {less} = {e}"
    if rule == "rceil":
        return f"smallest e with amax <= 2^e x {number(fmt.element.max)}: {e}"
    return f"floor(log2 amax) {less} = {log2} {less} = {e}"
