"""Activations as a scheme rounds them: stored scales, and the error of weights and activations together."""

from __future__ import annotations

import math

import numpy as np

from qsim.errors import QsimError
from qsim.formats import BlockFormat, IntFormat
from qsim.scheme import QuantizedTensor, Scheme

from .checks import where

F32 = np.float32


def needs_input_scale(scheme: Scheme) -> bool:
    """Whether the activation has a scale that calibration finds and the checkpoint stores."""
    activation = scheme.activation
    return activation.is_quantized and not activation.dynamic


def stores_input_scale(scheme: Scheme) -> bool:
    """Whether checkpoints have a scale of the activation that calibration can find: a static one, or NVFP4's tensor
    scale. Products here do without the latter: they find it for every input, as they find the scales of its blocks."""
    fmt = scheme.activation.format
    return needs_input_scale(scheme) or (isinstance(fmt, BlockFormat) and fmt.tensor_scale)


def largest_code(scheme: Scheme) -> float:
    """The value that a stored activation scale maps the largest activation to: 127, 448, ..., 448 * 6 for NVFP4."""
    fmt = scheme.activation.format
    if isinstance(fmt, BlockFormat):
        return float(fmt.scale.max * fmt.element.max)  # type: ignore[union-attr]
    return float((1 << (fmt.bits - 1)) - 1) if isinstance(fmt, IntFormat) else float(fmt.max)  # type: ignore[union-attr]


def input_scale_of(peak: float, scheme: Scheme, name: str = "", *, power_of_two: bool = False) -> float | None:
    """The stored scale of an activation: largest |x| over the largest code. None when the scheme stores none.

    Arguments:
        peak: largest |x| that calibration saw. 0 gives 1.
        power_of_two: round it up to one, so that nothing clips.

    Raises:
        ValueError: a peak that is NaN, Inf or beyond float32.
    """
    if not stores_input_scale(scheme):
        return None
    if not 0 <= peak <= float(np.finfo(F32).max):
        raise QsimError(f"the largest activation is {peak}: it must be a finite float32{where(name)}")
    scale = F32(max(peak, 0.0)) / F32(largest_code(scheme))
    if scale == 0:
        return 1.0
    if isinstance(scheme.activation.format, BlockFormat):
        with np.errstate(over="ignore"):
            stored = F32(1 / scale)
        return 1 / float(stored) if np.isfinite(stored) else float(scale)  # stored as its reciprocal, if there is one
    return float(power_of_two_above(scale)) if power_of_two else float(scale)


def power_of_two_above(scale: np.ndarray | np.floating) -> np.ndarray:
    """The smallest power of two that is at least `scale`, float32, element-wise; exact."""
    mantissa, exponent = np.frexp(np.asarray(scale, dtype=F32))
    return np.ldexp(F32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(F32)


def joint_error(x: np.ndarray, weight: np.ndarray, q: QuantizedTensor, *, relative: bool = True) -> float:
    """Squared error of the outputs on sampled inputs with activations and weights rounded, over that of exact outputs.

    Arguments:
        x: (tokens, K) float32. weight: (N, K) float32, exact. q: its quantised tensor.
        relative: divide by the sum of squared outputs.
    """
    from qsim.kernels.activations import take

    act = take(x, q.scheme.activation, input_scale=q.input_scale, activation=None)
    rounded = act.values
    if act.group is not None:
        assert act.group_size is not None
        rounded = rounded * np.repeat(act.group, act.group_size, axis=1)[:, : rounded.shape[1]]
    exact = x @ weight.T
    error = (rounded @ q.dequantize().T) * act.row[:, None] - exact
    total = float(np.einsum("mn,mn->", error, error, dtype=np.float64))
    if not relative:
        return total
    size = float(np.einsum("mn,mn->", exact, exact, dtype=np.float64))
    return total / size if size else (0.0 if total == 0 else math.inf)
