"""The KV cache: what a decoder keeps of every token it has seen."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np

from qsim.errors import QsimError, QsimTypeError
from qsim.formats import cast, get_format
from qsim.scheme import Scheme, TensorScheme, quantize

F32 = np.float32
_GROWTH = 256  # tokens


class KVCache:
    """Keys (after their rotation) and values of every layer, for sequences that may differ in length.

    A quantised cache holds the values that its codes stand for, in float32: rounding happens when a token enters, and
    attention reads without decoding. `nbytes` counts what the codes and scales of the tokens present would take.

    Attributes:
        keys, values: (layers, B, KV heads, capacity, head_dim) float32.
        lengths: (B,) int64, tokens present of each sequence.
        is_long: (B,) bool, whether keys were turned as those of texts beyond the trained context (`longrope`).
        limit: the most tokens that fit, the model's context.
        scheme: how entries are stored, or None for float32.
    """

    def __init__(self, *, layers: int, batch: int, kv_heads: int, head_dim: int, limit: int, capacity: int = 0,
                 scheme: TensorScheme | None = None) -> None:  # fmt: skip
        self.limit, self.scheme = limit, scheme
        self.lengths, self.is_long = np.zeros(batch, np.int64), np.zeros(batch, bool)
        shape = (layers, batch, kv_heads, min(max(capacity, 1), limit), head_dim)
        self.keys, self.values = np.zeros(shape, F32), np.zeros(shape, F32)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens a sequence has room for before the arrays grow."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens present, keys and values, as the scheme stores them (K and V of a token are one row)."""
        layers, _, kv_heads, _, head_dim = self.keys.shape
        row = kv_heads * head_dim
        if self.scheme is None:
            return int(self.lengths.sum()) * layers * 2 * row * 4
        ragged = dataclasses.replace(self.scheme, ragged=True) if self.scheme.group_size else self.scheme
        return sum(2 * layers * int(ragged.nbytes((int(n), row))) for n in self.lengths if n)

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more tokens of every sequence.

        Raises:
            ValueError: more than the model's context.
        """
        needed = int(self.lengths.max(initial=0)) + tokens
        if needed > self.limit:
            raise QsimError(
                f"the model's context is {self.limit} tokens: got {needed - tokens} in the cache and {tokens} more"
            )
        if needed <= self.capacity:
            return
        size = min(self.limit, max(needed, self.capacity + max(_GROWTH, self.capacity // 2)))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = np.zeros((*old.shape[:3], size, old.shape[4]), F32)
            new[..., : old.shape[3], :] = old
            setattr(self, name, new)

    def advance(self, tokens: int) -> None:
        """Count tokens whose keys and values were written in every layer."""
        self.lengths += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        np.minimum(self.lengths, length, out=self.lengths)

    def __getitem__(self, rows: slice) -> KVCache:
        """Some of the sequences, sharing their memory; it must not outgrow this cache's capacity."""
        if not isinstance(rows, slice):
            raise QsimTypeError(f"a cache must be sliced by sequences, like cache[:2]: got {type(rows).__name__}")
        part = object.__new__(KVCache)
        part.limit, part.scheme = self.capacity, self.scheme
        part.lengths, part.is_long = self.lengths[rows], self.is_long[rows]
        part.keys, part.values = self.keys[:, rows], self.values[:, rows]
        return part

    def __repr__(self) -> str:
        kind = "float32" if self.scheme is None else self.scheme.format.name
        return f"KVCache({self.batch} sequences of {self.lengths.tolist()} tokens, {kind}, {self.nbytes} bytes)"


def round_entries(x: np.ndarray, scheme: TensorScheme, scale: float) -> np.ndarray:
    """Keys or values as a cache of this scheme gives them back.

    Arguments:
        x: (M, KV heads * head_dim) float32, a row per token.
        scheme: tensor: one stored scale; token: one per row, over all heads; group(g): one for g elements of a row.
        scale: the stored scale, for static schemes.

    Returns:
        float32 of x's shape.
    """
    if not scheme.is_quantized:
        return np.asarray(cast(x, scheme.format), dtype=F32)
    if scheme.dynamic:
        return quantize(x, _whole(scheme), part="kv_cache").dequantize()
    top = F32(scheme.format.max)
    return np.asarray(cast(np.clip(x / F32(scale), -top, top), scheme.format), dtype=F32) * F32(scale)


@lru_cache(maxsize=16)
def _whole(scheme: TensorScheme) -> Scheme:
    """A scheme with that cache; groups may be ragged, where a row is no multiple of them."""
    plain: Any = TensorScheme(format=get_format("bfloat16"))
    return Scheme(weight=plain, kv_cache=dataclasses.replace(scheme, ragged=scheme.group_size is not None))


def new_cache(config: Any, batch: int, capacity: int, scheme: TensorScheme | None) -> KVCache:
    """An empty cache for a model's config."""
    return KVCache(layers=config.num_hidden_layers, batch=batch, kv_heads=config.num_key_value_heads,
                   head_dim=config.head_dim, limit=config.max_position_embeddings, capacity=capacity,
                   scheme=scheme)  # fmt: skip
