"""Hugging Face's `config.json`, key by key, with the defaults of each family in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qsim.errors import QsimError

from .rope import RopeScaling

if TYPE_CHECKING:
    from .config import ModelConfig

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "rope_theta": 10000.0},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
    "opt": {"max_position_embeddings": 2048},
}


class _Reader:
    """Takes keys out of a config and remembers which are left."""

    def __init__(self, data: Mapping[str, Any], architecture: str) -> None:
        self.left = dict(data)
        self.defaults = _DEFAULTS[architecture]

    def take(self, key: str, default: Any = None) -> Any:
        value = self.left.pop(key, None)
        return self.defaults.get(key, default) if value is None else value

    def size(self, key: str) -> int:
        value = self.take(key)
        if value is None:
            raise QsimError(f"config.json has no {key!r}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise QsimError(f"{key} is a whole number of at least 1: got {value!r}")
        return value


def read_config(data: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The arguments of `ModelConfig` from a config; what is not used ends in `extra`."""
    reader = _Reader(data, architecture)
    take = reader.take
    for key in ("architectures", "model_type"):
        take(key)
    hidden, heads, layers = (reader.size(k) for k in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = take("head_dim") if architecture != "opt" else None
    if head_dim is None and hidden % heads:
        raise QsimError(f"num_attention_heads must divide hidden_size: got {heads} and {hidden}")
    out: dict[str, Any] = {
        "architecture": architecture,
        "vocab_size": reader.size("vocab_size"),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": head_dim or hidden // heads,
        "max_position_embeddings": reader.size("max_position_embeddings"),
        "bos_token_id": take("bos_token_id"),
        "eos_token_ids": _ids(take("eos_token_id")),
        "dtype": str(take("dtype") or take("torch_dtype") or "float32").removeprefix("torch."),
        "quantization_config": take("quantization_config"),
    }
    reader.left.pop("torch_dtype", None)
    read = _read_opt if architecture == "opt" else _read_llama
    out |= read(reader, architecture, heads, layers)
    return {**out, "extra": dict(reader.left)}


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _read_llama(reader: _Reader, architecture: str, heads: int, layers: int) -> dict[str, Any]:
    take = reader.take
    theta, scaling = _read_rope(reader)
    asked = bool(take("attention_bias", False)) and architecture in ("llama", "qwen3")  # the others have no choice
    return {
        "intermediate_size": reader.size("intermediate_size"),
        "num_key_value_heads": take("num_key_value_heads", heads),
        "norm_eps": float(take("rms_norm_eps", 1e-6)),
        "hidden_act": take("hidden_act", "silu"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "attention_bias": asked or architecture == "qwen2",
        "attention_out_bias": asked,
        "mlp_bias": bool(take("mlp_bias", False)) if architecture == "llama" else False,
        "tie_word_embeddings": bool(take("tie_word_embeddings", False)),
        "sliding_windows": _read_windows(reader, architecture, layers),
    }


def _read_rope(reader: _Reader) -> tuple[float, RopeScaling | None]:
    """Base and scaling; `rope_parameters` (transformers 5) wins over the keys of transformers 4."""
    theta, old, new = reader.take("rope_theta"), reader.take("rope_scaling"), reader.take("rope_parameters")
    given = dict(new or old or {})
    theta = float(given.pop("rope_theta", None) or theta or 10000.0)
    partial = given.pop("partial_rotary_factor", None) or reader.take("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise QsimError(f"partial_rotary_factor must be 1 in the families read here: got {partial}")
    return theta, RopeScaling.from_dict(given)


def _read_windows(reader: _Reader, architecture: str, layers: int) -> tuple[int | None, ...]:
    if architecture == "llama":
        return (None,) * layers
    stated = "sliding_window" in reader.left
    window = reader.left.pop("sliding_window", None) if stated else reader.defaults.get("sliding_window")
    if architecture == "mistral":
        return (window,) * layers
    used = bool(reader.take("use_sliding_window", False))
    first = reader.take("max_window_layers", 28)
    types = reader.take("layer_types")
    if not used:
        window = None
    if types is None:
        types = ["sliding_attention" if window is not None and i >= first else "full_attention" for i in range(layers)]
    odd = [t for t in types if t not in ("full_attention", "sliding_attention")]
    if odd or len(types) != layers:
        raise QsimError(
            f"layer_types names full_attention or sliding_attention for each of {layers} layers: got "
            f"{odd[0] if odd else f'{len(types)} entries'!r}"
        )
    return tuple(window if t == "sliding_attention" else None for t in types)


def _read_opt(reader: _Reader, architecture: str, heads: int, layers: int) -> dict[str, Any]:
    take = reader.take
    before = bool(take("do_layer_norm_before", True))
    removed = bool(take("_remove_final_layer_norm", False))
    bias = bool(take("enable_bias", True))
    return {
        "intermediate_size": reader.size("ffn_dim"),
        "num_key_value_heads": heads,
        "norm_eps": 1e-5,
        "hidden_act": take("activation_function", "relu"),
        "attention_bias": bias,
        "attention_out_bias": bias,
        "mlp_bias": bias,
        "tie_word_embeddings": bool(take("tie_word_embeddings", True)),
        "do_layer_norm_before": before,
        "word_embed_proj_dim": take("word_embed_proj_dim", 0),
        "final_layer_norm": before and not removed,
        "layer_norm_affine": bool(take("layer_norm_elementwise_affine", True)),
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
