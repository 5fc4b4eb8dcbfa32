"""The compiled loops that decode the blocks which most files have: the types of 32 values, and the K-quants.

Every loop takes blocks, uint8 (B, bytes), with their scales as float32, and fills `out` (B, values). The order of
float32 operations is ggml's: a product and a difference are rounded one after the other, never fused.

Source: ggml's `ggml-quants.c`, `dequantize_row_*`; the structs in `ggml-common.h`.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

F32, I32 = np.float32, np.int32


@nb.njit(nogil=True, cache=True)
def q8_0(b: Any, d: Any, out: Any) -> None:
    for i in range(b.shape[0]):
        for j in range(32):
            out[i, j] = F32(np.int8(b[i, 2 + j])) * d[i]


@nb.njit(nogil=True, cache=True)
def q4_0(b: Any, d: Any, out: Any) -> None:
    for i in range(b.shape[0]):
        for j in range(16):
            code = I32(b[i, 2 + j])
            out[i, j] = F32((code & I32(15)) - I32(8)) * d[i]
            out[i, j + 16] = F32((code >> I32(4)) - I32(8)) * d[i]


@nb.njit(nogil=True, cache=True)
def q5_0(b: Any, d: Any, out: Any) -> None:
    for i in range(b.shape[0]):
        high = I32(b[i, 2]) | (I32(b[i, 3]) << I32(8)) | (I32(b[i, 4]) << I32(16)) | (I32(b[i, 5]) << I32(24))
        for j in range(16):
            code = I32(b[i, 6 + j])
            first, second = (high >> I32(j)) & I32(1), (high >> I32(j + 16)) & I32(1)
            out[i, j] = F32(((code & I32(15)) | (first << I32(4))) - I32(16)) * d[i]
            out[i, j + 16] = F32(((code >> I32(4)) | (second << I32(4))) - I32(16)) * d[i]


@nb.njit(nogil=True, cache=True)
def q5_0_codes(b: Any, out: Any) -> None:
    """The codes themselves, as two's complement of 5 bits: uint8 (B, 32)."""
    for i in range(b.shape[0]):
        high = I32(b[i, 2]) | (I32(b[i, 3]) << I32(8)) | (I32(b[i, 4]) << I32(16)) | (I32(b[i, 5]) << I32(24))
        for j in range(16):
            code = I32(b[i, 6 + j])
            first, second = (high >> I32(j)) & I32(1), (high >> I32(j + 16)) & I32(1)
            out[i, j] = np.uint8(((code & I32(15)) | (first << I32(4))) ^ I32(16))
            out[i, j + 16] = np.uint8(((code >> I32(4)) | (second << I32(4))) ^ I32(16))


# --- super-blocks of 256 values ---------------------------------------------------------------------------------


@nb.njit(nogil=True, cache=True)
def q2_k(b: Any, scales: Any, minima: Any, out: Any) -> None:
    """`scales` and `minima` are (B, 16)."""
    for i in range(b.shape[0]):
        for k in range(16):  # of 16 values each
            first, shift = 16 + 32 * (k // 8) + 16 * (k % 2), I32(2 * (k % 8 // 2))
            for j in range(16):
                code = (I32(b[i, first + j]) >> shift) & I32(3)
                out[i, 16 * k + j] = F32(code) * scales[i, k] - minima[i, k]


@nb.njit(nogil=True, cache=True)
def q3_k(b: Any, scales: Any, out: Any) -> None:
    """`scales` are (B, 16)."""
    for i in range(b.shape[0]):
        for k in range(16):
            half, at = 16 * (k % 2), I32(k % 8 // 2)
            first, shift, bit = 32 + 32 * (k // 8) + half, I32(2) * at, I32(k // 2)
            for j in range(16):
                high = (I32(b[i, half + j]) >> bit) & I32(1)
                code = ((I32(b[i, first + j]) >> shift) & I32(3)) - I32(4) * (I32(1) - high)
                out[i, 16 * k + j] = F32(code) * scales[i, k]


@nb.njit(nogil=True, cache=True)
def q4_k(b: Any, scales: Any, minima: Any, out: Any) -> None:
    """`scales` and `minima` are (B, 8)."""
    for i in range(b.shape[0]):
        for k in range(4):  # 32 bytes hold two times 32 values
            for j in range(32):
                code = I32(b[i, 16 + 32 * k + j])
                out[i, 64 * k + j] = F32(code & I32(15)) * scales[i, 2 * k] - minima[i, 2 * k]
                out[i, 64 * k + 32 + j] = F32(code >> I32(4)) * scales[i, 2 * k + 1] - minima[i, 2 * k + 1]


@nb.njit(nogil=True, cache=True)
def q5_k(b: Any, scales: Any, minima: Any, out: Any) -> None:
    """`scales` and `minima` are (B, 8)."""
    for i in range(b.shape[0]):
        for k in range(4):
            low, high = I32(2 * k), I32(2 * k + 1)
            for j in range(32):
                code, fifth = I32(b[i, 48 + 32 * k + j]), I32(b[i, 16 + j])
                first = (code & I32(15)) | (((fifth >> low) & I32(1)) << I32(4))
                second = (code >> I32(4)) | (((fifth >> high) & I32(1)) << I32(4))
                out[i, 64 * k + j] = F32(first) * scales[i, 2 * k] - minima[i, 2 * k]
                out[i, 64 * k + 32 + j] = F32(second) * scales[i, 2 * k + 1] - minima[i, 2 * k + 1]


@nb.njit(nogil=True, cache=True)
def q6_k(b: Any, scales: Any, out: Any) -> None:
    """`scales` are (B, 16)."""
    for i in range(b.shape[0]):
        for k in range(8):  # 32 values each, under two scales
            low, shift = 64 * (k // 4) + 32 * (k % 2), I32(4 * (k % 4 // 2))
            high, lift = 128 + 32 * (k // 4), I32(2 * (k % 4))
            for j in range(32):
                code = (I32(b[i, low + j]) >> shift) & I32(15)
                code |= ((I32(b[i, high + j]) >> lift) & I32(3)) << I32(4)
                out[i, 32 * k + j] = F32(code - I32(32)) * scales[i, 2 * k + j // 16]
