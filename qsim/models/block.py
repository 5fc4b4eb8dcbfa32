"""One decoder block, made once from a model's tensors and called with hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import TensorScheme

from . import ops
from .attention import AttentionMath, attend
from .cache import KVCache, round_entries
from .flash import attend_tiles
from .linear import Linear

F32 = np.float32
Rotary: TypeAlias = "tuple[np.ndarray, np.ndarray]"
Rounding: TypeAlias = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """RMSNorm, or LayerNorm when it has a bias."""

    name: str
    weight: np.ndarray
    bias: np.ndarray | None
    eps: float
    round: Rounding

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Normalised rows (M, D).

        Raises:
            ValueError: a row with NaN or Inf, or whose squares overflow.
        """
        out = np.empty_like(x)
        if self.bias is None:
            bad = ops.rms_norm(x, self.weight, F32(self.eps), out)
        else:
            bad = ops.layer_norm(x, self.weight, self.bias, F32(self.eps), out)
        if bad >= 0:
            raise QsimError(f"hidden states before {self.name} are NaN, Inf or too large to square, first in row {bad}")
        return self.round(out)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fan:
    """Linears of one input, computed side by side by one stacked Linear where that gives the same."""

    parts: tuple[Linear, ...]
    stacked: Linear | None
    round: Rounding

    def __call__(self, x: np.ndarray, observe: Any) -> np.ndarray:
        """Their outputs side by side, (M, sum of N)."""
        if observe is not None:
            for one in self.parts:
                observe(one.name, one.transformed(x))
        if self.stacked is not None:
            return self.round(self.stacked.rows(x))
        return self.round(np.concatenate([one.rows(x) for one in self.parts], axis=1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Attention and MLP with their norms and residuals.

    Arguments:
        index: which block; its layer of the cache.
        heads, kv_heads, head_dim, window: of attention.
        norm_first: norms before the sublayers; OPT-350m has them after.
        query_norm, key_norm: Qwen3's weights, or None.
        activation: of the MLP; `silu` with a gate.
        compiled: whether the Linears run in Numba's threads, so that attention should too.
        kv_cache, k_scale, v_scale: how keys and values are rounded.
        attention: how its products are formed.
    """

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    norm_first: bool
    attention_norm: Norm
    mlp_norm: Norm
    qkv: Fan
    output: Fan
    up: Fan
    down: Fan
    gated: bool
    activation: str
    query_norm: np.ndarray | None
    key_norm: np.ndarray | None
    norm_eps: float
    compiled: bool
    kv_cache: TensorScheme | None
    k_scale: float
    v_scale: float
    attention: AttentionMath
    round: Rounding

    def __call__(
        self,
        x: np.ndarray,
        batch: int,
        starts: np.ndarray,
        rotary: Rotary | None,
        cache: KVCache | None,
        observe: Any,
    ) -> np.ndarray:
        """Hidden states after the block.

        Arguments:
            x: (B * T, D) float32; not changed.
            starts: (B,) int64, position of each sequence's first token.
            rotary: tables of cosines and sines, or None.
            cache: keys and values are added to and read from it; None attends within x alone.
            observe: called with a Linear's name and input, or None.
        """
        return self.mlp_half(self.attention_half(x, batch, starts, rotary, cache, observe), observe)

    def attention_half(
        self, x: np.ndarray, batch: int, starts: np.ndarray, rotary: Rotary | None, cache: KVCache | None, observe: Any
    ) -> np.ndarray:
        """Hidden states between attention and MLP."""
        h = self.attention_norm(x) if self.norm_first else x
        return self._add(x, self.attention_output(h, batch, starts, rotary, cache, observe), self.attention_norm)

    def mlp_half(self, x: np.ndarray, observe: Any) -> np.ndarray:
        """Hidden states after the block, of those between attention and MLP."""
        h = self.mlp_norm(x) if self.norm_first else x
        return self._add(x, self.mlp_output(h, observe), self.mlp_norm)

    def attention_output(
        self, h: np.ndarray, batch: int, starts: np.ndarray, rotary: Rotary | None, cache: KVCache | None, observe: Any
    ) -> np.ndarray:
        """What attention adds to the residual, of its Linears' input h (B * T, D)."""
        return self.output(self._attend(self.qkv(h, observe), batch, starts, rotary, cache), observe)

    def mlp_output(self, h: np.ndarray, observe: Any) -> np.ndarray:
        """What the MLP adds to the residual, of its Linears' input h (M, D)."""
        h = self.up(h, observe)
        return self.down(self.round(self._activate(h)), observe)

    def _add(self, x: np.ndarray, h: np.ndarray, norm: Norm) -> np.ndarray:
        h += x
        h = self.round(h)
        return h if self.norm_first else norm(h)

    def _activate(self, h: np.ndarray) -> np.ndarray:
        if not self.gated:
            return ops.activate(h, self.activation)
        if self.activation == "silu":
            return ops.swiglu(h)
        half = h.shape[1] // 2
        return ops.activate(h[:, :half], self.activation) * h[:, half:]

    def _attend(
        self, qkv: np.ndarray, batch: int, starts: np.ndarray, rotary: Rotary | None, cache: KVCache | None
    ) -> np.ndarray:
        size, heads, kv_heads = self.head_dim, self.heads, self.kv_heads
        length = qkv.shape[0] // batch
        if self.query_norm is not None:
            ops.head_norm(qkv, self.query_norm, F32(self.norm_eps), 0, heads)
        if self.key_norm is not None:
            ops.head_norm(qkv, self.key_norm, F32(self.norm_eps), heads, kv_heads)
        if rotary is not None:
            positions = starts if length == 1 else (starts[:, None] + np.arange(length)).reshape(-1)
            ops.rope(qkv, positions, *rotary, heads + kv_heads)
            if self.round is not keep:
                qkv[:] = self.round(qkv)
        k_at, v_at = heads * size, (heads + kv_heads) * size
        if self.kv_cache is not None:
            qkv[:, k_at:v_at] = round_entries(qkv[:, k_at:v_at], self.kv_cache, self.k_scale)
            qkv[:, v_at:] = round_entries(qkv[:, v_at:], self.kv_cache, self.v_scale)
        scale = size**-0.5
        if cache is not None:
            keys, values = cache.keys[self.index], cache.values[self.index]
            ops.append(qkv, k_at, starts, keys, values)
            if length == 1 and self.attention.is_plain:
                wide = self.window or keys.shape[2]
                return self.round(ops.attend_one(qkv[:, :k_at], keys, values, starts, wide, scale))
        if self.compiled and self.attention.is_plain:
            return self.round(self._attend_compiled(qkv, batch, starts, cache))
        out = np.empty((batch * length, heads * size), F32)
        for b in range(batch):
            rows = slice(b * length, (b + 1) * length)
            here = qkv[rows]
            if cache is None:
                start = 0
                k = here[:, k_at:v_at].reshape(length, kv_heads, size).transpose(1, 0, 2)
                v = here[:, v_at:].reshape(length, kv_heads, size).transpose(1, 0, 2)
            else:
                start = int(starts[b])
                k, v = keys[b, :, : start + length], values[b, :, : start + length]
            attend(here[:, :k_at].reshape(length, heads, size), k, v, position=start, window=self.window, scale=scale,
                   math=self.attention, out=out[rows].reshape(length, heads, size))  # fmt: skip
        return self.round(out)

    def _attend_compiled(self, qkv: np.ndarray, batch: int, starts: np.ndarray, cache: KVCache | None) -> np.ndarray:
        size, heads, kv_heads = self.head_dim, self.heads, self.kv_heads
        length = qkv.shape[0] // batch
        if cache is None:
            keys, values = (np.empty((batch, kv_heads, length, size), F32) for _ in "kv")
            ops.append(qkv, heads * size, starts, keys, values)
        else:
            keys, values = cache.keys[self.index], cache.values[self.index]
        q = qkv[:, : heads * size].reshape(batch, length, heads, size)
        wide = self.window or int(starts.max()) + length
        out = attend_tiles(q, keys, values, starts, wide, size**-0.5)
        return out.reshape(batch * length, heads * size)


def keep(x: np.ndarray) -> np.ndarray:
    """The rounding of float32 hidden states: none."""
    return x
