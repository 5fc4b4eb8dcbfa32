"""Every family against `transformers`, float32 on the CPU, from configs and weights made here."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest

from qsim.models import ModelConfig, load

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BASE = {
    "vocab_size": 199,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GATED = {**BASE, "intermediate_size": 96, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
SLIDING = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
GATED_ROOMY = {**GATED, "eos_token_id": 1, "bos_token_id": 2}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 2, 3, 4, 5, 6, 8, 9.5],
}
CASES = {
    "llama": ("Llama", GATED),
    "llama2-mha": ("Llama", {**GATED, "num_key_value_heads": 4}),
    "llama3-rope": ("Llama", {**GATED, "rope_parameters": LLAMA3}),
    "llama-linear-rope": ("Llama", {**GATED, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0,
                                                                 "factor": 3.0}}),
    "llama-yarn": ("Llama", {**GATED, "rope_parameters": YARN}),
    "llama-yarn-mscale": ("Llama", {**GATED, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4,
                                                                 "truncate": False}}),
    "llama-tied-biases": ("Llama", {**GATED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True,
                                    "head_dim": 24}),
    "llama-gelu": ("Llama", {**GATED, "hidden_act": "gelu_pytorch_tanh"}),
    "mistral": ("Mistral", {**GATED, "sliding_window": None}),
    "mistral-sliding": ("Mistral", {**GATED, "sliding_window": 5}),
    "qwen2": ("Qwen2", GATED),
    "qwen2-sliding": ("Qwen2", {**GATED, **SLIDING}),
    "qwen3": ("Qwen3", {**GATED, "head_dim": 32}),
    "qwen3-sliding-tied": ("Qwen3", {**GATED, **SLIDING, "attention_bias": True, "tie_word_embeddings": True}),
    "opt": ("OPT", {**BASE, "ffn_dim": 96}),
    "opt-350m": ("OPT", {**BASE, "ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "opt-variants": ("OPT", {**BASE, "ffn_dim": 96, "enable_bias": False, "layer_norm_elementwise_affine": False,
                             "activation_function": "gelu", "tie_word_embeddings": False}),
    "gemma": ("Gemma", {**GATED, "head_dim": 24, "tie_word_embeddings": False}),
    "seed-oss": ("SeedOss", {**GATED, "head_dim": 24, "attention_out_bias": True, "mlp_bias": True}),
    "olmoe": ("Olmoe", {**GATED, "num_experts": 6, "num_experts_per_tok": 3}),
    "olmoe-mha": ("Olmoe", {**GATED, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2,
                            "norm_topk_prob": True, "attention_bias": True}),
    "gemma2": ("Gemma2", {**GATED, "head_dim": 24, "sliding_window": 6, "query_pre_attn_scalar": 20}),
    "gemma2-no-caps": ("Gemma2", {**GATED, "head_dim": 16, "sliding_window": 50, "attn_logit_softcapping": None,
                                  "final_logit_softcapping": None, "attention_bias": True,
                                  "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}}),
    "gemma2-low-caps": ("Gemma2", {**GATED, "head_dim": 16, "sliding_window": 7, "attn_logit_softcapping": 1.5,
                                   "final_logit_softcapping": 3.0, "num_key_value_heads": 4}),
    "gemma3": ("Gemma3Text", {**GATED, "num_hidden_layers": 7, "head_dim": 24, "sliding_window": 6}),
    "gemma3-rope": ("Gemma3Text", {**GATED, "head_dim": 24, "sliding_window": 6, "tie_word_embeddings": False,
                                   "layer_types": [*["sliding_attention"] * 2, "full_attention"],
                                   "rope_parameters": {
                                       "full_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 8.0},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 90.0}}}),
    "mixtral": ("Mixtral", {**GATED, "num_local_experts": 5}),
    "mixtral-sliding": ("Mixtral", {**GATED, "num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 6,
                                    "head_dim": 24, "num_key_value_heads": 4}),
    "qwen3-moe": ("Qwen3Moe", {**GATED, **EXPERTS, "head_dim": 24, "norm_topk_prob": True}),
    "qwen3-moe-dense-layers": ("Qwen3Moe", {**GATED, **EXPERTS, "mlp_only_layers": [1], "attention_bias": True,
                                            "tie_word_embeddings": True, "head_dim": 16}),
    "phi3": ("Phi3", GATED_ROOMY),
    "phi3-partial-sliding": ("Phi3", {**GATED_ROOMY, "num_key_value_heads": 4, "sliding_window": 7,
                                      "rope_parameters": {"rope_type": "default", "rope_theta": 500.0,
                                                          "partial_rotary_factor": 0.75}}),
    "phi3-longrope": ("Phi3", {**GATED_ROOMY, "original_max_position_embeddings": 128, "max_position_embeddings": 256,
                               "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 128}}),
    "olmo2": ("Olmo2", GATED),
    "olmo2-mha": ("Olmo2", {**GATED, "num_key_value_heads": 4, "attention_bias": True, "tie_word_embeddings": True}),
    "granite": ("Granite", {**GATED, "embedding_multiplier": 3.0, "attention_multiplier": 0.2,
                            "residual_multiplier": 0.4, "logits_scaling": 1.5}),
    "granite-biases": ("Granite", {**GATED, "attention_multiplier": 0.25,
                                   "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "gpt-neox": ("GPTNeoX", {**BASE, "intermediate_size": 96}),
    "gpt-neox-serial": ("GPTNeoX", {**BASE, "intermediate_size": 96, "use_parallel_residual": False,
                                    "attention_bias": False, "hidden_act": "gelu_new", "tie_word_embeddings": True,
                                    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0,
                                                        "partial_rotary_factor": 1.0}}),
    "gpt-oss": ("GptOss", {**GATED, "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16,
                           "sliding_window": 6}),
    "gpt-oss-rope": ("GptOss", {**GATED, "num_local_experts": 4, "num_experts_per_tok": 4, "head_dim": 24,
                                "sliding_window": 9, "swiglu_limit": 0.5, "rope_parameters": YARN}),
    "starcoder2": ("Starcoder2", {**GATED, "sliding_window": 6}),
    "starcoder2-no-biases": ("Starcoder2", {**GATED, "use_bias": False, "tie_word_embeddings": False}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """A model of transformers and ours of the folder that it saved, in shards."""
    family, settings = CASES[request.param]
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**settings)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.randn_like(p) * (1.0 if "embed" in name else 1.5 / p.shape[-1] ** 0.5))
            else:
                p.copy_(torch.randn_like(p) * 0.2 + ("norm" in name and name.endswith("weight")))
    folder = tmp_path_factory.mktemp(request.param)
    transformers.utils.logging.disable_progress_bar()
    theirs.save_pretrained(folder, max_shard_size="40KB")
    ours = load(folder)
    assert ours.notes == ()
    assert (folder / "model.safetensors.index.json").is_file()
    return theirs, ours


def tokens(batch=2, length=40):
    return np.random.default_rng(3).integers(0, 199, (batch, length))


def logits_of(model, ids, **more):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `past_key_values` has a new name from 5.40 on
        return model(torch.from_numpy(ids), **more)


def test_prefill_and_batch(pair):
    theirs, ours = pair
    ids = tokens(3)
    want = logits_of(theirs, ids).logits.numpy()
    assert np.abs(want).max() > 1
    assert np.abs(ours.logits(ids) - want).max() < 1e-4
    assert np.abs(ours.logits(ids[1]) - want[1]).max() < 1e-4


def test_decode_with_a_cache(pair):
    theirs, ours = pair
    ids = tokens()
    cache = ours.new_cache(2, 8)
    theirs_cache = None
    for part in (ids[:, :7], *(ids[:, t : t + 1] for t in range(7, 30)), ids[:, 30:]):
        result = logits_of(theirs, part, past_key_values=theirs_cache, use_cache=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            theirs_cache = result.past_key_values
        assert np.abs(ours.logits(part, cache=cache) - result.logits.numpy()).max() < 1e-4


def test_hidden_states_block_by_block(pair):
    theirs, ours = pair
    ids = tokens(1)
    states = logits_of(theirs, ids, output_hidden_states=True).hidden_states
    x = ours.embed(ids)
    for i in range(ours.config.num_hidden_layers):
        if i or "project_in" not in str(theirs):
            assert np.abs(x - states[i].numpy()).max() < 1e-4
        x = ours.block(i, x)


def test_greedy_generation(pair):
    theirs, ours = pair
    ids = tokens(1, 9)[0]
    theirs.generation_config.pad_token_id = 0
    with torch.no_grad():
        want = theirs.generate(torch.from_numpy(ids)[None], max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert list(ours.generate(ids, 12, eos=())) == want[0, 9:].tolist()


def test_the_config_we_write_is_the_config_they_read(pair, tmp_path):
    theirs, ours = pair
    (tmp_path / "config.json").write_text(json.dumps(ours.config.to_dict()))
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    before, after = theirs.config.to_dict(), again.to_dict()
    ignored = {"_name_or_path", "dtype", "transformers_version", "architectures"}
    differ = {k: (before.get(k), after.get(k)) for k in before.keys() | after.keys() if k not in ignored
              and before.get(k) != after.get(k)}  # fmt: skip
    # no effect when no layer slides; and transformers 5 keeps the older key beside `rope_parameters`
    assert set(differ) <= {"max_window_layers", "sliding_window", "partial_rotary_factor"}, differ
    if differ.keys() - {"partial_rotary_factor"}:
        assert after.get("layer_types") == before.get("layer_types")
    read = ModelConfig.from_dict({**before, "dtype": "float32"})
    assert dataclasses.replace(read, extra={}) == dataclasses.replace(ours.config, extra={})


def test_bfloat16_hidden_states_are_near_theirs(tmp_path):
    """Not the same bits (their sums have another order), but as far from float32 as theirs are, and nearer to them."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**GATED)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.ndim > 1:
                p.copy_((torch.randn_like(p) * 1.5 / p.shape[-1] ** 0.5).bfloat16())
    theirs.save_pretrained(tmp_path)
    ids = tokens()
    exact = load(tmp_path).logits(ids)
    half = logits_of(theirs.bfloat16(), ids).logits.float().numpy()
    ours = load(tmp_path).replace(activation_format="bfloat16").logits(ids)

    def distance(a, b):
        return float(np.sqrt(np.mean((a - b) ** 2)))

    assert 0.5 < distance(ours, exact) / distance(half, exact) < 1.6
    assert distance(ours, half) < 1.5 * distance(half, exact)
