"""From a model's tensors to the parts that compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.formats import cast
from qsim.scheme import QuantizedTensor

from . import families
from .block import Block, Norm
from .fan import Fan, Rounding, keep
from .linear import Linear, stack, stack_arrays
from .mlp import Experts, Mlp
from .rope import Rope

if TYPE_CHECKING:
    from .config import ModelConfig
    from .model import Model

F32 = np.float32


@dataclass(kw_only=True)
class Parts:
    """What a model computes with.

    Arguments:
        tensors: the model's, with float32 matrices of one input as rows of one array.
        linears: by name, the head included.
        block_linears: those in the blocks, in the order in which they are applied.
        reusable: Linears by what they are made of, for a model that shares them.
    """

    tensors: dict[str, Any]
    round: Rounding
    linears: dict[str, Linear] = field(default_factory=dict)
    block_linears: Mapping[str, Linear] = field(default_factory=lambda: MappingProxyType({}))
    reusable: dict[Any, Linear] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    final_norm: Norm | None = None
    notes: list[str] = field(default_factory=list)
    ropes: tuple[Rope, ...] = ()


def build(model: Model, known: Mapping[Any, Linear]) -> Parts:
    """Make the parts of a model, taking over Linears of `known` with the same weight, bias and settings."""
    c, names = model.config, families.model_names(model.config)
    parts = Parts(tensors=dict(model.tensors), round=_rounding(model.activation_format))
    maker = _Maker(model, parts, known)
    for name in (names.project_in, names.project_out):
        if name is not None:
            maker.linear(name)
    ropes = _ropes(c)
    parts.ropes = tuple(dict.fromkeys(ropes.values()))
    for i in range(c.num_hidden_layers):
        parts.blocks.append(maker.block(i, ropes))
    own = (name for i in range(c.num_hidden_layers) for name in families.block_names(c, i).linears)
    parts.block_linears = MappingProxyType({name: parts.linears[name] for name in own})
    if names.norm is not None:
        parts.final_norm = maker.norm(names.norm)
    own_head = f"{names.head}.weight" in parts.tensors
    maker.linear(names.head, names.head if own_head else names.embedding)
    if maker.unscaled:
        parts.notes.append(
            f"KV scales are absent in {maker.unscaled} of {c.num_hidden_layers} layers and taken as 1, as loaders do"
        )
    return parts


def _ropes(c: ModelConfig) -> dict[bool, Rope]:
    """The rotary embedding of layers with a window (True) and without (False); empty where positions are learned."""
    if not c.is_rotary:
        return {}
    whole = Rope(c.rope_theta, c.rotary_dim, c.rope_scaling, c.max_position_embeddings)
    if c.local_rope_theta is None:
        return {False: whole, True: whole}
    return {False: whole, True: Rope(c.local_rope_theta, c.rotary_dim, None, c.max_position_embeddings)}


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
            weight, bias = self._gain(name), tensors.get(f"{name}.bias")
        else:  # OPT's LayerNorm without parameters
            weight, bias = np.ones(c.hidden_size, F32), np.zeros(c.hidden_size, F32)
        return Norm(name=name, weight=weight, bias=bias, eps=c.norm_eps, round=self.parts.round)

    def _gain(self, name: str) -> np.ndarray:
        """What a norm multiplies by: its stored weight, plus 1 where files hold w of (1 + w)."""
        weight, offset = self.parts.tensors[f"{name}.weight"], self.model.config.numerics.norm_offset
        return weight + F32(offset) if offset else weight

    def mlp(self, names: families.MlpNames) -> Mlp:
        """A dense MLP, or one expert."""
        c = self.model.config
        clamp = None
        if c.numerics.gate == "clamped":
            assert c.swiglu_limit is not None
            assert c.swiglu_alpha is not None
            clamp = c.swiglu_limit, c.swiglu_alpha
        return Mlp(
            up=self.fan(names.first), down=self.fan([names.down]), gated=c.is_gated,
            pairs=c.numerics.gate_order == "pairs", activation=c.hidden_act, clamp=clamp, round=self.parts.round,
        )  # fmt: skip

    def _experts(self, n: families.BlockNames) -> Experts:
        c, tensors = self.model.config, self.parts.tensors
        assert n.router is not None
        return Experts(
            name=n.router, weight=tensors[f"{n.router}.weight"], bias=tensors.get(f"{n.router}.bias"),
            experts=tuple(self.mlp(names) for names in n.experts), per_token=c.num_experts_per_tok,
            order=c.numerics.router, renormalise=c.norm_topk_prob, round=self.parts.round,
        )  # fmt: skip

    def block(self, i: int, ropes: Mapping[bool, Rope]) -> Block:
        c, model, n = self.model.config, self.model, families.block_names(self.model.config, i)
        qkv, out = self.fan(n.projections), self.fan([n.output])
        mlp = self._experts(n) if n.experts else self.mlp(n.mlps[0])
        tensors = self.parts.tensors
        scales = [tensors.get(f"{n.attention}.{w}_scale") for w in "kv"]
        kv = model.kv_cache
        if kv is not None and kv.is_quantized and not kv.dynamic and any(s is None for s in scales):
            self.unscaled += 1
        k_scale, v_scale = (1.0 if s is None else float(np.asarray(s).reshape(-1)[0]) for s in scales)
        norms = [None if name is None else self.norm(name)
                 for name in (n.attention_norm, n.attention_post, n.mlp_norm, n.mlp_post)]  # fmt: skip
        window = c.sliding_windows[i]
        return Block(
            index=i, compiled=all(one.runs_compiled for one in qkv.parts), heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads, head_dim=c.head_dim, window=window, scale=c.score_scale,
            soft_cap=c.attn_logit_softcapping, sinks=None if n.sinks is None else tensors[n.sinks],
            norm_first=c.do_layer_norm_before, attention_norm=norms[0], attention_post=norms[1], mlp_norm=norms[2],
            mlp_post=norms[3], parallel=c.use_parallel_residual, residual=c.residual_multiplier, qkv=qkv,
            columns=None if n.qkv is None else families.fused_columns(c), output=out, mlp=mlp,
            query_norm=None if n.query_norm is None else self._gain(n.query_norm),
            key_norm=None if n.key_norm is None else self._gain(n.key_norm), norm_eps=c.norm_eps,
            rope=ropes.get(window is not None), kv_cache=kv, k_scale=k_scale, v_scale=v_scale,
            attention=model.attention, round=self.parts.round,
        )  # fmt: skip
