"""Dynamic per-token integer activations: one pass for the absolute maximum of a token and one for its codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

F32, U32 = np.float32, np.uint32
_MAGIC = np.float32(3 << 22)  # x + 1.5 * 2^23 - 1.5 * 2^23 is rint(x) for |x| < 2^22, in instructions that vectorise


@njit(cache=True, boundscheck=False)
def _token(x: Any, levels: Any, out: Any) -> Any:
    peak = U32(0)
    bits = x.view(np.uint32)  # without the sign, bits are ordered as values, with NaN above Inf above all
    for at in range(x.shape[0]):
        peak = max(peak, U32(bits[at] & U32(0x7FFFFFFF)))
    if peak >= U32(0x7F800000):
        return F32(0)
    scale = F32(max(U32(peak).view(np.float32), F32(1e-5)) / levels)
    for at in range(x.shape[0]):
        out[at] = np.int8(np.int32(F32(F32(x[at] / scale) + _MAGIC) - _MAGIC))
    return scale


@njit(cache=True, parallel=True, boundscheck=False)
def _tokens_parallel(x: Any, levels: Any, out: Any, scale: Any) -> None:
    for m in prange(x.shape[0]):
        i = np.int64(m)
        scale[i] = _token(x[i], levels, out[i])


@njit(cache=True, boundscheck=False)
def _tokens(x: Any, levels: Any, out: Any, scale: Any) -> None:
    for m in range(x.shape[0]):
        scale[m] = _token(x[m], levels, out[m])


def quantize_tokens(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """SmoothQuant's dynamic per-token codes: scale = max(amax, 1e-5) / (2^(bits-1) - 1), code = rint(x / scale).

    Arguments:
        x: (M, K) float32.

    Returns:
        Codes as int8 (M, K) and scales (M,), equal bit for bit to `quantize(..., scale_rule="smoothquant")`.

    Raises:
        ValueError: NaN or Inf; the message names the row.
    """
    out, scale = np.empty(x.shape, np.int8), np.empty(x.shape[0], F32)
    run = _tokens if x.size < 1 << 15 else _tokens_parallel
    run(x, F32((1 << (bits - 1)) - 1), out, scale)
    if not scale.all():
        from qsim.quantize.quantizer import check_finite

        check_finite(x, what="activations")
    return out, scale
