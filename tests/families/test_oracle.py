"""Every family against transformers: random small configs, parameters counted on the meta device, to the element."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest

from qsim.families import model_types, read_config
from qsim.families.config import Config

# what a key may be in a random config; keys that are not here are flags, or keep their default
VALUES: dict[str, tuple[Any, ...]] = {
    "vocab_size": (97, 128), "hidden_size": (64, 128), "intermediate_size": (96, 160), "num_hidden_layers": (1, 3, 8),
    "num_attention_heads": (4, 8), "num_key_value_heads": (1, 2, 4, 4, None), "head_dim": (8, 24, None),
    "max_position_embeddings": (32, 64), "num_local_experts": (4, 6), "num_experts": (4, 6), "n_routed_experts": (8,),
    "num_experts_per_tok": (1, 3), "moe_intermediate_size": (16, 48), "n_shared_experts": (1, 2),
    "num_shared_experts": (1, 2), "shared_expert_intermediate_size": (24, 40), "moe_num_experts": (4, 8),
    "moe_k": (1, 2), "moe_num_shared_experts": (0, 2), "moe_layer_start_index": (0, 1), "moe_layer_end_index": (1, 9),
    "moe_layer_interval": (1, 2), "first_k_dense_replace": (0, 1), "q_lora_rank": (24, None), "kv_lora_rank": (32,),
    "qk_rope_head_dim": (8,), "qk_nope_head_dim": (16, 24), "v_head_dim": (16, 32), "index_n_heads": (2,),
    "index_head_dim": (16,), "decoder_sparse_step": (1, 2), "mlp_only_layers": ([], [1]),
    "linear_num_key_heads": (2, 4),
    "linear_num_value_heads": (4, 8), "linear_key_head_dim": (8, 16), "linear_value_head_dim": (8, 24),
    "linear_conv_kernel_dim": (2, 4), "interleave_moe_layer_step": (1, 2), "intermediate_size_mlp": (80,),
    "no_rope_layer_interval": (2, 4), "attention_chunk_size": (16, None), "sliding_window": (16, 48),
    "ffn_hidden_size": (96, None), "num_ln_in_parallel_attn": (1, 2, None), "word_embed_proj_dim": (32, 64),
    "expansion_ratio": (2, 4), "mamba_d_state": (8, 16), "mamba_d_conv": (2, 4), "mamba_expand": (2,),
    "mamba_n_groups": (1, 2), "mamba_d_head": ("auto",), "mamba_n_heads": (8, 16), "mamba_dt_rank": (4, "auto"),
    "mamba_d_ssm": (64, 96, None), "shared_intermediate_size": (24, 48), "attn_layer_indices": ([0, 2], None),
    "attn_layer_period": (2, 4), "attn_layer_offset": (0, 1), "expert_layer_period": (2,),
    "expert_layer_offset": (0, 1),
    "state_size": (8, 16), "conv_kernel": (2, 4), "expand": (2,), "time_step_rank": (4, "auto"), "num_heads": (8,),
    "n_groups": (1, 2), "lru_width": (64, 128, None), "conv1d_width": (2, 4), "attention_window_size": (16,),
    "block_types": (["recurrent", "attention"], ["recurrent", "recurrent", "attention"]), "conv_L_cache": (3,),
    "block_multiple_of": (16, 64), "block_ffn_dim_multiplier": (1.0, 1.5), "full_attn_idxs": ([0], None),
    "num_dense_layers": (0, 1), "vocab_size_per_layer_input": (50,), "hidden_size_per_layer_input": (8, 16),
    "altup_num_inputs": (2, 4), "laurel_rank": (8,), "num_kv_shared_layers": (0,), "global_head_dim": (32,),
    "num_global_key_value_heads": (1, 2, None), "top_k_experts": (2,), "ssm_state_size": (8,), "mamba_num_heads": (8,),
    "mamba_head_dim": (16,), "moe_shared_expert_intermediate_size": (40,), "moe_latent_size": (32, None),
    "num_experts_per_token": (1, 2),
    "hybrid_override_pattern": ("M*-", "MEM*-E", "M-M"), "attention_hidden_size": (64, 96, None), "moe_topk": (1, 2),
    "linear_head_dim": (8, 16), "linear_num_heads": (4,), "global_attn_every_n_layers": (2, 4), "window_size": (16,),
    "sliding_window_pattern": (2, 3), "full_attention_interval": (2, 3), "max_window_layers": (0, 2),
}  # fmt: skip
# values that a class needs beside the random ones, or cannot take
FIXED: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "hidden_size": 64, "num_heads": 4},
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "tie_word_embeddings": False,
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "expansion_ratio": 4, "no_bias": True},
    "bamba": {"attn_layer_indices": [0]}, "kimi_linear": {"q_lora_rank": None, "tie_word_embeddings": False},
    "gemma3_text": {"use_bidirectional_attention": False},
    "helium": {"head_dim": 16, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
    "internlm3": {"head_dim": 16},
    "gemma4_text": {"num_hidden_layers": 6}, "gemma3n_text": {"num_hidden_layers": 5, "num_kv_shared_layers": 0},
    "mamba2": {"head_dim": 16, "hidden_size": 64}, "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16}, "ministral": {"head_dim": 16}, "minimax": {"head_dim": 16},
    "mixtral": {"head_dim": 16}, "smollm3": {"use_sliding_window": False},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "rwkv": {"num_hidden_layers": 2}, "falcon": {"num_attention_heads": 8},
    "nemotron_h": {"n_shared_experts": 1}, "nemotron": {"num_key_value_heads": 4, "head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "deepseek_v2": {"num_experts_per_tok": 2},
}  # fmt: skip
# old names, which transformers' configs do not list
OLD = {"hybrid_override_pattern": ("nemotron_h",), "sliding_window_pattern": ("gemma3_text", "cohere2"),
       "full_attention_interval": ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
       "global_head_dim": ("gemma4_text",), "num_global_key_value_heads": ("gemma4_text",)}  # fmt: skip
SHORT = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "n_inner": "intermediate_size",
    "ffn_dim": "intermediate_size",
}
UNLISTED_HEAD_DIM = ("qwen2", "qwen2_moe", "cohere2", "phi", "lfm2", "olmo2", "granite", "phi3", "phimoe", "mixtral")
"""Classes that take a head_dim though their config does not list one."""
NESTED = ("gemma3", "gemma3n", "gemma4", "llama4", "qwen3_5", "qwen3_5_moe")
"""Types of configs with a part of their own for the text model, which is tested under its own type."""
NOT_IN_TRANSFORMERS = (  # remote classes; the published counts in test_configs.py stand for them
    "qwen", "internlm", "internlm2", "baichuan", "Yi", "xverse", "skywork", "orion", "minicpm", "chatglm", "deepseek",
    "RefinedWeb", "RefinedWebModel", "stablelm_epoch", "kimi_k2", "nemotron-nas", "deci", "minimax_text_01",
    "minimax_m1", "cohere2_text", "youtu_llm", "mimo", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text",
    "qwen3_vl", "qwen3_vl_text", "qwen3_vl_moe", "qwen3_vl_moe_text",
)  # fmt: skip


def keys_of(kind: str) -> set[str]:
    """The keys that a family reads, from a run over its defaults."""
    family = model_types()[kind]
    c = Config({"model_type": kind}, "config", family.defaults, family.aliases)
    try:
        family.shape(c)
    except Exception:  # what is missing by default does not matter here
        pass
    return c.fields.read | set(family.defaults)


def draw(kind: str, seed: int, known: dict[str, Any]) -> dict[str, Any]:
    """A random small config under the names of transformers' class."""
    rng = random.Random(f"{kind}{seed}")
    config: dict[str, Any] = {"model_type": kind}
    if kind in UNLISTED_HEAD_DIM:
        known = {**known, "head_dim": None}
    old = {key for key, kinds in OLD.items() if kind in kinds}
    keys = sorted((keys_of(kind) | set(VALUES)) & set(known) | old)
    for key in keys:
        if key in SHORT:
            config[key] = rng.choice(VALUES[SHORT[key]])
        elif key in VALUES:
            config[key] = rng.choice(VALUES[key])
        elif isinstance(known[key], bool) and key in keys_of(kind):
            config[key] = rng.random() < 0.5
    if "num_key_value_heads" in known:
        config.setdefault("num_key_value_heads", 4)
    return config | {"pad_token_id": 0, **FIXED.get(kind, {})}


def build(config: dict[str, Any]) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = AutoConfig.for_model(settings.pop("model_type"), **settings)
        return int(sum(p.numel() for p in AutoModelForCausalLM.from_config(made).parameters()))


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [k for k in sorted(model_types()) if k not in NOT_IN_TRANSFORMERS + NESTED])
def test_parameters_are_those_that_transformers_allocates(kind, seed):
    pytest.importorskip("torch")
    mapping = pytest.importorskip("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    try:
        known = mapping[kind]().to_dict()
    except Exception as error:  # an older or newer version may lack the class
        pytest.skip(f"transformers has no {kind}: {error}")
    config = draw(kind, seed, known)
    try:
        expected = build(config)
    except Exception:  # transformers' own checks, of many classes: most take no null
        config = {k: v for k, v in config.items() if v is not None} | {"num_key_value_heads": 4}
        try:
            expected = build(config)
        except Exception as error:
            pytest.skip(f"transformers refuses the config: {error}")
    assert read_config(config).parameters == expected, config
