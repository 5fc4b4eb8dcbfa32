"""What stands between the matrix products of a decoder: norms, rotary embeddings, activations.

    x (M, D) rows are tokens of all sequences, one after the other; M = B * T.
    heads lie side by side in a row: query h of a row is columns h * head_dim ...

Loops that run beside BLAS use one thread: Numba's workers spin for milliseconds after a parallel loop and take their
processors from BLAS, which made a prefill eight times slower. Parallel are the loops that stand alone: products of few
tokens, and attention (`masked`) where the Linears are Numba's too.

Sums may be reassociated (`reassoc`, `contract`), so that they vectorise; NaN and Inf keep their meaning, and a norm
reports a row that has one.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba import njit

from qsim._native.parallel import ALL, on_threads

F32, I32, U32 = np.float32, np.int32, np.uint32
_MAGIC = F32(3 << 22)  # x + 1.5 * 2^23 has rint(x) in its low bits, for |x| < 2^22
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, fastmath=False, boundscheck=False)  # said, because a callee inherits its caller's fastmath
def exp32(x: Any) -> Any:
    """e^x for x <= 0 to 1 unit in the last place, in operations that vectorise; below -87 it is e^-87; NaN is NaN.

    Cephes' expf: x = n log 2 + r, and 2^n is written into the exponent. Adding `_MAGIC` rounds to an integer, so this
    one function must not be reassociated.
    """
    x = F32(-87.0) if x < F32(-87.0) else x
    shifted = F32(x * F32(1.4426950408889634) + _MAGIC)
    n = F32(shifted - _MAGIC)
    r = F32(F32(x - n * F32(0.693359375)) + n * F32(2.12194440e-4))
    p = F32(1.9875691500e-4)
    p = p * r + F32(1.3981999507e-3)
    p = p * r + F32(8.3334519073e-3)
    p = p * r + F32(4.1665795894e-2)
    p = p * r + F32(1.6666665459e-1)
    p = p * r + F32(5.0000001201e-1)
    p = p * r * r + r + F32(1.0)
    return p * U32((shifted.view(np.uint32) << U32(23)) + U32(0x3F800000)).view(np.float32)


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False, error_model="numpy")
def _rms_row(x: Any, weight: Any, eps: Any, out: Any) -> Any:
    total = F32(0)
    for d in range(x.shape[0]):
        total += x[d] * x[d]
    factor = F32(1) / np.sqrt(total / F32(x.shape[0]) + eps)
    for d in range(x.shape[0]):
        out[d] = x[d] * factor * weight[d]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False, error_model="numpy")
def _layer_row(x: Any, weight: Any, bias: Any, eps: Any, out: Any) -> Any:
    total = F32(0)
    for d in range(x.shape[0]):
        total += x[d]
    mean = total / F32(x.shape[0])
    square = F32(0)
    for d in range(x.shape[0]):
        square += (x[d] - mean) * (x[d] - mean)
    factor = F32(1) / np.sqrt(square / F32(x.shape[0]) + eps)
    for d in range(x.shape[0]):
        out[d] = (x[d] - mean) * factor * weight[d] + bias[d]
    return square


@njit(cache=True, nogil=True, boundscheck=False)
def rms_norm(x: Any, weight: Any, eps: Any, out: Any) -> Any:
    """out = x / sqrt(mean(x^2) + eps) * weight for each row; the first row with NaN or Inf, or -1."""
    for m in range(x.shape[0]):
        if not math.isfinite(_rms_row(x[m], weight, eps, out[m])):
            return m
    return -1


@njit(cache=True, nogil=True, boundscheck=False)
def layer_norm(x: Any, weight: Any, bias: Any, eps: Any, out: Any) -> Any:
    """LayerNorm of each row; the first row with NaN or Inf, or -1."""
    for m in range(x.shape[0]):
        if not math.isfinite(_layer_row(x[m], weight, bias, eps, out[m])):
            return m
    return -1


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False)
def _rotate(head: Any, cos: Any, sin: Any) -> None:
    half = cos.shape[0]
    left, right = head[:half], head[half:]
    for d in range(half):
        a, b = left[d], right[d]
        left[d] = a * cos[d] - b * sin[d]
        right[d] = b * cos[d] + a * sin[d]


@njit(cache=True, nogil=True, boundscheck=False)
def _rope(x: Any, positions: Any, cos: Any, sin: Any, heads: Any) -> None:
    size = 2 * cos.shape[1]
    for m in range(x.shape[0]):
        p = positions[m]
        for h in range(heads):
            _rotate(x[m, h * size : (h + 1) * size], cos[p], sin[p])


@njit(cache=True, nogil=True, boundscheck=False)
def _rope_part(x: Any, positions: Any, cos: Any, sin: Any, heads: Any, head_dim: Any) -> None:
    size = 2 * cos.shape[1]
    for m in range(x.shape[0]):
        p = positions[m]
        for h in range(heads):
            _rotate(x[m, h * head_dim : h * head_dim + size], cos[p], sin[p])


def rope(x: np.ndarray, positions: np.ndarray, cos: np.ndarray, sin: np.ndarray, heads: int, head_dim: int) -> None:
    """Rotate the first `heads` heads of every row in place, half-split as in Hugging Face's `rotate_half`; of heads
    wider than the tables' 2 columns a pair only the first columns."""
    if 2 * cos.shape[1] == head_dim:
        _rope(x, positions, cos, sin, heads)
    else:
        _rope_part(x, positions, cos, sin, heads, head_dim)


@njit(cache=True, nogil=True, boundscheck=False)
def head_norm(x: Any, weight: Any, eps: Any, first: Any, heads: Any) -> None:
    """RMSNorm of single heads, in place (Qwen3's q_norm and k_norm)."""
    size = weight.shape[0]
    for m in range(x.shape[0]):
        for h in range(first, first + heads):
            head = x[m, h * size : (h + 1) * size]
            _rms_row(head, weight, eps, head)


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False, error_model="numpy")
def _swiglu_row(x: Any, out: Any) -> None:
    size = out.shape[0]
    gate, up = x[:size], x[size:]
    for d in range(size):
        g = gate[d]
        e = exp32(-g if g > F32(0) else g)  # sigmoid from the side that cannot overflow
        share = F32(1) if g >= F32(0) else e
        out[d] = g * up[d] * (share / (F32(1) + e))


@njit(cache=True, nogil=True, boundscheck=False)
def _swiglu(x: Any, out: Any) -> None:
    for m in range(x.shape[0]):
        _swiglu_row(x[m], out[m])


def swiglu(x: np.ndarray) -> np.ndarray:
    """silu(gate) * up of rows [gate | up] (M, 2F): (M, F)."""
    out = np.empty((x.shape[0], x.shape[1] // 2), F32)
    _swiglu(x, out)
    return out


def clamped_swiglu(x: np.ndarray, limit: float, alpha: float) -> np.ndarray:
    """g sigmoid(alpha g) (u + 1) of rows [gate | up] (M, 2F), with g = min(gate, limit) and u held within +-limit:
    (M, F). The activation of gpt-oss's experts."""
    half = x.shape[1] // 2
    gate = np.minimum(x[:, :half], F32(limit))
    up = np.clip(x[:, half:], F32(-limit), F32(limit))
    return swiglu(np.concatenate([gate * F32(alpha), (up + F32(1)) * F32(1 / alpha)], axis=1))


def softmax(x: np.ndarray) -> np.ndarray:
    """softmax over the last axis, float32."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def activate(x: np.ndarray, kind: str) -> np.ndarray:
    """The activation of an MLP, elementwise: relu, silu, gelu (erf), gelu_new and gelu_pytorch_tanh (tanh)."""
    if kind == "relu":
        return np.maximum(x, F32(0))
    if kind == "silu":
        return swiglu(np.concatenate([x, np.ones_like(x)], axis=-1))
    if kind == "gelu":
        from scipy.special import erf

        return (x * F32(0.5) * (F32(1) + erf(x * F32(math.sqrt(0.5))))).astype(F32, copy=False)
    inner = F32(math.sqrt(2 / math.pi)) * (x + F32(0.044715) * x * x * x)
    return F32(0.5) * x * (F32(1) + np.tanh(inner))


@njit(cache=True, nogil=True, fastmath=_FAST, boundscheck=False)
def _dots(x: Any, w: Any, first: Any, last: Any, out: Any) -> None:
    """out[n] = w[n] . x for rows first to last; four at a time, so that x is read once for them."""
    whole = first + (last - first) // 4 * 4
    for n in range(first, whole, 4):
        w0, w1, w2, w3 = w[n], w[n + 1], w[n + 2], w[n + 3]
        s0, s1, s2, s3 = F32(0), F32(0), F32(0), F32(0)
        for k in range(x.shape[0]):
            s0 += w0[k] * x[k]
            s1 += w1[k] * x[k]
            s2 += w2[k] * x[k]
            s3 += w3[k] * x[k]
        out[n], out[n + 1], out[n + 2], out[n + 3] = s0, s1, s2, s3
    for n in range(whole, last):
        row, total = w[n], F32(0)
        for k in range(x.shape[0]):
            total += row[k] * x[k]
        out[n] = total


@njit(cache=True, nogil=True, boundscheck=False)
def _few_tokens(thread: Any, threads: Any, x: Any, w: Any, out: Any) -> None:
    if on_threads(threads):
        return
    blocks = (w.shape[0] + 31) // 32
    for p in range(thread * blocks // threads, (thread + 1) * blocks // threads):
        first = p * 32
        last = min(w.shape[0], first + 32)
        for m in range(x.shape[0]):  # the 32 rows stay in the cache for the next token
            _dots(x[m], w, first, last, out[m])


def few_tokens(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ w.T for a few rows of x: the weight is streamed once, by all threads. NumPy's product streams it by one."""
    out = np.empty((x.shape[0], w.shape[0]), F32)
    _few_tokens(ALL, numba.get_num_threads(), x, w, out)
    return out


@njit(cache=True, nogil=True, boundscheck=False)
def append(x: Any, first: Any, lengths: Any, keys: Any, values: Any) -> None:
    """Copy keys and values of rows (B * T), side by side from column `first` on, behind `lengths` tokens of a cache.

    Arguments:
        x: (B * T, ...) float32.
        lengths: (B,) int64.
        keys, values: (B, KV heads, capacity, head_dim) float32.
    """
    batch, kv_heads, _, size = keys.shape
    tokens = x.shape[0] // batch
    second = first + kv_heads * size
    for b in range(batch):
        for t in range(tokens):
            row = x[b * tokens + t]
            for h in range(kv_heads):
                key, value = keys[b, h, lengths[b] + t], values[b, h, lengths[b] + t]
                for d in range(size):
                    key[d] = row[first + h * size + d]
                    value[d] = row[second + h * size + d]
