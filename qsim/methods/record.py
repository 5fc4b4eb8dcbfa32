"""The record of one layer: what round-to-nearest would have lost, what the method lost, and everything it had to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from qsim.scheme import QuantizedTensor

from .errors import RowLosses, round_to_nearest_error, signal, weight_error


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One layer under one method. Errors that need calibration are None without it.

    Arguments:
        layer, method, scheme: names.
        shape: (N, K).
        settings: what the method was called with.
        tokens: inputs that calibration saw.
        rtn_weight_mse, weight_mse: mean of (w - q)^2, of round-to-nearest with the same scale rule and of the method.
        rtn_output_error, output_error: tr(D H D^T) / tr(W H W^T), the relative squared error of the layer's outputs.
        rtn_joint_error, joint_error: the same measured on sampled inputs with activations quantised too.
        scale_min, scale_median, scale_max: of the stored scales.
        clip_fraction: weights beyond the values of their region, see `errors.WeightError`.
        zero_groups: regions whose weights are all 0.
        dead_columns: inputs that were always 0.
        loss: GPTQ's sum of e^2 / 2.
        damp, damp_percent: added to the Hessian's diagonal, and as a fraction of its mean.
        condition: estimate of the 1-norm condition number of the damped Hessian.
        row_range: largest |w| of a row of the weight as it was given over its median, for the median row.
        input_channel_ratio: largest input channel over the median one, each by its largest |x|.
        input_peak_ratio: largest |x| over the median |x|.
        fallback: the method that had to stand in, or "".
        notes: what a user should know, one sentence each.
        details: numbers that only this method has.
        channel_scale: (K,) what the inputs are divided by and the weight was multiplied by; not in `to_dict`.
        time_s: of the method, without calibration and without this record.
    """

    layer: str
    method: str
    scheme: str
    shape: tuple[int, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    rtn_weight_mse: float
    weight_mse: float
    rtn_output_error: float | None = None
    output_error: float | None = None
    rtn_joint_error: float | None = None
    joint_error: float | None = None
    scale_min: float
    scale_median: float
    scale_max: float
    clip_fraction: float
    zero_groups: int = 0
    dead_columns: int = 0
    loss: float | None = None
    damp: float | None = None
    damp_percent: float | None = None
    condition: float | None = None
    row_range: float | None = None
    input_channel_ratio: float | None = None
    input_peak_ratio: float | None = None
    fallback: str = ""
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    channel_scale: np.ndarray | None = field(default=None, repr=False, compare=False)
    time_s: float = 0.0

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise of the layer's outputs, in dB."""
        return None if self.output_error is None else _db(self.output_error)

    @property
    def rtn_sqnr_db(self) -> float | None:
        """The same for round-to-nearest."""
        return None if self.rtn_output_error is None else _db(self.rtn_output_error)

    @property
    def error_ratio(self) -> float | None:
        """Output error over that of round-to-nearest: below 1 the method helped."""
        if self.output_error is None or self.rtn_output_error is None:
            return None
        if self.rtn_output_error == 0:
            return 1.0 if self.output_error == 0 else math.inf
        return self.output_error / self.rtn_output_error

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, derived ones included; `from_dict` reads it back."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "channel_scale"}
        out |= {"shape": list(self.shape), "notes": list(self.notes), "settings": dict(self.settings)}
        out["details"] = dict(self.details)
        out |= {"sqnr_db": self.sqnr_db, "rtn_sqnr_db": self.rtn_sqnr_db, "error_ratio": self.error_ratio}
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerRecord:
        """The inverse of `to_dict`; derived keys are dropped."""
        given = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        given |= {k: float(v) for k, v in given.items() if v in ("inf", "-inf", "nan")}
        return cls(**{**given, "shape": tuple(given["shape"]), "notes": tuple(given["notes"])})


def _db(relative: float) -> float:
    return math.inf if relative == 0 else -10 * math.log10(relative)


def measure(
    w: np.ndarray,
    q: QuantizedTensor,
    method: str,
    *,
    hessian: np.ndarray | None = None,
    is_rtn: bool = False,
    original: tuple[np.ndarray, np.ndarray | None] | None = None,
    rounding: Mapping[str, Any] | None = None,
    losses: RowLosses | None = None,
    **known: Any,
) -> LayerRecord:
    """The record of a quantised weight.

    Arguments:
        w: (N, K) float32, what was quantised.
        q: the result.
        hessian: (K, K) float32, for output errors.
        is_rtn: `q` is round-to-nearest itself; otherwise that is done here, to compare.
        original: weight and Hessian before channels were scaled; round-to-nearest is measured on these.
        rounding: how, arguments of `qsim.scheme.quantize`.
        losses: what GPTQ's losses say of the error, see `errors.weight_error`.
        known: other fields of the record.
    """
    size = signal(w, hessian)
    error = weight_error(w, q, hessian, losses=losses)
    plain, plain_hessian = original or (w, hessian)
    rtn = error if is_rtn else round_to_nearest_error(plain, q, plain_hessian, **(rounding or {}))
    weight = error.weight
    if "channel_scale" in known and not is_rtn:  # in the units of the original weight
        weight = weight_error(plain, q, scale=known["channel_scale"]).weight
    return LayerRecord(
        layer=q.name, method=method, scheme=q.scheme.name or q.tensor_scheme.format.name,
        shape=(w.shape[0], w.shape[1]),
        rtn_weight_mse=rtn.weight / rtn.count, weight_mse=weight / error.count,
        rtn_output_error=relative(rtn.output, size.output), output_error=relative(error.output, size.output),
        scale_min=float(q.scales.min()), scale_median=float(np.median(q.scales)), scale_max=float(q.scales.max()),
        clip_fraction=error.clipped / error.count, zero_groups=zero_groups(w, q), **known,
    )  # fmt: skip


def relative(error: float | None, of: float | None) -> float | None:
    """error / of; 0 / 0 is 0."""
    if error is None or of is None:
        return None
    return error / of if of else (0.0 if error == 0 else math.inf)


def zero_groups(w: np.ndarray, q: QuantizedTensor) -> int:
    """Regions of `w` without a non-zero weight."""
    from qsim.scheme import region_range

    granularity = q.tensor_scheme.granularity
    assert granularity is not None
    if w.all():
        return 0
    low, high = region_range(w, granularity)
    return int(((low == 0) & (high == 0)).sum())
