"""`config.json` of every family, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.models import ModelConfig, RopeScaling
from qsim.models.rope import frequencies

from .small import BASE, CONFIGS, GATED

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip(kind):
    config = ModelConfig.from_dict({**CONFIGS[kind], "eos_token_id": [1, 2], "zeal": 1, "torch_dtype": "bfloat16"})
    again = ModelConfig.from_dict(config.to_dict())
    assert again == config
    assert config.unknown_keys == ("zeal",)
    assert config.eos_token_ids == (1, 2)
    assert config.dtype == "bfloat16"
    assert config.to_dict()["architectures"][0].lower().startswith(config.architecture)


def test_spellings_of_rope():
    base = {"model_type": "llama", **GATED}
    old = ModelConfig.from_dict({**base, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    older = ModelConfig.from_dict({**base, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}})
    new = ModelConfig.from_dict({**base, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}})
    assert old == older == new
    assert old.rope_scaling == RopeScaling(rope_type="llama3", **LLAMA3)
    plain = ModelConfig.from_dict({**base, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})
    assert plain.rope_theta == 1e6
    assert plain.rope_scaling is None
    assert ModelConfig.from_dict({**base, "rope_scaling": None}).rope_theta == 10000.0


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope types are default, linear, llama3, yarn: got 'dynamic'"),
        ({"rope_type": "longrope"}, "got 'longrope'"),
        ({"rope_type": "linear"}, "rope type 'linear' needs 'factor'"),
        ({"rope_type": "llama3", "factor": 8.0}, "needs 'low_freq_factor'"),
    ],
)
def test_rope_scalings_that_are_refused(scaling, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({"model_type": "llama", **GATED, "rope_scaling": scaling})


def test_llama3_frequencies_by_their_definition():
    """Wavelengths above old/low are stretched by the factor, below old/high kept, between blended."""
    plain, _ = frequencies(5e5, 128, None, 131072)
    scaled, factor = frequencies(5e5, 128, RopeScaling(rope_type="llama3", **LLAMA3), 131072)
    assert factor == 1
    wavelength = 2 * np.pi / plain.astype(np.float64)
    for p, s, w in zip(plain.astype(np.float64), scaled, wavelength, strict=True):
        t = (8192 / w - 1) / 3
        want = p / 8 if w > 8192 else p if w < 2048 else (1 - t) * p / 8 + t * p
        assert s == pytest.approx(want, rel=1e-6)
    assert (scaled[wavelength > 8192] < plain[wavelength > 8192] / 7.9).all()


def test_defaults_of_families():
    mistral = ModelConfig.from_dict(
        {"model_type": "mistral", **BASE, "intermediate_size": 96, "num_attention_heads": 8}
    )
    assert mistral.num_key_value_heads == 8
    assert mistral.sliding_windows == (4096, 4096)
    assert ModelConfig.from_dict({**CONFIGS["mistral"], "sliding_window": None}).sliding_windows == (None, None)
    qwen = ModelConfig.from_dict({"model_type": "qwen2", **GATED, "sliding_window": 32})
    assert qwen.sliding_windows == (None, None)
    assert qwen.attention_bias
    assert not qwen.attention_out_bias
    assert ModelConfig.from_dict(CONFIGS["qwen2"]).sliding_windows == (None, 6)
    typed = {**CONFIGS["qwen3"], "use_sliding_window": True, "sliding_window": 9,
             "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    assert ModelConfig.from_dict(typed).sliding_windows == (9, None)
    opt = ModelConfig.from_dict(CONFIGS["opt"])
    assert (opt.norm_eps, opt.hidden_act, opt.tie_word_embeddings, opt.num_key_value_heads) == (1e-5, "relu", True, 4)
    assert not ModelConfig.from_dict(CONFIGS["opt-350m"]).final_layer_norm
    assert ModelConfig.from_dict({"architectures": ["Qwen3ForCausalLM"], **GATED}).head_dim == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"hidden_size": 63}, "num_attention_heads must divide hidden_size: got 4 and 63"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads: got 3 and 4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is a whole number of at least 1: got 0"),
        ({"vocab_size": "many"}, "vocab_size is a whole number of at least 1: got 'many'"),
        ({"hidden_act": "swish"}, "hidden_act is silu, relu"),
        ({"head_dim": 15}, "rotary embeddings need an even head_dim: got 15"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "got architectures=.'LlamaForSequenceClassification'"),
        ({"model_type": "mixtral"}, "got model_type='mixtral'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({"model_type": "llama", **GATED, **changes})


def test_layer_types_that_are_refused():
    for types in (["full_attention"], ["full_attention", "linear_attention"]):
        with pytest.raises(ValueError, match="layer_types names full_attention or sliding_attention for each of 2"):
            ModelConfig.from_dict({**CONFIGS["qwen3"], "layer_types": types})
