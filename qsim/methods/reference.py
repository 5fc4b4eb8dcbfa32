"""GPTQ as the original code has it, one column at a time and with nothing arranged for speed.

It shares no code with `gptq.py`: the inverse is formed, factored again, and every update is an outer product over all
columns of the block. Only tests and teaching call it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

F32 = np.float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """What the original returns: dequantised weights (N, K), `g_idx` (K,), scales and zero points (N, G), the loss, the
    damping."""

    weight: np.ndarray
    group_of: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    loss: float
    damp: float


@dataclass(kw_only=True)
class Quantizer:
    """quant.py: range to scale and zero point, and values to the grid they span. x is (N, columns)."""

    bits: int
    symmetric: bool
    mse: bool = False

    def find_params(self, x: np.ndarray) -> None:
        top = F32(2**self.bits - 1)
        low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
        if self.symmetric:
            high = np.maximum(np.abs(low), high)
            low = np.where(low < 0, -high, low)
        empty = (low == 0) & (high == 0)
        low, high = np.where(empty, F32(-1), low), np.where(empty, F32(1), high)
        self.scale = ((high - low) / top).astype(F32)
        middle = np.full_like(self.scale, (top + 1) / 2)
        self.zero = middle if self.symmetric else np.rint(-low / self.scale)
        if not self.mse:
            return
        best = np.full(len(x), np.inf, F32)
        for i in range(80):
            p = F32(1 - i / 100)
            scale = (p * high - p * low) / top
            zero = middle if self.symmetric else np.rint(-(p * low) / scale)
            error = np.sum(np.abs(self._round(x, scale[:, None], zero[:, None]) - x) ** F32(2.4), axis=1)
            better = error < best
            best[better], self.scale[better], self.zero[better] = error[better], scale[better], zero[better]

    def quantize(self, w: np.ndarray) -> np.ndarray:
        return self._round(w, self.scale, self.zero)

    def _round(self, x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        return scale * (np.clip(np.rint(x / scale) + zero, 0, F32(2**self.bits - 1)) - zero)


def gptq(
    weight: np.ndarray,
    hessian: np.ndarray,
    bits: int,
    *,
    group_size: int | None = None,
    symmetric: bool = False,
    mse: bool = False,
    act_order: bool = False,
    static_groups: bool = False,
    percdamp: float = 0.01,
    block_size: int = 128,
    correction: np.ndarray | None = None,
    correction_strength: float = 0.25,
) -> Solution:
    """gptq.py's `fasterquant`, and GPTAQ's with `correction`.

    Arguments:
        weight: (N, K) float32. hessian: (K, K) float32, positive definite once damped. It is divided by the power of
            two above its largest diagonal element, as in `qsim.methods.gptq`, and dead inputs are left out of the
            mean and come last, where the original gives them a diagonal of 1 first.
        group_size: None is one scale per row. The rest is as in `qsim.methods.gptq`.
    """
    w, h = weight.astype(F32), hessian.astype(F32)
    rows, columns = w.shape
    size = group_size or columns
    quantizer = Quantizer(bits=bits, symmetric=symmetric, mse=mse)
    quantizer.find_params(w)
    dead = np.diag(h) == 0
    exponent = int(np.frexp(np.diag(h).max())[1])
    h = np.ldexp(h, -exponent)
    w[:, dead] = 0

    beforehand = []
    for start in range(0, columns, size):
        group = quantizer if group_size is None else Quantizer(bits=bits, symmetric=symmetric, mse=mse)
        if group is not quantizer:
            group.find_params(w[:, start : start + size])
        beforehand.append(group)
    perm = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(columns)
    w, h = w[:, perm], h[np.ix_(perm, perm)]
    damp = percdamp * float(np.mean(np.diag(h)[~dead[perm]], dtype=np.float64))
    h[np.diag_indices(columns)] += dead[perm]
    h[np.arange(columns), np.arange(columns)] += F32(damp)
    inverse = np.linalg.inv(np.linalg.cholesky(h))
    hinv = np.linalg.cholesky(inverse.T @ inverse).T

    p = np.zeros_like(h)
    if correction is not None:
        dxx = np.ldexp(correction.astype(F32), -exponent)
        dxx[:, dead] = 0
        dxx = dxx[np.ix_(perm, perm)]
        p = F32(correction_strength) * np.triu(dxx @ hinv.T, 1) @ hinv

    q = np.zeros_like(w)
    scales, zeros = np.zeros((rows, -(-columns // size)), F32), np.zeros((rows, -(-columns // size)), F32)
    loss, group_of = 0.0, np.zeros(columns, int)
    for i1 in range(0, columns, block_size):
        i2 = min(i1 + block_size, columns)
        w1, errors = w[:, i1:i2].copy(), np.zeros((rows, i2 - i1), F32)
        for i in range(i2 - i1):
            column, d = w1[:, i].copy(), hinv[i1 + i, i1 + i]
            g = (i1 + i) // size
            if group_size is not None and static_groups:
                g = int(perm[i1 + i]) // size
                quantizer = beforehand[g]
            elif group_size is not None and (i1 + i) % size == 0:
                quantizer.find_params(w[:, i1 + i : i1 + i + size])  # w, not w1: without this block's updates
            group_of[perm[i1 + i]] = g
            scales[:, g], zeros[:, g] = quantizer.scale, quantizer.zero
            q[:, i1 + i] = quantizer.quantize(column)
            error = (column - q[:, i1 + i]) / d
            loss += float(np.sum(error**2, dtype=np.float64)) / 2
            w1[:, i:] -= np.outer(error, hinv[i1 + i, i1 + i : i2]) - np.outer(column, p[i1 + i, i1 + i : i2])
            errors[:, i] = error
        # w1 now holds quantised values: the original multiplies P by these, though by the columns before rounding above
        w[:, i2:] -= errors @ hinv[i1:i2, i2:] - w1 @ p[i1:i2, i2:]
    out = np.empty_like(q)
    out[:, perm] = q
    return Solution(weight=out, group_of=group_of, scales=scales, zeros=zeros, loss=float(np.ldexp(loss, exponent)),
                    damp=float(np.ldexp(damp, exponent)))  # fmt: skip
