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

from qsim.errors import QsimError

from .hub import hub_ids, resolve_hub_id


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a decoder-only transformer, in elements.

    Attributes:
        layers, hidden, ffn, heads, kv_heads, head_dim, vocab: the usual ones; `ffn` is the width of one expert in a
            mixture of experts.
        gated: the feed-forward block has a gate (SwiGLU), so gate_up is 2 * ffn wide.
        experts, experts_per_token: 1 and 1 for a dense model.
        shared_ffn: width of an expert that every token passes through; 0 for none.
        dense_layers, dense_ffn: the first layers of a mixture of experts that have none, and their width.
        kv_lora_rank: width of the latent vector that multi-head latent attention caches instead of K and V; 0 without.
            Then head_dim counts the part without positions and `rope_dim` rotated elements, which all heads share in K,
            and `v_head_dim` is the width of a head's V; `q_lora_rank` is that of the queries' own latent vector, or 0.
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
    dense_layers: int = 0
    dense_ffn: int = 0
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    rope_dim: int = 0
    v_head_dim: int = 0
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
                raise QsimError(f"{self.name}: {key} must be a positive integer: got {value!r}")
        if self.heads % self.kv_heads:
            raise QsimError(
                f"{self.name}: kv_heads must divide heads: got heads={self.heads}, kv_heads={self.kv_heads}"
            )
        if not 1 <= self.experts_per_token <= self.experts:
            raise QsimError(
                f"{self.name}: experts_per_token must lie in 1..experts: got {self.experts_per_token} of {self.experts}"
            )
        if self.dense_layers and not (self.experts > 1 and self.dense_layers < self.layers and self.dense_ffn > 0):
            raise QsimError(
                f"{self.name}: dense_layers are some of the layers of a mixture of experts and have a dense_ffn: got "
                f"{self.dense_layers} of {self.layers} layers, {self.experts} experts, dense_ffn={self.dense_ffn}"
            )
        if self.is_latent and not (0 < self.rope_dim < self.head_dim and self.v_head_dim > 0):
            raise QsimError(
                f"{self.name}: latent attention needs 0 < rope_dim < head_dim and a v_head_dim: got rope_dim="
                f"{self.rope_dim}, head_dim={self.head_dim}, v_head_dim={self.v_head_dim}"
            )

    @property
    def is_latent(self) -> bool:
        """Whether the cache holds one latent vector a token (multi-head latent attention)."""
        return self.kv_lora_rank > 0

    @property
    def value_dim(self) -> int:
        """Width of a head's V and output."""
        return self.v_head_dim or self.head_dim

    @property
    def cache_row(self) -> int:
        """Elements of a token's K in one layer, or of its latent vector with the rotated part."""
        return self.kv_lora_rank + self.rope_dim if self.is_latent else self.kv_heads * self.head_dim

    @property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(N, K) of every linear layer of one block, per expert for gate_up and down."""
        gate = 2 if self.gated else 1
        if self.is_latent:
            shapes = self._latent_shapes()
        else:
            shapes = {"qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden)}
        shapes |= {
            "o": (self.hidden, self.heads * self.value_dim),
            "gate_up": (gate * self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }
        if self.shared_ffn:
            shapes["shared_gate_up"] = (gate * self.shared_ffn, self.hidden)
            shapes["shared_down"] = (self.hidden, self.shared_ffn)
        if self.experts > 1:
            shapes["router"] = (self.experts, self.hidden)
        if self.dense_layers:
            shapes["dense_gate_up"] = (gate * self.dense_ffn, self.hidden)
            shapes["dense_down"] = (self.hidden, self.dense_ffn)
        return shapes

    def _latent_shapes(self) -> dict[str, tuple[int, int]]:
        queries = self.heads * self.head_dim
        expanded = self.heads * (self.head_dim - self.rope_dim + self.v_head_dim)
        if self.q_lora_rank:
            shapes = {"qkv_a": (self.q_lora_rank + self.cache_row, self.hidden), "q_b": (queries, self.q_lora_rank)}
        else:
            shapes = {"q": (queries, self.hidden), "kv_a": (self.cache_row, self.hidden)}
        return {**shapes, "kv_b": (expanded, self.kv_lora_rank)}

    @property
    def linear_counts(self) -> dict[str, int]:
        """How many of each of `linear_shapes` the whole model has."""
        routed = self.layers - self.dense_layers
        counts = {}
        for name in self.linear_shapes:
            if name.startswith("dense_"):
                counts[name] = self.dense_layers
            elif name in ("gate_up", "down"):
                counts[name] = routed * self.experts
            else:
                counts[name] = routed if name == "router" or name.startswith("shared_") else self.layers
        return counts

    @property
    def block_parameters(self) -> int:
        """Weights of all linear layers of all blocks, lm_head and embedding left out (every expert counted)."""
        counts = self.linear_counts
        return sum(n * k * counts[name] for name, (n, k) in self.linear_shapes.items())

    @property
    def active_parameters(self) -> int:
        """Weights that a token is multiplied with: its experts only, and lm_head."""
        idle = self.experts - self.experts_per_token
        routed = self.layers - self.dense_layers
        each = sum(n * k for name, (n, k) in self.linear_shapes.items() if name in ("gate_up", "down"))
        return self.block_parameters - idle * routed * each + self.head_parameters

    @property
    def head_parameters(self) -> int:
        """Weights of lm_head."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All weights: blocks, lm_head (once when tied), embedding, norms, biases and learned positions."""
        norms = (2 * self.layers + 1) * self.hidden * (2 if self.norm_bias else 1)
        norms += self.layers * (self.q_lora_rank + self.kv_lora_rank)
        bias = self.layers * (self.linear_shapes["qkv"][0] if self.qkv_bias and not self.is_latent else 0)
        bias += self.layers * ((2 * self.hidden + self.ffn) if self.mlp_bias else 0)
        positions = self.max_positions * self.hidden if self.learned_positions else 0
        heads = self.head_parameters * (1 if self.tied else 2)
        return self.block_parameters + heads + norms + bias + positions

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of K and V, or of latent vectors, that one token adds over all layers."""
        return self.layers * self.cache_row * (1 if self.is_latent else 2)


@lru_cache(maxsize=1)
def architecture_names() -> tuple[str, ...]:
    """Names of the architectures shipped as data."""
    folder = resources.files("hwmodels") / "architectures"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


_ALIASES = {
    "llama-2-7b": "llama-2-7b", "llama2-7b": "llama-2-7b", "llama-7b": "llama-2-7b", "llama3-8b": "llama-3-8b",
    "llama-3.1-8b": "llama-3-8b", "llama3-70b": "llama-3-70b", "llama-3.1-70b": "llama-3-70b",
    "llama2-13b": "llama-2-13b", "llama2-70b": "llama-2-70b", "mixtral": "mixtral-8x7b", "mistral": "mistral-7b",
    "deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3",
}  # fmt: skip


def get_architecture(name: str | Path | Architecture | Mapping[str, Any]) -> Architecture:
    """The shapes of a model.

    Arguments:
        name: one of `architecture_names()`; a Hugging Face id that one of them lists (`meta-llama/Meta-Llama-3-8B`,
            `Qwen/Qwen2.5-7B-Instruct`; see `hub_ids`); a path to a Hugging Face `config.json`, to a folder that holds
            one, or to a TOML of this package's form; the parsed config itself; or an `Architecture`, returned as it is.

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
            raise QsimError(f"model file {file} does not exist")
        try:
            if file.suffix == ".toml":
                return _from_table(tomllib.loads(file.read_text(encoding="utf-8")), str(file), file.stem)
            return from_config(json.loads(file.read_text(encoding="utf-8")), name=file.parent.name or "config")
        except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
            raise QsimError(f"{file} cannot be parsed: {error}") from error
    key = str(name).strip().lower().replace("_", "-")
    key = resolve_hub_id(str(name)) or _ALIASES.get(key, key)
    if key not in architecture_names():
        known = {n.lower(): n for n in (*architecture_names(), *_ALIASES, *(hub_ids() if "/" in key else ()))}
        near = [known[n] for n in difflib.get_close_matches(key, known, n=3, cutoff=0.3)]
        raise QsimError(
            f"unknown model {str(name)!r}: the nearest are {', '.join(near) or ', '.join(architecture_names())}; "
            "a path to a Hugging Face config.json works too"
        )
    return _shipped(key)


@lru_cache(maxsize=64)
def _shipped(key: str) -> Architecture:
    text = (resources.files("hwmodels") / "architectures" / f"{key}.toml").read_text(encoding="utf-8")
    return _from_table(tomllib.loads(text), f"{key}.toml", key)


def _from_table(table: Mapping[str, Any], file: str, name: str) -> Architecture:
    table = {key: value for key, value in table.items() if key != "hub"}  # who has these shapes: `hub.py`
    known = {f.name for f in fields(Architecture)}
    unknown = sorted(set(table) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=2)
        raise QsimError(f"{file}: unknown key {unknown[0]!r}; known: {', '.join(near or sorted(known))}")
    try:
        return Architecture(**{"name": name, **table})
    except TypeError as error:
        raise QsimError(f"{file}: {error}") from error


def from_config(config: Mapping[str, Any], name: str = "config") -> Architecture:
    """Shapes from a Hugging Face config: Llama, Mistral, Qwen2/2.5/3, Mixtral, Qwen-MoE, DeepSeek-V2/V3, OPT and kin.

    Raises:
        ValueError: a field that is needed is missing, or fields that do not fit each other.
    """
    if "text_config" in config:
        config = config["text_config"]
    kind = str(config.get("model_type", ""))

    def need(*keys: str) -> int:
        for key in keys:
            if config.get(key) is not None:
                value = config[key]
                if isinstance(value, bool) or not isinstance(value, int):
                    raise QsimError(f"{name}: {key} is an integer: got {value!r}")
                return value
        raise QsimError(f"{name}: config.json has none of {', '.join(keys)} (model_type={kind!r})")

    hidden, heads = need("hidden_size", "n_embd"), need("num_attention_heads", "n_head")
    latent = bool(config.get("kv_lora_rank"))
    if config.get("head_dim") is None and hidden % heads and not latent:
        raise QsimError(f"{name}: num_attention_heads must divide hidden_size: got {heads}, {hidden}")
    experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or 1
    opt = kind == "opt"
    ffn = (
        need("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner")
        if experts > 1
        else need("intermediate_size", "ffn_dim", "n_inner")
    )
    dense = config.get("first_k_dense_replace") or 0 if experts > 1 else 0
    shapes: dict[str, int] = {"head_dim": config.get("head_dim") or hidden // heads}
    if latent:
        rope = need("qk_rope_head_dim")
        shapes = {
            "head_dim": need("qk_nope_head_dim") + rope, "rope_dim": rope, "v_head_dim": need("v_head_dim"),
            "kv_lora_rank": need("kv_lora_rank"), "q_lora_rank": config.get("q_lora_rank") or 0,
        }  # fmt: skip
    return Architecture(
        name=str(config.get("_name_or_path") or name).rsplit("/", 1)[-1],
        layers=need("num_hidden_layers", "n_layer"),
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=heads if latent else config.get("num_key_value_heads") or heads,
        **shapes,
        vocab=need("vocab_size"),
        gated=not opt and "gelu_new" not in str(config.get("activation_function", "")),
        experts=experts,
        experts_per_token=config.get("num_experts_per_tok") or 1,
        shared_ffn=config.get("shared_expert_intermediate_size") or (config.get("n_shared_experts") or 0) * ffn,
        dense_layers=dense,
        dense_ffn=need("intermediate_size") if dense else 0,
        tied=bool(config.get("tie_word_embeddings", opt)),
        qkv_bias=bool(config.get("attention_bias", kind in ("qwen2", "qwen2_moe", "opt"))),
        mlp_bias=bool(config.get("mlp_bias", opt)),
        norm_bias=opt,
        learned_positions=opt,
        max_positions=config.get("max_position_embeddings") or 4096,
        source="config.json",
    )
