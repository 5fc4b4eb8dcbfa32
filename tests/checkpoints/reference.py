"""Slow packers and readers: one code at a time, from the layouts' definitions, sharing nothing with the package."""

from __future__ import annotations

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def field(words: list[int], bits: int, i: int) -> int:
    """Code i of a dense little-endian bit stream of 32-bit words."""
    stream = sum((w & 0xFFFFFFFF) << (32 * j) for j, w in enumerate(words))
    return (stream >> (bits * i)) & ((1 << bits) - 1)


def pack_dense(codes: list[int], bits: int) -> list[int]:
    stream = sum(code << (bits * i) for i, code in enumerate(codes))
    return [(stream >> (32 * j)) & 0xFFFFFFFF for j in range(-(-len(codes) * bits // 32))]


def pack_whole(codes: list[int], bits: int) -> list[int]:
    per = 32 // bits
    return [sum(code << (bits * j) for j, code in enumerate(codes[i : i + per])) for i in range(0, len(codes), per)]


def pack_awq(codes: list[int]) -> list[int]:
    return [sum(codes[i + AWQ_ORDER[j]] << (4 * j) for j in range(8)) for i in range(0, len(codes), 8)]


def gptq(t: dict[str, np.ndarray], bits: int, version: int) -> np.ndarray:
    """Values (N, K), float64."""
    qweight, qzeros, scales, index = (t[k] for k in ("qweight", "qzeros", "scales", "g_idx"))
    n, k = qweight.shape[1], index.size
    out = np.empty((n, k))
    mask = (1 << bits) - 1
    for row in range(n):
        words = [int(w) for w in qweight[:, row]]
        for column in range(k):
            g = int(index[column])
            zero = field([int(w) for w in qzeros[g]], bits, row)
            zero = (zero + 1) & mask if version == 1 else zero
            out[row, column] = (field(words, bits, column) - zero) * float(scales[g, row])
    return out


def awq(t: dict[str, np.ndarray], group: int) -> np.ndarray:
    """Values (N, K), float64."""
    qweight, qzeros, scales = (t[k] for k in ("qweight", "qzeros", "scales"))
    k, n = qweight.shape[0], qweight.shape[1] * 8
    out = np.empty((n, k))
    for column in range(k):
        for row in range(n):
            word, nibble = row // 8, AWQ_ORDER.index(row % 8)
            code = (int(qweight[column, word]) >> (4 * nibble)) & 15
            zero = (int(qzeros[column // group, word]) >> (4 * nibble)) & 15
            out[row, column] = (code - zero) * float(scales[column // group, row])
    return out


def compressed(t: dict[str, np.ndarray], bits: int, group: int) -> np.ndarray:
    """Values (N, K) of pack-quantized with dense words, float64."""
    n, k = (int(size) for size in t["weight_shape"])
    half, out = 1 << (bits - 1), np.empty((n, k))
    zeros = t.get("weight_zero_point")
    for row in range(n):
        words = [int(w) for w in t["weight_packed"][row]]
        for column in range(k):
            g = column // group
            zero = 0 if zeros is None else field([int(w) for w in zeros[:, g]], bits, row) - half
            out[row, column] = (field(words, bits, column) - half - zero) * float(t["weight_scale"][row, g])
    return out
