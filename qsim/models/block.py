"""One decoder block, made once from a model's tensors and called with hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.scheme import TensorScheme

from . import masked, ops
from .attention import AttentionMath, attend
from .cache import KVCache, round_entries
from .fan import Fan, Rounding, keep
from .flash import attend_tiles
from .mlp import Experts, Mlp
from .rope import Rope

F32 = np.float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Norm:
    """RMSNorm, or LayerNorm when it has a bias. `weight` is what multiplies: 1 + w where files hold w."""

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
class Block:
    """Attention and MLP with their norms and residuals.

    Arguments:
        index: which block; its layer of the cache.
        heads, kv_heads, head_dim, window, scale: of attention; `scale` multiplies scores.
        soft_cap: scores become c tanh(x / c); None leaves them.
        sinks: (heads,) scores that take a share of attention and have no value, or None.
        norm_first: norms before the sublayers; OPT-350m has them after it adds.
        attention_norm, mlp_norm: of what attention and MLP read; None in OLMo 2.
        attention_post, mlp_post: of what they add to the residual, or None.
        parallel: attention and MLP read the same hidden state.
        residual: what attention and MLP add is multiplied by it.
        columns: where the fused projection of queries, keys and values puts [q | k | v]; None is in that order.
        query_norm, key_norm: weights over one head, or over all heads side by side; or None.
        rope: rotary embeddings, or None.
        compiled: whether the Linears run in Numba's threads, so that attention should too.
        kv_cache, k_scale, v_scale: how keys and values are rounded.
        attention: how its products are formed.
    """

    index: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    scale: float
    soft_cap: float | None
    sinks: np.ndarray | None
    norm_first: bool
    attention_norm: Norm | None
    mlp_norm: Norm | None
    attention_post: Norm | None
    mlp_post: Norm | None
    parallel: bool
    residual: float
    qkv: Fan
    columns: np.ndarray | None
    output: Fan
    mlp: Mlp | Experts
    query_norm: np.ndarray | None
    key_norm: np.ndarray | None
    norm_eps: float
    rope: Rope | None
    compiled: bool
    kv_cache: TensorScheme | None
    k_scale: float
    v_scale: float
    attention: AttentionMath
    round: Rounding

    def __call__(
        self, x: np.ndarray, batch: int, starts: np.ndarray, cache: KVCache | None, observe: Any
    ) -> np.ndarray:
        """Hidden states after the block.

        Arguments:
            x: (B * T, D) float32; not changed.
            starts: (B,) int64, position of each sequence's first token.
            cache: keys and values are added to and read from it; None attends within x alone.
            observe: called with a Linear's name and input, or None.
        """
        between = self.attention_half(x, batch, starts, cache, observe)
        if not self.parallel:
            return self.mlp_half(between, observe)
        h = x if self.mlp_norm is None else self.mlp_norm(x)
        return self._add(between, self.mlp_output(h, observe), None)

    def attention_half(
        self, x: np.ndarray, batch: int, starts: np.ndarray, cache: KVCache | None, observe: Any
    ) -> np.ndarray:
        """Hidden states between attention and MLP."""
        h = x if self.attention_norm is None or not self.norm_first else self.attention_norm(x)
        return self._add(x, self.attention_output(h, batch, starts, cache, observe), self.attention_norm)

    def mlp_half(self, x: np.ndarray, observe: Any) -> np.ndarray:
        """Hidden states after the block, of those between attention and MLP."""
        h = x if self.mlp_norm is None or not self.norm_first else self.mlp_norm(x)
        return self._add(x, self.mlp_output(h, observe), self.mlp_norm)

    def attention_output(
        self, h: np.ndarray, batch: int, starts: np.ndarray, cache: KVCache | None, observe: Any
    ) -> np.ndarray:
        """What attention adds to the residual, of its Linears' input h (B * T, D)."""
        out = self.output(self._attend(self.qkv(h, observe), batch, starts, cache), observe)
        return self._scaled(out if self.attention_post is None else self.attention_post(out))

    def mlp_output(self, h: np.ndarray, observe: Any) -> np.ndarray:
        """What the MLP adds to the residual, of its Linears' input h (M, D)."""
        out = self.mlp(h, observe)
        return self._scaled(out if self.mlp_post is None else self.mlp_post(out))

    def _scaled(self, h: np.ndarray) -> np.ndarray:
        return h if self.residual == 1 else self.round(h * F32(self.residual))

    def _add(self, x: np.ndarray, h: np.ndarray, norm: Norm | None) -> np.ndarray:
        h += x
        h = self.round(h)
        return h if self.norm_first or norm is None else norm(h)

    def _attend(self, qkv: np.ndarray, batch: int, starts: np.ndarray, cache: KVCache | None) -> np.ndarray:
        size, heads, kv_heads = self.head_dim, self.heads, self.kv_heads
        length = qkv.shape[0] // batch
        if self.columns is not None:
            qkv = np.ascontiguousarray(qkv[:, self.columns])
        self._norm_heads(qkv)
        if self.rope is not None:
            positions = starts if length == 1 else (starts[:, None] + np.arange(length)).reshape(-1)
            cos, sin = self.rope.tables(int(starts.max()) + length)
            ops.rope(qkv, positions, cos, sin, heads + kv_heads, size)
            if self.round is not keep:
                qkv[:] = self.round(qkv)
        k_at, v_at = heads * size, (heads + kv_heads) * size
        if self.kv_cache is not None:
            qkv[:, k_at:v_at] = round_entries(qkv[:, k_at:v_at], self.kv_cache, self.k_scale)
            qkv[:, v_at:] = round_entries(qkv[:, v_at:], self.kv_cache, self.v_scale)
        plain = self.attention.is_plain and self.soft_cap is None and self.sinks is None
        if cache is not None:
            keys, values = cache.keys[self.index], cache.values[self.index]
            ops.append(qkv, k_at, starts, keys, values)
            if length == 1 and plain:
                wide = self.window or keys.shape[2]
                return self.round(masked.attend_one(qkv[:, :k_at], keys, values, starts, wide, self.scale))
        if self.compiled and plain:
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
            attend(here[:, :k_at].reshape(length, heads, size), k, v, position=start, window=self.window,
                   scale=self.scale, soft_cap=self.soft_cap, sinks=self.sinks, math=self.attention,
                   out=out[rows].reshape(length, heads, size))  # fmt: skip
        return self.round(out)

    def _norm_heads(self, qkv: np.ndarray) -> None:
        """Norms of queries and keys, in place."""
        first = 0
        for weight, heads in ((self.query_norm, self.heads), (self.key_norm, self.kv_heads)):
            if weight is not None and len(weight) == self.head_dim:
                ops.head_norm(qkv, weight, F32(self.norm_eps), first, heads)
            elif weight is not None:
                columns = slice(first * self.head_dim, (first + heads) * self.head_dim)
                ops.head_norm(qkv[:, columns], weight, F32(self.norm_eps), 0, 1)
            first += heads

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
        out = attend_tiles(q, keys, values, starts, wide, self.scale)
        return out.reshape(batch * length, heads * size)
