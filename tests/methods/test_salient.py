"""Salient channels: which are kept, that nothing else changes, and that the choice by activation is what helps."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import ChannelSize, channel_sizes, keep_channels, protect, rtn, salient_table
from qsim.methods.salient import kept_count, rank_channels
from qsim.models import load, tiny_text, with_outliers, with_scheme
from tests.models.small import random_model

F32 = np.float32
TOKENS = np.random.default_rng(7).integers(0, 96, (6, 32))
NAME = "model.layers.1.mlp.down_proj"


def size(values) -> ChannelSize:
    values = np.asarray(values, float)
    return ChannelSize(tokens=1, mean_abs=values, mean_square=values**2)


def test_kept_channels_are_float16_and_the_others_are_rounded_to_nearest():
    w = (np.random.default_rng(0).standard_normal((24, 128)) * 0.03).astype(F32)
    kept = [5, 64, 127]
    got = keep_channels(w, "w3a16-g64", kept)
    plain = rtn(w, "w3a16-g64")[0].dequantize()
    others = np.setdiff1d(np.arange(128), kept)
    np.testing.assert_array_equal(got[:, others], plain[:, others])
    np.testing.assert_array_equal(got[:, kept], w[:, kept].astype(np.float16).astype(F32))
    assert (got[:, kept] != plain[:, kept]).any()
    np.testing.assert_array_equal(keep_channels(w, "w3a16-g64", []), plain)


def test_sizes_are_those_of_what_the_layer_reads():
    model, seen = random_model(), {}
    model.logits(TOKENS, observe=lambda name, x: seen.update({name: x.astype(np.float64)}))
    found = channel_sizes(model, TOKENS)
    assert list(found) == list(model.linears())
    for name, one in found.items():
        assert one.tokens == TOKENS.size
        np.testing.assert_allclose(one.mean_abs, np.abs(seen[name]).mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(one.mean_square, (seen[name] ** 2).mean(axis=0), rtol=1e-5)


def test_order_of_the_three_choices():
    w = np.array([[1, 2, 3, -9], [1, -2, 3, 0]], F32)
    assert rank_channels("weight", w).tolist() == [3, 2, 1, 0]
    assert rank_channels("activation", w, size([2, 9, 9, 1])).tolist() == [1, 2, 0, 3]
    drawn = rank_channels("random", np.zeros((2, 50), F32), seed=3)
    assert sorted(drawn) == list(range(50))
    assert drawn.tolist() != rank_channels("random", np.zeros((2, 50), F32), seed=4).tolist()


def test_a_share_is_one_channel_at_least():
    assert [kept_count(s, 384) for s in (0, 0.001, 0.01, 0.03, 1)] == [0, 1, 4, 12, 384]
    assert [kept_count(s, 768) for s in (0.001, 0.01, 0.03)] == [1, 8, 23]


def test_how_many_channels_hold_half_of_the_energy():
    assert size(np.ones(100)).half == 0.5
    assert size([1] * 99 + [100]).half == 0.01
    assert size(np.zeros(8)).half == 0.5
    model = load("tiny")
    text = tiny_text("calibration")[:2048]
    plain, grown = channel_sizes(model, text), channel_sizes(with_outliers(model, channels=4), text)
    name = "model.layers.3.self_attn.q_proj"
    assert grown[name].half < 0.02 < 0.05 < plain[name].half < 0.5


def test_no_share_is_rounding_and_all_is_float16():
    model = random_model()
    none, everything = protect(model, "w3a16-g32", 0.0, "weight"), protect(model, "w3a16-g32", 1.0, "random")
    plain = with_scheme(model, "w3a16-g32")
    for name in model.linears():
        key = f"{name}.weight"
        np.testing.assert_array_equal(none.tensors[key], plain.tensors[key].dequantize())
        np.testing.assert_array_equal(everything.tensors[key], model.tensors[key].astype(np.float16).astype(F32))
    assert none.notes[-1].endswith("0.00% of the weights, channels chosen by weight, stay float16")


def test_only_the_choice_by_activation_helps():
    """The paper's table, on synthetic outliers: the weights behind them are small, so rounding loses the channels."""
    plain = load("tiny")
    model = with_outliers(plain, magnitude=100)
    table = salient_table(model, tiny_text("test"), tiny_text("calibration")[:4096], schemes=["w4a16-g128"],
                          shares=[0.03], reference=plain, max_bytes=4096)  # fmt: skip
    assert table.by.tolist() == ["none", "activation", "weight", "random"]
    assert table.share.tolist() == [0, 0.03, 0.03, 0.03]
    assert table.kept.iloc[0] == 0
    assert table.kept.iloc[1] == pytest.approx(0.03, abs=0.002)
    kl = table.set_index("by").kl
    assert kl["activation"] < 0.6 * kl["none"]
    assert min(kl["weight"], kl["random"]) > 0.85 * kl["none"]


def test_bad_input():
    model = random_model()
    w = model.tensors[f"{NAME}.weight"]
    with pytest.raises(ValueError, match=r"needs the size of every input, \(64,\): got none \(layer .*q_proj\)"):
        protect(model, "w3a16-g32", 0.01)
    with pytest.raises(ValueError, match="channels are chosen by activation, weight, random: got 'size'"):
        protect(model, "w3a16-g32", 0.01, "size")
    with pytest.raises(ValueError, match="a share of channels is from 0 to 1: got 1.5"):
        protect(model, "w3a16-g32", 1.5, "weight")
    with pytest.raises(ValueError, match="shown with schemes of weights only: got w8a8"):
        protect(model, "w8a8", 0.01, "weight")
    with pytest.raises(ValueError, match="weights to quantise are float: model.layers.0.self_attn.q_proj is quantised"):
        protect(with_scheme(model, "w4a16-g32"), "w4a16-g32", 0.01, "weight")
    with pytest.raises(ValueError, match=rf"channels are 0 to {w.shape[1] - 1}: got 2 to 4096 \(layer x\)"):
        keep_channels(w, "w3a16-g32", [2, 4096], name="x")
    with pytest.raises(ValueError, match=r"a kept channel has weights beyond float16's 65504 \(layer x\)"):
        keep_channels(np.full((4, 32), 1e6, F32), "w3a16-g32", [1], name="x")
    gain = model.tensors["model.layers.1.post_attention_layernorm.weight"].copy()
    gain[3] = 3e38
    broken = model.replace(tensors={"model.layers.1.post_attention_layernorm.weight": gain})
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"NaN or Inf \(layer model.layers.1.mlp.gate_proj"):
        channel_sizes(broken, TOKENS)
