"""Hugging Face's `config.json` for the families that the decoder runs; `qsim.families` reads its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qsim.families import FACTS, Attention, Config, Experts, Mlp, Numerics, Shape, open_config, repeats
from qsim.families.config import POSITIONS, SIZE
from qsim.fields import Fields

from .rope import RopeScaling

if TYPE_CHECKING:
    from .config import ModelConfig

THETA = (2.0, 1e18)
"""Bases of rotary embeddings that are read; published ones go from 1e4 to 1e11."""
_SCALE = (1e-9, 1e9)

NUMBERS: Mapping[str, tuple[float, float, float | None]] = {
    "norm_eps": (0.0, 1.0, 1e-6), "query_pre_attn_scalar": (*_SCALE, None), "attention_multiplier": (*_SCALE, None),
    "attn_logit_softcapping": (*_SCALE, None), "final_logit_softcapping": (*_SCALE, None),
    "embedding_multiplier": (*_SCALE, 1.0), "residual_multiplier": (*_SCALE, 1.0), "logits_scaling": (*_SCALE, 1.0),
    "swiglu_limit": (*_SCALE, None), "swiglu_alpha": (*_SCALE, None),
}  # fmt: skip
"""Numbers of `ModelConfig`: lowest, highest, and what an absent key means where the family has no default."""
_FLAGS = ("use_parallel_residual", "norm_topk_prob")
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # null is none here, not the default

_ONE: tuple[Any, ...] = (1,)
_NO: tuple[Any, ...] = (0,)
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attn_logit_softcapping": _NO, "final_logit_softcapping": _NO, "logit_scale": _ONE, "embedding_multiplier": _ONE,
    "attention_multiplier": (), "residual_multiplier": _ONE, "logits_scaling": _ONE, "query_pre_attn_scalar": (),
    "clip_qkv": (),  "lm_head_multiplier": _ONE, "mlp_multipliers": (), "scale_emb": _ONE,
    "scale_depth": (), "dim_model_base": (), "mup_denominator": (), "routed_scaling_factor": _ONE,
    "router_scaling_factor": _ONE, "route_scale": _ONE, "scoring_func": ("softmax",), "n_group": _ONE,
    "topk_group": _ONE, "num_expert_group": _ONE, "partial_rotary_factor": _ONE, "rotary_pct": _ONE, "rope_pct": _ONE,
    "rotary_percentage": _ONE, "rope_percentage": _ONE, "rope_local_base_freq": (), "rotary_emb_base": (),
    "rotary_base": (), "rotary_dim": (), "rope_ratio": _ONE, "rope_interleave": _NO, "rope_interleaved": _NO,
    "scale_attn_by_inverse_layer_idx": _NO, "key_multiplier": _ONE, "attention_in_multiplier": _ONE,
    "attention_out_multiplier": _ONE, "ssm_multipliers": (), "swiglu_limit": (), "swiglu_alpha": (),
    "moe_normalize_expert_weights": _ONE, "use_mrope": _NO,
    "use_bidirectional_attention": _NO, "softmax_scale": (),
}  # fmt: skip
"""Keys that change what a decoder computes -> the values that change nothing. A family that does not read such a key
refuses other values."""
_SAME: Mapping[str, tuple[str, ...]] = {
    "hidden_act": ("activation", "activation_function", "activation_type", "hidden_act", "hidden_activation", "act_fn"),
    "norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", "layernorm_epsilon",
                 "rms_norm_eps"),
    "norm_topk_prob": ("norm_topk_prob", "moe_renormalize"),
}  # fmt: skip
"""Fields of `ModelConfig` -> all keys that families have for them: one that is not read may only repeat the field."""


def read_config(data: Mapping[str, Any], architecture: str, where: str) -> dict[str, Any]:
    """The arguments of `ModelConfig` from a config; what is not used ends in `extra`.

    Raises:
        QsimError: a value that is missing, mistyped, out of range or contradicts another, and a key that changes what
            is computed and that the family does not have; the message begins with `where`.
    """
    reading = open_config({**data, "model_type": architecture}, strict=False, where=where)
    c, shape, numerics = reading.config, reading.shape, reading.family.numerics
    assert numerics is not None  # of every architecture that the decoder runs
    f = c.fields
    mixers = [mixer for layer in shape.layers for mixer in layer.mixers if isinstance(mixer, Attention)]
    mlps = [mlp for layer in shape.layers for mlp in layer.mlps]
    quantization = f.inner("quantization_config", None)
    out: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": c.size("intermediate_size"),
        "num_hidden_layers": len(shape.layers),
        "num_attention_heads": mixers[0].heads,
        "num_key_value_heads": mixers[0].kv_heads,
        "head_dim": mixers[0].head_dim,
        "max_position_embeddings": c.size("max_position_embeddings", POSITIONS),
        "attention_bias": mixers[0].qkv_bias,
        "attention_out_bias": mixers[0].out_bias,
        "mlp_bias": mlps[0].bias,
        "tie_word_embeddings": shape.tied,
        "sliding_windows": tuple(mixer.window for mixer in mixers),
        "bos_token_id": f.integer("bos_token_id", -1, SIZE, None),
        "eos_token_ids": _ids(f, "eos_token_id"),
        "dtype": f.text(("dtype", "torch_dtype"), "float32").removeprefix("torch."),
        "quantization_config": None if quantization is None else quantization.table,
    }
    out |= _read_experts(mlps)
    out |= _read_keys(c, numerics)
    out |= _read_opt(c, shape) if architecture == "opt" else _read_rope(c, numerics, architecture)
    if numerics.renormalise is not None:
        out["norm_topk_prob"] = numerics.renormalise
    f.read.update(("architectures", "model_type"))
    _refuse_others(c, shape, out, reading.family.harmless)
    return {**out, "extra": {key: value for key, value in data.items() if key not in f.read}}


def _ids(f: Fields, key: str) -> tuple[int, ...]:
    if isinstance(f.table.get(key), list | tuple):
        return tuple(f.items(key, int, most=1024))
    one = f.integer(key, -1, SIZE, None)
    return () if one is None else (one,)


def _read_experts(mlps: list[Mlp | Experts]) -> dict[str, Any]:
    found = next((mlp for mlp in mlps if isinstance(mlp, Experts)), None)
    if found is None:
        return {}
    return {
        "num_experts": found.experts,
        "num_experts_per_tok": found.per_token,
        "moe_intermediate_size": found.width,
        "sparse_layers": tuple(isinstance(mlp, Experts) for mlp in mlps),
        "router_bias": found.router_bias,
    }


def _read_keys(c: Config, numerics: Numerics) -> dict[str, Any]:
    """What `numerics.keys` names, beside rotary embeddings."""
    out: dict[str, Any] = {}
    for name, key in numerics.keys.items():
        if name in NUMBERS:
            low, high, absent = NUMBERS[name]
            if name in _CAPS and key in c.fields.table and c.fields.table[key] is None:
                c.ignore(key)
                out[name] = None
            else:
                out[name] = c.fields.number(key, low, high, c.defaults.get(key, absent))
        elif name in _FLAGS:
            out[name] = c.flag(key)
        elif name == "hidden_act":
            given = c.fields.text(key, c.defaults.get(key, "silu"))
            out[name] = numerics.activations.get(given, given)
    return out


def _read_rope(c: Config, numerics: Numerics, family: str) -> dict[str, Any]:
    """Bases, scaling and the share that is rotated.

    `rope_parameters` (transformers 5) wins over the keys of transformers 4; Gemma 3's has a table for each kind of
    layer.
    """
    f, keys = c.fields, numerics.keys
    new, old = f.inner("rope_parameters", None), f.inner("rope_scaling", None)
    given = new if new is not None and new.table else old
    if given is None and "rope_scaling" in c.defaults:
        given = Fields(c.defaults["rope_scaling"], f"{f.where}: rope_scaling")
    local: Fields | None = None
    if "local_rope_theta" in keys and given is new and new is not None and "full_attention" in new:
        given, local = new.inner("full_attention"), new.inner("sliding_attention", None)

    def outer(field: str, low: float, high: float, absent: float) -> float:
        key = keys.get(field)
        return absent if key is None else f.number(key, low, high, c.defaults.get(key, absent))

    share = outer("partial_rotary_factor", 0.0, 1.0, 1.0)
    out: dict[str, Any] = {"rope_theta": outer("rope_theta", *THETA, 10000.0)}
    if "local_rope_theta" in keys:
        own = outer("local_rope_theta", *THETA, 10000.0)
        out["local_rope_theta"] = own if local is None else local.number("rope_theta", *THETA, own)
        if local is not None and RopeScaling.from_dict(local.table, local.where) is not None:
            raise local.refuse("rope_type", "must be default in layers with a sliding window")
    if given is not None:
        share = given.number("partial_rotary_factor", 0.0, 1.0, share)
        trained = f.integer("original_max_position_embeddings", 1, POSITIONS, None)
        out["rope_theta"] = given.number("rope_theta", *THETA, out["rope_theta"])
        out["rope_scaling"] = RopeScaling.from_dict(given.table, given.where, trained=trained)
    if "partial_rotary_factor" not in keys:
        for table in (f, given):
            if table is not None and table.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1:
                raise table.refuse("partial_rotary_factor", f"must be 1: {family} rotates whole heads")
    return {**out, "partial_rotary_factor": share}


def _read_opt(c: Config, shape: Shape) -> dict[str, Any]:
    before, removed = c.flag("do_layer_norm_before"), c.flag("_remove_final_layer_norm")
    return {
        "norm_eps": 1e-5,
        "do_layer_norm_before": before,
        "word_embed_proj_dim": shape.head.k,
        "final_layer_norm": before and not removed,
        "layer_norm_affine": c.flag("layer_norm_elementwise_affine"),
    }


def _refuse_others(c: Config, shape: Shape, used: Mapping[str, Any], harmless: frozenset[str]) -> None:
    """Refuse a key that would change what is computed, but that the family's decoder does not have.

    `harmless`: keys of the family's configs that its class does not read.
    """
    f = c.fields
    same = {key: name for name, keys in _SAME.items() for key in keys}
    for key, value in f.table.items():
        if value is None or key in f.read or key in harmless:
            continue
        name = same.get(key, "")
        if key in NEUTRAL and value not in NEUTRAL[key]:
            raise f.refuse(key, f"changes what a decoder computes, and the decoder of {shape.family} does not have it")
        if name in used and value != used[name]:
            raise f.refuse(key, f"contradicts the {name} of {shape.family}, which is {used[name]!r}")
        if key in FACTS and not repeats(key, value, shape):
            raise f.refuse(key, f"contradicts what the decoder of {shape.family} is made of")


# --- writing ------------------------------------------------------------------------------------------------


def _windows(c: ModelConfig) -> list[int]:
    return [w for w in c.sliding_windows if w is not None]


def _whole(value: Any) -> Any:
    """A number as the integer that it is: some classes of transformers take no 256.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < SIZE else value


_NOTHING: Any = object()
WRITES: Mapping[str, Callable[[ModelConfig], Any]] = {
    "num_key_value_heads": lambda c: c.num_key_value_heads,
    "head_dim": lambda c: c.head_dim,
    "attention_bias": lambda c: c.attention_bias,
    "attention_out_bias": lambda c: c.attention_out_bias,
    "mlp_bias": lambda c: c.mlp_bias,
    "use_bias": lambda c: c.attention_bias,
    "sliding_window": lambda c: next(iter(_windows(c)), None),
    "use_sliding_window": lambda c: bool(_windows(c)),
    # layers from here on slide, in the spelling of transformers 4
    "max_window_layers": lambda c: next((i for i, w in enumerate(c.sliding_windows) if w), c.num_hidden_layers),
    "layer_types": lambda c: ["full_attention" if w is None else "sliding_attention" for w in c.sliding_windows],
    "num_experts": lambda c: c.num_experts,
    "num_local_experts": lambda c: c.num_experts,
    "num_experts_per_tok": lambda c: c.num_experts_per_tok,
    "moe_intermediate_size": lambda c: c.moe_intermediate_size,
    "mlp_only_layers": lambda c: [i for i, sparse in enumerate(c.sparse_layers) if not sparse],
    "decoder_sparse_step": lambda c: 1,
    "original_max_position_embeddings": lambda c: (
        _NOTHING if c.rope_scaling is None else c.rope_scaling.original_max_position_embeddings
    ),
    # for classes of transformers that know no head_dim, or take null for the usual one
    "odd_head_dim": lambda c: _NOTHING if c.head_dim * c.num_attention_heads == c.hidden_size else c.head_dim,
}
"""Keys of the shape that only some families' configs have."""


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_config` reads, in the spelling that both transformers 4 and 5 and the engines take."""
    c, numerics = config, config.numerics
    eos = list(c.eos_token_ids)
    out: dict[str, Any] = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": c.tie_word_embeddings,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else eos,
        "torch_dtype": c.dtype,
    }
    out |= _write_opt(c) if c.architecture == "opt" else {"intermediate_size": c.intermediate_size}
    plain = {"partial_rotary_factor"} if c.partial_rotary_factor == 1 else set()  # transformers 5 adds it by itself
    out |= {key: getattr(c, name) for name, key in numerics.keys.items() if key not in plain}
    if c.is_rotary:
        out["rope_scaling"] = None if c.rope_scaling is None else c.rope_scaling.to_dict()
    if "query_pre_attn_scalar" in out:
        out["query_pre_attn_scalar"] = _whole(out["query_pre_attn_scalar"])
    found = {key.removeprefix("odd_"): WRITES[key](c) for key in numerics.writes}
    out |= {key: value for key, value in found.items() if value is not _NOTHING}
    if c.quantization_config is not None:
        out["quantization_config"] = dict(c.quantization_config)
    return out


def _write_opt(c: ModelConfig) -> dict[str, Any]:
    return {
        "ffn_dim": c.intermediate_size,
        "enable_bias": c.attention_bias,
        "do_layer_norm_before": c.do_layer_norm_before,
        "_remove_final_layer_norm": c.do_layer_norm_before and not c.final_layer_norm,
        "word_embed_proj_dim": c.word_embed_proj_dim,
        "layer_norm_elementwise_affine": c.layer_norm_affine,
    }
