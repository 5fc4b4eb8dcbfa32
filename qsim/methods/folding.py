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
        names: the Linears that read it.
        scale: (K,) float32, positive.
        details: what the search that found it has to say, for the records of its Linears.
    """

    source: str
    names: tuple[str, ...]
    scale: np.ndarray
    details: Mapping[str, Any] = field(default_factory=dict)


def divided_source(tensors: Mapping[str, Any], fold: Fold) -> dict[str, np.ndarray]:
    """The source's tensors with their outputs divided: a norm's weight and bias, or a Linear's last rows."""
    s, out = fold.scale, {}
    for suffix in ("weight", "bias"):
        name = f"{fold.source}.{suffix}"
        if name not in tensors:
            continue
        value = np.array(tensors[name], dtype=np.float32)
        value[-len(s) :] /= s if value.ndim == 1 else s[:, None]  # a fused qkv has its values last
        out[name] = value
    return out


def apply_folds(model: Model, folds: Iterable[Fold]) -> Model:
    """The float model after both sides of every fold: the same function, up to rounding."""
    tensors: dict[str, Any] = dict(model.tensors)
    for fold in folds:
        tensors |= divided_source(tensors, fold)
        for name in fold.names:
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * fold.scale
    return model.replace(tensors=tensors)
