"""Scales of an FP8 KV cache: the largest key and value that calibration saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.models import Model
from qsim.models.families import block_names
from qsim.scheme import Scheme, TensorScheme

F32 = np.float32


def stores_kv(scheme: Scheme) -> bool:
    """Whether the cache has scales that calibration finds and the checkpoint stores."""
    return scheme.kv_cache.is_quantized and not scheme.kv_cache.dynamic


class KVRange:
    """Running largest key and value of one block.

    Keys are stored after the rotary embedding, which turns pairs of components (j, j + d/2) by an angle that depends on
    the position. The length of a pair bounds both at every position, so that is what counts as the size of a key.
    """

    def __init__(self, model: Model, index: int) -> None:
        names = block_names(model.config, index)
        self.key, self.value, self.prefix = names.key, names.value, names.attention
        self._model, self._norm = model, names.key_norm
        self.key_peak = self.value_peak = 0.0

    def update(self, name: str, x: np.ndarray) -> None:
        """Take in the input of a Linear; of those that are not keys or values nothing is taken."""
        if name not in (self.key, self.value):
            return
        y = self._model.linears()[name].rows(np.ascontiguousarray(x))
        if name == self.value:
            self.value_peak = max(self.value_peak, float(np.abs(y).max()))
            return
        size, config = self._model.config.head_dim, self._model.config
        heads = y.reshape(-1, size)
        if self._norm is not None:
            weight: Any = self._model.tensors[f"{self._norm}.weight"]
            heads = heads / np.sqrt(np.mean(heads**2, axis=1, keepdims=True) + F32(config.norm_eps)) * weight
        if config.architecture == "opt":
            self.key_peak = max(self.key_peak, float(np.abs(heads).max()))
        else:
            pairs = np.hypot(heads[:, : size // 2], heads[:, size // 2 :])
            self.key_peak = max(self.key_peak, float(pairs.max()))


def kv_scales(seen: KVRange, scheme: TensorScheme) -> dict[str, float]:
    """`k_scale` and `v_scale` of a block under their tensor names: largest value over the format's largest."""
    top = float(scheme.format.max)  # type: ignore[union-attr]
    return {
        f"{seen.prefix}.k_scale": float(F32(seen.key_peak / top)) or 1.0,
        f"{seen.prefix}.v_scale": float(F32(seen.value_peak / top)) or 1.0,
    }
