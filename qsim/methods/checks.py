"""What every algorithm asks of its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.arrays import real_array
from qsim.errors import QsimError
from qsim.scheme import Scheme
from qsim.scheme.quantizer import check_finite

F32 = np.float32
_LARGEST = 2.0**60  # of weights
_COMFORTABLE = 32  # binary exponents of a Hessian that float32 products take as they are


def where(name: str) -> str:
    """The layer, as it ends a message."""
    return f" (layer {name})" if name else ""


def own_rule_refusal(scheme: Scheme, method: str, layer: str = "") -> str | None:
    """Why a method that searches for ranges or passes errors on cannot do a scheme with minima or superblocks; None for
    other schemes."""
    if not scheme.weight.has_own_rule:
        return None
    return (
        f"{method} does not find scales in superblocks or with minima: got {scheme.name or scheme.weight.summary}"
        f"{layer}; use rtn"
    )


def check_weight(weight: Any, scheme: Scheme, name: str) -> np.ndarray:
    """A weight (N, K) as row-major float32.

    Raises:
        ValueError: not a matrix of floats, empty, NaN or Inf, weights of 2^60 and more, unquantised scheme, a group
            that does not divide K.
    """
    w = real_array(weight, f"weights{where(name)}", dtype=F32)
    if w.ndim != 2 or w.size == 0:
        raise QsimError(f"a weight is a matrix (N, K) with elements: got shape {w.shape}{where(name)}")
    if not scheme.weight.is_quantized:
        raise QsimError(
            f"the scheme keeps weights in {scheme.weight.format.name}: there is nothing to quantise{where(name)}"
        )
    scheme.weight.check_shape(w.shape, name)
    check_finite(w, name)
    largest = float(np.abs(w).max())
    if largest >= _LARGEST:
        raise QsimError(
            f"weights must be below 2^60 in magnitude, so that squares of errors are float32 numbers: got {largest:g}"
            f"{where(name)}; scale the layer down"
        )
    return w


def check_hessian(hessian: Any, columns: int, name: str) -> np.ndarray:
    """A Hessian (K, K) as row-major float32, for what does not depend on its scaling: see `scaled_hessian`."""
    return scaled_hessian(hessian, columns, name)[0]


def scaled_hessian(hessian: Any, columns: int, name: str) -> tuple[np.ndarray, int]:
    """A Hessian (K, K) as row-major float32 H and an exponent e; what was given is H 2^e.

    e is 0 and nothing is copied while the largest diagonal element lies between 2^-33 and 2^32. Beyond, H is scaled to
    about 1: neither it nor its products with squared errors leave float32's range.

    Raises:
        ValueError: another shape, no real numbers, masked elements; NaN or Inf (the column and the layer are named);
            not symmetric; a negative diagonal; an element far beyond the diagonal.
    """
    h = real_array(hessian, f"elements of the Hessian{where(name)}", integers=True)
    if h.dtype != F32 or not h.flags.c_contiguous:
        h = np.ascontiguousarray(h, dtype=np.float64 if h.dtype.itemsize > 4 else F32)
    if h.shape != (columns, columns):
        raise QsimError(
            f"the Hessian of a weight with {columns} columns is ({columns}, {columns}): got {h.shape}{where(name)}"
        )
    for first in range(0, columns, 512):
        bad = ~np.isfinite(h[first : first + 512]).all(axis=1)
        if bad.any():
            raise QsimError(
                f"the Hessian must be finite: column {first + int(np.argmax(bad))} has NaN or Inf{where(name)}; an "
                "activation of this layer is NaN or Inf, or too large to square: look for the first layer that gives it"
            )
    diagonal = h.diagonal()
    if (diagonal < 0).any():
        column = int(np.argmin(diagonal))
        raise QsimError(
            f"the Hessian is a sum of squares: its diagonal is {diagonal[column]} in column {column}{where(name)}"
        )
    top = float(diagonal.max())
    exponent = int(np.frexp(top)[1]) if top else 0
    if abs(exponent) <= _COMFORTABLE:
        exponent = 0
    with np.errstate(over="ignore"):
        h = (np.ldexp(h, -exponent) if exponent else h).astype(F32, copy=False)
    if (exponent or hessian is not h) and not np.isfinite(h).all():
        raise QsimError(
            f"the Hessian is a sum of squares: none of its elements may exceed the largest of the diagonal, {top:g}"
            f"{where(name)}"
        )
    diagonal = h.diagonal()
    for i in {0, columns // 2, columns - 1}:
        if not np.allclose(h[i], h[:, i], rtol=1e-4, atol=1e-6 * float(diagonal.max())):
            raise QsimError(f"the Hessian must be symmetric: row {i} is not column {i}{where(name)}")
    return h, exponent
