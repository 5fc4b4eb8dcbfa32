"""The compiled loops against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from scipy.special import erf

from qsim.models import masked, ops
from qsim.models.flash import attend_tiles

F32 = np.float32
RNG = np.random.default_rng(0)


@njit(fastmath=True)
def fast_exp(x, out):  # a fast caller must not loosen exp32
    for i in range(x.shape[0]):
        out[i] = ops.exp32(x[i])


def test_exp_is_right_to_a_unit_in_the_last_place():
    x = np.concatenate([-np.linspace(0, 87, 400_001), -np.logspace(-40, 1.9, 10_000)]).astype(F32)
    got = np.empty_like(x)
    fast_exp(x, got)
    want = np.exp(x.astype(np.float64))
    assert np.abs(got / want - 1).max() < 2**-23
    assert ops.exp32(F32(0)) == 1
    assert 0 < ops.exp32(F32(-np.inf)) == ops.exp32(F32(-1000)) < 2e-38
    assert np.isnan(ops.exp32(F32(np.nan)))


@pytest.mark.parametrize("rows", [1, 5, 300])  # the last one in parallel
def test_swiglu(rows):
    x = (RNG.standard_normal((rows, 2 * 131)) * 8).astype(F32)
    x[0, :4] = [0, -200, 200, -0.0]
    gate, up = x[:, :131].astype(np.float64), x[:, 131:]
    with np.errstate(over="ignore"):
        want = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(ops.swiglu(x), want, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("gelu", lambda x: x * 0.5 * (1 + erf(x / np.sqrt(2)))),
        ("gelu_new", lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_activations(kind, function):
    x = (RNG.standard_normal((7, 33)) * 4).astype(F32)
    got = ops.activate(x, kind)
    assert got.dtype == F32
    np.testing.assert_allclose(got, function(x.astype(np.float64)), atol=2e-6)


@pytest.mark.parametrize("tokens", [1, 7, 600])
@pytest.mark.parametrize("window", [5, 10**6])
def test_causal_softmax(tokens, window):
    groups, first, position = 2, 3, 9
    keys = position + tokens - first
    scores = (RNG.standard_normal((groups * tokens, keys)) * 20).astype(F32)
    got = scores.copy()
    masked.causal_softmax(got, tokens, first, position, window, 0.3)
    query = position + np.tile(np.arange(tokens), groups)[:, None]
    key = first + np.arange(keys)[None, :]
    seen = (key <= query) & (key > query - window)
    e = np.where(
        seen, np.exp(0.3 * (scores.astype(np.float64) - np.where(seen, scores, -1e9).max(1, keepdims=True))), 0
    )
    # scale, difference, exp, a sum of up to 800 terms in lanes and a quotient: at most 16 half units of float32 near 1
    np.testing.assert_allclose(got, e / e.sum(1, keepdims=True), rtol=0, atol=16 * 2.0**-24)
    assert (got[~seen] == 0).all()


def test_softmax_hides_no_nan():
    for bad in (np.nan, np.inf, -np.nan):
        scores = np.zeros((1, 40), F32)
        scores[0, 17] = bad
        masked.causal_softmax(scores, 1, 0, 39, 100, 1.0)
        assert np.isnan(scores).any()


@pytest.mark.parametrize("lengths", [[0, 4], [130, 255], [3000, 1]])
@pytest.mark.parametrize("window", [6, 10**6])
def test_attention_of_one_token(lengths, window):
    batch, kv_heads, group, size = 2, 2, 3, 8
    keys, values = (RNG.standard_normal((batch, kv_heads, 3001, size)).astype(F32) for _ in "kv")
    wide = RNG.standard_normal((batch, 2 * kv_heads * group * size)).astype(F32)
    q = wide[:, : kv_heads * group * size]  # rows of a wider array
    got = masked.attend_one(q, keys, values, np.array(lengths), window, 0.5)
    for b in range(batch):
        seen = slice(max(0, lengths[b] + 1 - window), lengths[b] + 1)
        for h in range(kv_heads * group):
            here = slice(h * size, (h + 1) * size)
            k, v = (x[b, h // group, seen].astype(np.float64) for x in (keys, values))
            p = np.exp(0.5 * (k @ q[b, here]) - (0.5 * (k @ q[b, here])).max())
            np.testing.assert_allclose(got[b, here], p @ v / p.sum(), atol=2e-6)


@pytest.mark.parametrize("rows", [3, 400])
def test_rope_is_a_turn_of_complex_numbers(rows):
    heads, size = 5, 16
    x = RNG.standard_normal((rows, (heads + 2) * size)).astype(F32)
    positions = RNG.integers(0, 50, rows)
    angles = RNG.uniform(0, 6, (50, size // 2))
    got = x.copy()
    ops.rope(got, positions, np.cos(angles).astype(F32), np.sin(angles).astype(F32), heads, size)
    h = x.reshape(rows, -1, size).astype(np.float64)
    turned = (h[..., : size // 2] + 1j * h[..., size // 2 :]) * np.exp(1j * angles[positions])[:, None]
    want = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(got.reshape(h.shape)[:, :heads], want[:, :heads], atol=2e-6)
    np.testing.assert_array_equal(got[:, heads * size :], x[:, heads * size :])


def test_norms_report_the_first_row_that_is_not_finite():
    x = RNG.standard_normal((6, 40)).astype(F32)
    w, b, out = np.ones(40, F32), np.zeros(40, F32), np.empty((6, 40), F32)
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        y = x.copy()
        y[4, 3] = bad
        assert ops.rms_norm(y, w, F32(1e-5), out) == 4
        assert ops.layer_norm(y, w, b, F32(1e-5), out) == 4
    assert ops.rms_norm(x, w, F32(1e-5), out) == -1
    want = x.astype(np.float64)
    np.testing.assert_allclose(out, want / np.sqrt((want**2).mean(1, keepdims=True) + 1e-5), rtol=2e-6)
    assert ops.layer_norm(x, w, b, F32(1e-5), out) == -1
    want -= want.mean(1, keepdims=True)
    np.testing.assert_allclose(out, want / np.sqrt((want**2).mean(1, keepdims=True) + 1e-5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tokens", "past"), [(1, [0, 3]), (5, [7, 0]), (70, [0, 131])])
@pytest.mark.parametrize("window", [6, 10**6])
@pytest.mark.parametrize("size", [8, 6])
def test_attention_in_tiles(tokens, past, window, size):
    kv_heads, group = 2, 3
    keys, values = (RNG.standard_normal((2, kv_heads, max(past) + tokens + 2, size)).astype(F32) for _ in "kv")
    wide = RNG.standard_normal((2 * tokens, (kv_heads * group + 2) * size)).astype(F32)
    q = wide[:, : kv_heads * group * size].reshape(2, tokens, kv_heads * group, size)
    got = attend_tiles(q, keys, values, np.array(past), window, 0.5)
    for b in range(2):
        for t in range(tokens):
            at = past[b] + t
            seen = slice(max(0, at + 1 - window), at + 1)
            for h in range(kv_heads * group):
                k, v = (x[b, h // group, seen].astype(np.float64) for x in (keys, values))
                s = 0.5 * (k @ q[b, t, h])
                p = np.exp(s - s.max())
                np.testing.assert_allclose(got[b, t, h], p @ v / p.sum(), atol=2e-6)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 130, 33), (8, 64, 384), (3, 31, 100)])
def test_products_of_few_tokens(m, n, k):
    x, w = RNG.standard_normal((m, k)).astype(F32), RNG.standard_normal((n, k)).astype(F32)
    got = ops.few_tokens(x, w)
    np.testing.assert_allclose(got, x.astype(np.float64) @ w.astype(np.float64).T, atol=1e-4)
