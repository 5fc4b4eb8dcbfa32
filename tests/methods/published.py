"""Direct transcriptions of the published formulae into NumPy, one token and one group at a time where they have it.

mit-han-lab/llm-awq auto_scale.py, auto_clip.py, quantizer.py; casper-hansen/AutoAWQ quantizer.py;
mit-han-lab/smoothquant smooth.py, fake_quant.py.
"""

from __future__ import annotations

import numpy as np

f = np.float32


def pseudo_quantize(w, n_bit, group_size, zero_point=True):
    """pseudo_quantize_tensor."""
    shape = w.shape
    w = w.reshape(-1, group_size)
    if zero_point:
        max_val, min_val = w.max(axis=1, keepdims=True), w.min(axis=1, keepdims=True)
        max_int = 2**n_bit - 1
        scales = np.maximum(max_val - min_val, f(1e-5)) / f(max_int)
        zeros = np.clip(-np.round(min_val / scales), 0, max_int)
        q = (np.clip(np.round(w / scales) + zeros, 0, max_int) - zeros) * scales
    else:
        max_val = np.maximum(np.abs(w).max(axis=1, keepdims=True), f(1e-5))
        max_int = 2 ** (n_bit - 1) - 1
        scales = max_val / f(max_int)
        q = np.clip(np.round(w / scales), -(2 ** (n_bit - 1)), max_int) * scales
    return q.reshape(shape)


def awq_search_module_scale(block, linears, x, n_bit, group_size, zero_point=True, n_grid=20):
    """_search_module_scale: `block` maps (x, weights) to the module's output."""
    x_max = np.abs(x).mean(axis=0)
    org_out = block(x, linears)
    best_error, best_scales, best_ratio = np.inf, None, None
    for step in range(n_grid):
        ratio = step / n_grid
        scales = np.maximum(x_max ** f(ratio), f(1e-4))
        scales = scales / np.sqrt(scales.max() * scales.min())
        rounded = [pseudo_quantize(w * scales, n_bit, group_size, zero_point) / scales for w in linears]
        out = block(x, rounded)
        loss = np.mean((org_out - out).astype(np.float64) ** 2)
        if loss < best_error:
            best_error, best_ratio, best_scales = loss, ratio, scales
    return best_scales, best_ratio, best_error


def duo_scales(linears, x_mean, group_size, n_grid=20):
    """AutoAWQ: the scales of its grid."""
    weight = np.concatenate(linears)
    flat = np.abs(weight.reshape(-1, group_size))
    w_mean = (flat / (flat.max(axis=1, keepdims=True) + f(1e-6))).reshape(weight.shape).mean(axis=0)
    out = []
    for step in range(n_grid):
        ratio = step / n_grid
        scales = np.maximum(x_mean ** f(ratio) / (w_mean ** f(1 - ratio) + f(1e-4)), f(1e-4))
        scales = scales / np.sqrt(scales.max() * scales.min())
        scales[np.isinf(scales) | np.isnan(scales)] = 1
        out.append(scales)
    return out


def awq_clip_layer(w, x, n_bit, group_size, n_grid=20, max_shrink=0.5):
    """auto_clip_layer with every token: the largest magnitude of each (row, group)."""
    co, ci = w.shape
    groups = ci // group_size
    best = np.abs(w.reshape(co, groups, group_size)).max(axis=2)
    chosen, min_errs = best.copy(), np.full(best.shape, 1e9)
    org = best.copy()
    for i in range(int(max_shrink * n_grid)):
        for r in range(co):
            for g in range(groups):
                part = w[r, g * group_size : (g + 1) * group_size]
                max_val = org[r, g] * f(1 - i / n_grid)
                q = pseudo_quantize(np.clip(part, -max_val, max_val)[None], n_bit, group_size)[0]
                tokens = x[:, g * group_size : (g + 1) * group_size].astype(np.float64)
                err = np.mean((tokens @ q - tokens @ part) ** 2)
                if err < min_errs[r, g]:
                    min_errs[r, g], chosen[r, g] = err, max_val
    return chosen


def smooth_scales(fcs, act_scales, alpha):
    """smooth_ln_fcs."""
    weight_scales = np.stack([np.abs(fc).max(axis=0) for fc in fcs]).max(axis=0).clip(f(1e-5))
    return (act_scales ** f(alpha) / weight_scales ** f(1 - alpha)).clip(f(1e-5))


def w8a8(x, w, act="per_token", weight="per_channel"):
    """W8A8Linear in float64: the fake-quantised product."""

    def absmax(t, axis):
        scale = np.maximum(np.abs(t).max(axis=axis, keepdims=True), f(1e-5)) / f(127)
        return (np.round(t / scale) * scale).astype(np.float64)

    xq = absmax(x, -1 if act == "per_token" else None)
    wq = absmax(w, -1 if weight == "per_channel" else None)
    return xq @ wq.T
