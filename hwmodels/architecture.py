"""The shapes of a decoder, from a TOML shipped here or any Hugging Face `config.json`."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a decoder-only transformer, in elements.

    Attributes:
        layers, hidden, ffn, heads, kv_heads, head_dim, vocab: the usual ones; `ffn` is the width of one expert in a
            mixture of experts.
        gated: the feed-forward block has a gate (SwiGLU), so gate_up is 2 * ffn wide.
        experts, experts_per_token: 1 and 1 for a dense model.
        shared_ffn: width of an expert that every token passes through; 0 for none.
        tied: lm_head shares the embedding matrix (it is still read once a step).
        qkv_bias, mlp_bias: whether those linear layers have a bias.
        max_positions: context the model was made for; learned positions are stored when `learned_positions`.
        norm_bias: LayerNorm with bias (OPT) rather than RMSNorm.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True
    experts: int = 1
    experts_per_token: int = 1
    shared_ffn: int = 0
    tied: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    learned_positions: bool = False
    max_positions: int = 4096
    source: str = ""

    def __post_init__(self) -> None:
        for key in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "experts"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{self.name}: {key} must be a positive integer: got {value!r}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.name}: kv_heads must divide heads: got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if not 1 <= self.experts_per_token <= self.experts:
            raise ValueError(
                f"{self.name}: experts_per_token must lie in 1..experts: got {self.experts_per_token} of {self.experts}"
            )

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(N, K) of every linear layer of one block, per expert for gate_up and down."""
        shapes = {
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": ((2 if self.gated else 1) * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }
        if self.shared_ffn:
            shapes["shared_gate_up"] = ((2 if self.gated else 1) * self.shared_ffn, self.hidden)
            shapes["shared_down"] = (self.hidden, self.shared_ffn)
        if self.experts > 1:
            shapes["router"] = (self.experts, self.hidden)
        return shapes

    @property
    def block_parameters(self) -> int:
        """Weights of all linear layers of all blocks, lm_head and embedding left out (every expert counted)."""
        total = 0
        for name, (n, k) in self.linear_shapes.items():
            total += n * k * (self.experts if name in ("gate_up", "down") else 1)
        return total * self.layers

    @property
    def head_parameters(self) -> int:
        """Weights of lm_head."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All weights: blocks, lm_head (once when tied), embedding, norms, biases and learned positions."""
        norms = (2 * self.layers + 1) * self.hidden * (2 if self.norm_bias else 1)
        bias = self.layers * (self.linear_shapes["qkv"][0] if self.qkv_bias else 0)
        bias += self.layers * ((2 * self.hidden + self.ffn) if self.mlp_bias else 0)
        positions = self.max_positions * self.hidden if self.learned_positions else 0
        heads = self.head_parameters * (1 if self.tied else 2)
        return self.block_parameters + heads + norms + bias + positions

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of K and V that one token adds over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


@lru_cache(maxsize=1)
def architecture_names() -> tuple[str, ...]:
    """Names of the architectures shipped as data."""
    folder = resources.files("hwmodels") / "architectures"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


_ALIASES = {
    "llama-2-7b": "llama-2-7b", "llama2-7b": "llama-2-7b", "llama-7b": "llama-2-7b", "llama3-8b": "llama-3-8b",
    "llama-3.1-8b": "llama-3-8b", "llama3-70b": "llama-3-70b", "llama-3.1-70b": "llama-3-70b",
    "llama2-13b": "llama-2-13b", "llama2-70b": "llama-2-70b", "mixtral": "mixtral-8x7b", "mistral": "mistral-7b",
}  # fmt: skip


def get_architecture(name: str | Path | Architecture | Mapping[str, Any]) -> Architecture:
    """The shapes of a model.

    Arguments:
        name: one of `architecture_names()`; a path to a Hugging Face `config.json`, to a folder that holds one, or to
            a TOML of this package's form; the parsed config itself; or an `Architecture`, returned as it is.

    Raises:
        ValueError: an unknown name (the nearest are listed), or a config whose fields are missing or do not fit.
    """
    if isinstance(name, Architecture):
        return name
    if isinstance(name, Mapping):
        return from_config(name)
    path = Path(name)
    if str(name).endswith((".json", ".toml")) or path.is_dir():
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"model file {file} does not exist")
        try:
            if file.suffix == ".toml":
                return _from_table(tomllib.loads(file.read_text(encoding="utf-8")), str(file), file.stem)
            return from_config(json.loads(file.read_text(encoding="utf-8")), name=file.parent.name or "config")
        except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{file} cannot be parsed: {error}") from error
    key = str(name).strip().lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    if key not in architecture_names():
        near = difflib.get_close_matches(key, [*architecture_names(), *_ALIASES], n=3, cutoff=0.3)
        raise ValueError(
            f"unknown model {str(name)!r}: the nearest are {', '.join(near) or ', '.join(architecture_names())}; "
            "a path to a Hugging Face config.json works too"
        )
    return _shipped(key)


@lru_cache(maxsize=64)
def _shipped(key: str) -> Architecture:
    text = (resources.files("hwmodels") / "architectures" / f"{key}.toml").read_text(encoding="utf-8")
    return _from_table(tomllib.loads(text), f"{key}.toml", key)


def _from_table(table: Mapping[str, Any], file: str, name: str) -> Architecture:
    known = {f.name for f in fields(Architecture)}
    unknown = sorted(set(table) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=2)
        raise ValueError(f"{file}: unknown key {unknown[0]!r}; known: {', '.join(near or sorted(known))}")
    try:
        return Architecture(**{"name": name, **table})
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from error


def from_config(config: Mapping[str, Any], name: str = "config") -> Architecture:
    """Shapes from a Hugging Face config: Llama, Mistral, Qwen2/2.5/3, Mixtral, Qwen-MoE, OPT and their relatives.

    Raises:
        ValueError: a field that is needed is missing; multi-head latent attention (DeepSeek), which is not modelled.
    """
    kind = str(config.get("model_type", ""))
    if config.get("kv_lora_rank"):
        raise ValueError(f"{name}: multi-head latent attention (kv_lora_rank={config['kv_lora_rank']}) is not modelled")
    if "text_config" in config:
        config = config["text_config"]

    def need(*keys: str) -> int:
        for key in keys:
            if config.get(key) is not None:
                value = config[key]
                if isinstance(value, bool) or not isinstance(value, int):
                    raise ValueError(f"{name}: {key} is an integer: got {value!r}")
                return value
        raise ValueError(f"{name}: config.json has none of {', '.join(keys)} (model_type={kind!r})")

    hidden, heads = need("hidden_size", "n_embd"), need("num_attention_heads", "n_head")
    if config.get("head_dim") is None and hidden % heads:
        raise ValueError(f"{name}: num_attention_heads must divide hidden_size: got {heads}, {hidden}")
    experts = config.get("num_local_experts") or config.get("num_experts") or 1
    opt = kind == "opt"
    ffn = (
        need("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner")
        if experts > 1
        else need("intermediate_size", "ffn_dim", "n_inner")
    )
    return Architecture(
        name=str(config.get("_name_or_path") or name).rsplit("/", 1)[-1],
        layers=need("num_hidden_layers", "n_layer"),
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        vocab=need("vocab_size"),
        gated=not opt and "gelu_new" not in str(config.get("activation_function", "")),
        experts=experts,
        experts_per_token=config.get("num_experts_per_tok") or 1,
        shared_ffn=config.get("shared_expert_intermediate_size") or 0,
        tied=bool(config.get("tie_word_embeddings", opt)),
        qkv_bias=bool(config.get("attention_bias", kind in ("qwen2", "qwen2_moe", "opt"))),
        mlp_bias=bool(config.get("mlp_bias", opt)),
        norm_bias=opt,
        learned_positions=opt,
        max_positions=config.get("max_position_embeddings") or 4096,
        source="config.json",
    )
