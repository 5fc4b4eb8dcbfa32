"""Operators of a decoder as eager PyTorch 2.11 runs them on an H200, bit for bit: order of every sum, every rounding.

Arrays that hold BF16 are BF16 codes (uint16); everything else is float32. An operator of BF16 tensors computes in
float32 and rounds once, to nearest even. Reductions follow PyTorch's `Reduce.cuh` and `PersistentSoftmax.cuh`; which
element meets which was recorded on the device (`tests/golden`: `tree.*` of h200_block.npz, h200_model.npz).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.arrays import as_plain_array
from qsim.errors import QsimError
from qsim.formats import encode
from qsim.tensorcore import matmul
from qsim.tensorcore.cuda_math import cosf, expf, powf, sinf
from qsim.tensorcore.functions import approximate
from qsim.tensorcore.fused import fma_chain

F32, U16 = np.float32, np.uint16
WARP = 32
_THREADS = 512  # of a block that reduces float32
_VECTOR = 4  # elements that a thread loads at a time, each into an accumulator of its own
_FEWEST, _ONE_BLOCK = 128, 131072  # from the one on elements are loaded in fours, from the other blocks share a row
_LONGEST_IN_WARP, _SOFTMAX_THREADS = 2048, 1024
LONGEST_SOFTMAX = 8192
"""Elements of a row up to which the order of softmax was recorded; 32000 are added in another one."""
_LOWEST = U16(0xFF7F)  # BF16


def widen(codes: Any) -> np.ndarray:
    """float32 of BF16 codes (uint16)."""
    given = as_plain_array(codes, "BF16 codes")
    if given.dtype != U16:
        raise QsimError(f"BF16 tensors are given as codes, uint16: got {given.dtype}")
    return (given.astype(np.uint32) << np.uint32(16)).view(F32)


def narrow(values: np.ndarray) -> np.ndarray:
    """BF16 codes of float32, to nearest even; beyond the largest BF16 is Inf."""
    return np.asarray(encode(values, "bfloat16", overflow="nonsaturating"))


# ---- reductions


def row_sums(x: Any) -> np.ndarray:
    """(M,) float32 sums over the last axis of contiguous (M, K) float32, as `x.sum(-1)`.

    T threads share a row: 32, and of fewer than 16 rows up to 512. From K = 128 on, a thread loads vectors of four
    elements at aligned addresses, and keeps an accumulator for each of the four places; the elements before the first
    aligned address and behind the last join the first accumulator. Below, its accumulators take elements t, t + T,
    t + 2T, t + 3T, and so on. When a thread is done, it adds its accumulators in order. Then threads fold in halves:
    the first half adds the second, down to one. From 8192 columns on (each thread then has 256, or 16 for each of the
    rows of a block), the warps of a block share a row and fold when the threads of each have.

    Raises:
        QsimError: x of other shape or dtype; more than 131071 columns, which several blocks share.
    """
    given = as_plain_array(x, "x")
    if given.dtype != F32 or given.ndim != 2:
        raise QsimError(f"a reduction takes float32 of shape (M, K): got {given.dtype} {given.shape}")
    rows, k = given.shape
    if not 1 <= k < _ONE_BLOCK:
        raise QsimError(f"sums of rows are known for lengths from 1 to {_ONE_BLOCK - 1}: got {k}")
    vector = _VECTOR if k >= _FEWEST else 1
    width, height = _block(k // vector, rows)
    warps = height if -(-k // width) >= min(height * 16, 256) else 1
    with np.errstate(all="ignore"):
        if vector == 1:
            step = width * _VECTOR
            padded = np.zeros((rows, -(-k // step) * step), F32)  # +0 changes no sum that starts from +0
            padded[:, :k] = given
            return _halved(_in_order(_in_order(padded.reshape(rows, -1, _VECTOR, width))))[..., 0]
        threads = np.empty((rows, warps * width), F32)
        shifts = np.arange(rows) * k % _VECTOR
        for shift in range(_VECTOR):
            threads[shifts == shift] = _by_vectors(given[shifts == shift], shift, warps * width)
        return _halved(_halved(threads.reshape(rows, warps, width))[..., 0])[..., 0]


def _by_vectors(x: np.ndarray, shift: int, threads: int) -> np.ndarray:
    """(M, threads) of rows that start `shift` elements behind an aligned address."""
    rows, k = x.shape
    before = -shift % _VECTOR
    vectors = (k - before) // _VECTOR
    rounds = -(-vectors // threads)
    padded = np.zeros((rows, rounds * threads * _VECTOR), F32)
    padded[:, : vectors * _VECTOR] = x[:, before : before + vectors * _VECTOR]
    places = np.zeros((rows, threads, _VECTOR), F32)
    places[:, shift : shift + before, 0] = x[:, :before]
    for part in padded.reshape(rows, rounds, threads, _VECTOR).swapaxes(0, 1):
        places = places + part
    behind = x[:, before + vectors * _VECTOR :]
    places[:, : behind.shape[1], 0] += behind
    return _in_order(np.moveaxis(places, -1, 1))


def _in_order(parts: np.ndarray) -> np.ndarray:
    """Sums over axis 1, one after the other from 0."""
    total = np.zeros_like(parts[:, 0])
    for i in range(parts.shape[1]):
        total = total + parts[:, i]
    return total


def _halved(values: np.ndarray) -> np.ndarray:
    """The last axis folded in halves to a length of 1: the first half adds the second."""
    while values.shape[-1] > 1:
        half = values.shape[-1] // 2
        values = values[..., :half] + values[..., half:]
    return values


def _block(length: int, rows: int) -> tuple[int, int]:
    """Width and height of a block of threads for `rows` outputs of `length` loads each."""
    wide, tall = (min(1 << (n.bit_length() - 1), _THREADS) for n in (length, rows))
    width = min(wide, WARP)
    height = min(tall, _THREADS // width)
    return min(wide, _THREADS // height), height


def row_means(x: Any) -> np.ndarray:
    """(M,) float32 means over the last axis of (M, K) float32, as `x.mean(-1)`: the sum times float32 of 1 / K.

    Raises:
        QsimError: as `row_sums`.
    """
    return row_sums(x) * F32(1.0 / np.shape(x)[-1])


# ---- normalisation


def mean_squares(x: Any) -> np.ndarray:
    """(M, 1) float32 of BF16 codes (M, K): `x.float().pow(2).mean(-1, keepdim=True)`."""
    wide = widen(x)
    return row_means(wide * wide)[:, None]


def root_scale(variance: Any, eps: float) -> np.ndarray:
    """float32 `rsqrt(variance + eps)` of float32: the sum is rounded, the root is the hardware's `rsqrt.approx`."""
    return approximate("rsqrt", as_plain_array(variance, "variance") + F32(eps))


def scaled(x: Any, scale: np.ndarray, weight: Any) -> np.ndarray:
    """BF16 codes of `weight * (x.float() * scale).to(bfloat16)`: two roundings."""
    return multiply(weight, narrow(widen(x) * scale))


def rms_norm(x: Any, weight: Any, eps: float = 1e-5) -> np.ndarray:
    """RMSNorm as Hugging Face's Llama writes it: `mean_squares`, `root_scale`, `scaled`.

    Arguments:
        x: (M, K) BF16 codes.
        weight: (K,) BF16 codes.
        eps: added in float32.

    Returns:
        (M, K) BF16 codes.

    Raises:
        QsimError: arrays that are no BF16 codes; a K whose order of adding is not known, see `row_sums`.
    """
    return scaled(x, root_scale(mean_squares(x), eps), weight)


# ---- elementwise


def add(a: Any, b: Any) -> np.ndarray:
    """BF16 codes of a + b, of BF16 codes: one rounding."""
    with np.errstate(all="ignore"):
        return narrow(widen(a) + widen(b))


def multiply(a: Any, b: Any) -> np.ndarray:
    """BF16 codes of a * b, of BF16 codes: one rounding."""
    with np.errstate(all="ignore"):
        return narrow(widen(a) * widen(b))


def silu(x: Any) -> np.ndarray:
    """BF16 codes of x / (1 + e^-x): `expf`, a sum and a quotient in float32, one rounding."""
    wide = widen(x)
    with np.errstate(all="ignore"):
        return narrow(wide / (F32(1) + expf(-wide)))


def swiglu(gate: Any, up: Any) -> np.ndarray:
    """BF16 codes of silu(gate) * up: silu is rounded to BF16 before it is multiplied."""
    return multiply(silu(gate), up)


# ---- rotary embeddings


def inverse_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """(head_dim / 2,) float32 of `1 / theta ** (2 i / head_dim)`, by CUDA's `powf`."""
    exponents = np.arange(0, head_dim, 2).astype(F32) / F32(head_dim)
    return F32(1) / powf(theta, exponents)


def rotary_tables(inverse: np.ndarray, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """BF16 codes (positions, head_dim) of cosines and sines, both halves alike; angles are float32 products of the
    position and the inverse frequency (head_dim / 2,), rounded before CUDA's `cosf` and `sinf` take them."""
    angles = np.arange(positions, dtype=F32)[:, None] * inverse
    cos, sin = (narrow(np.concatenate((v, v), axis=1)) for v in (cosf(angles), sinf(angles)))
    return cos, sin


def rotate(x: Any, cos: Any, sin: Any) -> np.ndarray:
    """BF16 codes of `x * cos + rotate_half(x) * sin`: both products are rounded, and so is their sum.

    Arguments:
        x: (..., T, head_dim) BF16 codes.
        cos, sin: (T, head_dim) BF16 codes.
    """
    half = np.shape(x)[-1] // 2
    given = as_plain_array(x, "x")
    turned = np.concatenate((given[..., half:] ^ U16(0x8000), given[..., :half]), axis=-1)
    return add(multiply(given, cos), multiply(turned, sin))


# ---- attention


def product(a: Any, b: Any) -> np.ndarray:
    """BF16 codes (M, N) of a b^T, of BF16 codes (M, K) and (N, K): one chain of `wgmma` over K and one rounding, as
    cuBLAS where it does not split K."""
    return matmul(a, b, preset="cublaslt_bf16", out_format="bfloat16")


def attention_scores(q: Any, k: Any, factor: float) -> np.ndarray:
    """BF16 codes (T, T) of `torch.matmul(q, k.T) * factor`, of BF16 codes (T, head_dim): two roundings."""
    return narrow(widen(product(q, k)) * F32(factor))


def causal_softmax(scores: Any) -> np.ndarray:
    """float32 (..., T, T) of `softmax(scores + mask, dtype=float32)`: the mask is the lowest BF16 above the diagonal,
    and its sum with the scores is rounded to BF16."""
    given = as_plain_array(scores, "scores")
    mask = np.where(np.triu(np.ones(given.shape[-2:], bool), 1), _LOWEST, U16(0))
    return softmax(widen(add(given, mask)))


def sdpa_math(q: Any, k: Any, v: Any) -> np.ndarray:
    """BF16 codes (T, head_dim) of causal `scaled_dot_product_attention` by PyTorch's math back-end.

    Everything is float32: q and k are each multiplied by the root of 1 / sqrt(head_dim), both products are chains of
    fused multiply-adds over K (cuBLAS's float32 kernel), and only the result is rounded.

    Arguments:
        q, k, v: (T, head_dim) BF16 codes of one head.
    """
    root = F32((np.shape(q)[-1] ** -0.5) ** 0.5)
    scores = np.zeros((len(q), len(k)), F32)
    fma_chain(widen(q) * root, np.ascontiguousarray((widen(k) * root).T), scores)
    scores[np.triu(np.ones(scores.shape, bool), 1)] = -np.inf
    out = np.zeros(np.shape(q), F32)
    fma_chain(softmax(scores), widen(v), out)
    return narrow(out)


def softmax(x: Any) -> np.ndarray:
    """float32 softmax over the last axis, of float32.

    e^(x - largest) by `expf`, added up, and divided by the sum. Up to 2048 elements a warp holds the row, lane l the
    elements l, l + 32, ...; more are held by 1024 threads in the same way, of which each warp of 32 folds, and then the
    32 warps. A thread adds in order; threads fold in halves.

    Raises:
        QsimError: no float32; longer rows than LONGEST_SOFTMAX.
    """
    given = as_plain_array(x, "scores")
    if given.dtype != F32:
        raise QsimError(f"softmax takes float32: got {given.dtype}")
    k = given.shape[-1]
    if not 1 <= k <= LONGEST_SOFTMAX:
        raise QsimError(f"softmax of 1 to {LONGEST_SOFTMAX} elements is known: got {k}")
    with np.errstate(all="ignore"):
        raised = expf(given - given.max(axis=-1, keepdims=True))
        width = min(1 << (k - 1).bit_length(), WARP) if k <= _LONGEST_IN_WARP else _SOFTMAX_THREADS
        padded = np.zeros((*given.shape[:-1], -(-k // width) * width), F32)
        padded[..., :k] = raised
        threads = _in_order(padded.reshape(-1, padded.shape[-1] // width, width))
        total = _halved(_halved(threads.reshape(len(threads), -1, min(width, WARP)))[..., 0])
        return raised / total.reshape(*given.shape[:-1], 1)


# ---- quantisation


def quantize_fp8(x: Any) -> tuple[np.ndarray, np.ndarray]:
    """E4M3 codes (M, K) uint8 and scales (M, 1) float32 of BF16 codes (M, K), one scale per row.

    `s = x.float().abs().amax(1) / 448` is a product with float32 of 1 / 448; `(x.float() / s).to(float8_e4m3fn)` a
    quotient and one rounding to nearest even.

    Raises:
        QsimError: a row of zeros, NaN or Inf, which gives NaN codes on the device.
    """
    wide = widen(x)
    scale = np.abs(wide).max(axis=1, keepdims=True) * (F32(1) / F32(448))
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise QsimError("every row must have a finite element that is not zero: the device divides by the largest")
    return np.asarray(encode(wide / scale, "float8_e4m3fn")), scale
