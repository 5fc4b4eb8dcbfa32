"""Models rounded to a scheme, and models with synthetic outliers."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.models import with_outliers, with_scheme
from qsim.scheme import QuantizedTensor, get_scheme, quantize

from .small import CONFIGS, random_model

TOKENS = np.random.default_rng(5).integers(0, 96, (2, 21))
NOT = ("opt-350m", "opt-plain-norms", "olmo2")  # no norm before attention that has a weight
FUSED = ("phi3", "gpt-neox", "gpt-neox-serial")  # and norms of 1 + w: see `test_families`
FOLDABLE = [kind for kind in CONFIGS if kind not in NOT + FUSED and "gemma" not in kind]


def peaks(model):
    """Largest activation of every channel at the input of q, k, v in each layer."""
    found = {}
    model.logits(TOKENS, observe=lambda n, x: found.setdefault(n, np.abs(x).max(axis=0)) if "q_proj" in n else None)
    return list(found.values())


@pytest.mark.parametrize("kind", FOLDABLE)
def test_outliers_keep_every_bit_of_the_function(kind):
    model = random_model(kind)
    out = with_outliers(model, channels=3, magnitude=100, seed=2)
    difference = np.abs(out.logits(TOKENS) - model.logits(TOKENS)).max()
    assert difference <= 1e-6 * np.abs(model.logits(TOKENS)).max()  # powers of two: the same but for the sums' order
    for before, after in zip(peaks(model), peaks(out), strict=True):
        grown = after / before > 4
        assert grown.sum() == 3
        np.testing.assert_allclose(after[~grown], before[~grown], rtol=1e-5)
        ratio = after[grown] / np.median(before)
        assert (ratio > 25).all()
        assert (ratio < 400).all()
    same = [np.flatnonzero(a / b > 4).tolist() for a, b in zip(peaks(out), peaks(model), strict=True)]
    assert all(s == same[0] for s in same)
    assert out.name == f"{kind} with synthetic outliers"
    assert out.notes[-1].startswith("synthetic outliers: channels")
    assert model.notes == ()


def test_outliers_make_naive_w8a8_fail():
    model = random_model()
    out = with_outliers(model, channels=2, magnitude=100)

    def error(m, scheme):
        want = m.logits(TOKENS)
        return np.linalg.norm(with_scheme(m, scheme).logits(TOKENS) - want) / np.linalg.norm(want)

    assert error(model, "w8a8-tensor") < 0.05
    assert error(out, "w8a8-tensor") > 5 * error(model, "w8a8-tensor")
    # the channels are salient for weights too, AWQ's case: their small weights share a scale with the others
    assert error(out, "w8a16-channel") > 2 * error(model, "w8a16-channel")


def test_outliers_where_they_are_asked_for():
    model = random_model()
    out = with_outliers(model, channels=[7, 3], magnitude=64, layers=[1])
    norm = "model.layers.{}.input_layernorm.weight"
    np.testing.assert_array_equal(out.tensors[norm.format(0)], model.tensors[norm.format(0)])
    changed = np.flatnonzero(out.tensors[norm.format(1)] != model.tensors[norm.format(1)])
    assert changed.tolist() == [3, 7]
    gain = out.tensors[norm.format(1)][changed] / model.tensors[norm.format(1)][changed]
    np.testing.assert_array_equal(np.log2(gain), np.rint(np.log2(gain)))
    assert "channels 3, 7 of the normed hidden states of layers 1" in out.notes[-1]
    assert (
        with_outliers(model, seed=1).tensors[norm.format(0)].tolist()
        != with_outliers(model, seed=2).tensors[norm.format(0)].tolist()
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llama", {"channels": 0}, "channels must be 1 to 64: got 0"),
        ("llama", {"channels": [64]}, r"channels must be 0 to 63: got \[64\]"),
        ("llama", {"magnitude": 0.5}, "magnitude must be a finite number of at least 1"),
        ("llama", {"layers": [2]}, "layers must be 0 to 1: got 2"),
        ("opt-350m", {}, "no norm that a gain can be folded behind"),
    ],
)
def test_outliers_that_cannot_be(kind, options, message):
    with pytest.raises(ValueError, match=message):
        with_outliers(random_model(kind), **options)


def test_outliers_need_float_weights():
    with pytest.raises(ValueError, match="q_proj is quantised"):
        with_outliers(with_scheme(random_model(), "w8a16-channel"))


@pytest.mark.parametrize("name", ["w4a16-g32", "fp8-rowwise", "w8a8", "bf16", "fp32", "w8a16-channel-kvint8"])
def test_schemes(name):
    model = random_model()
    q = with_scheme(model, name)
    scheme = get_scheme(name)
    for key, one in q.linears().items():
        original = model.linears()[key].weight
        if scheme.weight.is_quantized:
            assert isinstance(one.weight, QuantizedTensor)
            assert one.weight == quantize(original, scheme)
        elif name == "fp32":
            np.testing.assert_array_equal(one.weight, original)
        else:
            assert not one.weight.view(np.uint32).astype(np.uint16).any()
    assert (q.kv_cache is not None) == ("kv" in name)
    assert q.name == f"llama {name}"
    assert (np.abs(q.logits(TOKENS) - model.logits(TOKENS)).max() > 0) == (name != "fp32")
    with pytest.raises(ValueError, match="static activation scales, which calibration finds"):
        with_scheme(model, "fp8-static")
