"""Round to nearest: every weight to the nearest code of its region. What every other method is measured against."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qsim.scheme import (
    QuantizedTensor,
    Scheme,
    get_scheme,
    quantize,
    shared_scale,
    tensor_scale_of,
    with_tensor_scale,
)

from .activations import needs_input_scale
from .calibration import LayerInputs
from .checks import check_hessian, check_weight
from .method import Method, Options, option, scale_rule_option
from .recipe import LayerResult, Recipe
from .record import LayerRecord, measure
from .scales import shared_details


def rtn(
    weight: Any,
    scheme: str | Scheme,
    *,
    hessian: Any = None,
    scale_rule: str | None = None,
    mse: bool | float = False,
    ragged: bool = False,
    tokens: int | None = None,
    tensor_scale: float | None = None,
    name: str = "",
    **rounding: Any,
) -> tuple[QuantizedTensor, LayerRecord]:
    """Quantise one layer by rounding to nearest.

    Arguments:
        weight: (N, K) float; computed in float32.
        scheme: name or value, any weight format: integers, FP8, NF4, MX, NVFP4.
        hessian: (K, K), sum of x x^T in any scaling; only for the errors in the record.
        scale_rule: see `qsim.scheme.quantize`, which does the rounding.
        mse: search for the range of least sum |q - x|^p; True is p = 2.4, gptq's.
        ragged: allow a shorter last group or block, as a scheme with `ragged=True` does.
        tensor_scale: the scale that the layer shares with those that engines fuse it with, see `qsim.scheme.shared`;
            None is its own.
        tokens, name: for the record and messages.
        rounding: other arguments of `qsim.scheme.quantize` (`clip_grid`, `scale_rounding`, `block_scale_rule`).

    Returns:
        The quantised tensor and its record.

    Raises:
        ValueError: as `qsim.scheme.quantize`.
    """
    started = time.perf_counter()
    scheme = get_scheme(scheme).with_ragged() if ragged else get_scheme(scheme)
    w = check_weight(weight, scheme, name)
    h = None if hessian is None else check_hessian(hessian, w.shape[1], name)
    if mse:
        rounding["clip"] = 2.4 if mse is True else float(mse)
    q = quantize(w, scheme, scale_rule=scale_rule, name=name, **rounding)
    details = shared_details(tensor_scale_of(q), tensor_scale)
    q = with_tensor_scale(q, w, tensor_scale, scale_rule=scale_rule, **rounding)
    time_s = time.perf_counter() - started
    record = measure(
        w, q, "rtn", hessian=h, is_rtn=True, tokens=tokens, time_s=time_s,
        settings={"scale_rule": scale_rule, **rounding}, details=details,
        dead_columns=0 if h is None else int((h.diagonal() == 0).sum()),
    )  # fmt: skip
    return q, record


# --- on a model ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RtnOptions(Options):
    """Options of RTN; see `rtn`."""

    scale_rule: str | None = scale_rule_option()
    mse: bool | float = option(False, "search each range for the least error", kinds=(bool, float))


def _recipe(scheme: Scheme, options: RtnOptions) -> Recipe:
    """Calibration is only for records, and for a static activation's scale."""
    settings = options.settings()
    clip = None if not options.mse else 2.4 if options.mse is True else float(options.mse)
    return Recipe(
        method="rtn", scheme=scheme, settings=settings, needs_calibration=needs_input_scale(scheme),
        quantize=partial(_layer, scheme, settings), shared_scale=partial(shared_scale, scheme=scheme,
                                                                         scale_rule=options.scale_rule, clip=clip),
    )  # fmt: skip


METHOD = Method(
    name="rtn", title="RTN", says="round to nearest, no calibration", order=10, default_scheme="w4a16-g128",
    options=RtnOptions, recipe=_recipe, marker="o", filled=False, rank=100,
    refuses=lambda scheme: None,
    usual=lambda scheme: scheme.weight.is_quantized, suits=lambda scheme: False,
)  # fmt: skip


def _layer(
    scheme: Scheme, options: dict[str, Any], weight: np.ndarray, inputs: LayerInputs | None, scale: Any, name: str,
    tensor_scale: float | None = None,
) -> LayerResult:  # fmt: skip
    options = {**options, "tensor_scale": tensor_scale}
    if inputs is None:
        return rtn(weight, scheme, name=name, **options)
    return rtn(weight, scheme, hessian=inputs.hessian, tokens=inputs.tokens, name=name, **options)
