"""Softmax over the keys that a query may see, and attention of single tokens over a KV cache."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit

from qsim._native.parallel import ALL, on_threads, start_pool

from .ops import _FAST, F32, I32, _dots, exp32

_PARALLEL_FROM = 1 << 16  # multiply-adds below which a second thread costs more than it saves


@njit(cache=True, nogil=True, boundscheck=False)
def _largest(x: Any) -> Any:
    """The maximum, compared as integers, which vectorises; a NaN with clear sign is above all."""
    bits = x.view(np.int32)
    top = I32(-(1 << 31))
    for j in range(bits.shape[0]):
        top = max(top, I32(bits[j] ^ I32((bits[j] >> I32(31)) & I32(0x7FFFFFFF))))
    return I32(top ^ I32((top >> I32(31)) & I32(0x7FFFFFFF))).view(np.float32)


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False, error_model="numpy")
def _softmax(x: Any, scale: Any) -> None:
    top = _largest(x)
    total = F32(0)
    for j in range(x.shape[0]):
        e = exp32((x[j] - top) * scale)
        x[j] = e
        total += e
    factor = F32(1) / total
    for j in range(x.shape[0]):
        x[j] *= factor


@njit(cache=True, nogil=True, boundscheck=False)
def causal_row(row: Any, last: Any, window: Any, scale: Any) -> None:
    """softmax(scale * row) in place over columns last - window to last; the others become 0."""
    first = max(np.int64(0), last - window)
    row[:first] = F32(0)
    row[last:] = F32(0)
    _softmax(row[first:last], scale)


@njit(cache=True, nogil=True, boundscheck=False)
def _causal_softmax(scores: Any, tokens: Any, past: Any, window: Any, scale: Any) -> None:
    for r in range(scores.shape[0]):
        causal_row(scores[r], past + r % tokens + 1, window, scale)


def causal_softmax(scores: np.ndarray, tokens: int, first_key: int, position: int, window: int, scale: float) -> None:
    """softmax(scale * scores) in place, over the keys that each query may see; the others become 0.

    Arguments:
        scores: (G * tokens, J) float32, row r the query at position + r % tokens, column j the key at first_key + j.
        window: how many of the last keys, itself included, a query sees.
        scale: positive.
    """
    _causal_softmax(scores, np.int64(tokens), np.int64(position - first_key), np.int64(window), F32(scale))


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False, error_model="numpy")
def _softmax_with(x: Any, scale: Any, sink: Any) -> None:
    """softmax over scale * x and one more score, which gets no entry."""
    top = max(_largest(x) * scale, sink)
    total = exp32(sink - top)
    for j in range(x.shape[0]):
        e = exp32(x[j] * scale - top)
        x[j] = e
        total += e
    factor = F32(1) / total
    for j in range(x.shape[0]):
        x[j] *= factor


@njit(cache=True, nogil=True, boundscheck=False)
def _sink_softmax(scores: Any, tokens: Any, past: Any, window: Any, scale: Any, sinks: Any) -> None:
    for r in range(scores.shape[0]):
        row, last = scores[r], past + r % tokens + 1
        first = max(np.int64(0), last - window)
        row[:first] = F32(0)
        row[last:] = F32(0)
        _softmax_with(row[first:last], scale, sinks[r // tokens])


def sink_softmax(
    scores: np.ndarray, tokens: int, first_key: int, position: int, window: int, scale: float, sinks: np.ndarray
) -> None:
    """As `causal_softmax`, with a further score for each head that takes its share: sinks (G,) float32."""
    _sink_softmax(
        scores,
        np.int64(tokens),
        np.int64(position - first_key),
        np.int64(window),
        F32(scale),
        np.ascontiguousarray(sinks),
    )


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False)
def _attend_head(q: Any, keys: Any, values: Any, first: Any, last: Any, scale: Any, scores: Any, out: Any) -> None:
    """One query of one head; four keys at a time, so that q and out stay in registers."""
    _dots(q, keys, first, last, scores)
    _softmax(scores[first:last], scale)
    out[:] = F32(0)
    whole = first + (last - first) // 4 * 4
    for j in range(first, whole, 4):
        v0, v1, v2, v3 = values[j], values[j + 1], values[j + 2], values[j + 3]
        p0, p1, p2, p3 = scores[j], scores[j + 1], scores[j + 2], scores[j + 3]
        for d in range(q.shape[0]):
            out[d] += p0 * v0[d] + p1 * v1[d] + p2 * v2[d] + p3 * v3[d]
    for j in range(whole, last):
        value, p = values[j], scores[j]
        for d in range(q.shape[0]):
            out[d] += p * value[d]


@njit(cache=True, nogil=True, boundscheck=False)
def _attend(
    thread: Any, threads: Any, q: Any, keys: Any, values: Any, lengths: Any, window: Any, scale: Any, out: Any
) -> None:
    if on_threads(threads):
        return
    batch, kv_heads, _, size = keys.shape
    heads = q.shape[1] // size
    group = heads // kv_heads
    for i in range(thread * batch * heads // threads, (thread + 1) * batch * heads // threads):
        b, h = i // heads, i % heads
        last = lengths[b] + 1
        first = max(np.int64(0), last - window)
        scores = np.empty(last, F32)
        here = slice(h * size, (h + 1) * size)
        _attend_head(q[b, here], keys[b, h // group], values[b, h // group], first, last, scale, scores, out[b, here])


def attend_one(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, lengths: np.ndarray, window: int, scale: float
) -> np.ndarray:
    """Attention of one new token of every sequence.

    Arguments:
        q: (B, H * head_dim) rows, not necessarily contiguous.
        keys, values: (B, KV heads, capacity, head_dim), the new token's included.
        lengths: (B,) int64, position of the new token.
        window: how many of the last tokens, itself included, are seen.
        scale: of the scores.

    Returns:
        (B, H * head_dim) float32.
    """
    out = np.empty(q.shape, F32)
    work = q.size * int(lengths.max() + 1)
    start_pool()
    threads = 1 if work < _PARALLEL_FROM else numba.get_num_threads()
    _attend(ALL, threads, q, keys, values, lengths, np.int64(window), F32(scale), out)
    return out
