"""The decoder of `model`, slow and obviously right: float64, one token, one head, one expert at a time, no cache.

For tests and teaching; nothing else calls it. Weights are values: dequantise them first. The tensors say what a block
has: a norm, a bias or a fused projection is there when it is among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from .config import ModelConfig
from .rope import frequencies

F64 = np.float64
Weights: TypeAlias = Mapping[str, np.ndarray]


def logits(config: ModelConfig, tensors: Mapping[str, Any], tokens: Any) -> np.ndarray:
    """Scores of the next token after each of `tokens` (T,): float64 (T, V)."""
    w = {name: np.asarray(t, dtype=F64) for name, t in tensors.items()}
    names = config.tensor_names
    states: list[np.ndarray] = []
    for position, token in enumerate(tokens):
        x = w[names.embedding + ".weight"][token] * config.embedding_scale
        if f"{names.project_in}.weight" in w:
            x = w[f"{names.project_in}.weight"] @ x
        if names.positions is not None:
            x = x + w[names.positions + ".weight"][position + 2]
        states.append(x)
    for i in range(config.num_hidden_layers):
        states = _block(config, w, names.prefix.format(i=i), i, states)
    head = w.get(names.head + ".weight", w[names.embedding + ".weight"])
    out = []
    for x in states:
        if config.final_layer_norm:
            x = _norm(config, w, names.norm, x)
        if f"{names.project_out}.weight" in w:
            x = w[f"{names.project_out}.weight"] @ x
        out.append(_capped(head @ x / config.logits_scaling, config.final_logit_softcapping))
    return np.array(out)


def _block(config: ModelConfig, w: Weights, p: str, i: int, states: list[np.ndarray]) -> list[np.ndarray]:
    t = config.tensor_names.block
    before, scale = config.do_layer_norm_before, config.residual_multiplier

    def norm(name: str | None, x: np.ndarray) -> np.ndarray:
        return x if name is None else _norm(config, w, p + name, x)

    mixed = _attention(config, w, p, i, [norm(t.attention_norm, x) if before else x for x in states])
    after = [x + scale * norm(t.attention_post, y) for x, y in zip(states, mixed, strict=True)]
    if not before:
        after = [norm(t.attention_norm, x) for x in after]
    out = []
    for first, x in zip(states, after, strict=True):
        h = norm(t.mlp_norm, first if config.use_parallel_residual else x) if before else x
        h = _experts(config, w, p, h) if config.sparse_layers[i] else _mlp(config, w, p, vars(t.mlp), h)
        x = x + scale * norm(t.mlp_post, h)
        out.append(x if before else norm(t.mlp_norm, x))
    return out


def _experts(config: ModelConfig, w: Weights, p: str, h: np.ndarray) -> np.ndarray:
    t, numerics = config.tensor_names.block, config.numerics
    scores = _linear(w, f"{p}{t.router}", h)
    chosen = sorted(range(len(scores)), key=lambda e: (-scores[e], e))[: config.num_experts_per_tok]
    over = chosen if numerics.router == "chosen" else range(len(scores))
    total = sum(math.exp(scores[e] - scores[chosen[0]]) for e in over)
    shares = [math.exp(scores[e] - scores[chosen[0]]) / total for e in chosen]
    if config.norm_topk_prob:
        shares = [share / sum(shares) for share in shares]
    out = np.zeros_like(h)
    for e, share in zip(chosen, shares, strict=True):
        names = {key: None if name is None else name.format(e=e) for key, name in vars(t.expert).items()}
        out += share * _mlp(config, w, p, names, h)
    return out


def _mlp(config: ModelConfig, w: Weights, p: str, names: Mapping[str, str | None], h: np.ndarray) -> np.ndarray:
    gate: np.ndarray | None
    if names["gate_up"] is not None:
        both = _linear(w, f"{p}{names['gate_up']}", h)
        half = len(both) // 2
        gate, up = (both[::2], both[1::2]) if config.numerics.gate_order == "pairs" else (both[:half], both[half:])
    else:
        gate = None if names["gate"] is None else _linear(w, f"{p}{names['gate']}", h)
        up = _linear(w, f"{p}{names['up']}", h)
    if gate is None:
        inner = _activation(config.hidden_act, up)
    elif config.swiglu_limit is not None and config.swiglu_alpha is not None:
        limit = config.swiglu_limit
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        inner = gate / (1 + np.exp(-config.swiglu_alpha * gate)) * (up + 1)
    else:
        inner = _activation(config.hidden_act, gate) * up
    return _linear(w, f"{p}{names['down']}", inner)


def _linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    y = w[name + ".weight"] @ x
    return y + w[name + ".bias"] if name + ".bias" in w else y


def _norm(config: ModelConfig, w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    if config.numerics.norm == "layer":
        y = (x - x.mean()) / math.sqrt(x.var() + config.norm_eps)
        return y * w[name + ".weight"] + w[name + ".bias"] if name + ".weight" in w else y
    return x / math.sqrt((x * x).mean() + config.norm_eps) * (config.numerics.norm_offset + w[name + ".weight"])


def _activation(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _capped(x: np.ndarray, cap: float | None) -> np.ndarray:
    return x if cap is None else cap * np.tanh(x / cap)


def _attention(config: ModelConfig, w: Weights, p: str, i: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
    size, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    t, window = config.tensor_names.block, config.sliding_windows[i]
    rows = [_projections(config, w, p, x) for x in inputs]
    queries = [_heads(config, w, t.query_norm, p, i, row[0], at, len(rows)) for at, row in enumerate(rows)]
    keys = [_heads(config, w, t.key_norm, p, i, row[1], at, len(rows)) for at, row in enumerate(rows)]
    values = [row[2].reshape(kv_heads, size) for row in rows]
    sinks = None if t.sinks is None else w[p + t.sinks]
    out = []
    for at in range(len(inputs)):
        seen = range(0 if window is None else max(0, at - window + 1), at + 1)
        mixed = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            scores = np.array([queries[at][h] @ keys[s][g] * config.score_scale for s in seen])
            scores = _capped(scores, config.attn_logit_softcapping)
            top = scores.max()
            shares = np.exp(scores - top)
            shares /= shares.sum() + (0 if sinks is None else math.exp(sinks[h] - top))
            mixed.append(sum(share * values[s][g] for share, s in zip(shares, seen, strict=True)))
        out.append(_linear(w, p + t.output, np.concatenate(mixed)))
    return out


def _projections(config: ModelConfig, w: Weights, p: str, x: np.ndarray) -> list[np.ndarray]:
    """All queries, all keys, all values of one token."""
    t, size = config.tensor_names.block, config.head_dim
    if t.qkv is None:
        return [_linear(w, f"{p}{name}", x) for name in (t.query, t.key, t.value)]
    row = _linear(w, p + t.qkv, x)
    if config.numerics.qkv_order == "heads":
        return [np.concatenate([head[part * size : (part + 1) * size] for head in row.reshape(-1, 3 * size)])
                for part in range(3)]  # fmt: skip
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    return [row[:q], row[q : q + kv], row[q + kv :]]


def _heads(
    config: ModelConfig, w: Weights, norm: str | None, p: str, i: int, row: np.ndarray, position: int, length: int
) -> np.ndarray:
    """Queries or keys of one token, (count, head_dim), normed and rotated as the family does in a text of `length`."""
    size = config.head_dim
    if norm is not None and config.numerics.head_norm == "all":
        row = _norm(config, w, p + norm, row)
    heads = row.reshape(-1, size)
    if norm is not None and config.numerics.head_norm == "head":
        heads = np.array([_norm(config, w, p + norm, head) for head in heads])
    if not config.is_rotary:
        return heads
    turn, theta, scaling = config.rotary_dim, config.rope_theta, config.rope_scaling
    if config.local_rope_theta is not None and config.sliding_windows[i] is not None:
        theta, scaling = config.local_rope_theta, None
    trained = None if scaling is None else scaling.original_max_position_embeddings
    long = length > (trained or config.max_position_embeddings)
    inverse, factor = frequencies(theta, turn, scaling, config.max_position_embeddings, long=long)
    half = turn // 2
    turned = (heads[:, :half] + 1j * heads[:, half:turn]) * np.exp(1j * position * inverse.astype(F64)) * factor
    return np.concatenate([turned.real, turned.imag, heads[:, turn:]], axis=1)
