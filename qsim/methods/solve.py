"""One layer of a run: its codes, its record, and what stands in where no token reached it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from qsim._native.blas import one_blas_thread
from qsim.scheme import QuantizedTensor

from .activations import input_scale_of, joint_error, stores_input_scale
from .calibration import LayerInputs
from .passes import SMALL
from .ranges import channel_ratio, row_range
from .recipe import Recipe
from .record import LayerRecord
from .rtn import rtn


def solve_layer(
    recipe: Recipe, side_by_side: bool, weight: np.ndarray, inputs: LayerInputs | None, scale: np.ndarray | None,
    name: str, tensor_scale: float | None = None,
) -> tuple[str, QuantizedTensor, LayerRecord]:  # fmt: skip
    """The name of a layer, its quantised weight and its record, which tells of its outliers; on one BLAS thread where
    layers are worked on side by side."""
    with one_blas_thread(side_by_side or weight.shape[1] <= SMALL):
        name, q, record = _solve_alone(recipe, weight, inputs, scale, name, tensor_scale)
    return name, q, replace(record, **_outliers(weight, inputs))


def _outliers(weight: np.ndarray, inputs: LayerInputs | None) -> dict[str, Any]:
    """What the record tells of the layer's outliers, before anything was smoothed."""
    found: dict[str, Any] = {"row_range": row_range(weight)[0]}
    if inputs is not None and inputs.max_abs is not None and inputs.tokens:
        found["input_channel_ratio"] = channel_ratio(inputs.max_abs)
        typical = inputs.percentile(50)
        if typical > 0 and inputs.peak is not None:
            found["input_peak_ratio"] = inputs.peak / typical
    return found


def _solve_alone(
    recipe: Recipe, weight: np.ndarray, inputs: LayerInputs | None, scale: np.ndarray | None, name: str,
    tensor_scale: float | None,
) -> tuple[str, QuantizedTensor, LayerRecord]:  # fmt: skip
    if inputs is not None and inputs.tokens == 0:
        return _unseen(recipe, weight, scale, name, tensor_scale)
    shared = {} if tensor_scale is None else {"tensor_scale": tensor_scale}
    q, record = recipe.quantize(weight, inputs, scale, name, **shared)
    scheme = q.scheme
    if inputs is None or not scheme.activation.is_quantized:
        return name, q, record
    if stores_input_scale(scheme) and q.input_scale is None:
        assert inputs.max_abs is not None
        peaks = inputs.max_abs if scale is None else inputs.max_abs / scale
        q = replace(q, input_scale=input_scale_of(float(peaks.max()), scheme, name))
    if record.joint_error is None and inputs.sample is not None:
        x, w = inputs.sample, weight
        record = replace(record, joint_error=joint_error(x if scale is None else x / scale,
                                                         w if scale is None else w * scale, q))  # fmt: skip
    return name, q, record


def _unseen(
    recipe: Recipe, weight: np.ndarray, scale: np.ndarray | None, name: str, tensor_scale: float | None
) -> tuple[str, QuantizedTensor, LayerRecord]:
    """An expert that no token of the calibration chose is rounded to nearest, and its record says so."""
    w = weight if scale is None else weight * scale
    rule = recipe.settings.get("scale_rule")
    q, record = rtn(w, recipe.scheme, scale_rule=rule, tokens=0, tensor_scale=tensor_scale, name=name)
    if stores_input_scale(recipe.scheme):
        q = replace(q, input_scale=input_scale_of(0.0, recipe.scheme, name))
    return name, q, replace(
        record, method=recipe.method, settings=recipe.settings, fallback="" if recipe.method == "rtn" else "rtn",
        notes=(*record.notes, "no calibration token reached this expert"),
    )  # fmt: skip


def outcome(record: LayerRecord) -> str:
    """What the progress line says of a finished layer."""
    if record.fallback:
        return f"fell back to {record.fallback}"
    ratio = record.error_ratio
    return "rounded" if ratio is None else f"error {ratio:.2f} of round-to-nearest's"
