"""What every algorithm asks of its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import Scheme
from qsim.scheme.quantizer import check_finite

F32 = np.float32


def where(name: str) -> str:
    """The layer, as it ends a message."""
    return f" (layer {name})" if name else ""


def check_weight(weight: Any, scheme: Scheme, name: str) -> np.ndarray:
    """A weight (N, K) as row-major float32.

    Raises:
        ValueError: not a matrix of floats, empty, NaN or Inf, unquantised scheme, a group that does not divide K.
    """
    w = np.asarray(weight)
    if w.dtype.kind not in "fV" and w.dtype.name != "bfloat16":
        raise QsimError(f"weights are real floating-point numbers: got {w.dtype}{where(name)}")
    if w.ndim != 2 or w.size == 0:
        raise QsimError(f"a weight is a matrix (N, K) with elements: got shape {w.shape}{where(name)}")
    if not scheme.weight.is_quantized:
        raise QsimError(
            f"the scheme keeps weights in {scheme.weight.format.name}: there is nothing to quantise{where(name)}"
        )
    scheme.weight.check_shape(w.shape, name)
    w = np.ascontiguousarray(w, dtype=F32)
    check_finite(w, name)
    return w


def check_hessian(hessian: Any, columns: int, name: str) -> np.ndarray:
    """A Hessian (K, K) as row-major float32.

    Raises:
        ValueError: another shape, NaN or Inf (the column and the layer are named), not symmetric, a negative diagonal.
    """
    h = np.asarray(hessian)
    if h.shape != (columns, columns):
        raise QsimError(
            f"the Hessian of a weight with {columns} columns is ({columns}, {columns}): got {h.shape}{where(name)}"
        )
    h = np.ascontiguousarray(h, dtype=F32)
    for first in range(0, columns, 512):
        bad = ~np.isfinite(h[first : first + 512]).all(axis=1)
        if bad.any():
            raise QsimError(
                f"the Hessian must be finite: column {first + int(np.argmax(bad))} has NaN or Inf, so an activation of "
                f"this layer was{where(name)}; look for the first layer that gives it"
            )
    diagonal = h.diagonal()
    if (diagonal < 0).any():
        column = int(np.argmin(diagonal))
        raise QsimError(
            f"the Hessian is a sum of squares: its diagonal is {diagonal[column]} in column {column}{where(name)}"
        )
    for i in {0, columns // 2, columns - 1}:
        if not np.allclose(h[i], h[:, i], rtol=1e-4, atol=1e-6 * float(diagonal.max())):
            raise QsimError(f"the Hessian must be symmetric: row {i} is not column {i}{where(name)}")
    return h
