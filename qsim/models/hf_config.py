"""Hugging Face's `config.json` for the families that the decoder runs; `qsim.families` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsim.families import Attention, Config, Mlp, Shape, open_config
from qsim.families.config import POSITIONS, SIZE
from qsim.fields import Fields

from .rope import RopeScaling

if TYPE_CHECKING:
    from .config import ModelConfig

THETA = (2.0, 1e18)
"""Bases of rotary embeddings that are read; published ones go from 1e4 to 1e11."""


def read_config(data: Mapping[str, Any], architecture: str, where: str) -> dict[str, Any]:
    """The arguments of `ModelConfig` from a config; what is not used ends in `extra`.

    Raises:
        QsimError: a value that is missing, mistyped, out of range or contradicts another; the message begins with
            `where`.
    """
    reading = open_config({**data, "model_type": architecture}, strict=False, where=where)
    c, shape = reading.config, reading.shape
    f = c.fields
    mixers = [mixer for layer in shape.layers for mixer in layer.mixers if isinstance(mixer, Attention)]
    mlps = [mlp for layer in shape.layers for mlp in layer.mlps if isinstance(mlp, Mlp)]
    quantization = f.inner("quantization_config", None)
    out: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": mlps[0].width,
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
    out |= _read_opt(c, shape) if architecture == "opt" else _read_llama(f)
    f.read.update(("architectures", "model_type"))
    return {**out, "extra": {key: value for key, value in data.items() if key not in f.read}}


def _ids(f: Fields, key: str) -> tuple[int, ...]:
    if isinstance(f.table.get(key), list | tuple):
        return tuple(f.items(key, int, most=1024))
    one = f.integer(key, -1, SIZE, None)
    return () if one is None else (one,)


def _read_llama(f: Fields) -> dict[str, Any]:
    theta, scaling = _read_rope(f)
    return {
        "norm_eps": f.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        "hidden_act": f.text("hidden_act", "silu"),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def _read_rope(f: Fields) -> tuple[float, RopeScaling | None]:
    """Base and scaling; `rope_parameters` (transformers 5) wins over the keys of transformers 4."""
    new, old = f.inner("rope_parameters", None), f.inner("rope_scaling", None)
    given = new if new is not None and new.table else old
    outer = f.number("rope_theta", *THETA, 10000.0)
    for table in (f, given):
        if table is not None and table.number("partial_rotary_factor", 0.0, 1.0, 1.0) != 1:
            raise table.refuse("partial_rotary_factor", "must be 1 in the families read here")
    if given is None:
        return outer, None
    return given.number("rope_theta", *THETA, outer), RopeScaling.from_dict(given.table, given.where)


def _read_opt(c: Config, shape: Shape) -> dict[str, Any]:
    before, removed = c.flag("do_layer_norm_before"), c.flag("_remove_final_layer_norm")
    return {
        "norm_eps": 1e-5,
        "hidden_act": c.fields.text("activation_function", "relu"),
        "do_layer_norm_before": before,
        "word_embed_proj_dim": shape.head.k,
        "final_layer_norm": before and not removed,
        "layer_norm_affine": c.flag("layer_norm_elementwise_affine"),
    }


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The keys that `read_config` reads, in the spelling that both transformers 4 and 5 and the engines take."""
    c, opt = config, config.architecture == "opt"
    eos = list(c.eos_token_ids)
    out: dict[str, Any] = {
        "model_type": c.architecture,
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
    out |= _write_opt(c) if opt else _write_llama(c)
    if c.quantization_config is not None:
        out["quantization_config"] = dict(c.quantization_config)
    return out


def _write_llama(c: ModelConfig) -> dict[str, Any]:
    out: dict[str, Any] = {
        "intermediate_size": c.intermediate_size,
        "num_key_value_heads": c.num_key_value_heads,
        "rms_norm_eps": c.norm_eps,
        "hidden_act": c.hidden_act,
        "rope_theta": c.rope_theta,
        "rope_scaling": None if c.rope_scaling is None else c.rope_scaling.to_dict(),
    }
    if c.architecture != "qwen2" or c.head_dim * c.num_attention_heads != c.hidden_size:
        out["head_dim"] = c.head_dim  # transformers' Qwen2 knows none
    if c.architecture in ("llama", "qwen3"):
        out["attention_bias"] = c.attention_bias
    if c.architecture == "llama":
        out["mlp_bias"] = c.mlp_bias
        return out
    windows = [w for w in c.sliding_windows if w is not None]
    out["sliding_window"] = windows[0] if windows else None
    if c.architecture != "mistral":
        out["use_sliding_window"] = bool(windows)
        # layers from here on slide, in the spelling of transformers 4
        out["max_window_layers"] = next((i for i, w in enumerate(c.sliding_windows) if w), c.num_hidden_layers)
        out["layer_types"] = ["full_attention" if w is None else "sliding_attention" for w in c.sliding_windows]
    return out


def _write_opt(c: ModelConfig) -> dict[str, Any]:
    return {
        "ffn_dim": c.intermediate_size,
        "activation_function": c.hidden_act,
        "enable_bias": c.attention_bias,
        "do_layer_norm_before": c.do_layer_norm_before,
        "_remove_final_layer_norm": c.do_layer_norm_before and not c.final_layer_norm,
        "word_embed_proj_dim": c.word_embed_proj_dim,
        "layer_norm_elementwise_affine": c.layer_norm_affine,
    }
