"""The published quantisers, transcribed line by line to NumPy: the oracle of the scale rules.

Nothing here is shared with the package. `x` is (rows, columns) float32, a row is one region; each returns the integers
as the original counts them, the float32 scale and the zero point, both (rows, 1).
"""

import numpy as np

f = np.float32


def gptq(x, bits, sym, mse=False, norm=2.4, grid=100, maxshrink=0.8):
    """IST-DASLab/gptq quant.py, Quantizer.find_params(weight=True, perchannel=True) and quantize."""
    maxq = 2**bits - 1
    tmp = np.zeros(x.shape[0], dtype=f)
    xmin = np.minimum(x.min(1), tmp)
    xmax = np.maximum(x.max(1), tmp)
    if sym:
        xmax = np.maximum(np.abs(xmin), xmax)
        neg = xmin < 0
        if np.any(neg):
            xmin[neg] = -xmax[neg]
    both = (xmin == 0) & (xmax == 0)
    xmin[both] = -1
    xmax[both] = +1
    scale = (xmax - xmin) / f(maxq)
    zero = np.full_like(scale, (maxq + 1) / 2) if sym else np.round(-xmin / scale)

    def q_of(scale, zero):
        return np.clip(np.round(x / scale) + zero, 0, maxq)

    if mse:
        best = np.full(x.shape[0], np.inf, dtype=f)
        for i in range(int(maxshrink * grid)):
            p = f(1 - i / grid)
            xmin1, xmax1 = p * xmin, p * xmax
            scale1 = (xmax1 - xmin1) / f(maxq)
            zero1 = zero if sym else np.round(-xmin1 / scale1)
            q = scale1[:, None] * (q_of(scale1[:, None], zero1[:, None]) - zero1[:, None])
            err = np.sum(np.abs(q - x) ** f(norm), 1)
            better = err < best
            best[better] = err[better]
            scale[better], zero[better] = scale1[better], zero1[better]
    scale, zero = scale[:, None], zero[:, None]
    return q_of(scale, zero), scale, zero


def awq(x, bits, zero_point):
    """mit-han-lab/llm-awq quantizer.py, pseudo_quantize_tensor."""
    if zero_point:
        max_val, min_val = x.max(1, keepdims=True), x.min(1, keepdims=True)
        max_int, min_int = 2**bits - 1, 0
        scales = np.maximum(max_val - min_val, f(1e-5)) / f(max_int)
        zeros = np.clip(-np.round(min_val / scales), min_int, max_int)
    else:
        max_val = np.maximum(np.abs(x).max(1, keepdims=True), f(1e-5))
        max_int, min_int = 2 ** (bits - 1) - 1, -(2 ** (bits - 1))
        scales, zeros = max_val / f(max_int), np.zeros_like(max_val)
    return np.clip(np.round(x / scales) + zeros, min_int, max_int), scales, zeros


def compressed_tensors(x, bits, sym):
    """compressed-tensors helpers.py calculate_qparams, forward_helpers.py _quantize; integers count from -2^(b-1)."""
    bit_min, bit_max = f(-(2 ** (bits - 1))), f(2 ** (bits - 1) - 1)
    bit_range = bit_max - bit_min
    min_vals = np.minimum(x.min(1, keepdims=True), f(0))
    max_vals = np.maximum(x.max(1, keepdims=True), f(0))
    if sym:
        scales = np.maximum(np.abs(min_vals), np.abs(max_vals)) / (bit_range / f(2))
        zero = np.zeros_like(scales)
    else:
        scales = (max_vals - min_vals) / bit_range
        zero = np.round(np.clip(bit_min - (min_vals / scales), bit_min, bit_max))
    scales = np.where(scales == 0, np.finfo(f).eps, scales)
    scaled = x / scales
    scaled = scaled + zero
    return np.round(np.clip(scaled, bit_min, bit_max)), scales, zero


def smoothquant(x, bits):
    """mit-han-lab/smoothquant fake_quant.py, quantize_weight_per_channel_absmax."""
    scales = np.maximum(np.abs(x).max(1, keepdims=True), f(1e-5)) / f(2 ** (bits - 1) - 1)
    return np.round(x / scales), scales, np.zeros_like(scales)
