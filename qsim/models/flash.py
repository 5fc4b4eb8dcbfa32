"""Attention of many queries in compiled code: tiles of queries over all threads, scores of one tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from qsim._native.threads import on_threads

from . import ops

F32 = np.float32
_FAST = {"reassoc", "contract", "nsz"}
_TILE = 16  # queries of each head of a tile
_KEYS = 128  # keys whose products are formed together: 64 x 128 of them fit in L1


@njit(cache=True, fastmath=_FAST, boundscheck=False)
def _add_product(a: Any, depth: Any, b: Any, above: Any, lanes: Any, c: Any, left: Any) -> None:
    """c[:, left : left + lanes] += a[:, :depth] b[above : above + depth, :lanes]; rows of c and depth: multiples of 4.

    Lanes run along a row. Whole arrays and where to begin, because a view of some columns is another type to Numba:
    the function would be compiled once for each, as it would be for a literal 0.
    """
    for r in range(0, c.shape[0], 4):
        c0, c1, c2, c3 = c[r, left:], c[r + 1, left:], c[r + 2, left:], c[r + 3, left:]
        for k in range(0, depth, 4):
            at = above + k
            b0, b1, b2, b3 = b[at], b[at + 1], b[at + 2], b[at + 3]
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


@njit(cache=True, boundscheck=False)
def _tile(i: Any, q: Any, keys: Any, values: Any, past: Any, window: Any, scale: Any, out: Any) -> None:
    """Tile i of all sequences' and KV heads', each up to `_TILE` queries of the heads of one; shapes as `attend_tiles`.

    Elements are copied one by one: to assign an array to a slice makes Numba compile the message of shapes that do not
    fit, and with it the functions of integers and texts.
    """
    tokens, kv_heads, size = q.shape[1], keys.shape[1], q.shape[3]
    group, tiles = q.shape[2] // kv_heads, (tokens + _TILE - 1) // _TILE
    b, rest = i // (kv_heads * tiles), i % (kv_heads * tiles)
    kv, start = rest % kv_heads, (tiles - 1 - rest // kv_heads) * _TILE  # the longest tiles first
    head, tokens = kv * group, min(tokens, start + _TILE) - start
    rows, wide = (group * tokens + 3) // 4 * 4, (size + 3) // 4 * 4
    first, last = max(np.int64(0), past[b] + start + 1 - window), past[b] + start + tokens
    count = last - first
    padded = (count + 3) // 4 * 4
    x = np.zeros((rows, wide), F32)
    for g in range(group):
        for t in range(tokens):
            for d in range(size):
                x[g * tokens + t, d] = q[b, start + t, head + g, d]
    scores = np.zeros((rows, padded), F32)
    turned = np.zeros((wide, _KEYS), F32)
    for at in range(0, count, _KEYS):
        end = min(count, at + _KEYS)
        for j in range(at, end):
            key = keys[b, kv, first + j]
            for d in range(size):
                turned[d, j - at] = key[d]
        _add_product(x, wide, turned, np.int64(0), end - at, scores, at)
    for r in range(group * tokens):
        ops.causal_row(scores[r, :count], past[b] + start + r % tokens + 1 - first, window, scale)
    mixed = np.zeros((rows, size), F32)
    whole = count // 4 * 4
    _add_product(scores, whole, values[b, kv], first, size, mixed, np.int64(0))
    for j in range(whole, count):
        for r in range(group * tokens):
            p = scores[r, j]
            for d in range(size):
                mixed[r, d] += p * values[b, kv, first + j, d]
    for g in range(group):
        for t in range(tokens):
            for d in range(size):
                out[b, start + t, head + g, d] = mixed[g * tokens + t, d]


_all_tiles = on_threads(_tile)


@njit(cache=True, boundscheck=False)
def _attend(q: Any, keys: Any, values: Any, past: Any, window: Any, scale: Any, out: Any) -> None:
    tiles = (q.shape[1] + _TILE - 1) // _TILE
    _all_tiles(q.shape[0] * keys.shape[1] * tiles, (q, keys, values, past, window, scale, out))


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
    _attend(q, keys, values, past, np.int64(window), F32(scale), out)
    return out
