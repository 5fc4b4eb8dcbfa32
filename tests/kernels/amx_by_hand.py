"""Run as a program: the AMX path with its four tile instructions replaced by loops, so that any x86-64 CPU can test it.

Compiled code goes to Numba's cache, so this needs a NUMBA_CACHE_DIR of its own.
"""

import importlib
import os

import numpy as np
from numba import njit

from qsim.kernels import linear, pack, special, tiles
from qsim.quantize import quantize

assert "NUMBA_CACHE_DIR" in os.environ


def block(width, product):
    """As `tiles._block`; `width` columns of K in a word of 32 bits."""

    @njit
    def by_hand(a, a0, a1, b, b0, b1, steps, c, c0, keep):
        left, right, out = a.reshape(-1), b.reshape(-1), c.reshape(-1)
        for i in range(4):
            corner = c0 // 4 + i * 256
            first, second = (a0 if i < 2 else a1) // 1024, (b0 if i % 2 == 0 else b1) // 1024
            for r in range(16):
                for lane in range(16):
                    total = out[corner + r * 16 + lane] if keep else out[corner] * 0
                    for s in range(steps):
                        for word in range(16):
                            row = ((first + s) * 16 + r) * 16 + word
                            total += product(left, row, right[((second + s) * 16 + word) * 16 + lane])
                    out[corner + r * 16 + lane] = total

    return by_hand


@njit
def of_bytes(left, row, word):
    total = 0
    for byte in range(4):
        total += np.int64(left[row * 4 + byte]) * np.int64(np.int8((np.uint32(word) >> np.uint32(8 * byte)) & 255))
    return np.int32(total)


@njit
def of_bf16(left, row, word):
    total = np.float32(0)
    for half in range(2):
        x = np.uint32(np.uint32(left[row * 2 + half]) << np.uint32(16)).view(np.float32)
        bits = np.uint32(word) >> np.uint32(16) if half else np.uint32(word) & np.uint32(0xFFFF)
        total += x * np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
    return total


@njit
def nothing(*table):
    pass


tiles.block_s8, tiles.block_bf16 = block(4, of_bytes), block(2, of_bf16)
tiles.configure_tiles = tiles.release_tiles = nothing
inner = importlib.import_module("qsim.kernels.linear")

rng = np.random.default_rng(0)
for name in ("w8a8", "w4a8-g128-asym", "w4a16-g128", "w3a16-g64-sym", "fp8-rowwise", "mxfp4", "nvfp4-weight-only"):
    for m, n, k in ((9, 64, 256), (40, 100, 384)):
        q = quantize((rng.standard_normal((n, k)) * 0.02).astype(np.float32), name)
        packed, x = pack(q, np.arange(n, dtype=np.float32)), rng.standard_normal((m, k)).astype(np.float32)
        activation = None if q.scheme.activation.is_quantized else "bfloat16"
        act = inner.take(x, q.scheme.activation, input_scale=None, activation=activation)
        assert special.amx_fits(act, packed), name
        got = inner._multiply(act, packed, "amx")
        want = linear(x, packed, activation=activation, path="portable")
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error < 1e-6, (name, m, n, k, error)
