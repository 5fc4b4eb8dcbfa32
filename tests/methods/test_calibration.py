"""Streaming statistics against whole arrays."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import InputStatistics, calibration_of
from qsim.methods.linalg import accumulate, mirror, output_error
from tests.models.small import random_model

F32 = np.float32


def inputs(tokens=700, columns=200, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, columns)) * np.exp(rng.standard_normal(columns) * 3)).astype(F32)


@pytest.mark.parametrize("pieces", [[700], [1, 2, 300, 397], [70] * 10])
def test_statistics_of_a_stream(pieces):
    x = inputs()
    stats = InputStatistics(200, hessian=True, moments=True, sample=64, expected_tokens=700)
    for piece in np.split(x, np.cumsum(pieces)[:-1]):
        stats.update(piece)
    got, wide = stats.result(), x.astype(np.float64)
    assert got.tokens == 700
    exact = 2 / 700 * wide.T @ wide
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert (np.abs(got.hessian - exact) / scale).max() < 2e-6  # float32 sums of 700 products
    np.testing.assert_array_equal(got.hessian, got.hessian.T)
    np.testing.assert_allclose(got.mean_abs, np.abs(wide).mean(axis=0), rtol=1e-7)  # float64 sums
    np.testing.assert_array_equal(got.max_abs, np.abs(x).max(axis=0))
    np.testing.assert_array_equal(got.sample, x[np.unique(np.linspace(0, 699, 64).astype(int))])
    assert got.histogram.sum() == x.size


def test_means_do_not_drift():
    """A million small values behind a large one: float32 sums would lose them."""
    stats = InputStatistics(1, moments=True)
    stats.update(np.full((1, 1), 2.0**24, F32))
    for _ in range(10):
        stats.update(np.ones((100_000, 1), F32))
    assert stats.result().mean_abs[0] == pytest.approx((2**24 + 1e6) / (1e6 + 1), rel=1e-7)


def test_histograms():
    x = inputs()
    x[0, :3] = [0, np.finfo(F32).max, -np.finfo(F32).tiny / 4]
    stats = InputStatistics(200, moments=True)
    stats.update(x)
    got, sizes = stats.result(), np.sort(np.abs(x).ravel())
    for share in (1, 25, 50, 90, 99.9):
        exact = sizes[int(share / 100 * (sizes.size - 1))]
        assert exact <= got.percentile(share) * 1.001
        assert got.percentile(share) <= exact * 1.126  # a bin is an eighth of an octave's lower end
    assert got.percentile(100) == np.finfo(F32).max
    for limit in (1e-3, 0.5, 10.0, 100.0):
        assert got.clip_fraction(limit) == pytest.approx((sizes > limit).mean(), abs=0.02)
    assert got.clip_fraction(3.5e38) == 0


def test_correction_of_gptaq():
    x, near = inputs(), inputs(seed=1)
    stats = InputStatistics(200, correction=True)
    stats.update(near[:300], x[:300])
    stats.update(near[300:], x[300:])
    want = 2 / 700 * (x - near).astype(np.float64).T @ near
    np.testing.assert_allclose(stats.result().correction, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite(value):
    stats = InputStatistics(200, name="model.layers.0.mlp.down_proj")
    x = inputs()
    stats.update(x[:100])
    x[150, 7] = value
    with pytest.raises(
        ValueError, match=r"token 150 of calibration has NaN or Inf \(layer model.layers.0.mlp.down_proj"
    ):
        stats.update(x[100:])


@pytest.mark.parametrize("dtype", [F32, np.float64])
@pytest.mark.parametrize("columns", [1, 31, 64, 130])
def test_rank_updates(dtype, columns):
    x = inputs(90, columns).astype(dtype)
    total = np.zeros((columns, columns), dtype)
    accumulate(total, x[:40])
    accumulate(total, np.ascontiguousarray(x[40:]))
    want = x.astype(np.float64).T @ x
    np.testing.assert_allclose(mirror(total), want, atol=1e-5 * np.abs(want).max())
    np.testing.assert_array_equal(total, total.T)


@pytest.mark.parametrize("columns", [100, 1024, 1300])
def test_output_error(columns):
    rng = np.random.default_rng(0)
    d = rng.standard_normal((1030, columns)).astype(F32)
    x = rng.standard_normal((50, columns)).astype(F32)
    h = x.T @ x
    want = np.sum((x.astype(np.float64) @ d.T) ** 2)
    assert output_error(d, h) == pytest.approx(want, rel=2e-6)


def test_windows():
    model = random_model()
    ids = np.arange(200) % 96
    whole = calibration_of(model, ids, window=32)
    assert whole.tokens.shape == (6, 32)
    np.testing.assert_array_equal(whole.tokens.ravel(), ids[:192])
    assert [s.stop - s.start for s in whole.batches()] == [6]
    small = calibration_of(model, ids, window=32, micro_batch=4)
    assert [s.stop - s.start for s in small.batches()] == [4, 2]
    assert small.digest == whole.digest
    some = calibration_of(model, ids, window=32, windows=3)
    np.testing.assert_array_equal(some.tokens, whole.tokens[[0, 2, 5]])
    assert some.digest != whole.digest
    assert calibration_of(model, ids).tokens.shape == (3, 64)  # the context is shorter than 512
    assert calibration_of(model, ids[:60].reshape(3, 20)).tokens.shape == (3, 20)
    assert calibration_of(model, whole) is whole


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (np.arange(10), {}, "at least one window of 64 tokens: got 10; give more text or a shorter window"),
        (np.arange(10), {"window": 0}, "at least one window"),
        ("some text", {}, "llama has no tokenizer: give calibration as token ids"),
        (b"caf\xe9", {}, "a calibration text must be UTF-8: byte 3 is 0xe9"),
        (np.zeros((2, 65), int), {}, "a calibration window of 65 tokens exceeds the model's context of 64"),
        (np.arange(90), {"windows": 0}, "windows must be at least 1"),
        (np.array([1, 96]), {}, "token ids must be 0 to 95: got 96"),
    ],
)
def test_texts_that_are_refused(text, options, message):
    with pytest.raises(ValueError, match=message):
        calibration_of(random_model(), text, **options)
