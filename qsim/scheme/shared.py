"""One scale over the whole tensor, shared by the layers that a serving engine fuses into one product.

Engines join q, k and v, and gate and up, into one matrix, which has one tensor scale. NVFP4: vLLM applies the largest
stored divisor, that is the smallest tensor scale, to all rows, so that layers whose scales are larger are read too
small. FP8 with one scale per tensor: vLLM requantises all rows to the largest scale, which rounds them twice. Layers
that share one scale in the checkpoint are computed with as they are stored. Integers with one scale per tensor are
spread to one scale per row, and keep their own.

Source: vLLM `compressed_tensors_w4a4_nvfp4.py` (process_weights_after_loading), `w8a8_utils.py`
(requantize_with_max_scale, convert_to_channelwise); llm-compressor `update_fused_layer_weight_global_scales`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qsim.formats import BlockFormat, quantize_blocks

from .quantizer import encode_with, find_parameters, quantize
from .rules import F32, get_rule
from .scheme import Scheme
from .tensor import QuantizedTensor
from .tensor_scheme import TensorScheme


def shares_scale(how: TensorScheme) -> bool:
    """Whether engines give one scale to the whole of what they fuse: NVFP4, and floats with one scale per tensor."""
    if isinstance(how.format, BlockFormat):
        return how.format.tensor_scale
    return how.is_quantized and not how.is_integer and how.granularity is not None and how.granularity.kind == "tensor"


def tensor_scale_of(q: QuantizedTensor) -> float | None:
    """The scale over the whole tensor of a weight whose scheme shares one; None for other schemes."""
    if not shares_scale(q.tensor_scheme):
        return None
    return q.tensor_scale if isinstance(q.tensor_scheme.format, BlockFormat) else float(q.scales.reshape(()))


def shared_scale(
    weights: Sequence[np.ndarray], scheme: Scheme, *, scale_rule: str | None = None, clip: float | None = None
) -> float | None:
    """The one tensor scale of weights that engines fuse: the largest of those that each would have alone.

    Arguments:
        weights: (N_i, K) float32 each; those with NaN or Inf are left out.
        scheme: how they are quantised.
        scale_rule, clip: as in `quantize`.

    Returns:
        None when the scheme has no scale that is shared, or when all weights are 0, whose scale means nothing.
    """
    how = scheme.weight
    given = [w for w in weights if w.any() and np.isfinite(w).all()]  # `quantize` refuses NaN and Inf, by name
    if not shares_scale(how) or not given:
        return None
    if clip is not None:
        rule = get_rule(scale_rule, how)
        return max(float(find_parameters(w, how, rule, clip=clip)[0].reshape(())) for w in given)
    peak = np.zeros((1, how.format.block_size if isinstance(how.format, BlockFormat) else 1), F32)
    peak[0, 0] = max(float(np.abs(w).max()) for w in given)  # a scale depends on the largest weight alone
    return tensor_scale_of(quantize(peak, scheme, scale_rule=scale_rule))


def with_tensor_scale(
    q: QuantizedTensor, weight: np.ndarray, scale: float | None, *, scale_rule: str | None = None, **rounding: Any
) -> QuantizedTensor:
    """A quantised weight under another tensor scale, of a scheme that shares one; with None, as it is.

    Arguments:
        q: the weight under its own scale.
        weight: (N, K) float32, what it was quantised from.
        scale: from `shared_scale`.
        scale_rule: as in `quantize`.
        rounding: `block_scale_rule` of `quantize`, as far as a block format has one.
    """
    if scale is None or scale == tensor_scale_of(q):
        return q
    how = q.tensor_scheme
    if isinstance(how.format, BlockFormat):
        rule = rounding.get("block_scale_rule")
        blocks = quantize_blocks(weight, how.format, scale_rule=rule, ragged=how.ragged, tensor_scale=scale)
        return replace(q, codes=blocks.codes, scale_codes=blocks.scales, tensor_scale=scale)
    scales = np.full_like(q.scales, scale)
    return q.with_scales(scales, codes=encode_with(weight, how, scales, None, get_rule(scale_rule, how)))
