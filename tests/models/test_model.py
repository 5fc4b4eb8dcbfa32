"""The decoder against its slow twin, itself with a cache, and its own seams."""

from __future__ import annotations

import numpy as np
import pytest

import qsim
from qsim.methods import Fold, apply_folds
from qsim.models import KVCache, Model, ModelConfig, reference
from qsim.scheme import quantize

from .small import CONFIGS, random_model

TOKENS = np.random.default_rng(5).integers(0, 96, (2, 21))


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 5e-6) -> None:
    """Of the largest logit: float32 sums of 64 to 96 products leave some 1e-6 a layer."""
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("kind", CONFIGS)
def test_equals_the_slow_decoder(kind):
    model = random_model(kind)
    want = reference.logits(model.config, model.tensors, TOKENS[0])
    assert 1 < np.abs(want).max() < 100
    close(model.logits(TOKENS[0]), want)


@pytest.mark.parametrize("kind", CONFIGS)
def test_cache_batch_and_blocks_give_the_same(kind):
    model = random_model(kind)
    whole = model.logits(TOKENS)
    assert whole.dtype == np.float32
    for row in (0, 1):
        close(whole[row], model.logits(TOKENS[row]), 1e-5)
    cache = model.new_cache(2, capacity=4)  # grows on the way
    steps = [model.logits(TOKENS[:, :9], cache=cache), *(model.logits(TOKENS[:, t : t + 1], cache=cache)
                                                         for t in range(9, 14)),
             model.logits(TOKENS[:, 14:], cache=cache)]  # fmt: skip
    close(np.concatenate(steps, axis=1), whole, 1e-5)
    assert cache.lengths.tolist() == [21, 21]
    assert cache.nbytes == 2 * 21 * model.config.num_hidden_layers * 2 * model.config.num_key_value_heads * \
        model.config.head_dim * 4  # fmt: skip
    x = model.embed(TOKENS)
    for i in range(model.config.num_hidden_layers):
        before = x.copy()
        y = model.block(i, x)
        np.testing.assert_array_equal(x, before)  # not written to
        x = y
    close(model.head(x), whole, 1e-5)
    np.testing.assert_array_equal(model.logits(TOKENS, last_only=True), model.unembed(model.hidden(TOKENS)[:, -1]))


def test_sequences_of_different_lengths_share_a_cache():
    model = random_model("mistral")
    cache = model.new_cache(2, capacity=24)
    model.logits(TOKENS[:1, :4], cache=cache[:1])
    model.logits(TOKENS[1:, :11], cache=cache[1:])
    assert cache.lengths.tolist() == [4, 11]
    new = np.array([[7], [8]])
    got = model.logits(new, cache=cache)
    close(got[0], model.logits(np.append(TOKENS[0, :4], 7))[-1:], 1e-5)
    close(got[1], model.logits(np.append(TOKENS[1, :11], 8))[-1:], 1e-5)
    cache.truncate(4)
    close(model.logits(np.array([[7], [8]]), cache=cache)[0], got[0], 1e-5)


def test_long_prompts_go_through_attention_in_tiles():
    model = random_model("mistral", max_position_embeddings=700, sliding_window=37)
    tokens = np.random.default_rng(0).integers(0, 96, 600)
    whole, cache = model.logits(tokens), model.new_cache()
    steps = [model.logits(tokens[:250], cache=cache), model.logits(tokens[250:], cache=cache)]
    close(np.concatenate(steps), whole)
    close(whole[:40], reference.logits(model.config, model.tensors, tokens[:40]))
    # two layers of 37: the last token sees 73, and rotary positions are relative; float32 angles differ by 1e-5
    close(model.logits(tokens[-73:])[-1], whole[-1], 1e-4)
    assert np.abs(model.logits(tokens[-72:])[-1] - whole[-1]).max() > 1e-4 * np.abs(whole).max()


def test_observe_sees_every_linear_and_its_input():
    model = random_model("qwen3")
    seen = {}
    model.logits(TOKENS, observe=lambda name, x: seen.setdefault(name, x.copy()))
    linears = model.linears()
    assert set(seen) == {*linears, "lm_head"}
    for name, one in linears.items():
        assert seen[name].shape == (TOKENS.size, one.in_features)
        assert seen[name].dtype == np.float32
    for i in range(model.config.num_hidden_layers):
        groups = model.block_linears(i)
        assert [len(g) for g in groups] == [3, 1, 2, 1]
        for group in groups:
            for name in group[1:]:
                np.testing.assert_array_equal(seen[name], seen[group[0]])
    assert list(linears) == [n for i in range(2) for g in model.block_linears(i) for n in g]


@pytest.mark.parametrize("kind", CONFIGS)
def test_fold_groups_keep_the_function(kind):
    """Each pair is what it says: dividing the source and multiplying the readers changes nothing."""
    model = random_model(kind)
    want = model.logits(TOKENS)
    rng = np.random.default_rng(0)
    found = model.fold_groups(1)
    expected = {"llama": 3, "llama-tied": 4, "opt": 4, "opt-350m": 2, "opt-plain-norms": 1, "mixtral": 2 + 5,
                "olmoe": 2 + 5, "qwen3-moe": 2 + 6, "phi3": 4, "olmo2": 1, "gpt-neox": 2, "gpt-neox-serial": 2,
                "starcoder2": 2, "gpt-oss": 2}  # fmt: skip
    assert len(found) == expected.get(kind, 3)
    for source, readers in found:
        factor = np.exp(rng.standard_normal(model.tensors[f"{readers[0]}.weight"].shape[1])).astype(np.float32)
        fold = Fold(source=source, names=tuple(readers), scale=factor)
        close(apply_folds(model, [fold]).logits(TOKENS), want, 1e-4)


def test_replace_shares_what_did_not_change():
    model = random_model()
    name = "model.layers.1.mlp.down_proj"
    q = quantize(model.tensors[f"{name}.weight"], "w8a16-channel", name=name)
    other = model.replace(tensors={f"{name}.weight": q}, name="other")
    assert other.name == "other"
    assert other.linears()[name].weight is q
    for key, one in model.linears().items():
        assert (other.linears()[key] is one) == (key != name)
    fused = {f"model.layers.0.self_attn.{w}_proj.weight": quantize(model.tensors[
        f"model.layers.0.self_attn.{w}_proj.weight"], "w4a16-g32") for w in "qkv"}  # fmt: skip
    first = other.replace(tensors=fused)
    first.logits(TOKENS)
    second = first.replace(tensors={f"{name}.weight": model.tensors[f"{name}.weight"]})
    assert second._parts.blocks[0].qkv.stacked is first._parts.blocks[0].qkv.stacked
    close(second.replace(tensors={k: model.tensors[k] for k in fused}).logits(TOKENS), model.logits(TOKENS), 1e-6)
    with pytest.raises(TypeError, match="no field 'engine'"):
        model.replace(engine="exact")


def test_weights_of_one_input_lie_in_one_array_without_a_copy():
    model = random_model()
    q, k = (model.tensors[f"model.layers.0.self_attn.{w}_proj.weight"] for w in "qk")
    assert q.base is k.base
    assert model._parts.blocks[0].qkv.stacked.weight is q.base


# --- bad input --------------------------------------------------------------------------------------------


def test_tokens_and_contexts_that_do_not_fit():
    model = random_model()
    with pytest.raises(ValueError, match="token ids must be 0 to 95: got 96"):
        model.logits([1, 96])
    with pytest.raises(ValueError, match="token ids must be 0 to 95: got -1"):
        model.logits([-1])
    with pytest.raises(TypeError, match="whole numbers"):
        model.logits([0.5])
    with pytest.raises(ValueError, match="at least one"):
        model.logits(np.zeros((1, 0), np.int64))
    with pytest.raises(ValueError, match="context is 64 tokens: got 65"):
        model.logits(np.zeros(65, np.int64))
    cache = model.new_cache()
    model.logits(np.zeros(60, np.int64), cache=cache)
    with pytest.raises(ValueError, match="context is 64 tokens: got 60 in the cache and 5 more"):
        model.logits(np.zeros(5, np.int64), cache=cache)
    assert cache.lengths.tolist() == [60]
    model.logits(np.zeros(4, np.int64), cache=cache)
    with pytest.raises(ValueError, match="the cache holds 1 sequences: got tokens of 2"):
        model.logits(np.zeros((2, 1), np.int64), cache=cache)
    other = KVCache(layers=3, batch=1, kv_heads=2, head_dim=16, limit=64)
    with pytest.raises(ValueError, match="the cache is of a model with 3 layers"):
        model.logits([1], cache=other)
    with pytest.raises(IndexError, match="blocks are 0 to 1"):
        model.block(2, model.embed([1]))


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w8a16-channel", "mxfp4-weight-only"])
def test_a_quantised_embedding_gives_its_own_rows(scheme):
    model, name = qsim.load("tiny"), "model.embed_tokens.weight"
    rows = quantize(model.tensors[name], scheme)
    tokens = np.array([[1, 5, 70, 200]])
    plain = model.replace(tensors={name: rows.dequantize()})
    np.testing.assert_array_equal(model.replace(tensors={name: rows}).embed(tokens), plain.embed(tokens))


def test_tensors_that_do_not_fit():
    model = random_model()
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=r"mlp.up_proj.weight is \(96, 64\) by the config: got \(96, 63\)"):
        model.replace(tensors={name: model.tensors[name][:, :63].copy()})
    with pytest.raises(ValueError, match="has no tensor model.layers.0.mlp.up_proj.weight"):
        model.replace(tensors={name: None})
    with pytest.raises(ValueError, match="is float64|are float32"):
        model.replace(tensors={name: model.tensors[name].astype(np.float64)})
    with pytest.raises(ValueError, match="nonsense is not a tensor"):
        model.replace(tensors={"nonsense": np.zeros(1, np.float32)})
    embedding = quantize(model.tensors["model.embed_tokens.weight"], "w8a8-channel-token")
    with pytest.raises(ValueError, match="the embedding's rows must have scales of their own, weights only"):
        model.replace(tensors={"model.embed_tokens.weight": embedding})
    with pytest.raises(ValueError, match="engine must be one of"):
        model.replace(linear_settings={"*": {"engine": "magic"}})
    with pytest.raises(ValueError, match="engine='exact'"):
        model.replace(linear_settings={"*": {"instruction": "ada.mma.s32.s8"}})


def test_nan_is_caught_where_it_enters():
    model = random_model()
    name = "model.layers.1.self_attn.o_proj.weight"
    broken = model.tensors[name].copy()
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match=r"before model.layers.1.post_attention_layernorm are NaN, Inf"):
        model.replace(tensors={name: broken}).logits(TOKENS)
    cache = model.new_cache(2)
    with pytest.raises(ValueError, match="NaN"):
        model.replace(tensors={name: broken}).logits(TOKENS, cache=cache)
    assert cache.lengths.tolist() == [0, 0]


def test_a_quantised_head():
    model = random_model("llama-tied")
    q = quantize(model.tensors["model.embed_tokens.weight"], "w8a16-channel")
    other = model.replace(tensors={"lm_head.weight": q})
    assert other.lm_head.weight is q
    assert 1e-4 < np.abs(other.logits(TOKENS) - model.logits(TOKENS)).max() < 0.3
    assert "lm_head" not in other.linears()


def test_hadamard_rotations():
    from qsim.models import hadamard, rotate

    rng = np.random.default_rng(0)
    for n in (1, 2, 8, 12, 20, 24, 28, 36, 96, 384, 768, 4864, 14336):
        x = rng.standard_normal((3, n)).astype(np.float32)
        if n <= 768:
            h = hadamard(n)
            np.testing.assert_allclose(h @ h.T, np.eye(n), atol=1e-5)
            np.testing.assert_allclose(np.abs(h), 1 / np.sqrt(n), rtol=1e-6)
            np.testing.assert_allclose(rotate(x), x @ h, atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(rotate(x), axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)
    with pytest.raises(ValueError, match="no Hadamard matrix is known here for 22016 channels"):
        hadamard(22016)


def test_an_online_rotation_undoes_a_rotated_weight():
    from qsim.models import hadamard

    model = random_model()
    name = "model.layers.0.mlp.down_proj"
    weight = model.tensors[f"{name}.weight"]
    turned = model.replace(
        tensors={f"{name}.weight": weight @ hadamard(96)},
        linear_settings={"*.0.mlp.down_proj": {"input_transform": "hadamard"}},
    )
    close(turned.logits(TOKENS), model.logits(TOKENS))
    seen = {}
    turned.logits(TOKENS, observe=lambda n, x: seen.setdefault(n, x))
    plain = {}
    model.logits(TOKENS, observe=lambda n, x: plain.setdefault(n, x))
    np.testing.assert_allclose(seen[name], plain[name] @ hadamard(96), atol=1e-4)


def test_a_model_says_what_it_is():
    model = random_model()
    assert repr(model) == "Model(llama, 2 layers of 64, 0.1 M parameters, float32)"
    assert model.parameters == sum(t.size for t in model.tensors.values())
    assert isinstance(model, Model)
    assert isinstance(model.config, ModelConfig)
