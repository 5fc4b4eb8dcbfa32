"""Small decoders with random weights, and folders of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qsim.models import Model, ModelConfig
from qsim.models.families import expected_tensors

BASE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED = {**BASE, "intermediate_size": 96, "num_key_value_heads": 2}
CONFIGS = {
    "llama": {"model_type": "llama", **GATED},
    "llama-biases": {"model_type": "llama", **GATED, "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", **GATED, "tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama-gelu": {"model_type": "llama", **GATED, "hidden_act": "gelu"},
    "mistral": {"model_type": "mistral", **GATED, "sliding_window": 5},
    "qwen2": {"model_type": "qwen2", **GATED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", **GATED, "head_dim": 24},
    "opt": {"model_type": "opt", **BASE, "ffn_dim": 96},
    "opt-350m": {"model_type": "opt", **BASE, "ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "opt-plain-norms": {"model_type": "opt", **BASE, "ffn_dim": 96, "layer_norm_elementwise_affine": False,
                        "enable_bias": False, "activation_function": "gelu_new"},
    "gemma": {"model_type": "gemma", **GATED, "head_dim": 24, "hidden_act": "gelu"},
    "seed-oss": {"model_type": "seed_oss", **GATED, "head_dim": 16, "attention_out_bias": True},
    "olmoe": {"model_type": "olmoe", **GATED, "num_experts": 5, "num_experts_per_tok": 2},
    "gemma2": {"model_type": "gemma2", **GATED, "head_dim": 24, "sliding_window": 6, "query_pre_attn_scalar": 20,
               "attn_logit_softcapping": 3.0, "final_logit_softcapping": 9.0},
    "gemma3": {"model_type": "gemma3_text", **GATED, "head_dim": 24, "sliding_window": 6, "query_pre_attn_scalar": 24,
               "layer_types": ["sliding_attention", "full_attention"], "rope_theta": 700.0,
               "rope_local_base_freq": 90.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "mixtral": {"model_type": "mixtral", **GATED, "num_local_experts": 5, "num_experts_per_tok": 2},
    "qwen3-moe": {"model_type": "qwen3_moe", **GATED, "head_dim": 24, "num_experts": 6, "num_experts_per_tok": 3,
                  "moe_intermediate_size": 32, "norm_topk_prob": False, "mlp_only_layers": [0]},
    "phi3": {"model_type": "phi3", **GATED, "num_key_value_heads": 4, "partial_rotary_factor": 0.75,
             "sliding_window": 7},
    "olmo2": {"model_type": "olmo2", **GATED},
    "granite": {"model_type": "granite", **GATED, "embedding_multiplier": 3.0, "attention_multiplier": 0.2,
                "residual_multiplier": 0.4, "logits_scaling": 0.5, "mlp_bias": True},
    "gpt-neox": {"model_type": "gpt_neox", **BASE, "intermediate_size": 96, "rotary_pct": 0.5},
    "gpt-neox-serial": {"model_type": "gpt_neox", **BASE, "intermediate_size": 96, "use_parallel_residual": False,
                        "attention_bias": False, "hidden_act": "gelu_new"},
    "starcoder2": {"model_type": "starcoder2", **GATED, "sliding_window": 6},
    "gpt-oss": {"model_type": "gpt_oss", **GATED, "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2,
                "sliding_window": 6, "swiglu_limit": 0.7},
}  # fmt: skip


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Matrices that keep the size of what goes through them, norms near 1, small biases."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in expected_tensors(config).items():
        x = rng.standard_normal(shape)
        if len(shape) == 2:
            x *= 1.0 if "embed" in name else 1.3 / np.sqrt(shape[1])
        else:
            is_gain = "norm" in name and name.endswith("weight")
            x = x * 0.2 + (1 - config.numerics.norm_offset if is_gain else 0)
        out[name] = x.astype(np.float32)
    return out


def random_model(kind: str = "llama", seed: int = 0, **changes: object) -> Model:
    """A model of one of `CONFIGS`."""
    config = ModelConfig.from_dict({**CONFIGS[kind], **changes})
    return Model(config=config, tensors=random_tensors(config, seed), name=kind)


def write_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray], shards: int = 1) -> None:
    """A checkpoint folder as Hugging Face lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    places = {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in names[s::shards]}
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
