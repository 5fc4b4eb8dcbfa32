"""What is known of a model family, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .config import Config
from .numerics import Numerics
from .shape import Shape


@dataclass(frozen=True, kw_only=True)
class MlpTensors:
    """Names of one gated or plain MLP, or of one expert; `gate_up` is the fused projection of both."""

    up: str | None = None
    down: str
    gate: str | None = None
    gate_up: str | None = None

    @property
    def is_gated(self) -> bool:
        """Whether it is down(act(gate) * up)."""
        return self.gate is not None or self.gate_up is not None


@dataclass(frozen=True, kw_only=True)
class BlockTensors:
    """Names of one decoder block's tensors below its prefix, without `.weight` and `.bias`; None where it has none.

    Attributes:
        attention_norm, mlp_norm: norms of what attention and MLP read (OPT-350m: of what they have added to).
        attention_post, mlp_post: norms of what attention and MLP add to the residual.
        query, key, value, or qkv: separate projections, or one that makes all three.
        query_norm, key_norm: norms of queries and keys.
        sinks: one score of each head that takes a share of attention and has no value; a tensor without `.weight`.
        mlp: of a dense block; None where every block has experts.
        router: of the experts.
        expert: of expert `{e}`.
    """

    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attention_post: str | None = None
    mlp_post: str | None = None
    query: str | None = "self_attn.q_proj"
    key: str | None = "self_attn.k_proj"
    value: str | None = "self_attn.v_proj"
    qkv: str | None = None
    output: str = "self_attn.o_proj"
    query_norm: str | None = None
    key_norm: str | None = None
    sinks: str | None = None
    mlp: MlpTensors | None = None
    router: str | None = None
    expert: MlpTensors | None = None


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """Names of a checkpoint's tensors, without `.weight` and `.bias`.

    Attributes:
        prefix: of block i, with `{i}`.
        positions, project_in, project_out: None where the family never has them.
    """

    embedding: str
    norm: str
    prefix: str
    block: BlockTensors
    positions: str | None = None
    project_in: str | None = None
    project_out: str | None = None
    head: str = "lm_head"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of decoders: the models of one class in transformers, or of one published remote class.

    Attributes:
        name: of the family; its first model type.
        model_types: `model_type` of its configs, older spellings included.
        architectures: classes that its configs name.
        defaults: values of the class where a config has no such key.
        aliases: key -> its older names.
        harmless: keys of its configs that change no shape, beyond those that are harmless everywhere.
        shape: what the decoder is made of, from a config.
        tensors: names of the checkpoint's tensors, for the families that the decoder of `qsim.models` runs.
        numerics: what the decoder computes, for these families.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any]
    shape: Callable[[Config], Shape]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    harmless: frozenset[str] = frozenset()
    tensors: Tensors | None = None
    numerics: Numerics | None = None
