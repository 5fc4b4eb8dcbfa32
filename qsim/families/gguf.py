"""What GGUF files call the parts of each family: keys of its metadata as a `config.json`, and names of its tensors.

Source: llama.cpp's `gguf-py/gguf/constants.py` (keys and names) and `convert_hf_to_gguf.py` (what is written to them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
_BLOCK_OF = re.compile(r"model\.layers\.(\d+)\.(.*)")
EMBEDDING, HEAD, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# what says nothing of the decoder's structure: sizes that follow from others, and notes of who made the file
_KNOWN = (
    "vocab_size",
    "attention.causal",
    "use_parallel_residual",
    "tensor_data_layout",
    "attention.layer_norm_epsilon",
)


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """An architecture of llama.cpp that holds families of this project.

    Attributes:
        name: the value of `general.architecture`.
        model_type: the family that such a file is read as.
        others: model types that are written as this architecture too.
        paired: rows of the query and the key are stored so that the two halves of a rotation lie side by side.
    """

    name: str
    model_type: str
    others: tuple[str, ...] = ()
    paired: bool = False


ARCHITECTURES = {
    one.name: one
    for one in (
        GgufArchitecture(name="llama", model_type="llama", others=("mistral",), paired=True),
        GgufArchitecture(name="qwen2", model_type="qwen2"),
        GgufArchitecture(name="qwen3", model_type="qwen3"),
    )
}


def architecture_of(metadata: Fields) -> GgufArchitecture:
    """The architecture of a file.

    Raises:
        QsimError: one that is not read.
    """
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise metadata.refuse("general.architecture", f"must be one that the decoder runs ({known})")
    return ARCHITECTURES[name]


def architecture_for(model_type: str) -> GgufArchitecture:
    """The architecture that a family is written as.

    Raises:
        QsimError: llama.cpp has none, or none is written here.
    """
    for one in ARCHITECTURES.values():
        if model_type in (one.model_type, *one.others):
            return one
    known = ", ".join(name for one in ARCHITECTURES.values() for name in (one.model_type, *one.others))
    raise QsimError(f"GGUF files are written of the families {known}: got {model_type}")


def gguf_name(arch: GgufArchitecture, name: str) -> str:
    """GGUF's name of a tensor by that of Hugging Face, as `model.layers.3.mlp.up_proj.weight`.

    Raises:
        QsimError: GGUF has none.
    """
    module, _, last = name.rpartition(".")
    found = _BLOCK_OF.fullmatch(module)
    known = _NAMES.get(module) if found is None else _BLOCK.get(found[2])
    if known is None:
        raise QsimError(f"GGUF files of {arch.name} have no place for tensor {name}")
    return f"{known}.{last}" if found is None else f"blk.{found[1]}.{known}.{last}"


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
    if f.integer(f"{p}.expert_count", 0, SIZE, 0):
        raise f.refuse(f"{p}.expert_count", "must be 0: mixtures of experts are not read from GGUF")
    if EMBEDDING not in shapes:
        raise QsimError(f"{f.where} has no tensor {EMBEDDING}")
    hidden, heads = f.integer(f"{p}.embedding_length", 1, SIZE), f.integer(f"{p}.attention.head_count", 1, SIZE)
    head_dim = f.integer(f"{p}.attention.key_length", 1, SIZE, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if f.integer(f"{p}.{key}", 1, SIZE, head_dim) != head_dim:
            raise f.refuse(f"{p}.{key}", f"must be the size of a head, {head_dim}")
    biased = "blk.0.attn_q.bias" in shapes
    config: dict[str, Any] = {
        "model_type": arch.model_type,
        "vocab_size": shapes[EMBEDDING][0],
        "hidden_size": hidden,
        "intermediate_size": f.integer(f"{p}.feed_forward_length", 1, SIZE),
        "num_hidden_layers": f.integer(f"{p}.block_count", 1, SIZE),
        "num_attention_heads": heads,
        "num_key_value_heads": f.integer(f"{p}.attention.head_count_kv", 1, SIZE, heads),
        "head_dim": head_dim,
        "max_position_embeddings": f.integer(f"{p}.context_length", 1, POSITIONS),
        "rms_norm_eps": _short(f.number(f"{p}.attention.layer_norm_rms_epsilon", 0.0, 1.0)),
        "rope_theta": _short(f.number(f"{p}.rope.freq_base", 2.0, 1e18, 10000.0)),
        "rope_scaling": _rope_scaling(f, p),
        "hidden_act": "silu",
        "tie_word_embeddings": HEAD not in shapes,
        "bos_token_id": f.integer("tokenizer.ggml.bos_token_id", 0, SIZE, None),
        "eos_token_id": f.integer("tokenizer.ggml.eos_token_id", 0, SIZE, None),
    }
    if arch.model_type in ("llama", "qwen3"):
        config["attention_bias"] = biased
    if f.integer(f"{p}.attention.sliding_window", 0, POSITIONS, 0):
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
    arch, notes = architecture_for(config["model_type"]), []
    p = arch.name
    if config["hidden_act"] != "silu":
        raise QsimError(f"GGUF files of {p} have the activation silu: got {config['hidden_act']}")
    if config.get("mlp_bias"):
        raise QsimError(f"GGUF files of {p} have no biases in the MLP")
    windows = {w for w in (config.get("sliding_window"),) if w} if config.get("use_sliding_window", True) else set()
    if windows:
        notes.append(f"llama.cpp attends to all tokens in {p}: the sliding window of {windows.pop()} was left out")
    out: dict[str, Any] = {
        "general.architecture": p,
        f"{p}.vocab_size": config["vocab_size"],
        f"{p}.context_length": config["max_position_embeddings"],
        f"{p}.embedding_length": config["hidden_size"],
        f"{p}.block_count": config["num_hidden_layers"],
        f"{p}.feed_forward_length": config["intermediate_size"],
        f"{p}.attention.head_count": config["num_attention_heads"],
        f"{p}.attention.head_count_kv": config["num_key_value_heads"],
        f"{p}.attention.key_length": head_dim,
        f"{p}.attention.value_length": head_dim,
        f"{p}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{p}.rope.dimension_count": head_dim,
        f"{p}.rope.freq_base": float(config["rope_theta"]),
    }
    scaling = config.get("rope_scaling")
    if scaling is not None and scaling["rope_type"] != "llama3":  # that one is a tensor
        if scaling["rope_type"] == "yarn" and set(scaling) - {
            "rope_type",
            "factor",
            "original_max_position_embeddings",
        }:
            raise QsimError("GGUF files hold a rotary scaling by its factor and its trained context only")
        out[f"{p}.rope.scaling.type"] = scaling["rope_type"]
        out[f"{p}.rope.scaling.factor"] = float(scaling["factor"])
        if "original_max_position_embeddings" in scaling:
            out[f"{p}.rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return out, notes
