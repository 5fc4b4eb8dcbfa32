"""FP8 weights and activations: a scale that maps the largest value to the format's largest, then the nearest code.

Scales per tensor, per row or per 128 x 128 block; activations with a stored scale or one found on the fly. Scale rules:
`amax` (amax / 448, codes by that scale), `autofp8` (x * (448 / amax)), `compressed-tensors`; see `qsim.scheme.rules`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.formats import FloatFormat
from qsim.scheme import (
    QuantizedTensor,
    Scheme,
    encode_with,
    get_rule,
    get_scheme,
    quantize,
    shared_scale,
    tensor_scale_of,
    with_tensor_scale,
)

from .activations import input_scale_of, joint_error, needs_input_scale, power_of_two_above
from .calibration import LayerInputs
from .checks import check_hessian, check_weight, where
from .method import Method, Options, option, scale_rule_option
from .recipe import LayerResult, Recipe
from .record import LayerRecord, measure
from .scales import shared_details

F32 = np.float32


def fp8(
    weight: Any,
    scheme: str | Scheme = "fp8-tensor",
    *,
    max_abs: Any = None,
    inputs: Any = None,
    hessian: Any = None,
    scale_rule: str | None = None,
    power_of_two: bool = False,
    mse: bool | float = False,
    ragged: bool = False,
    tokens: int | None = None,
    tensor_scale: float | None = None,
    name: str = "",
) -> tuple[QuantizedTensor, LayerRecord]:
    """Quantise one layer to FP8.

    Arguments:
        weight: (N, K) float; computed in float32.
        scheme: name or value with 8-bit float weights: `fp8-tensor`, `fp8-static`, `fp8-rowwise`, `fp8-block128`, ...
        max_abs: largest |x|, one number or (K,); a static activation needs it.
        inputs: (tokens, K) sampled inputs, for the record's joint error and the share of activations that clip.
        hessian: (K, K), for the record.
        scale_rule: `amax`, `autofp8` or `compressed-tensors`; None is `amax`.
        power_of_two: round scales up to powers of two, so that scaling is exact and nothing clips.
        mse: search for the range of least sum |q - x|^p instead of the largest value; True is p = 2.
        ragged: allow a shorter last group or block, as a scheme with `ragged=True` does.
        tensor_scale: the scale that the layer shares with those that engines fuse it with, see `qsim.scheme.shared`;
            None is its own.
        tokens, name: for the record and messages.

    Returns:
        The quantised tensor (with `input_scale` when static) and its record. Notes say when a scale is exactly 1.0,
        the sign of one that was never found.

    Raises:
        ValueError: weights that are not 8-bit floats, a static activation without `max_abs`, NaN or Inf.
    """
    started = time.perf_counter()
    scheme = get_scheme(scheme).with_ragged() if ragged else get_scheme(scheme)
    check_scheme(scheme, name)
    w = check_weight(weight, scheme, name)
    x = None if inputs is None else real_array(inputs, f"inputs{where(name)}", dtype=F32)
    input_scale = None
    if max_abs is not None:
        peaks = real_array(max_abs, f"max_abs{where(name)}", integers=True, dtype=np.float64)
        input_scale = input_scale_of(float(peaks.max()), scheme, name, power_of_two=power_of_two)
    elif scheme.activation.is_quantized and not scheme.activation.dynamic:
        raise QsimError(f"a static activation scale needs the largest |x| of calibration: give max_abs{where(name)}")
    norm = (2.0 if mse is True else float(mse)) if mse else None
    q = quantize(w, scheme, scale_rule=scale_rule, clip=norm, input_scale=input_scale, name=name)
    if power_of_two:
        q = with_power_of_two_scales(q, w)
    shared = shared_details(tensor_scale_of(q), tensor_scale)
    q = with_tensor_scale(q, w, tensor_scale, scale_rule="amax" if power_of_two else scale_rule)
    time_s = time.perf_counter() - started
    known: dict[str, Any] = {"details": shared}
    if x is not None:
        error = joint_error(x, w, q)
        known |= {"joint_error": error, "rtn_joint_error": error}
        if input_scale is not None:
            top = F32(input_scale) * F32(scheme.activation.format.max)  # type: ignore[union-attr]
            known["details"] = {**shared, "activation_clip_fraction": float((np.abs(x) > top).mean())}
    record = measure(
        w, q, "fp8", hessian=None if hessian is None else check_hessian(hessian, w.shape[1], name), is_rtn=True,
        tokens=tokens, time_s=time_s, notes=unit_scales(q),
        settings={"scale_rule": scale_rule, "power_of_two": power_of_two, "mse": norm or False}, **known,
    )  # fmt: skip
    return q, record


def check_scheme(scheme: Scheme, name: str = "") -> None:
    """Refuse weights that are not 8-bit floats.

    Raises:
        ValueError: with what to use instead.
    """
    reason = _refusal(scheme, where(name))
    if reason is not None:
        raise QsimError(reason)


def _refusal(scheme: Scheme, layer: str = "") -> str | None:
    fmt = scheme.weight.format
    if not isinstance(fmt, FloatFormat) or fmt.bits != 8:
        return f"fp8 rounds weights to 8-bit floats: got {fmt.name}{layer}; rtn takes any format"
    return None


def with_power_of_two_scales(q: QuantizedTensor, weight: np.ndarray) -> QuantizedTensor:
    """The same weight under scales rounded up to powers of two: what DeepSeek's and MX's loaders multiply exactly."""
    scales = power_of_two_above(q.scales)
    codes = encode_with(weight, q.tensor_scheme, scales, None, get_rule("amax", q.tensor_scheme))
    return q.with_scales(scales, codes=codes)


def unit_scales(q: QuantizedTensor) -> tuple[str, ...]:
    """Notes on scales that are exactly 1.0."""
    out = []
    ones = int((q.scales == 1).sum())
    if ones:
        out.append(f"{ones} of {q.scales.size} weight scales are exactly 1.0")
    if q.input_scale == 1:
        out.append("the activation scale is exactly 1.0: was it ever found?")
    return tuple(out)


# --- on a model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fp8Options(Options):
    """Options of FP8; see `fp8`. `percentile` is for static activation scales: the share of |x| that must not clip."""

    scale_rule: str | None = scale_rule_option()
    power_of_two: bool = option(False, "scales that are powers of two")
    mse: bool | float = option(False, "search each range for the least error", kinds=(bool, float))
    percentile: float = option(100.0, "static: percent of activations that must not clip", metavar="P")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.percentile <= 100:
            raise QsimError(f"percentile is above 0, at most 100: got {self.percentile}")


def _recipe(scheme: Scheme, options: Fp8Options) -> Recipe:
    static, settings = needs_input_scale(scheme), options.settings()
    own = {k: v for k, v in settings.items() if k != "percentile"}
    return Recipe(
        method="fp8", scheme=scheme, settings=settings, moments=static, needs_calibration=static,
        quantize=partial(_layer, scheme, own, options.percentile), shared_scale=partial(_shared_scale, scheme, own),
    )  # fmt: skip


METHOD = Method(
    name="fp8", title="FP8", label="", order=50, default_scheme="fp8-tensor", options=Fp8Options, recipe=_recipe,
    says="FP8 weights and activations, with calibrated scales where they are static", marker="v", rank=40,
    refuses=_refusal, suits=lambda scheme: False, usual=lambda scheme: scheme.weight.format.name.startswith("float8"),
)  # fmt: skip


def _shared_scale(scheme: Scheme, options: dict[str, Any], weights: Sequence[np.ndarray]) -> float | None:
    mse = options["mse"]
    clip = None if not mse else 2.0 if mse is True else float(mse)
    found = shared_scale(weights, scheme, scale_rule=options["scale_rule"], clip=clip)
    return found if found is None or not options["power_of_two"] else float(power_of_two_above(F32(found)))


def _layer(
    scheme: Scheme,
    options: dict[str, Any],
    percentile: float,
    weight: np.ndarray,
    inputs: LayerInputs | None,
    scale: Any,
    name: str,
    tensor_scale: float | None = None,
) -> LayerResult:
    options = {**options, "tensor_scale": tensor_scale}
    if inputs is None:
        return fp8(weight, scheme, name=name, **options)
    peak = inputs.percentile(percentile) if needs_input_scale(scheme) else None
    q, record = fp8(weight, scheme, max_abs=peak, inputs=inputs.sample, hessian=inputs.hessian, tokens=inputs.tokens,
                    name=name, **options)  # fmt: skip
    if q.input_scale is not None:  # of all tokens, not of the sampled ones
        top = q.input_scale * scheme.activation.format.max  # type: ignore[union-attr]
        details = {**record.details, "activation_clip_fraction": inputs.clip_fraction(top)}
        record = replace(record, details=details)
    return q, record
