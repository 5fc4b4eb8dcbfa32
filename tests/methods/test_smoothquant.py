"""SmoothQuant against a direct transcription of its code."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import smoothquant
from qsim.methods.activations import joint_error, power_of_two_above
from qsim.methods.smoothquant import LEVELS, get_level, search_alpha, smoothing_scale
from qsim.scheme import get_scheme, quantize

from . import published
from .anchors import make

F32 = np.float32


def problem(rows=64, columns=256, tokens=512, seed=6):
    """Inputs with a few channels a hundred times the others, as language models have them."""
    w, x = make(rows, columns, tokens, seed)
    x[:, [7, 70, 200]] *= F32(10)
    return w, x


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.85, 1.0])
def test_scales_of_the_paper(alpha):
    w, x = problem()
    x[:, 9] = 0
    w[:, 10] = 0
    fcs = [w[:40], w[40:]]
    peaks = np.abs(x).max(axis=0)
    got = smoothing_scale(peaks, fcs, alpha)
    np.testing.assert_array_equal(got, published.smooth_scales(fcs, peaks, alpha))
    assert (got >= F32(1e-5)).all()


@pytest.mark.parametrize(
    ("level", "act", "weight"),
    [("w8a8-channel-token", "per_token", "per_channel"), ("O1", "per_token", "per_tensor"),
     ("O2", "per_tensor", "per_tensor")],
)  # fmt: skip
def test_products_of_the_paper(level, act, weight):
    """Codes and scales give the fake-quantised product of the original."""
    w, x = problem()
    peaks = np.abs(x).max(axis=0)
    _, record = smoothquant(w, level, max_abs=peaks, alpha=0.5, inputs=x)
    s = published.smooth_scales([w], peaks, 0.5)
    np.testing.assert_array_equal(record.channel_scale, s)
    want, exact = published.w8a8(x / s, w * s, act, weight), x.astype(float) @ w.T
    assert record.joint_error == pytest.approx(np.sum((want - exact) ** 2) / np.sum(exact**2), rel=1e-3)
    plain = published.w8a8(x, w, act, weight)
    assert record.rtn_joint_error == pytest.approx(np.sum((plain - exact) ** 2) / np.sum(exact**2), rel=1e-3)
    assert record.joint_error < 0.4 * record.rtn_joint_error


def test_static_scales():
    w, x = problem()
    peaks = np.abs(x).max(axis=0)
    q, record = smoothquant(w, "O3", max_abs=peaks, inputs=x)
    assert q.input_scale == pytest.approx((peaks / record.channel_scale).max() / 127, rel=1e-6)
    assert record.joint_error < 0.2 * record.rtn_joint_error
    assert smoothquant(w, "O2", max_abs=peaks)[0].input_scale is None


def test_smoothing_is_exact_before_rounding():
    w, x = problem()
    s = smoothing_scale(np.abs(x).max(axis=0), [w], 0.5)
    exact = x.astype(float) @ w.T
    np.testing.assert_allclose((x / s) @ (w * s).T, exact, atol=1e-5 * np.abs(exact).max())


def test_searched_alpha():
    w, x = problem()
    peaks = np.abs(x).max(axis=0)
    how = get_scheme("w8a8-channel-token")
    found = search_alpha([w], how, peaks, x)
    assert len(found.losses) == 22
    assert found.losses[0] == (None, found.unsmoothed_loss)
    assert found.loss == min(v for _, v in found.losses)
    _, record = smoothquant(w, how, max_abs=peaks, alpha=None, inputs=x)
    assert record.details["alpha"] == found.alpha
    fixed = [smoothquant(w, how, max_abs=peaks, alpha=a, inputs=x)[1].joint_error for a in (0.25, 0.5, 0.75)]
    assert record.joint_error <= min(fixed) * (1 + 1e-6)
    # nothing to move: the search leaves the layer alone, or does no worse
    flat = np.sign(x)
    found = search_alpha([w], how, np.abs(flat).max(axis=0), flat)
    assert found.loss <= found.unsmoothed_loss


def test_errors_with_a_hessian():
    w, x = problem()
    q, record = smoothquant(w, max_abs=np.abs(x).max(axis=0), hessian=x.T @ x / F32(len(x)))
    s = record.channel_scale
    d = q.dequantize() / s - w
    assert record.output_error == pytest.approx(np.sum((x @ d.T) ** 2) / np.sum((x @ w.T) ** 2), rel=1e-2)
    plain = quantize(w, "w8a8-channel-token").dequantize() - w
    assert record.rtn_output_error == pytest.approx(np.sum((x @ plain.T) ** 2) / np.sum((x @ w.T) ** 2), rel=1e-2)
    assert record.joint_error is None


def test_levels():
    assert {level: get_level(level).activation.granularity.kind for level in LEVELS} == {
        "O1": "token", "O2": "tensor", "O3": "tensor"}  # fmt: skip
    assert [get_level(level).activation.dynamic for level in LEVELS] == [True, True, False]
    assert all(get_level(level).weight.granularity.kind == "tensor" for level in LEVELS)


def test_joint_error_is_that_of_the_weight_when_activations_are_kept():
    w, x = problem()
    q = quantize(w, "w4a16-g128")
    want = np.sum((x @ (q.dequantize() - w).T).astype(float) ** 2)
    assert joint_error(x, w, q, relative=False) == pytest.approx(want, rel=1e-3)


def test_powers_of_two():
    x = np.array([1.0, 1.5, 2.0, 2.0000002, 0.75, 2.0**-126, 5e-324 + 2.0**-140], F32)
    got = power_of_two_above(x)
    np.testing.assert_array_equal(got, [1, 2, 2, 4, 1, 2.0**-126, 2.0**-140])
    assert (got >= x).all()


def test_bad_input():
    w, x = problem()
    peaks = np.abs(x).max(axis=0)
    bad = peaks.copy()
    bad[0] = np.inf
    for arguments, message in (
        ({"max_abs": bad}, r"max_abs must be finite .* an activation was NaN or Inf \(layer x\)"),
        ({"max_abs": peaks[:4]}, r"max_abs has one entry an input, \(256,\): got \(4,\)"),
        ({"alpha": 1.2}, r"alpha is from 0 .* to 1 .*: got 1.2 \(layer x\)"),
        ({"alpha": None}, r"the search for alpha compares outputs: give inputs \(layer x\)"),
        ({"scheme": "bf16"}, "there is nothing to quantise"),
    ):
        with pytest.raises(ValueError, match=message):
            smoothquant(w, **{"max_abs": peaks, **arguments}, name="x")
