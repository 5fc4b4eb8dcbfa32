"""The decoder of `model`, slow and obviously right: float64, one token, one head at a time, no cache.

For tests and teaching; nothing else calls it. Weights are values: dequantise them first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .config import ModelConfig
from .rope import frequencies

F64 = np.float64


def logits(config: ModelConfig, tensors: Mapping[str, Any], tokens: Any) -> np.ndarray:
    """Scores of the next token after each of `tokens` (T,): float64 (T, V)."""
    w = {name: np.asarray(t, dtype=F64) for name, t in tensors.items()}
    opt = config.architecture == "opt"
    base = "model.decoder." if opt else "model."
    states = []
    for position, token in enumerate(tokens):
        x = w[base + "embed_tokens.weight"][token]
        if base + "project_in.weight" in w:
            x = w[base + "project_in.weight"] @ x
        if opt:
            x = x + w[base + "embed_positions.weight"][position + 2]
        states.append(x)
    for i in range(config.num_hidden_layers):
        states = _block(config, w, f"{base}layers.{i}.", i, states)
    head = w.get("lm_head.weight", w[base + "embed_tokens.weight"])
    out = []
    for x in states:
        if opt:
            if config.final_layer_norm:
                x = _norm(config, w, base + "final_layer_norm", x)
            if base + "project_out.weight" in w:
                x = w[base + "project_out.weight"] @ x
        else:
            x = _norm(config, w, base + "norm", x)
        out.append(head @ x)
    return np.array(out)


def _block(
    config: ModelConfig, w: Mapping[str, np.ndarray], p: str, i: int, states: list[np.ndarray]
) -> list[np.ndarray]:
    opt = config.architecture == "opt"
    first, second = (
        ("self_attn_layer_norm", "final_layer_norm") if opt else ("input_layernorm", "post_attention_layernorm")
    )
    before = config.do_layer_norm_before
    normed = [_norm(config, w, p + first, x) if before else x for x in states]
    mixed = _attention(config, w, p + "self_attn.", config.sliding_windows[i], normed)
    states = [x + y for x, y in zip(states, mixed, strict=True)]
    if not before:
        states = [_norm(config, w, p + first, x) for x in states]
    out = []
    for x in states:
        h = _norm(config, w, p + second, x) if before else x
        if opt:
            h = _linear(w, p + "fc2", _activation(config.hidden_act, _linear(w, p + "fc1", h)))
        else:
            gate = _activation(config.hidden_act, _linear(w, p + "mlp.gate_proj", h))
            h = _linear(w, p + "mlp.down_proj", gate * _linear(w, p + "mlp.up_proj", h))
        out.append(x + h if before else _norm(config, w, p + second, x + h))
    return out


def _linear(w: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    y = w[name + ".weight"] @ x
    return y + w[name + ".bias"] if name + ".bias" in w else y


def _norm(config: ModelConfig, w: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    if config.architecture == "opt":
        y = (x - x.mean()) / math.sqrt(x.var() + config.norm_eps)
        return y * w[name + ".weight"] + w[name + ".bias"] if name + ".weight" in w else y
    return x / math.sqrt((x * x).mean() + config.norm_eps) * w[name + ".weight"]


def _activation(kind: str, x: np.ndarray) -> np.ndarray:
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _attention(
    config: ModelConfig, w: Mapping[str, np.ndarray], p: str, window: int | None, inputs: list[np.ndarray]
) -> list[np.ndarray]:
    size, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    queries = [_heads(config, w, p + "q_", x, t, heads) for t, x in enumerate(inputs)]
    keys = [_heads(config, w, p + "k_", x, t, kv_heads) for t, x in enumerate(inputs)]
    values = [_linear(w, p + "v_proj", x).reshape(kv_heads, size) for x in inputs]
    output = p + ("out_proj" if config.architecture == "opt" else "o_proj")
    out = []
    for t in range(len(inputs)):
        seen = range(0 if window is None else max(0, t - window + 1), t + 1)
        mixed = []
        for h in range(heads):
            g = h // (heads // kv_heads)
            scores = np.array([queries[t][h] @ keys[s][g] / math.sqrt(size) for s in seen])
            p_seen = np.exp(scores - scores.max())
            p_seen /= p_seen.sum()
            mixed.append(sum(share * values[s][g] for share, s in zip(p_seen, seen, strict=True)))
        out.append(_linear(w, output, np.concatenate(mixed)))
    return out


def _heads(
    config: ModelConfig, w: Mapping[str, np.ndarray], name: str, x: np.ndarray, position: int, count: int
) -> np.ndarray:
    """Queries or keys of one token, (count, head_dim), normed and rotated as the family does."""
    size = config.head_dim
    heads = _linear(w, name + "proj", x).reshape(count, size)
    if name + "norm.weight" in w:
        heads = np.array([_norm(config, w, name + "norm", head) for head in heads])
    if config.architecture == "opt":
        return heads
    inverse, factor = frequencies(config.rope_theta, size, config.rope_scaling, config.max_position_embeddings)
    turned = (heads[:, : size // 2] + 1j * heads[:, size // 2 :]) * np.exp(1j * position * inverse.astype(F64)) * factor
    return np.concatenate([turned.real, turned.imag], axis=1)
