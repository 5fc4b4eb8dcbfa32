"""The ladder: one W4A16 matrix-vector product, four ways, each faster for one reason.

At one token every weight is read once and used once: 0.5 byte for two operations. No CPU or GPU can wait for memory so
little, so the time of a decode step is the time to read the weights, and the only lever is fewer bytes. That promise
is kept only if unpacking costs less than reading. Each rung removes one cost:

1. `naive`: dequantise each weight, (q - z) * s, then multiply. Eight operations per weight, one at a time.
2. `factored`: s and z are constant in a group, so sum (q - z) s x = s (sum q x - z sum x). Two operations per weight.
3. `lanes`: 64 rows side by side are one vector loop without a horizontal sum; fields stay in place, see
`qsim.kernels.portable`.
4. `intrinsics`: INT8 activations and `vpdpbusd`, four products per instruction (W4A8: the activation is rounded).

Shapes: words (N, K/8) uint32 row by row for rungs 1 and 2, columns in ascending fields; (N/64, K/8, 64) for 3 and 4.
scales, zeros (N, K/g) float32; x (K,) float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from qsim.errors import QsimError

from .linear import linear
from .packing import PackedWeight

F32, U32, I32 = np.float32, np.uint32, np.int32


def by_rows(packed: PackedWeight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row-major words, scales and zero points of a 4-bit grouped weight, for the first two rungs."""
    q = packed.source
    own = q.tensor_scheme.has_own_rule
    if packed.bits != 4 or packed.padded_k != packed.shape[1] or q.group_index is not None or own:
        raise QsimError(f"the ladder climbs on 4-bit weights whose groups divide K: got {packed!r}")
    codes = q.codes if q.zeros is not None else (q.integers + 8).astype(np.uint8)
    fields = codes.reshape(codes.shape[0], -1, 8).astype(np.uint32) << (4 * np.arange(8, dtype=np.uint32))
    zeros = np.full(q.scales.shape, 8, F32) if q.zeros is None else q.zeros.astype(F32)
    return np.bitwise_or.reduce(fields, axis=-1), q.scales, zeros


@njit(cache=True, parallel=True)
def naive(words: Any, scales: Any, zeros: Any, x: Any, group: int, out: Any) -> None:
    """Rung 1: y[n] = sum_k (q - z) * s * x."""
    for n in prange(words.shape[0]):
        total = F32(0)
        for k in range(x.shape[0]):
            q = F32((words[n, k // 8] >> U32(4 * (k % 8))) & U32(15))
            total += (q - zeros[n, k // group]) * scales[n, k // group] * x[k]
        out[n] = total


@njit(cache=True, parallel=True, fastmath={"reassoc", "contract"})
def factored(words: Any, scales: Any, zeros: Any, x: Any, xsum: Any, group: int, out: Any) -> None:
    """Rung 2: y[n] = sum_g s * (sum_k q x - z * xsum[g]); the order of the inner sum is the compiler's."""
    for n in prange(words.shape[0]):
        total = F32(0)
        for g in range(scales.shape[1]):
            inner = F32(0)
            for i in range(g * group // 8, (g + 1) * group // 8):
                word = words[n, i]
                for j in range(8):
                    inner += F32(I32((word >> U32(4 * j)) & U32(15))) * x[8 * i + j]
            total += scales[n, g] * (inner - zeros[n, g] * xsum[g])
        out[n] = total


def lanes(packed: PackedWeight, x: np.ndarray) -> np.ndarray:
    """Rung 3: the portable kernel of `linear`."""
    return linear(x[None], packed, path="portable")[0]


def intrinsics(packed: PackedWeight, x: np.ndarray) -> np.ndarray:
    """Rung 4: a `w4a8` weight, `vpdpbusd` in `linear`.

    Raises:
        ValueError: this CPU has no VNNI, or `QSIM_KERNELS` switches it off.
    """
    return linear(x[None], packed, path="vnni")[0]
