"""Attention of many queries in compiled code: tiles of queries over all threads, scores of one tile at a time."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit

from qsim._native.parallel import ALL, on_threads
from qsim._native.vectors import take_next

from . import masked

F32 = np.float32
_FAST = {"reassoc", "contract", "nsz"}
_TILE = 16  # queries of each head of a tile
_KEYS = 128  # keys whose products are formed together: 64 x 128 of them fit in L1


@njit(cache=True, fastmath=_FAST, boundscheck=False)
def _add_product(a: Any, b: Any, c: Any) -> None:
    """c += a b for (R, K), (K, N) and (R, N), R and K multiples of 4: lanes run along N."""
    lanes = c.shape[1]
    for r in range(0, c.shape[0], 4):
        c0, c1, c2, c3 = c[r], c[r + 1], c[r + 2], c[r + 3]
        for k in range(0, a.shape[1], 4):
            b0, b1, b2, b3 = b[k], b[k + 1], b[k + 2], b[k + 3]
            x0, x1, x2, x3 = a[r], a[r + 1], a[r + 2], a[r + 3]
            p0, p1, p2, p3 = x0[k], x0[k + 1], x0[k + 2], x0[k + 3]
            q0, q1, q2, q3 = x1[k], x1[k + 1], x1[k + 2], x1[k + 3]
            s0, s1, s2, s3 = x2[k], x2[k + 1], x2[k + 2], x2[k + 3]
            t0, t1, t2, t3 = x3[k], x3[k + 1], x3[k + 2], x3[k + 3]
            for n in range(lanes):
                v0, v1, v2, v3 = b0[n], b1[n], b2[n], b3[n]
                c0[n] += p0 * v0 + p1 * v1 + p2 * v2 + p3 * v3
                c1[n] += q0 * v0 + q1 * v1 + q2 * v2 + q3 * v3
                c2[n] += s0 * v0 + s1 * v1 + s2 * v2 + s3 * v3
                c3[n] += t0 * v0 + t1 * v1 + t2 * v2 + t3 * v3


@njit(cache=True, boundscheck=False, inline="always")
def _tile(q: Any, keys: Any, values: Any, start: Any, stop: Any, past: Any, window: Any, scale: Any, out: Any) -> None:
    """Queries `start` to `stop` of a KV head's heads: q and out (T, G, head_dim), keys and values (J, head_dim)."""
    group, size = q.shape[1], q.shape[2]
    tokens = stop - start
    rows, wide = (group * tokens + 3) // 4 * 4, (size + 3) // 4 * 4
    first, last = max(np.int64(0), past + start + 1 - window), past + stop
    count = last - first
    padded = (count + 3) // 4 * 4
    x = np.zeros((rows, wide), F32)
    for g in range(group):
        for t in range(tokens):
            row, query = x[g * tokens + t], q[start + t, g]
            for d in range(size):  # loops, not slices: their check of the shapes takes seconds to compile
                row[d] = query[d]
    scores = np.zeros((rows, padded), F32)
    turned = np.zeros((wide, _KEYS), F32)
    for at in range(0, count, _KEYS):
        end = min(count, at + _KEYS)
        for j in range(at, end):
            key = keys[first + j]
            for d in range(size):
                turned[d, j - at] = key[d]
        _add_product(x, turned[:, : end - at], scores[:, at:end])
    for r in range(group * tokens):
        masked.causal_row(scores[r, :count], past + start + r % tokens + 1 - first, window, scale)
    mixed = np.zeros((rows, size), F32)
    whole = count // 4 * 4
    _add_product(scores[:, :whole], values[first : first + whole], mixed)
    for j in range(whole, count):
        for r in range(group * tokens):
            p = scores[r, j]
            for d in range(size):
                mixed[r, d] += p * values[first + j, d]
    for g in range(group):
        for t in range(tokens):
            row, here = mixed[g * tokens + t], out[start + t, g]
            for d in range(size):
                here[d] = row[d]


@njit(cache=True, boundscheck=False)
def _attend(
    thread: Any, threads: Any, counter: Any, q: Any, keys: Any, values: Any, past: Any, window: Any, scale: Any,
    out: Any,
) -> None:  # fmt: skip
    if on_threads(threads):
        return
    batch, tokens, heads, _ = q.shape
    kv_heads = keys.shape[1]
    group, tiles = heads // kv_heads, (tokens + _TILE - 1) // _TILE
    i = take_next(counter, 0)
    while i < batch * kv_heads * tiles:
        b, rest = i // (kv_heads * tiles), i % (kv_heads * tiles)
        kv, tile = rest % kv_heads, tiles - 1 - rest // kv_heads  # the longest tiles first
        start = tile * _TILE
        here = slice(kv * group, (kv + 1) * group)
        _tile(q[b][:, here], keys[b, kv], values[b, kv], start, min(tokens, start + _TILE), past[b], window, scale,
              out[b][:, here])  # fmt: skip
        i = take_next(counter, 0)


def attend_tiles(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, past: np.ndarray, window: int, scale: float
) -> np.ndarray:
    """Causal attention of new tokens of every sequence, on all threads.

    Arguments:
        q: (B, T, H, head_dim) float32, query t of sequence b at position past[b] + t.
        keys, values: (B, KV heads, at least past + T, head_dim) float32.
        past: (B,) int64, tokens before the new ones.
        window: how many of the last keys, itself included, a query sees.
        scale: of the scores, positive.

    Returns:
        (B, T, H, head_dim) float32.
    """
    out = np.empty(q.shape, F32)
    next_tile = np.zeros(1, np.int64)
    _attend(ALL, numba.get_num_threads(), next_tile, q, keys, values, past, np.int64(window), F32(scale), out)
    return out
