"""What is known of a model family, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .config import Config
from .shape import Shape


@dataclass(frozen=True, kw_only=True)
class BlockTensors:
    """Names of one decoder block's tensors below its prefix, without `.weight` and `.bias`; None where it has none."""

    attention_norm: str
    mlp_norm: str
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    gate: str | None = None
    up: str
    down: str
    query_norm: str | None = None
    key_norm: str | None = None


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
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any]
    shape: Callable[[Config], Shape]
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    harmless: frozenset[str] = frozenset()
    tensors: Tensors | None = None
