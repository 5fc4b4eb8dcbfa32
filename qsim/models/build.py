"""From a model's tensors to the parts that compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.formats import cast
from qsim.scheme import QuantizedTensor

from . import families, rope
from .block import Block, Fan, Norm, Rotary, Rounding, keep
from .linear import Linear, stack, stack_arrays

if TYPE_CHECKING:
    from .model import Model

F32 = np.float32
_FIRST_TABLE = 512  # positions


@dataclass(kw_only=True)
class Parts:
    """What a model computes with.

    Arguments:
        tensors: the model's, with float32 matrices of one input as rows of one array.
        linears: by name, the head included.
        block_linears: names of those in the blocks.
        reusable: Linears by what they are made of, for a model that shares them.
    """

    tensors: dict[str, Any]
    round: Rounding
    linears: dict[str, Linear] = field(default_factory=dict)
    block_linears: tuple[str, ...] = ()
    reusable: dict[Any, Linear] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    final_norm: Norm | None = None
    notes: list[str] = field(default_factory=list)
    frequencies: np.ndarray | None = None
    rope_factor: float = 1.0
    _tables: Rotary | None = None

    def rotary(self, positions: int) -> Rotary | None:
        """Tables for at least that many positions; they grow as texts do."""
        if self.frequencies is None:
            return None
        if self._tables is None or self._tables[0].shape[0] < positions:
            size = max(_FIRST_TABLE, 1 << (positions - 1).bit_length())
            self._tables = rope.tables(self.frequencies, self.rope_factor, size)
        return self._tables


def build(model: Model, known: Mapping[Any, Linear]) -> Parts:
    """Make the parts of a model, taking over Linears of `known` with the same weight, bias and settings."""
    c, names = model.config, families.model_names(model.config)
    parts = Parts(tensors=dict(model.tensors), round=_rounding(model.activation_format))
    maker = _Maker(model, parts, known)
    for name in (names.project_in, names.project_out):
        if name is not None:
            maker.linear(name)
    for i in range(c.num_hidden_layers):
        parts.blocks.append(maker.block(i))
    parts.block_linears = tuple(n for i in range(c.num_hidden_layers) for n in families.block_names(c, i).linears)
    if names.norm is not None:
        parts.final_norm = maker.norm(names.norm)
    maker.linear(names.head, names.head if f"{names.head}.weight" in parts.tensors else names.embedding)
    if c.architecture != "opt":
        parts.frequencies, parts.rope_factor = rope.frequencies(
            c.rope_theta, c.head_dim, c.rope_scaling, c.max_position_embeddings
        )
    if maker.unscaled:
        parts.notes.append(
            f"KV scales are absent in {maker.unscaled} of {c.num_hidden_layers} layers and taken as 1, as loaders do"
        )
    return parts


def _rounding(name: str | None) -> Rounding:
    if name is None:
        return keep
    return lambda x: np.asarray(cast(x, name), dtype=F32)


class _Maker:
    def __init__(self, model: Model, parts: Parts, known: Mapping[Any, Linear]) -> None:
        self.model, self.parts, self.known = model, parts, known
        self.unscaled = 0

    def linear(self, name: str, weight_of: str | None = None) -> Linear:
        tensors = self.parts.tensors
        weight, bias = tensors[f"{weight_of or name}.weight"], tensors.get(f"{name}.bias")
        settings = self.model.settings_of(name)
        key = (name, id(weight), id(bias), *sorted((k, str(v)) for k, v in settings.items()))
        one = self.known.get(key)
        if one is None or one.weight is not weight or one.bias is not bias:
            one = Linear(name=name, weight=weight, bias=bias, **settings)
        self.parts.reusable[key] = one
        self.parts.linears[name] = one
        return one

    def fan(self, group: Sequence[str]) -> Fan:
        self._share(group)
        parts = tuple(self.linear(name) for name in group)
        if len(parts) == 1:
            return Fan(parts=parts, stacked=parts[0], round=self.parts.round)
        key = ("stack", *(id(p) for p in parts))
        stacked = self.known.get(key)
        if stacked is None:
            prefix, _, _ = group[0].rpartition(".")
            last = ",".join(name.rpartition(".")[2] for name in group)
            stacked = stack(parts, f"{prefix}.{{{last}}}")
        if stacked is not None:
            self.parts.reusable[key] = stacked
        return Fan(parts=parts, stacked=stacked, round=self.parts.round)

    def _share(self, group: Sequence[str]) -> None:
        """Put float32 weights of one input into one array, so that stacking them needs no second copy."""
        weights = [self.parts.tensors[f"{name}.weight"] for name in group]
        if len(group) == 1 or any(isinstance(w, QuantizedTensor) for w in weights):
            return
        base, at = stack_arrays(weights), 0
        if base is weights[0].base:
            return
        for name, weight in zip(group, weights, strict=True):
            self.parts.tensors[f"{name}.weight"] = base[at : at + weight.shape[0]]
            at += weight.shape[0]

    def norm(self, name: str) -> Norm:
        c, tensors = self.model.config, self.parts.tensors
        if f"{name}.weight" in tensors:
            weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        else:  # OPT's LayerNorm without parameters
            weight, bias = np.ones(c.hidden_size, F32), np.zeros(c.hidden_size, F32)
        return Norm(name=name, weight=weight, bias=bias, eps=c.norm_eps, round=self.parts.round)

    def block(self, i: int) -> Block:
        c, model, n = self.model.config, self.model, families.block_names(self.model.config, i)
        qkv, out, up, down = (self.fan(group) for group in n.groups)
        tensors = self.parts.tensors
        scales = [tensors.get(f"{n.attention}.{w}_scale") for w in "kv"]
        kv = model.kv_cache
        if kv is not None and kv.is_quantized and not kv.dynamic and any(s is None for s in scales):
            self.unscaled += 1
        k_scale, v_scale = (1.0 if s is None else float(np.asarray(s).reshape(-1)[0]) for s in scales)
        compiled = all(one.runs_compiled for one in qkv.parts)
        return Block(
            index=i, compiled=compiled, heads=c.num_attention_heads, kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            window=c.sliding_windows[i], norm_first=c.do_layer_norm_before, attention_norm=self.norm(n.attention_norm),
            mlp_norm=self.norm(n.mlp_norm), qkv=qkv, output=out, up=up, down=down, gated=c.is_gated,
            activation=c.hidden_act, query_norm=self._vector(n.query_norm), key_norm=self._vector(n.key_norm),
            norm_eps=c.norm_eps, kv_cache=kv, k_scale=k_scale, v_scale=v_scale, attention=model.attention,
            round=self.parts.round,
        )  # fmt: skip

    def _vector(self, name: str | None) -> np.ndarray | None:
        return None if name is None else self.parts.tensors[f"{name}.weight"]
