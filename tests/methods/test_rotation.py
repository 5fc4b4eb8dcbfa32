"""Rotated models compute the same and quantise better."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import quantize_model, rotate_model
from qsim.models.variants import with_outliers
from tests.models.small import random_model

TOKENS = np.random.default_rng(3).integers(0, 96, (6, 32))


@pytest.mark.parametrize("which", ["offline", "online"])
@pytest.mark.parametrize("kind", ["llama", "llama-biases", "llama-tied", "mistral", "qwen2", "qwen3"])
def test_the_same_function(kind, which):
    model = random_model(kind)
    turned = rotate_model(model, which, seed=1)
    exact = model.logits(TOKENS)
    assert np.abs(turned.logits(TOKENS) - exact).max() < 1e-4 * np.abs(exact).max()
    assert not turned.config.tie_word_embeddings
    assert (turned.tensors["model.norm.weight"] == 1).all()
    weight = "model.layers.0.mlp.down_proj.weight"
    assert np.abs(turned.tensors[weight] - model.tensors[weight]).max() > 0.01
    assert f"rotated by Hadamard matrices, {which}" in turned.notes
    other = rotate_model(model, which, seed=2)
    assert np.abs(turned.tensors[weight] - other.tensors[weight]).max() > 0.01


def test_outliers_go():
    model = with_outliers(random_model("llama-tied", hidden_size=128), channels=3, magnitude=50)
    seen = {}
    turned = rotate_model(model, "online")
    for name, one in (("plain", model), ("turned", turned)):
        peaks = seen.setdefault(name, [])
        one.block(0, one.embed(TOKENS), observe=lambda _n, x, peaks=peaks: peaks.append(np.abs(x).max() / x.std()))
    assert max(seen["plain"]) > 2 * max(seen["turned"])


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_integer_activations_profit(method):
    model = with_outliers(random_model("llama-tied", hidden_size=128, intermediate_size=128), channels=3, magnitude=50)
    exact = model.logits(TOKENS)
    errors = [
        np.linalg.norm(quantize_model(model, method, "w4a8-g32", TOKENS, rotate=r).model.logits(TOKENS) - exact)
        for r in (None, "offline", "online")
    ]
    assert errors[1] < errors[0]
    assert errors[2] < errors[0]


def test_refused():
    with pytest.raises(ValueError, match="rotation needs RMSNorm: the LayerNorm of opt subtracts a mean"):
        rotate_model(random_model("opt"))
    with pytest.raises(ValueError, match="no Hadamard matrix is known here for 92 channels"):
        rotate_model(random_model(hidden_size=92, num_attention_heads=2, num_key_value_heads=1, head_dim=32))
    quantised = quantize_model(random_model(), "rtn", "w4a16-g32").model
    with pytest.raises(ValueError, match="rotate before quantising"):
        rotate_model(quantised)
