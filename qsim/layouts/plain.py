"""Unquantised tensors: float32 values in the narrowest dtype that holds them, or rounded to one that was asked for.

A quantised tensor is taken a few rows at a time, so that its values in float32 are never there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qsim.errors import QsimError
from qsim.formats import cast
from qsim.safetensors import DTYPE_OF, NUMPY_OF, Stored, exactly
from qsim.scheme import QuantizedTensor

from .layout import Layer, Layout

DTYPES = ("float32", "float16", "bfloat16")
_PIECE = 1 << 22  # values at a time


def pieces(tensor: np.ndarray | QuantizedTensor) -> Iterator[np.ndarray]:
    """float32 values by rows."""
    if not isinstance(tensor, QuantizedTensor):
        yield tensor
        return
    granularity = tensor.tensor_scheme.granularity
    rows = granularity.rows if granularity is not None and granularity.rows else 1
    step = max(_PIECE // max(tensor.shape[-1], 1) // rows, 1) * rows
    for first in range(0, tensor.shape[0], step):
        yield tensor[first : first + step].dequantize()


def narrowest(tensor: np.ndarray | QuantizedTensor, dtypes: Sequence[str]) -> tuple[Stored, str]:
    """The tensor in the first of these dtypes that holds every value, and which that is; float32 holds all."""
    for dtype in dtypes:
        found = _all(tensor, dtype)
        if found is not None:
            return found, dtype
    found = _all(tensor, "float32")
    assert found is not None
    return found, "float32"


def _all(tensor: np.ndarray | QuantizedTensor, dtype: str) -> Stored | None:
    if not isinstance(tensor, QuantizedTensor):
        return exactly(tensor, dtype)
    out = np.empty(tensor.shape, NUMPY_OF[DTYPE_OF[dtype]])
    at = 0
    for piece in pieces(tensor):
        found = exactly(piece, dtype)
        if found is None:
            return None
        out[at : at + piece.shape[0]] = found.bits
        at += piece.shape[0]
    return Stored(dtype=DTYPE_OF[dtype], bits=out)


def rounded(tensor: np.ndarray | QuantizedTensor, dtype: str, name: str) -> tuple[Stored, bool]:
    """The tensor rounded to nearest in a dtype, and whether a value has changed.

    Raises:
        ValueError: finite values beyond the dtype.
    """
    kept = _all(tensor, dtype)
    if kept is not None:
        return kept, False
    out = np.empty(tensor.shape, NUMPY_OF[DTYPE_OF[dtype]])
    at = 0
    for piece in pieces(tensor):
        values = np.asarray(cast(piece, dtype, overflow="nonsaturating"), np.float32)
        if not np.isfinite(values).all():
            raise QsimError(
                f"tensor {name} has values up to {np.abs(piece).max():.4g}, beyond {dtype}; use another dtype, or None"
            )
        found = exactly(values, dtype)
        assert found is not None
        if values.ndim == 0:
            return found, True
        out[at : at + piece.shape[0]] = found.bits
        at += piece.shape[0]
    return Stored(dtype=DTYPE_OF[dtype], bits=out), True


def refuses(layer: Layer) -> str | None:
    """Why a plain checkpoint cannot hold a layer; None when it can."""
    if layer.scheme.weight.is_quantized:
        return f"plain holds unquantised weights: got {layer.scheme.weight.format.name}"
    return None


LAYOUT = Layout(name="plain", says="16- and 32-bit floats", refuses=refuses, order=0)
