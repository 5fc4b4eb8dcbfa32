"""Models made from a model: rounded to a scheme, or with synthetic outliers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.formats import cast
from qsim.scheme import QuantizedTensor, Scheme, get_scheme, quantize, shared_scale, with_tensor_scale

from .families import fold_groups
from .model import Model

F32 = np.float32


def with_scheme(model: Model, scheme: str | Scheme, **rounding: Any) -> Model:
    """The model with its block Linears rounded to the nearest codes of a scheme, and its KV cache as the scheme says.

    The plainest quantisation there is, the baseline of every method in `qsim.methods`. Embedding, norms and head
    stay as they are, and layers that engines fuse share one tensor scale where the scheme has one (see
    `qsim.scheme.shared`). 16-bit weights are rounded to their format; 16-bit activations and caches stay float32 (see
    `Model.activation_format` and `Model.kv_cache` for models that round those).

    Arguments:
        scheme: a name or a `Scheme`.
        rounding: further arguments of `qsim.scheme.quantize` (scale_rule, clip, ...).

    Raises:
        ValueError: a weight that is quantised already; a static activation scheme, whose scales need calibration.
    """
    scheme = get_scheme(scheme)
    how = scheme.activation
    if how.is_quantized and not how.dynamic:
        raise QsimError(
            f"{scheme.name} has static activation scales, which calibration finds: use a scheme with dynamic ones "
            "(fp8-rowwise, fp8-tensor, w8a8), or calibrate with `qsim quantize --calibration`"
        )
    tensors: dict[str, Any] = {}
    for group in (g for i in range(model.config.num_hidden_layers) for g in model.block_linears(i)):
        weights = {name: float_weight(model, name) for name in group}
        if not scheme.weight.is_quantized:
            tensors |= {f"{n}.weight": np.asarray(cast(w, scheme.weight.format), F32) for n, w in weights.items()}
            continue
        rule, clip = rounding.get("scale_rule"), rounding.get("clip")
        shared = shared_scale(list(weights.values()), scheme, scale_rule=rule, clip=clip) if len(group) > 1 else None
        for name, weight in weights.items():
            q = quantize(weight, scheme, name=name, **rounding)
            tensors[f"{name}.weight"] = with_tensor_scale(q, weight, shared, scale_rule=rule)
    return model.replace(
        tensors=tensors,
        kv_cache=scheme.kv_cache if scheme.kv_cache.is_quantized else None,
        name=f"{model.name} {scheme.name}".strip(),
        notes=(*model.own_notes, f"weights rounded to nearest: {scheme.name}"),
    )


def with_outliers(
    model: Model,
    *,
    channels: int | Sequence[int] = 6,
    magnitude: float = 100.0,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> Model:
    """The same function with synthetic activation outliers in some channels.

    Large models have a few channels whose activations are a hundred times the others', the same ones in every layer;
    small models have none. Here the norms before attention and MLP grow in the chosen channels and the Linears that
    read them shrink by as much, so that what the model computes stays the same and only quantisation sees a difference.
    Gains are powers of two: float32 logits keep their bits, but for norms that multiply by 1 + w (Gemma), whose new w
    is rounded.

    Arguments:
        channels: how many, chosen by `seed`, or which; the same in every layer.
        magnitude: a channel's norm weight becomes so many times the median one's, to the nearest power-of-two gain.
        layers: blocks to change; None is all.

    Returns:
        A model that says in its name and notes that its outliers are synthetic.

    Raises:
        ValueError: channels or layers that do not exist, a magnitude below 1, quantised weights, norms that no gain can
            be folded behind.

    Source: the phenomenon, Dettmers et al., arXiv:2208.07339, and Xiao et al., arXiv:2211.10438; folding, as in the
    latter.
    """
    size, count = model.config.hidden_size, model.config.num_hidden_layers
    if not magnitude >= 1 or not np.isfinite(magnitude):
        raise QsimError(f"magnitude must be a finite number of at least 1: got {magnitude}")
    if isinstance(channels, int):
        if not 1 <= channels <= size:
            raise QsimError(f"channels must be 1 to {size}: got {channels}")
        chosen = np.sort(np.random.default_rng(seed).choice(size, channels, replace=False))
    else:
        chosen = np.unique(np.asarray(channels, np.int64))
        if chosen.size == 0 or chosen[0] < 0 or chosen[-1] >= size:
            raise QsimError(f"channels must be 0 to {size - 1}: got {list(channels)}")
    blocks = range(count) if layers is None else [int(i) for i in layers]
    tensors: dict[str, Any] = {}
    for i in blocks:
        if not 0 <= i < count:
            raise QsimError(f"layers must be 0 to {count - 1}: got {i}")
        norms = [(s, names) for s, names in fold_groups(model.config, i) if s not in model.linears()]
        if not norms:
            raise QsimError(
                f"{model.config.architecture} of this kind has no norm that a gain can be folded behind (layer {i})"
            )
        for norm, names in norms:
            tensors |= grown(model, norm, names, chosen, magnitude)
    where = "all layers" if layers is None else f"layers {', '.join(map(str, blocks))}"
    listed = ", ".join(map(str, chosen[:8])) + (f" and {chosen.size - 8} more" if chosen.size > 8 else "")
    return model.replace(
        tensors=tensors,
        name=f"{model.name} with synthetic outliers".strip(),
        notes=(
            *model.own_notes,
            f"synthetic outliers: channels {listed} of the normed hidden states of {where} are about {magnitude:g} "
            "times the typical one; the model computes the same",
        ),
    )


def grown(model: Model, norm: str, names: list[str], chosen: np.ndarray, magnitude: float) -> dict[str, Any]:
    """Tensors that change when channels of a norm become about `magnitude` times its median one, by powers of two, and
    the columns of the Linears that read it smaller by as much; below 1 the norm shrinks and the columns grow."""
    offset = F32(model.config.numerics.norm_offset)
    weight = np.array(model.tensors[f"{norm}.weight"]) + offset
    typical = F32(np.median(np.abs(weight)))
    own = np.maximum(np.abs(weight[chosen]), np.finfo(F32).tiny)
    gain = np.exp2(np.clip(np.rint(np.log2(magnitude * typical / own)), -60, 60)).astype(F32)
    weight[chosen] *= gain
    out: dict[str, Any] = {f"{norm}.weight": weight - offset}
    if f"{norm}.bias" in model.tensors:
        bias = np.array(model.tensors[f"{norm}.bias"])
        bias[chosen] *= gain
        out[f"{norm}.bias"] = bias
    for name in (*names, *model.float_readers(norm)):
        smaller = float_weight(model, name).copy()
        smaller[:, chosen] /= gain
        out[f"{name}.weight"] = smaller
    return out


def float_weight(model: Model, name: str) -> np.ndarray:
    """The weight (N, K) of a Linear that is not quantised; a `QsimError` names one that is."""
    weight = model.tensors[f"{name}.weight"]
    if isinstance(weight, QuantizedTensor):
        raise QsimError(f"this needs float32 weights: {name} is quantised ({weight.scheme.name})")
    return weight
