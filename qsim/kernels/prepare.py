"""Dynamic per-token INT8 activations: one fused pass for the absolute maximum and one for the codes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

F32 = np.float32


@njit(cache=True)
def _token(x: Any, levels: Any, out: Any) -> Any:
    peaks = np.zeros(16, F32)
    k = x.shape[0]
    whole = k - k % 16
    for at in range(0, whole, 16):
        for lane in range(16):
            peaks[lane] = max(peaks[lane], abs(x[at + lane]))
    amax = F32(1e-5)
    for lane in range(16):
        amax = max(amax, peaks[lane])
    for at in range(whole, k):
        amax = max(amax, abs(x[at]))
    scale = F32(amax / levels)
    for at in range(k):
        out[at] = np.rint(F32(x[at] / scale))
    return scale


@njit(cache=True, parallel=True)
def _tokens_parallel(x: Any, levels: Any, out: Any, scale: Any) -> None:
    for m in prange(x.shape[0]):
        scale[m] = _token(x[m], levels, out[m])


@njit(cache=True)
def _tokens(x: Any, levels: Any, out: Any, scale: Any) -> None:
    for m in range(x.shape[0]):
        scale[m] = _token(x[m], levels, out[m])


def quantize_tokens(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """SmoothQuant's dynamic per-token codes: scale = max(amax, 1e-5) / (2^(bits-1) - 1), code = rint(x / scale).

    Arguments:
        x: (M, K) float32, finite.

    Returns:
        Codes as float32 (M, K) and scales (M,), equal bit for bit to `quantize(..., scale_rule="smoothquant")`.
    """
    out, scale = np.empty_like(x), np.empty(x.shape[0], F32)
    run = _tokens if x.size < 1 << 15 else _tokens_parallel
    run(x, F32((1 << (bits - 1)) - 1), out, scale)
    return out, scale
