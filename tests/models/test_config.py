"""`config.json` of every family, in the spellings of transformers 4 and 5."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import QsimError
from qsim.models import ModelConfig, RopeScaling
from qsim.models.loading import read_config
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
    assert config.to_dict()["architectures"][0].lower().startswith(config.architecture.replace("_", ""))


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
        (
            {"type": "dynamic", "factor": 2.0},
            "rope type must be one of default, linear, llama3, yarn, longrope: got 'dynamic'",
        ),
        ({"rope_type": "longrope"}, "rope type 'longrope' needs 'short_factor'"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [0]}, "long_factor must hold numbers"),
        ({"rope_type": "linear"}, "rope type 'linear' needs 'factor'"),
        ({"rope_type": "llama3", "factor": 8.0}, "needs 'low_freq_factor'"),
        ({"rope_type": "linear", "factor": -1}, "factor must be from 1 to 1e.06: got -1"),
        ({"rope_type": "linear", "factor": float("inf")}, "factor must be from 1"),
        ({"rope_type": "linear", "factor": "2"}, "factor must be a number: got '2'"),
        ({"rope_type": "llama3", **LLAMA3, "low_freq_factor": 0}, "low_freq_factor must be from"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, "must be less than high_freq_factor = 1"),
        ({"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 0}, "original_max_position_embeddings"),
        ({"rope_type": "yarn", "factor": 4, "beta_slow": 0}, "beta_slow must be from"),
        ({"rope_type": ["yarn"]}, "rope_type must be a text"),
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
        ({"hidden_size": None}, "hidden_size must be an integer: got null"),
        ({"hidden_size": 63}, "num_attention_heads must divide hidden_size = 63 .*: got 4"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide the 4 attention heads: got 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be from 1 to 2048: got 0"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be from 1 to 2048: got 1000000"),
        ({"vocab_size": "many"}, "vocab_size must be an integer: got 'many'"),
        ({"rope_theta": True}, "rope_theta must be a number: got True"),
        ({"rope_theta": 10**400}, r"rope_theta must be from 2 to 1e\+18: got an integer of 1329 bits"),
        ({"rope_theta": 0}, "rope_theta must be from"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_parameters: rope_theta must be a number"),
        ({"rms_norm_eps": "4"}, "rms_norm_eps must be a number: got '4'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be from 0 to 1"),
        ({"eos_token_id": [1, True]}, "eos_token_id must be a list of integers"),
        ({"eos_token_id": 1.0}, "eos_token_id must be an integer"),
        ({"torch_dtype": 16}, "torch_dtype must be a text"),
        ({"quantization_config": "gptq"}, "quantization_config must hold a table"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be from 1"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"hidden_act": 7}, "hidden_act must be a text"),
        ({"hidden_act": "swish"}, "hidden_act must be silu, relu"),
        ({"head_dim": 15}, "rotary embeddings need an even head_dim: got 15"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "got architectures=.'LlamaForSequenceClassification'"),
        ({"model_type": "bloom"}, "got model_type='bloom'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict({"model_type": "llama", **GATED, **changes})


def test_layer_types_that_are_refused():
    for types, message in (
        (["full_attention"], "layer_types must have 2 entries: got 1"),
        (["full_attention", "linear_attention"], "must hold only full_attention, sliding_attention"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig.from_dict({**CONFIGS["qwen3"], "layer_types": types})


@pytest.mark.parametrize("window", [-1, 1.5, 0, True, "4096", 10**30])
def test_windows_that_are_refused(window):
    with pytest.raises(QsimError, match="sliding_window must be"):
        ModelConfig.from_dict({**CONFIGS["mistral"], "sliding_window": window})


def test_every_refusal_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **GATED, "hidden_act": "swish"}))
    with pytest.raises(QsimError, match="config.json: hidden_act"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **GATED, "rope_theta": True}))
    with pytest.raises(QsimError, match="config.json: rope_theta must be a number"):
        read_config(tmp_path)


ROPE = st.one_of(
    st.none(), st.integers(), st.fixed_dictionaries({"rope_type": st.sampled_from(["linear", "llama3", "yarn", "x"])},
    optional={key: st.one_of(st.floats(), st.integers(-2, 9), st.booleans(), st.just("2"), st.just(10**400))
              for key in ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale",
                          "attention_factor", "original_max_position_embeddings", "rope_theta", "truncate")}),
)  # fmt: skip
ODD = st.one_of(st.none(), st.booleans(), st.integers(-2, 70), st.floats(), st.text(max_size=3), st.just(10**400),
                st.lists(st.integers(-1, 3), max_size=3), st.just({}), ROPE)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(CONFIGS)), st.data())
def test_a_config_with_odd_values_is_read_or_refused_in_a_sentence(kind, data):
    keys = st.sampled_from([*CONFIGS[kind], "rope_scaling", "rope_theta", "rms_norm_eps", "eos_token_id", "dtype",
                            "layer_types", "sliding_window", "quantization_config", "architectures"])  # fmt: skip
    change = data.draw(st.dictionaries(keys, ODD, min_size=1, max_size=3))
    scaling = data.draw(ROPE)
    try:
        config = ModelConfig.from_dict({**CONFIGS[kind], "rope_scaling": scaling, **change})
    except QsimError:
        return
    if config.architecture != "opt":
        inverse, factor = frequencies(config.rope_theta, config.head_dim, config.rope_scaling, 64)
        assert np.isfinite(inverse).all()
        assert np.isfinite(factor)
