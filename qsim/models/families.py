"""Tensor names of each family, their shapes, and which Linears belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qsim.families import MlpTensors

from .config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class MlpNames:
    """Names of one MLP or expert, without `.weight` and `.bias`; `gate_up` is the fused projection of both."""

    gate: str | None
    up: str | None
    gate_up: str | None
    down: str

    @property
    def first(self) -> list[str]:
        """The Linears that read the hidden state."""
        return [name for name in (self.gate, self.up, self.gate_up) if name is not None]

    @property
    def source(self) -> str:
        """The Linear whose last rows make what `down` reads, times the activation of a gate where there is one."""
        return self.first[-1]

    @property
    def groups(self) -> list[list[str]]:
        """Linears that see the same input, in order."""
        return [self.first, [self.down]]


@dataclass(frozen=True, kw_only=True)
class BlockNames:
    """Names in one decoder block, without `.weight` and `.bias`; None where it has none.

    Attributes:
        attention_post, mlp_post: norms of what attention and MLP add to the residual.
        query, key, value, or qkv: separate projections, or the fused one.
        gate, up, gate_up, down: of a dense MLP; None in a block with experts.
        sinks: the tensor's whole name.
        router: of the experts; it is no Linear that is quantised.
        experts: of a block with experts.
    """

    prefix: str
    attention_norm: str | None
    mlp_norm: str | None
    attention_post: str | None
    mlp_post: str | None
    query: str | None
    key: str | None
    value: str | None
    qkv: str | None
    output: str
    query_norm: str | None
    key_norm: str | None
    sinks: str | None
    dense: MlpNames | None
    router: str | None
    experts: tuple[MlpNames, ...]

    @property
    def gate(self) -> str | None:
        return None if self.dense is None else self.dense.gate

    @property
    def up(self) -> str | None:
        return None if self.dense is None else self.dense.up

    @property
    def gate_up(self) -> str | None:
        return None if self.dense is None else self.dense.gate_up

    @property
    def down(self) -> str | None:
        return None if self.dense is None else self.dense.down

    @property
    def attention(self) -> str:
        """The attention module, whose `k_scale` and `v_scale` a quantised KV cache has."""
        return self.output.rpartition(".")[0]

    @property
    def projections(self) -> list[str]:
        """The Linears that make queries, keys and values."""
        return [name for name in (self.qkv, self.query, self.key, self.value) if name is not None]

    @property
    def norms(self) -> list[str]:
        """Norms over hidden states."""
        found = (self.attention_norm, self.attention_post, self.mlp_norm, self.mlp_post)
        return [name for name in found if name is not None]

    @property
    def mlps(self) -> tuple[MlpNames, ...]:
        """The dense MLP, or every expert."""
        return self.experts if self.dense is None else (self.dense,)

    @property
    def linears(self) -> tuple[str, ...]:
        """The Linears in the order in which they are applied."""
        return tuple(name for group in self.groups for name in group)

    @property
    def stages(self) -> list[list[list[str]]]:
        """Groups of Linears that see the same input, in the four steps of the computation: queries, keys and values;
        attention's output; up projections; down projections. A step of experts has a group for each."""
        return [
            [self.projections], [[self.output]], [mlp.first for mlp in self.mlps], [[mlp.down] for mlp in self.mlps]
        ]  # fmt: skip

    @property
    def groups(self) -> list[list[str]]:
        """Linears that see the same input, in the order of the computation (GPTQ's true-sequential groups)."""
        return [group for stage in self.stages for group in stage]


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """Names outside the blocks, without `.weight`."""

    embedding: str
    positions: str | None
    project_in: str | None
    project_out: str | None
    norm: str | None
    head: str = "lm_head"


def model_names(config: ModelConfig) -> ModelNames:
    """Names outside the blocks."""
    t = config.tensor_names
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
    t = config.tensor_names
    prefix, sparse = t.prefix.format(i=i), config.sparse_layers[i]
    named = {
        key: None if name is None else prefix + name
        for key, name in vars(t.block).items()
        if key not in ("mlp", "router", "expert")
    }
    experts: tuple[MlpNames, ...] = ()
    if sparse:
        assert t.block.expert is not None  # a family whose shape has experts names them
        experts = tuple(_mlp(t.block.expert, prefix, e) for e in range(config.num_experts))
    return BlockNames(
        prefix=prefix, **named, experts=experts,  # type: ignore[arg-type]
        dense=None if sparse or t.block.mlp is None else _mlp(t.block.mlp, prefix),
        router=f"{prefix}{t.block.router}" if sparse else None,
    )  # fmt: skip


def _mlp(names: MlpTensors, prefix: str, expert: int = 0) -> MlpNames:
    put = {key: None if name is None else prefix + name.format(e=expert) for key, name in vars(names).items()}
    return MlpNames(**put)  # type: ignore[arg-type]


def fold_groups(config: ModelConfig, i: int) -> list[tuple[str, list[str]]]:
    """Where a per-channel factor can move from a block's activations into weights without changing what it computes.

    Returns:
        (source, [Linears]) pairs. A source that is a norm divides its weight (and bias) by the factor, one that is a
        Linear divides its output rows (the last ones, where it has more); the Linears multiply their input columns, and
        so do the `float_readers` of a norm.
        v -> o only when every query head has a KV head of its own, and the values are the last rows; up -> down only
        behind a gate or through ReLU, which positive factors pass. A norm whose output also is the residual (OPT-350m),
        one that is behind attention or MLP (OLMo 2) and one without a weight are not listed.
    """
    n, numerics = block_names(config, i), config.numerics
    free = config.do_layer_norm_before and (config.layer_norm_affine or config.architecture != "opt")
    out: list[tuple[str, list[str]]] = []
    if free and n.attention_norm is not None:
        out.append((n.attention_norm, n.projections))
    if config.num_attention_heads == config.num_key_value_heads and (n.qkv is None or numerics.qkv_order == "parts"):
        out.append((n.projections[-1], [n.output]))
    if free and n.mlp_norm is not None:
        out.append((n.mlp_norm, [name for mlp in n.mlps for name in mlp.first]))
    passes = config.is_gated or config.hidden_act == "relu"
    if passes and numerics.gate == "act" and numerics.gate_order == "halves":
        out += [(mlp.source, [mlp.down]) for mlp in n.mlps]
    return out


def fused_columns(c: ModelConfig) -> np.ndarray | None:
    """Where a fused projection that makes query, key and value of one head after the other has [q | k | v]; None
    where it is in that order."""
    if c.numerics.qkv_order == "parts":
        return None
    at = np.arange(3 * c.num_attention_heads * c.head_dim).reshape(c.num_attention_heads, 3, c.head_dim)
    return np.ascontiguousarray(at.transpose(1, 0, 2)).reshape(-1)


def float_readers(config: ModelConfig, source: str) -> list[str]:
    """What reads the output of a norm beside Linears: the router of its block, whose columns a fold multiplies too."""
    t = config.tensor_names
    for i, sparse in enumerate(config.sparse_layers):
        prefix = t.prefix.format(i=i)
        if sparse and source == f"{prefix}{t.block.mlp_norm}":
            return [f"{prefix}{t.block.router}"]
    return []


def linear_shapes(config: ModelConfig, i: int) -> dict[str, tuple[tuple[int, int], bool]]:
    """(out features, in features) and whether there is a bias, of every Linear of block `i`."""
    c, n = config, block_names(config, i)
    d, f = c.hidden_size, c.moe_intermediate_size if n.experts else c.intermediate_size
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    rows = dict.fromkeys(n.projections, kv) | {n.query: q, n.qkv: q + 2 * kv}
    out = {name: ((rows[name], d), c.attention_bias) for name in n.projections}
    out[n.output] = ((d, q), c.attention_out_bias)
    for mlp in n.mlps:
        out[mlp.source] = ((2 * f if mlp.gate_up is not None else f, d), c.mlp_bias)
        out[mlp.down] = ((d, f), c.mlp_bias)
        if mlp.gate is not None:
            out[mlp.gate] = ((f, d), c.mlp_bias)
    return out


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this config has, with its shape. A tied head is not among them.

    Experts have weights of their own here, also where files hold those of all as one array.
    """
    c, names = config, model_names(config)
    d, e = c.hidden_size, c.word_embed_proj_dim
    out: dict[str, tuple[int, ...]] = {names.embedding + ".weight": (c.vocab_size, e)}
    if names.positions is not None:
        out[names.positions + ".weight"] = (c.max_position_embeddings + 2, d)
    if names.project_in is not None:
        out[names.project_in + ".weight"] = (d, e)
    for i in range(c.num_hidden_layers):
        out |= _block_tensors(c, i)
    if names.norm is not None:
        out |= _norm(c, names.norm, d)
    if names.project_out is not None:
        out[names.project_out + ".weight"] = (e, d)
    if not c.tie_word_embeddings:
        out[names.head + ".weight"] = (c.vocab_size, e)
    return out


def _block_tensors(c: ModelConfig, i: int) -> dict[str, tuple[int, ...]]:
    n, out = block_names(c, i), dict[str, tuple[int, ...]]()
    for norm in n.norms:
        out |= _norm(c, norm, c.hidden_size)
    for name, heads in ((n.query_norm, c.num_attention_heads), (n.key_norm, c.num_key_value_heads)):
        if name is not None:
            out |= _norm(c, name, c.head_dim * (heads if c.numerics.head_norm == "all" else 1))
    if n.sinks is not None:
        out[n.sinks] = (c.num_attention_heads,)
    if n.router is not None:
        out[n.router + ".weight"] = (c.num_experts, c.hidden_size)
        if c.router_bias:
            out[n.router + ".bias"] = (c.num_experts,)
    for name, (shape, bias) in linear_shapes(c, i).items():
        out[name + ".weight"] = shape
        if bias:
            out[name + ".bias"] = (shape[0],)
    return out


def _norm(config: ModelConfig, name: str, size: int) -> dict[str, tuple[int, ...]]:
    if config.numerics.norm == "rms":
        return {name + ".weight": (size,)}
    return {name + ".weight": (size,), name + ".bias": (size,)} if config.layer_norm_affine else {}
