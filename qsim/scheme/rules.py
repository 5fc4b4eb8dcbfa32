"""Scale rules: how a range of values becomes a scale and a zero point, and in what order codes are rounded.

The public tools differ in all of it, and in ties. Each rule here repeats one of them operation by operation in
float32, so that codes are equal bit for bit:

| rule | symmetric scale | range holds 0 | zero point | code |
|---|---|---|---|---|
| `gptq` | 2 amax / (2^b - 1) | yes | rint(-min / s) | clamp(rint(x/s) + z) |
| `awq` | amax / (2^(b-1) - 1) | no | clamp(-rint(min / s)) | clamp(rint(x/s) + z) |
| `compressed-tensors` | amax / ((2^b - 1) / 2) | yes | rint(clamp(qmin - min / s)) | rint(clamp(x/s + z)) |
| `smoothquant` | amax / (2^(b-1) - 1) | - | - | rint(x/s), no clamp |
| `amax` | amax / max | - | - | the format's nearest even |
| `autofp8` | 1 / (448 / amax) | - | - | x * (448 / amax), clamped, nearest even |

Sources: IST-DASLab/gptq quant.py, mit-han-lab/llm-awq quantizer.py, neuralmagic/compressed-tensors helpers.py and
forward.py, mit-han-lab/smoothquant fake_quant.py, neuralmagic/AutoFP8 quantize.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from qsim.errors import QsimError

from .scheme import Scheme
from .tensor_scheme import TensorScheme

F32 = np.float32
Parameters: TypeAlias = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class ScaleRule:
    """One tool's way from a range to scale and zero point, and from a value to its code.

    Arguments:
        name: what it is called.
        parameters: function (lo, hi, bits, symmetric) of float32 arrays -> float32 scale and zero point. The zero point
            counts from the lowest code, 0 .. 2^bits - 1; None when symmetric.
        round_then_add: `clamp(rint(x/s) + z)` when True, `rint(clamp(x/s + z))` when False. Ties at odd z differ.
        stored_scale: codes are found with the scale after rounding to its storage format; otherwise with the scale as
            computed in float32.
        integers, floats: which element formats it is defined for.
        asymmetric: whether it has a zero point.
    """

    name: str
    parameters: Callable[[np.ndarray, np.ndarray, int, bool], Parameters]
    round_then_add: bool = True
    stored_scale: bool = False
    integers: bool = True
    floats: bool = False
    asymmetric: bool = True

    def check(self, part: TensorScheme) -> None:
        """Refuse a scheme that this rule is not defined for."""
        if not (self.integers if part.is_integer else self.floats):
            fits = [r.name for r in RULES.values() if (r.integers if part.is_integer else r.floats)]
            raise QsimError(f"scale rule {self.name!r} is not defined for {part.format.name}; use {', '.join(fits)}")
        if not part.symmetric and not self.asymmetric:
            raise QsimError(
                f"scale rule {self.name!r} has no zero point: got {part.format.name}; use a symmetric scheme"
            )

    def codes(self, x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, bits: int) -> np.ndarray:
        """Integer codes of float32 values: signed when `zero` is None, else 0 .. 2^bits - 1. int32.

        `scale` and `zero` broadcast against `x`.
        """
        half = 1 << (bits - 1)
        with np.errstate(over="ignore"):  # clipped at once: a scale may be rounded down, or be a rule's floor
            q = x / scale
        if zero is None:
            np.rint(q, out=q)
            return np.clip(q, -half, half - 1, out=q).astype(np.int32)
        if self.round_then_add:
            np.rint(q, out=q)
            q += zero.astype(F32)
            return np.clip(q, 0, 2 * half - 1, out=q).astype(np.int32)
        # in signed integers, as the original: x/s + z rounds differently when z is larger
        q += zero.astype(F32) - F32(half)
        np.clip(q, -half, half - 1, out=q)
        return np.rint(q, out=q).astype(np.int32) + half


def _step(lo: np.ndarray, hi: np.ndarray, levels: np.float32) -> np.ndarray:
    """(hi - lo) / levels in float32; where the difference is beyond float32, from float64."""
    with np.errstate(over="ignore"):
        span = hi - lo
    if np.isfinite(span).all():
        return span / levels
    wide = ((hi.astype(np.float64) - lo) / np.float64(levels)).astype(F32)
    return np.where(np.isfinite(span), span / levels, wide)


def _gptq(lo: np.ndarray, hi: np.ndarray, bits: int, symmetric: bool) -> Parameters:
    levels = F32((1 << bits) - 1)
    lo, hi = np.minimum(lo, F32(0)), np.maximum(hi, F32(0))
    if symmetric:
        hi = np.maximum(np.abs(lo), hi)
        lo = np.where(lo < 0, -hi, lo)  # a range without negatives stays one-sided and then clips above 7 scales
    empty = (lo == 0) & (hi == 0)
    lo, hi = np.where(empty, F32(-1), lo), np.where(empty, F32(1), hi)
    scale = _step(lo, hi, levels)
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale that underflows to 0 is refused by who stores it
        return scale, None if symmetric else np.rint(-lo / scale)


def _awq(lo: np.ndarray, hi: np.ndarray, bits: int, symmetric: bool) -> Parameters:
    if symmetric:
        amax = np.maximum(np.maximum(np.abs(lo), np.abs(hi)), F32(1e-5))
        return amax / F32((1 << (bits - 1)) - 1), None
    levels = F32((1 << bits) - 1)
    scale = np.maximum(_step(lo, hi, levels), F32(1e-5) / levels)
    with np.errstate(over="ignore"):  # clipped at once
        return scale, np.clip(-np.rint(lo / scale), F32(0), levels)


def _compressed(lo: np.ndarray, hi: np.ndarray, bits: int, symmetric: bool) -> Parameters:
    levels, half = F32((1 << bits) - 1), F32(1 << (bits - 1))
    lo, hi = np.minimum(lo, F32(0)), np.maximum(hi, F32(0))
    eps = F32(np.finfo(F32).eps)
    if symmetric:
        scale = np.maximum(np.abs(lo), np.abs(hi)) / (levels / F32(2))
        return np.where(scale == 0, eps, scale), None
    scale = _step(lo, hi, levels)
    safe = np.where(
        scale == 0, F32(1), scale
    )  # the original computes 0/0 here; every code of a zero region is 0 anyway
    zero = np.rint(np.clip(-half - lo / safe, -half, half - F32(1)))
    return np.where(scale == 0, eps, scale), zero + half


def _smoothquant(lo: np.ndarray, hi: np.ndarray, bits: int, symmetric: bool) -> Parameters:
    amax = np.maximum(np.maximum(np.abs(lo), np.abs(hi)), F32(1e-5))
    return amax / F32((1 << (bits - 1)) - 1), None


def _no_integers(lo: np.ndarray, hi: np.ndarray, bits: int, symmetric: bool) -> Parameters:
    raise AssertionError("float rules find their scale in float_scale")


RULES = {
    rule.name: rule
    for rule in (
        ScaleRule(name="gptq", parameters=_gptq),
        ScaleRule(name="awq", parameters=_awq),
        ScaleRule(
            name="compressed-tensors", parameters=_compressed, round_then_add=False, stored_scale=True, floats=True
        ),
        ScaleRule(name="smoothquant", parameters=_smoothquant, asymmetric=False),
        ScaleRule(name="amax", parameters=_no_integers, integers=False, floats=True, stored_scale=True),
        ScaleRule(name="autofp8", parameters=_no_integers, integers=False, floats=True),
    )
}


def float_scale(amax: np.ndarray, largest: float, rule: str) -> np.ndarray:
    """The float32 scale of regions of a float format whose largest value is `largest`.

    A region of zeros gets scale 1 under `amax`, the float32 epsilon under `compressed-tensors`.
    """
    top = F32(largest)
    if rule == "autofp8":
        return F32(1) / (top / np.maximum(amax, F32(1e-12)))
    scale = amax / top
    return np.where(scale == 0, F32(1) if rule == "amax" else F32(np.finfo(F32).eps), scale)


def default_rule(scheme: Scheme | TensorScheme) -> str:
    """`amax` for floats, `smoothquant` for symmetric 8-bit integers, `gptq` for every other integer."""
    part = scheme.weight if isinstance(scheme, Scheme) else scheme
    if not part.is_integer:
        return "amax"
    return "smoothquant" if part.symmetric and part.bits == 8 else "gptq"


def get_rule(name: str | None, part: TensorScheme) -> ScaleRule:
    """The rule of that name, checked against the scheme; None is `default_rule`.

    Raises:
        ValueError: unknown rule, or one that is not defined for this scheme.
    """
    if part.has_own_rule:
        raise QsimError(f"{part.summary} finds its scales by a rule of its own: no scale rule is defined for it")
    name = name or default_rule(part)
    if name not in RULES:
        raise QsimError(f"scale_rule must be one of {', '.join(RULES)}: got {name!r}")
    RULES[name].check(part)
    return RULES[name]
