"""What GGUF files call the parts of each family: keys of its metadata as a `config.json`, and names of its tensors.

Source: llama.cpp's `gguf-py/gguf/constants.py` (keys and names) and `convert_hf_to_gguf.py` (what is written to them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields

from .config import POSITIONS, SIZE

_BLOCK = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_SANDWICH = {
    **_BLOCK, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
ROUTER = "ffn_gate_inp.weight"


def _experts(module: str, gate: str, up: str, down: str) -> dict[str, str]:
    """Names of a router and of experts, all of which are one tensor (E, N, K) for each of the three products."""
    each = {gate: "ffn_gate_exps", up: "ffn_up_exps", down: "ffn_down_exps"}
    return {f"{module}.gate": "ffn_gate_inp"} | {f"{module}.experts.{{e}}.{k}": v for k, v in each.items()}


_BLOCK_OF = re.compile(r"(?:model|gpt_neox)\.layers\.(\d+)\.(.*)")
_EXPERT_OF = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
EMBEDDING, HEAD, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# what says nothing of the decoder's structure: sizes that follow from others, and notes of who made the file
_KNOWN = ("vocab_size", "attention.causal", "use_parallel_residual", "tensor_data_layout", "rope.scaling.finetuned")
_EPS = "attention.layer_norm_rms_epsilon"


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """An architecture of llama.cpp that holds families of this project.

    Attributes:
        name: the value of `general.architecture`.
        model_type: the family that such a file is read as.
        others: model types that are written as this architecture too.
        paired: rows of the query and the key are stored so that the two halves of a rotation lie side by side.
        norm_offset: what files add to the weights of norms.
        blocks: names in a block by those of Hugging Face.
        eps: key of the norms' epsilon: of the file, and of `config.json`.
        activation: key and value of the activation, which files do not say.
        numbers: key of `config.json` -> key of the file, below the architecture's name.
        counts: the same for whole numbers.
        fixed: keys of `config.json` whose values llama.cpp has in its code.
        biases: key of `config.json` -> the tensor of block 0 that is there when it is true.
        period: every so many layers one attends to all tokens and the others to a window; 0: no windows in files.
        wide: layers of the one size whose scores are divided by the root of hidden size / heads, not of a head's size.
        heads: whether `config.json` has the key `head_dim`.
        rotated: whether files say how much of a head is rotated.
        by_kind: rows of the fused projection are stored as all queries, all keys and all values, not head by head.
        outer: names outside the blocks by those of Hugging Face.
        flags: key of `config.json` -> key of the file, of what is true or false; true where the file has none.
        theta, partial: keys of `config.json` for the base of the rotary frequencies and the part that is rotated.
    """

    name: str
    model_type: str
    others: tuple[str, ...] = ()
    paired: bool = False
    norm_offset: float = 0.0
    blocks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_BLOCK))
    eps: tuple[str, str] = (_EPS, "rms_norm_eps")
    activation: tuple[str, str] = ("hidden_act", "silu")
    numbers: Mapping[str, str] = field(default_factory=_nothing)
    counts: Mapping[str, str] = field(default_factory=_nothing)
    fixed: Mapping[str, Any] = field(default_factory=_nothing)
    biases: Mapping[str, str] = field(default_factory=_nothing)
    period: int = 0
    wide: int = 0
    heads: bool = True
    rotated: bool = False
    by_kind: bool = False
    outer: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_NAMES))
    flags: Mapping[str, str] = field(default_factory=_nothing)
    theta: str = "rope_theta"
    partial: str = "partial_rotary_factor"


_Q = {"attention_bias": "attn_q.bias"}
_GELU = ("hidden_activation", "gelu_pytorch_tanh")
ARCHITECTURES = (
    GgufArchitecture(name="llama", model_type="llama", others=("mistral",), paired=True,
                     biases={**_Q, "mlp_bias": "ffn_up.bias"}),
    GgufArchitecture(
        name="llama", model_type="mixtral", paired=True, heads=False,
        blocks={**_BLOCK, **_experts("block_sparse_moe", "w1", "w3", "w2")},
        counts={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
    ),
    GgufArchitecture(name="qwen2", model_type="qwen2", heads=False),
    GgufArchitecture(name="qwen3", model_type="qwen3", biases=_Q),
    GgufArchitecture(
        name="qwen3moe", model_type="qwen3_moe", biases=_Q, fixed={"norm_topk_prob": True, "decoder_sparse_step": 1},
        blocks={**_BLOCK, **_experts("mlp", "gate_proj", "up_proj", "down_proj")},
        counts={"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
                "moe_intermediate_size": "expert_feed_forward_length"},
    ),
    GgufArchitecture(
        name="gemma2", model_type="gemma2", norm_offset=1.0, blocks=_SANDWICH, activation=_GELU, period=2, wide=46,
        numbers={"attn_logit_softcapping": "attn_logit_softcapping",
                 "final_logit_softcapping": "final_logit_softcapping"},
    ),
    GgufArchitecture(
        name="gemma3", model_type="gemma3_text", norm_offset=1.0, blocks=_SANDWICH, activation=_GELU, period=6, wide=62,
        fixed={"rope_local_base_freq": 10000.0},
    ),
    GgufArchitecture(
        name="phi3", model_type="phi3", heads=False, rotated=True,
        blocks={**_BLOCK, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    ),
    GgufArchitecture(
        name="olmo2", model_type="olmo2", biases=_Q, heads=False,
        blocks={**_SANDWICH, "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
    ),
    GgufArchitecture(
        name="granite", model_type="granite", paired=True, heads=False, biases={**_Q, "mlp_bias": "ffn_up.bias"},
        numbers={"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
                 "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"},
    ),
    GgufArchitecture(
        name="starcoder2", model_type="starcoder2", heads=False, eps=("attention.layer_norm_epsilon", "norm_epsilon"),
        blocks={**_BLOCK, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
        activation=("hidden_act", "gelu_pytorch_tanh"), biases={"use_bias": "attn_q.bias"},
    ),
    GgufArchitecture(
        name="gptneox", model_type="gpt_neox", heads=False, rotated=True, by_kind=True, theta="rotary_emb_base",
        partial="rotary_pct", eps=("attention.layer_norm_epsilon", "layer_norm_eps"), activation=("hidden_act", "gelu"),
        outer={"gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm", "embed_out": "output"},
        blocks={"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
                "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output",
                "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down"},
        biases={"attention_bias": "attn_qkv.bias"}, flags={"use_parallel_residual": "use_parallel_residual"},
    ),
)  # fmt: skip


def architecture_of(metadata: Fields) -> GgufArchitecture:
    """The architecture of a file.

    Raises:
        QsimError: one that is not read.
    """
    name = metadata.text("general.architecture")
    known = [one for one in ARCHITECTURES if one.name == name]
    if not known:
        names = ", ".join(dict.fromkeys(one.name for one in ARCHITECTURES))
        raise metadata.refuse("general.architecture", f"must be one that the decoder runs ({names})")
    mixed = metadata.integer(f"{name}.expert_count", 0, SIZE, 0) > 0
    for one in known:
        if ("expert_count" in one.counts.values()) == mixed:
            return one
    raise metadata.refuse(f"{name}.expert_count", "must be at least 1" if not mixed else "must be 0")


def architecture_for(model_type: str) -> GgufArchitecture:
    """The architecture that a family is written as.

    Arguments:
        model_type: of its configs.

    Raises:
        QsimError: llama.cpp has none, or none is written here.
    """
    for one in ARCHITECTURES:
        if model_type in (one.model_type, *one.others):
            return one
    known = ", ".join(name for one in ARCHITECTURES for name in (one.model_type, *one.others))
    raise QsimError(f"GGUF files are written of the families {known}: got {model_type}")


def gguf_name(arch: GgufArchitecture, name: str) -> tuple[str, int | None]:
    """GGUF's name of a tensor by that of Hugging Face, as `model.layers.3.mlp.up_proj.weight`, and which of the experts
    in it is meant; None where it holds one matrix.

    Raises:
        QsimError: GGUF has none.
    """
    module, _, last = name.rpartition(".")
    found = _BLOCK_OF.fullmatch(module)
    if found is None:
        known, expert = arch.outer.get(module), None
    else:
        of_expert = _EXPERT_OF.fullmatch(found[2])
        expert = None if of_expert is None else int(of_expert[2])
        known = arch.blocks.get(found[2] if of_expert is None else f"{of_expert[1]}.{{e}}.{of_expert[3]}")
    if known is None:
        raise QsimError(f"GGUF files of {arch.name} have no place for tensor {name}")
    return (f"{known}.{last}" if found is None else f"blk.{found[1]}.{known}.{last}"), expert


def is_norm(stored: str) -> bool:
    """Whether a tensor is the weight of a norm, by GGUF's name."""
    return stored.endswith("norm.weight")


def _layer_types(arch: GgufArchitecture, layers: int) -> list[str]:
    return ["sliding_attention" if (i + 1) % arch.period else "full_attention" for i in range(layers)]


def _query_scalar(arch: GgufArchitecture, layers: int, hidden: int, heads: int, head_dim: int) -> float:
    return hidden / heads if layers == arch.wide else float(head_dim)


def config_of(metadata: Fields, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Any], list[str]]:
    """The `config.json` that a file's metadata amounts to, and keys of the architecture that are not understood.

    Arguments:
        metadata: the file's keys and values.
        shapes: of its tensors, by GGUF's names.

    Raises:
        QsimError: an architecture that is not read, a key that is missing, mistyped or out of range; experts.
    """
    arch, f = architecture_of(metadata), metadata
    p = arch.name
    if EMBEDDING not in shapes:
        raise QsimError(f"{f.where} has no tensor {EMBEDDING}")
    hidden, heads = f.integer(f"{p}.embedding_length", 1, SIZE), f.integer(f"{p}.attention.head_count", 1, SIZE)
    layers = f.integer(f"{p}.block_count", 1, SIZE)
    head_dim = f.integer(f"{p}.attention.key_length", 1, SIZE, max(hidden // heads, 1))
    if f.integer(f"{p}.attention.value_length", 1, SIZE, head_dim) != head_dim:
        raise f.refuse(f"{p}.attention.value_length", f"must be the size of a head, {head_dim}")
    rotated = f.integer(f"{p}.rope.dimension_count", 1, SIZE, head_dim)
    if rotated > head_dim or (rotated != head_dim and not arch.rotated):
        raise f.refuse(f"{p}.rope.dimension_count", f"must be the size of a head, {head_dim}")
    factors = next((name for name in shapes if name.startswith("rope_factors")), None)
    if factors is not None:
        raise QsimError(f"{f.where}: tensor {factors} holds rotary factors for long texts, which are not read here")
    config: dict[str, Any] = {
        "model_type": arch.model_type,
        "vocab_size": shapes[EMBEDDING][0],
        "hidden_size": hidden,
        "intermediate_size": f.integer(f"{p}.feed_forward_length", 1, SIZE),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": f.integer(f"{p}.attention.head_count_kv", 1, SIZE, heads),
        "max_position_embeddings": f.integer(f"{p}.context_length", 1, POSITIONS),
        arch.eps[1]: _short(f.number(f"{p}.{arch.eps[0]}", 0.0, 1.0)),
        arch.theta: _short(f.number(f"{p}.rope.freq_base", 2.0, 1e18, 10000.0)),
        "rope_scaling": _rope_scaling(f, p),
        arch.activation[0]: arch.activation[1],
        "tie_word_embeddings": HEAD not in shapes,
        "bos_token_id": f.integer("tokenizer.ggml.bos_token_id", 0, SIZE, None),
        "eos_token_id": f.integer("tokenizer.ggml.eos_token_id", 0, SIZE, None),
        **arch.fixed,
        **{key: f.integer(f"{p}.{name}", 1, SIZE) for key, name in arch.counts.items()},
        **{key: _short(f.number(f"{p}.{name}", 1e-9, 1e9)) for key, name in arch.numbers.items()},
        **{key: f"blk.0.{name}" in shapes for key, name in arch.biases.items()},
        **{key: f.flag(f"{p}.{name}", True) for key, name in arch.flags.items()},
    }
    if arch.heads:
        config["head_dim"] = head_dim
    elif head_dim * heads != hidden:
        raise f.refuse(f"{p}.attention.key_length", f"must be {hidden // heads}: {p} splits its hidden size over heads")
    if arch.rotated:
        config[arch.partial] = rotated / head_dim
    window = f.integer(f"{p}.attention.sliding_window", 0, POSITIONS, 0)
    if arch.period:
        config |= {"sliding_window": window or None, "layer_types": _layer_types(arch, layers),
                   "query_pre_attn_scalar": _query_scalar(arch, layers, hidden, heads, head_dim)}  # fmt: skip
    elif arch.rotated and (window or not arch.by_kind):
        config["sliding_window"] = window or None  # of every layer
    elif window:
        raise f.refuse(f"{p}.attention.sliding_window", "must be left out: sliding windows are not read here")
    f.read.update(f"{p}.{key}" for key in _KNOWN)
    return config, [key for key in f.table if key.startswith(f"{p}.") and key not in f.read]


def _short(value: float) -> float:
    """The shortest decimal that rounds to the same float32: files hold 32 bits of what was 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))


def _rope_scaling(f: Fields, p: str) -> dict[str, Any] | None:
    kind = f.text(f"{p}.rope.scaling.type", "none", choices=("none", "linear", "yarn"))
    factor = f.number((f"{p}.rope.scaling.factor", f"{p}.rope.scale_linear"), 0.0, 1e6, 1.0)
    trained = f.integer(f"{p}.rope.scaling.original_context_length", 1, POSITIONS, None)
    f.read.add(f"{p}.rope.scaling.finetuned")
    if kind == "none" or factor in (0.0, 1.0):
        return None
    found = {"rope_type": kind, "factor": _short(factor)}
    return found if kind == "linear" or trained is None else {**found, "original_max_position_embeddings": trained}


def metadata_of(config: Mapping[str, Any], head_dim: int) -> tuple[dict[str, Any], list[str]]:
    """GGUF's keys of a `config.json`, and what a reader of the file must know.

    Arguments:
        config: with every key of the family.
        head_dim: of a head.

    Raises:
        QsimError: a family or a rotary scaling that is not written; another activation than SiLU.
    """
    arch = architecture_for(config["model_type"])
    p, notes, layers = arch.name, list[str](), config["num_hidden_layers"]
    for key, value in (arch.activation, *arch.fixed.items()):
        if config.get(key, value) != value:
            raise QsimError(f"GGUF files of {p} have {key}={value!r}: got {config[key]!r}")
    odd = next((key for key in ("attention_bias", "mlp_bias", "use_bias") if config.get(key)), None)
    if odd is not None and odd not in arch.biases:
        raise QsimError(f"GGUF files of {p} have no place for the biases of {odd}")
    out: dict[str, Any] = {
        "general.architecture": p,
        f"{p}.vocab_size": config["vocab_size"],
        f"{p}.context_length": config["max_position_embeddings"],
        f"{p}.embedding_length": config["hidden_size"],
        f"{p}.block_count": layers,
        f"{p}.feed_forward_length": config["intermediate_size"],
        f"{p}.attention.head_count": config["num_attention_heads"],
        f"{p}.attention.head_count_kv": config.get("num_key_value_heads", config["num_attention_heads"]),
        f"{p}.attention.key_length": head_dim,
        f"{p}.attention.value_length": head_dim,
        f"{p}.{arch.eps[0]}": float(config[arch.eps[1]]),
        f"{p}.rope.dimension_count": int(head_dim * config.get(arch.partial, 1)),
        f"{p}.rope.freq_base": float(config[arch.theta]),
        **{f"{p}.{name}": config[key] for key, name in arch.flags.items()},
        **{f"{p}.{name}": config[key] for key, name in arch.counts.items()},
        **{f"{p}.{name}": float(config[key]) for key, name in arch.numbers.items() if config.get(key) is not None},
    }
    missing = [key for key in arch.numbers if config.get(key) is None]
    if missing:
        raise QsimError(f"GGUF files of {p} have a number for {missing[0]}: this model has none")
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if arch.period:
        sizes = (layers, config["hidden_size"], config["num_attention_heads"], head_dim)
        if config["layer_types"] != _layer_types(arch, layers) or window is None:
            raise QsimError(f"GGUF files of {p} have a window in all layers but every {arch.period}th: not this model")
        if config["query_pre_attn_scalar"] != _query_scalar(arch, *sizes):
            raise QsimError(f"GGUF files of {p} have query_pre_attn_scalar={_query_scalar(arch, *sizes):g}: got "
                            f"{config['query_pre_attn_scalar']:g}")  # fmt: skip
    if window is not None and (arch.period or arch.rotated):
        out[f"{p}.attention.sliding_window"] = window
    elif window is not None:
        notes.append(f"llama.cpp attends to all tokens in {p}: the sliding window of {window} was left out")
    scaling = config.get("rope_scaling")
    if scaling is not None and scaling["rope_type"] != "llama3":  # that one is a tensor
        if set(scaling) - {"rope_type", "factor", "original_max_position_embeddings"}:
            raise QsimError("GGUF files hold a rotary scaling by its factor and its trained context only")
        out[f"{p}.rope.scaling.type"] = scaling["rope_type"]
        out[f"{p}.rope.scaling.factor"] = float(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            out[f"{p}.rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return out, notes
