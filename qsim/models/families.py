"""Tensor names of each family, their shapes, and which Linears belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qsim.families import Tensors, families

from .config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class BlockNames:
    """Names in one decoder block, without `.weight` and `.bias`."""

    prefix: str
    attention_norm: str
    mlp_norm: str
    query: str
    key: str
    value: str
    output: str
    gate: str | None
    up: str
    down: str
    query_norm: str | None = None
    key_norm: str | None = None

    @property
    def attention(self) -> str:
        """The attention module, whose `k_scale` and `v_scale` a quantised KV cache has."""
        return self.query.rpartition(".")[0]

    @property
    def linears(self) -> tuple[str, ...]:
        """The Linears in the order in which they are applied."""
        return tuple(name for group in self.groups for name in group)

    @property
    def groups(self) -> list[list[str]]:
        """Linears that see the same input, in the order of the computation (GPTQ's true-sequential groups)."""
        first = [self.up] if self.gate is None else [self.gate, self.up]
        return [[self.query, self.key, self.value], [self.output], first, [self.down]]


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """Names outside the blocks, without `.weight`."""

    embedding: str
    positions: str | None
    project_in: str | None
    project_out: str | None
    norm: str | None
    head: str = "lm_head"


def _tensors(config: ModelConfig) -> Tensors:
    found = families()[config.architecture].tensors
    assert found is not None  # ModelConfig knows only families that have them
    return found


def model_names(config: ModelConfig) -> ModelNames:
    """Names outside the blocks."""
    t = _tensors(config)
    projected = config.word_embed_proj_dim != config.hidden_size
    return ModelNames(
        embedding=t.embedding,
        positions=t.positions,
        project_in=t.project_in if projected else None,
        project_out=t.project_out if projected else None,
        norm=t.norm if config.final_layer_norm else None,
        head=t.head,
    )


def block_names(config: ModelConfig, i: int) -> BlockNames:
    """Names of block `i`."""
    t = _tensors(config)
    prefix = t.prefix.format(i=i)
    named: dict[str, Any] = {key: None if name is None else prefix + name for key, name in vars(t.block).items()}
    return BlockNames(prefix=prefix, **named)


def fold_groups(config: ModelConfig, i: int) -> list[tuple[str, list[str]]]:
    """Where a per-channel factor can move from a block's activations into weights without changing what it computes.

    Returns:
        (source, [Linears]) pairs. A source that is a norm divides its weight (and bias) by the factor, one that is a
        Linear divides its output rows (the last ones, where it has more); the Linears multiply their input columns.
        v -> o only when every query head has a KV head of its own; fc1 -> fc2 only through ReLU, which positive factors
        pass. A norm whose output also is the residual (OPT-350m) is not listed.
    """
    n = block_names(config, i)
    free = config.do_layer_norm_before and (config.layer_norm_affine or config.architecture != "opt")
    out: list[tuple[str, list[str]]] = []
    if free:
        out.append((n.attention_norm, [n.query, n.key, n.value]))
    if config.num_attention_heads == config.num_key_value_heads:
        out.append((n.value, [n.output]))
    if free:
        out.append((n.mlp_norm, [n.up] if n.gate is None else [n.gate, n.up]))
    if n.gate is not None or config.hidden_act == "relu":
        out.append((n.up, [n.down]))
    return out


def linear_shapes(config: ModelConfig, i: int) -> dict[str, tuple[tuple[int, int], bool]]:
    """(out features, in features) and whether there is a bias, of every Linear of block `i`."""
    c, n = config, block_names(config, i)
    d, f = c.hidden_size, c.intermediate_size
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    out = {
        n.query: ((q, d), c.attention_bias),
        n.key: ((kv, d), c.attention_bias),
        n.value: ((kv, d), c.attention_bias),
        n.output: ((d, q), c.attention_out_bias),
        n.up: ((f, d), c.mlp_bias),
        n.down: ((d, f), c.mlp_bias),
    }
    if n.gate is not None:
        out[n.gate] = ((f, d), c.mlp_bias)
    return out


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config has, with its shape. A tied head is not among them."""
    c, names = config, model_names(config)
    d, e = c.hidden_size, c.word_embed_proj_dim
    out: dict[str, tuple[int, ...]] = {names.embedding + ".weight": (c.vocab_size, e)}
    if names.positions is not None:
        out[names.positions + ".weight"] = (c.max_position_embeddings + 2, d)
    if names.project_in is not None:
        out[names.project_in + ".weight"] = (d, e)
    for i in range(c.num_hidden_layers):
        n = block_names(c, i)
        for norm, size in (
            (n.attention_norm, d),
            (n.mlp_norm, d),
            (n.query_norm, c.head_dim),
            (n.key_norm, c.head_dim),
        ):
            if norm is not None:
                out |= _norm(c, norm, size)
        for name, (shape, bias) in linear_shapes(c, i).items():
            out[name + ".weight"] = shape
            if bias:
                out[name + ".bias"] = (shape[0],)
    if names.norm is not None:
        out |= _norm(c, names.norm, d)
    if names.project_out is not None:
        out[names.project_out + ".weight"] = (e, d)
    if not c.tie_word_embeddings:
        out[names.head + ".weight"] = (c.vocab_size, e)
    return out


def _norm(config: ModelConfig, name: str, size: int) -> dict[str, tuple[int, ...]]:
    if config.architecture != "opt":
        return {name + ".weight": (size,)}
    return {name + ".weight": (size,), name + ".bias": (size,)} if config.layer_norm_affine else {}
