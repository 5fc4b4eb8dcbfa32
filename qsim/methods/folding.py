"""Per-channel factors that move from activations into weights without changing what a model computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsim.models import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One factor: the output of `source` is divided by it, the Linears multiply their input columns.

    Arguments:
        source: a norm or a Linear, without `.weight`.
        names: the Linears that read it. A router that reads a norm too is not among them: see `divided_source`.
        scale: (K,) float32, positive.
        details: what the search that found it has to say, for the records of its Linears.
    """

    source: str
    names: tuple[str, ...]
    scale: np.ndarray
    details: Mapping[str, Any] = field(default_factory=dict)


def divided_source(model: Model, tensors: Mapping[str, Any], fold: Fold) -> dict[str, np.ndarray]:
    """The tensors that change beside the Linears which read the source: its own, whose outputs are divided (a norm's
    weight and bias, or a Linear's last rows), and the router that reads it, whose columns are multiplied.

    A norm that multiplies by 1 + w is left with w' = (1 + w) / s - 1.
    """
    s, out = fold.scale, {}
    for suffix in ("weight", "bias"):
        name = f"{fold.source}.{suffix}"
        if name not in tensors:
            continue
        value = np.array(tensors[name], dtype=np.float32)
        if value.ndim == 1 and suffix == "weight":
            offset = np.float32(model.config.numerics.norm_offset)
            value = (value + offset) / s - offset if offset else value / s
        else:
            value[-len(s) :] /= s if value.ndim == 1 else s[:, None]  # a fused qkv has its values last
        out[name] = value
    return out | {f"{name}.weight": tensors[f"{name}.weight"] * s for name in model.float_readers(fold.source)}


def apply_folds(model: Model, folds: Iterable[Fold]) -> Model:
    """The float model after both sides of every fold: the same function, up to rounding."""
    tensors: dict[str, Any] = dict(model.tensors)
    for fold in folds:
        tensors |= divided_source(model, tensors, fold)
        for name in fold.names:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * fold.scale
    return model.replace(tensors=tensors)
