"""Every family of decoders: the logits that transformers computed, what its configs may say, and its experts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from qsim import checkpoints
from qsim.errors import QsimError
from qsim.families import families, read_config
from qsim.models import AttentionMath, ModelConfig, load, reference, with_outliers, with_scheme
from qsim.models.config import architectures
from qsim.models.mlp import Experts
from qsim.models.stacked import names as stacked_names
from qsim.safetensors import open_folder
from qsim.scheme import get_scheme

from .recorded import EVERY, FILE, TOKENS, folder_of, on_disk, tensors_of
from .small import CONFIGS, random_model, write_folder

RECORDED = np.load(FILE)
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0],
            "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 9.0]}  # fmt: skip


def test_every_family_that_runs_has_a_small_model_that_was_recorded():
    assert {ModelConfig.from_dict(config).architecture for config in CONFIGS.values()} == set(architectures())
    assert {re.sub(r"\W", "-", kind) for kind in CONFIGS} == set(RECORDED)


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_that_transformers_computed(kind, tmp_path):
    """Float32 sums of up to 192 products, in another order, leave some 1e-6 of the largest logit."""
    folder_of(kind, tmp_path)
    model = load(tmp_path)
    want = RECORDED[re.sub(r"\W", "-", kind)]
    assert np.abs(want).max() > 1
    assert np.abs(model.logits(TOKENS)[:, ::EVERY] - want).max() < 1e-4
    cache = model.new_cache(1)
    steps = [model.logits(TOKENS[:8], cache=cache), *(model.logits(TOKENS[t : t + 1], cache=cache) for t in (8, 9)),
             model.logits(TOKENS[10:], cache=cache)]  # fmt: skip
    assert np.abs(np.concatenate(steps)[:, ::EVERY] - want).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping changes what a decoder computes"),
        ("llama", {"num_experts": 8}, "num_experts contradicts what the decoder of llama is made of"),
        ("qwen3", {"use_qk_norm": False}, "use_qk_norm contradicts"),
        ("llama", {"rms_norm_eps": 1e-6, "norm_epsilon": 1e-5}, "norm_epsilon contradicts the norm_eps of llama"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1: llama rotates whole heads"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv changes what a decoder computes"),
        ("gemma2", {"hidden_act": "silu"}, "hidden_act contradicts the hidden_act of gemma2"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be false"),
        ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "default"},
                                        "sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
         "rope_type must be default in layers with a sliding window"),
        ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok must be at most the 5 experts"),
        ("mixtral", {"norm_topk_prob": False}, "norm_topk_prob contradicts the norm_topk_prob of mixtral"),
        ("qwen3-moe", {"routed_scaling_factor": 2.5}, "routed_scaling_factor changes what a decoder computes"),
        ("phi3", {"partial_rotary_factor": 0.5625, "head_dim": 16}, "need an even head_dim: got 16 times 0.5625"),
        ("granite", {"logits_scaling": 0}, "logits_scaling must be from"),
        ("gpt-neox", {"rotary_pct": 1.5}, "rotary_pct must be from 0 to 1"),
        ("gpt-oss", {"swiglu_limit": -1}, "swiglu_limit must be from"),
        ("gpt-oss", {"scoring_func": "sigmoid"}, "scoring_func changes what a decoder computes"),
        ("starcoder2", {"rope_interleave": True}, "rope_interleave changes what a decoder computes"),
    ],
)  # fmt: skip
def test_a_key_that_the_decoder_does_not_have_is_refused(kind, change, message):
    with pytest.raises(QsimError, match=message) as error:
        ModelConfig.from_dict({**CONFIGS[kind], **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_key_that_changes_nothing_is_read(kind):
    neutral = {"attn_logit_softcapping": None, "clip_qkv": None, "n_group": 1, "rope_interleave": False}
    plain = ModelConfig.from_dict(CONFIGS[kind])
    if kind == "gemma2":  # null is no cap there
        del neutral["attn_logit_softcapping"]
    read = ModelConfig.from_dict({**CONFIGS[kind], **neutral})
    assert read.unknown_keys == ()
    assert {**vars(read), "extra": {}} == {**vars(plain), "extra": {}}


def real_configs():
    """Those of published models whose model type the decoder runs."""
    runs = {families()[name].numerics.model_type or name for name in architectures()}
    paths = sorted((Path(__file__).parents[1] / "families" / "data").glob("*.json"))
    configs = {path: json.loads(path.read_text()) for path in paths if path.stem != "more_configs"}
    return [path for path, config in configs.items() if config.get("model_type") in runs]


@pytest.mark.parametrize("path", real_configs(), ids=lambda path: path.stem)
def test_real_configs_are_read_without_a_note(path):
    config = ModelConfig.from_dict(json.loads(path.read_text()), path.name)
    assert config.unknown_keys == ()
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_most_families_have_a_real_config():
    kinds = {json.loads(path.read_text())["model_type"] for path in real_configs()}
    assert {"gemma2", "gpt_neox", "gpt_oss", "llama", "mixtral", "olmo2", "phi3", "qwen3_moe", "starcoder2"} <= kinds


def test_a_model_with_images_is_refused_by_its_class():
    with pytest.raises(QsimError, match="supported architectures"):
        ModelConfig.from_dict({**CONFIGS["gemma3"], "architectures": ["Gemma3ForConditionalGeneration"]})


@pytest.mark.parametrize("name", architectures())
def test_a_family_that_runs_names_each_tensor_that_its_shape_counts(name):
    """The tensors that the decoder expects hold as many parameters as the family is priced with."""
    kinds = [kind for kind, config in CONFIGS.items() if ModelConfig.from_dict(config).architecture == name]
    for kind in kinds:
        config = ModelConfig.from_dict(CONFIGS[kind])
        model = random_model(kind)
        shape = read_config(CONFIGS[kind])
        assert model.parameters == shape.parameters, kind
        assert config.tie_word_embeddings == shape.tied


# --- longrope ---------------------------------------------------------------------------------------------


def longrope(**changes):
    return random_model(
        "phi3", rope_scaling=LONGROPE, original_max_position_embeddings=16, max_position_embeddings=64, **changes
    )


def test_longrope_has_other_frequencies_beyond_the_trained_context():
    model = longrope()
    tokens = np.random.default_rng(3).integers(0, 96, 30)
    for length in (16, 17, 30):
        want = reference.logits(model.config, model.tensors, tokens[:length])
        assert np.abs(model.logits(tokens[:length]) - want).max() < 1e-5 * np.abs(want).max()
    short, long = model.logits(tokens[:16]), model.logits(tokens[:17])[:16]
    assert np.abs(short - long).max() > 0.01
    again = ModelConfig.from_dict(model.config.to_dict())
    assert again.rope_scaling == model.config.rope_scaling


def test_a_cache_that_would_cross_longropes_switch_is_refused():
    model = longrope()
    tokens = np.random.default_rng(3).integers(0, 96, 30)
    cache = model.new_cache(1)
    model.logits(tokens[:15], cache=cache)
    model.logits(tokens[15:16], cache=cache)
    with pytest.raises(QsimError, match="more than 16 tokens by other frequencies: the cache holds keys of a shorter"):
        model.logits(tokens[16:17], cache=cache)
    cache = model.new_cache(1)
    parts = [model.logits(tokens[:20], cache=cache), model.logits(tokens[20:21], cache=cache)]
    assert np.abs(np.concatenate(parts) - model.logits(tokens[:21])).max() < 1e-4
    cache.truncate(10)
    with pytest.raises(QsimError, match="the cache holds keys of a longer"):
        model.logits(tokens[10:11], cache=cache)


def test_longrope_factors_must_fit_the_rotated_pairs():
    with pytest.raises(QsimError, match="short_factor must have one factor per rotated pair, 6: got 1"):
        random_model("phi3", rope_scaling={**LONGROPE, "short_factor": [1.0]}, original_max_position_embeddings=16)


# --- experts ----------------------------------------------------------------------------------------------


def experts_of(kind):
    model = random_model(kind)
    return model, next(block.mlp for block in model._parts.blocks if isinstance(block.mlp, Experts))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe", "gpt-oss"])
def test_an_expert_sees_exactly_the_tokens_that_chose_it(kind):
    model, mixture = experts_of(kind)
    h = np.random.default_rng(0).standard_normal((11, 64)).astype(np.float32)
    seen = {}
    mixture(h, lambda name, x: seen.setdefault(name, x.copy()))
    np.testing.assert_array_equal(seen[mixture.name], h)
    chosen, shares = mixture.route(h)
    assert shares.dtype == np.float32
    if model.config.norm_topk_prob:
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    for e, expert in enumerate(mixture.experts):
        rows = np.nonzero((chosen == e).any(axis=1))[0]
        name = expert.up.parts[0].name
        assert (name in seen) == (len(rows) > 0)
        if len(rows):
            np.testing.assert_array_equal(seen[name], h[rows])


def test_equal_scores_choose_the_first_experts():
    _, mixture = experts_of("mixtral")
    chosen, shares = mixture.route(np.zeros((3, 64), np.float32))
    assert (chosen == [0, 1]).all()
    np.testing.assert_allclose(shares, 0.5)


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
def test_quantised_experts_are_multiplied_as_other_linears(kind):
    """Packed kernels and dequantised weights differ by float32 rounding of sums of 64 to 96 products."""
    model = with_scheme(random_model(kind), "w4a16-g32")
    fused = model.logits(TOKENS)
    plain = model.replace(linear_settings={"*": {"engine": "dequantized"}}).logits(TOKENS)
    assert np.abs(fused - plain).max() < 2e-5 * np.abs(plain).max()
    assert np.abs(fused - random_model(kind).logits(TOKENS)).max() > 0.01


def mxfp4_folder(tmp_path, spoil=None):
    """gpt-oss as it is shipped: experts as blocks of MXFP4, everything else in full."""
    config = ModelConfig.from_dict(CONFIGS["gpt-oss"])
    tensors, rng = tensors_of(config), np.random.default_rng(0)
    disk = on_disk(config, tensors)
    for stacked, layers in stacked_names(config):
        count, k, n = disk.pop(stacked).shape
        disk[f"{stacked}_blocks"] = rng.integers(0, 256, (count, n, k // 32, 16), dtype=np.uint8)
        disk[f"{stacked}_scales"] = rng.integers(121, 126, (count, n, k // 32), dtype=np.uint8)
        assert len(layers) == count
    if spoil is not None:
        spoil(disk)
    data = {**config.to_dict(), "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    write_folder(tmp_path, data, disk)
    return disk


def test_mxfp4_experts_are_read_as_shipped(tmp_path):
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    values = np.array([*values, *(-v for v in values)], np.float32)
    disk = mxfp4_folder(tmp_path)
    model = load(tmp_path)
    assert model.notes == () or all("fused kernel" in note for note in model.notes)
    name = "model.layers.1.mlp.experts.3.down_proj"
    tensor = model.tensors[f"{name}.weight"]
    assert tensor.scheme.name == "mxfp4-weight-only"
    blocks = disk["model.layers.1.mlp.experts.down_proj_blocks"][3]
    scales = disk["model.layers.1.mlp.experts.down_proj_scales"][3]
    want = np.empty((64, 96), np.float32)
    for row in range(64):
        for column in range(96):
            byte = int(blocks[row, column // 32, column % 32 // 2])
            code = byte >> 4 if column % 2 else byte & 15
            want[row, column] = values[code] * 2.0 ** (int(scales[row, column // 32]) - 127)
    np.testing.assert_array_equal(tensor.dequantize(), want)
    dense = model.replace(tensors={n: t.dequantize() for n, t in model.tensors.items() if hasattr(t, "dequantize")})
    want_logits = dense.logits(TOKENS)
    assert np.abs(model.logits(TOKENS) - want_logits).max() < 2e-5 * np.abs(want_logits).max()


@pytest.mark.parametrize("layout", ["plain", "compressed-tensors", "awq"])
@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "mixtral", "qwen3-moe", "phi3", "olmo2", "granite", "gpt-neox",
                                  "starcoder2", "gpt-oss"])  # fmt: skip
def test_what_is_written_of_a_family_is_read_back(tmp_path, kind, layout):
    """Unquantised tensors are stored as the config's float32, and codes as they are: the same bits."""
    model = random_model(kind)
    if layout != "plain":
        model = with_scheme(model, "w4a16-g32")
    checkpoints.write(model, tmp_path / "out", layout=layout)
    again = load(tmp_path / "out")
    assert again.notes == ()
    assert again.config.architecture == model.config.architecture
    for name, tensor in model.tensors.items():
        if isinstance(tensor, np.ndarray):
            np.testing.assert_array_equal(again.tensors[name], tensor, err_msg=name)
        else:
            half = tensor.scales.astype(np.float16)  # AWQ and compressed-tensors keep 16-bit scales
            assert np.abs(again.tensors[name].dequantize() - tensor.dequantize()).max() <= 1e-3 * np.abs(half).max() * 8
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    left = config.get("quantization_config", {})
    routers = [
        f"{name[: -len('.weight')]}" for name in model.tensors if name.endswith(("e.gate.weight", "router.weight"))
    ]
    if layout != "plain":
        assert set(routers) <= set(left.get("ignore") or left.get("modules_to_not_convert") or ())


def test_experts_of_one_array_are_written_as_transformers_reads_them(tmp_path):
    model = random_model("gpt-oss")
    checkpoints.write(model, tmp_path / "out", layout="plain")
    files = open_folder(tmp_path / "out")
    stacked = files["model.layers.0.mlp.experts.gate_up_proj"]
    assert stacked.shape == (5, 64, 192)
    np.testing.assert_array_equal(
        stacked.float32()[3], model.tensors["model.layers.0.mlp.experts.3.gate_up_proj.weight"].T
    )
    assert files["model.layers.1.mlp.experts.down_proj_bias"].shape == (5, 64)
    quantised = with_scheme(model, "w4a16-g32")
    checkpoints.write(quantised, tmp_path / "values", layout="plain", dequantize=True, dtype="float32")
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    np.testing.assert_array_equal(load(tmp_path / "values").tensors[name], quantised.tensors[name].dequantize())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.pop("model.layers.0.mlp.experts.down_proj_scales"), "has no tensor .*down_proj_scales"),
        (lambda d: d.update({"model.layers.0.mlp.experts.down_proj_scales": np.zeros((5, 64, 2), np.uint8)}),
         r"must be U8 \(5, 64, 3\) by config.json: got U8 \(5, 64, 2\)"),
        (lambda d: d["model.layers.1.mlp.experts.gate_up_proj_scales"].fill(255), "a scale that is NaN"),
        (lambda d: d.pop("model.layers.1.mlp.experts.gate_up_proj_bias"), "has no tensor .*gate_up_proj_bias"),
        (lambda d: d.pop("model.layers.1.self_attn.sinks"), "has no tensor .*sinks"),
    ],
)  # fmt: skip
def test_damaged_mxfp4_experts_are_refused(tmp_path, spoil, message):
    mxfp4_folder(tmp_path, spoil)
    with pytest.raises(QsimError, match=message):
        load(tmp_path)


# --- variants ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "mixtral", "qwen3-moe", "phi3", "granite", "gpt-neox", "gpt-oss"])
def test_synthetic_outliers_leave_the_function(kind):
    """Gains are powers of two; a norm of 1 + w rounds its new w, which leaves 2^-24 of 1 over the smallest gain."""
    model = random_model(kind)
    outliers = with_outliers(model, channels=3, magnitude=50.0)
    want = model.logits(TOKENS)
    assert np.abs(outliers.logits(TOKENS) - want).max() < 1e-5 * np.abs(want).max()
    seen = {}
    outliers.logits(TOKENS, observe=lambda name, x: seen.setdefault(name, x.copy()))
    source, readers = outliers.fold_groups(1)[0]
    peaks = np.abs(seen[readers[0]]).max(axis=0)
    assert peaks.max() > 10 * np.median(peaks), source


def test_norms_behind_the_sublayers_have_no_channel_to_grow():
    with pytest.raises(QsimError, match="olmo2 of this kind has no norm that a gain can be folded behind"):
        with_outliers(random_model("olmo2"))


def test_a_block_whose_halves_are_parallel_has_no_halves():
    model = random_model("gpt-neox")
    with pytest.raises(QsimError, match="block 0 has no halves"):
        model.block(0, model.embed(TOKENS), half="mlp")


@pytest.mark.parametrize("kind", CONFIGS)
def test_16_bit_states_and_fp8_attention_and_caches_pass_every_family(kind):
    """Each seam changes the logits, and little: 2^-9 for BF16, 2^-4 for FP8, against random weights."""
    model = random_model(kind)
    want = model.logits(TOKENS)

    def distance(other):
        return float(np.sqrt(np.mean((other.logits(TOKENS) - want) ** 2) / np.mean(want**2)))

    assert 1e-5 < distance(model.replace(activation_format="bfloat16")) < 0.1
    assert 1e-5 < distance(model.replace(attention=AttentionMath(operand_format="float8_e4m3fn"))) < 0.3
    cached = model.replace(kv_cache=get_scheme("bf16-kvint8").kv_cache)
    assert 1e-6 < distance(cached) < 0.1
    cache = cached.new_cache(1)
    steps = [cached.logits(TOKENS[:9], cache=cache), *(cached.logits(TOKENS[t : t + 1], cache=cache) for t in (9, 10))]
    # float32 sums in another order can move a key to the next of 255 steps
    assert np.abs(np.concatenate(steps) - cached.logits(TOKENS)[:11]).max() < 0.05 * np.abs(want).max()
