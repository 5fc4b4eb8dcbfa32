"""Scales of an FP8 KV cache: the largest key and value that calibration saw."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.models import Model
from qsim.models.families import block_names, fused_columns
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
        self.prefix, self._names, self._model = names.attention, names, model
        self.key_peak = self.value_peak = 0.0

    def update(self, name: str, x: np.ndarray) -> None:
        """Take in the input of a Linear; of those that do not make keys or values nothing is taken."""
        n, config = self._names, self._model.config
        if name not in (n.key, n.value, n.qkv):
            return
        y = self._model.linears()[name].rows(np.ascontiguousarray(x))
        if name == n.qkv:
            columns = fused_columns(config)
            y = y if columns is None else y[:, columns]
            y = y[:, config.num_attention_heads * config.head_dim :]
            half = y.shape[1] // 2
            self._keys(y[:, :half])
            self._values(y[:, half:])
        elif name == n.key:
            self._keys(y)
        else:
            self._values(y)

    def _values(self, y: np.ndarray) -> None:
        self.value_peak = max(self.value_peak, float(np.abs(y).max()))

    def _keys(self, y: np.ndarray) -> None:
        config, size = self._model.config, self._model.config.head_dim
        heads, norm = y.reshape(-1, size), self._names.key_norm
        if norm is not None:
            weight: Any = self._model.tensors[f"{norm}.weight"]
            rows = y.reshape(-1, len(weight))  # one head, or all heads of a token
            eps, gain = F32(config.norm_eps), weight + F32(config.numerics.norm_offset)
            heads = (rows / np.sqrt(np.mean(rows**2, axis=1, keepdims=True) + eps) * gain).reshape(-1, size)
        turned = config.rotary_dim if config.is_rotary else 0
        sizes = [np.abs(heads[:, turned:])] if turned < size else []
        if turned:
            sizes.append(np.hypot(heads[:, : turned // 2], heads[:, turned // 2 : turned]))
        self.key_peak = max(self.key_peak, *(float(found.max()) for found in sizes))


def kv_scales(seen: KVRange, scheme: TensorScheme) -> dict[str, float]:
    """`k_scale` and `v_scale` of a block under their tensor names: largest value over the format's largest."""
    top = float(scheme.format.max)  # type: ignore[union-attr]
    return {
        f"{seen.prefix}.k_scale": float(F32(seen.key_peak / top)) or 1.0,
        f"{seen.prefix}.v_scale": float(F32(seen.value_peak / top)) or 1.0,
    }
