"""AWQ's scales, ranges and errors against direct transcriptions of llm-awq and AutoAWQ."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import awq, rtn
from qsim.methods.awq import candidates, clamp, search_clip, search_scale
from qsim.scheme import Scheme, TensorScheme, quantize

from . import published
from .anchors import make, output_error, scheme

F32 = np.float32


def problem(rows=48, columns=256, tokens=768, seed=4):
    w, x = make(rows, columns, tokens, seed)
    return w, x, x.T @ x / F32(tokens)


def linear_block(x, weights):
    return np.concatenate([x @ w.T for w in weights], axis=1)


def gated_block(x, weights):
    gate, up = x @ weights[0].T, x @ weights[1].T
    return gate / (1 + np.exp(-gate)) * up


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [linear_block, gated_block])
def test_scales_of_the_paper(bits, symmetric, block):
    w, x, _ = problem(96)
    weights = [w[:48], w[48:]]
    how = scheme(bits, 64, symmetric)
    target = block(x, weights)
    found = search_scale(
        weights, how, np.abs(x).mean(axis=0),
        lambda ws: float(np.mean((target - block(x, ws)).astype(np.float64) ** 2)), scale_rule="awq",
    )  # fmt: skip
    want, ratio, loss = published.awq_search_module_scale(block, weights, x, bits, 64, not symmetric)
    np.testing.assert_array_equal(found.scale, want)
    assert (found.ratio, found.loss) == (ratio, pytest.approx(loss, rel=1e-12))
    assert found.loss < found.rtn_loss
    assert found.losses[0] == (0.0, found.rtn_loss)


def test_the_grid_holds_round_to_nearest():
    """Scale 1 is its first entry under both formulae, so the search never does worse on its own objective."""
    w, x, h = problem()
    x_mean = np.abs(x).mean(axis=0)
    for formula in ("awq", "duo"):
        grid = list(candidates(x_mean, [w], formula, 20, 64))
        assert (grid[0][1] == 1).all()
        assert len(grid) == (20 if formula == "awq" else 21)
    np.testing.assert_array_equal([s for _, s in grid[1:]], published.duo_scales([w], x_mean, 64))
    plain, _ = rtn(w, scheme(4, 64), scale_rule="awq")
    _, record = awq(w, scheme(4, 64), mean_abs=x_mean, hessian=h, clip=False)
    assert record.details["rtn_objective"] == pytest.approx(output_error(w, plain, h), rel=1e-5)
    assert record.details["objective"] <= record.details["rtn_objective"]


@pytest.mark.parametrize("bits", [3, 4])
def test_ranges_of_the_paper(bits):
    w, x, _ = problem(40, 128, 300)
    want = published.awq_clip_layer(w, x, bits, 32)
    got = search_clip(w, x.T.astype(np.float64) @ x, scheme(bits, 32), scale_rule="awq")
    assert (got == want).mean() > 0.99  # two candidates of equal error may swap in the last digit
    np.testing.assert_allclose(got, want, rtol=0.06)
    kept = clamp(w, want, scheme(bits, 32))
    q = quantize(kept, scheme(bits, 32), scale_rule="awq")
    np.testing.assert_array_equal(q.dequantize(), published.pseudo_quantize(kept, bits, 32))


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("formula", ["awq", "duo"])
def test_awq_beats_round_to_nearest(bits, symmetric, formula):
    w, x, h = problem()
    how = scheme(bits, 64, symmetric)
    q, record = awq(w, how, mean_abs=np.abs(x).mean(axis=0), hessian=h, formula=formula, tokens=len(x), name="a.b")
    s = record.channel_scale
    error = np.linalg.norm((x / s) @ q.dequantize().T - x @ w.T) ** 2
    plain, _ = rtn(w, how, scale_rule="awq")
    assert record.output_error == pytest.approx(error / np.linalg.norm(x @ w.T) ** 2, rel=1e-3)
    assert record.rtn_output_error == pytest.approx(
        output_error(w, plain, h) / np.einsum("nk,nk->", w @ h, w), rel=1e-3
    )
    assert record.error_ratio < 0.9
    assert record.weight_mse == pytest.approx(np.mean((q.dequantize() / s - w) ** 2), rel=1e-4)
    assert record.to_dict()["details"]["ratio"] == record.details["ratio"]
    assert "channel_scale" not in record.to_dict()


def test_ranges_only_help_their_own_group():
    w, x, h = problem()
    wide, _ = awq(w, scheme(3, 64), mean_abs=np.abs(x).mean(axis=0), hessian=h, clip=False)
    narrow, record = awq(w, scheme(3, 64), mean_abs=np.abs(x).mean(axis=0), hessian=h)
    assert 0 < record.details["clipped_groups"] < 1
    assert 0.5 <= record.details["mean_shrink"] < 1
    assert narrow.scales.mean() < wide.scales.mean()


def test_dead_channels_and_groups_of_zeros():
    w, x, _ = problem()
    x[:, [3, 100]] = 0
    w[5, :64] = 0
    w[7] = 0
    q, record = awq(w, scheme(4, 64), mean_abs=np.abs(x).mean(axis=0), hessian=x.T @ x)
    assert np.isfinite(q.dequantize()).all()
    assert not q.dequantize()[7].any()
    assert record.zero_groups == 5
    q, record = awq(w, scheme(4, 64), mean_abs=np.abs(x).mean(axis=0), hessian=x.T @ x, formula="duo")
    assert np.isfinite(record.channel_scale).all()


def test_other_formats_and_whole_rows():
    w, x, h = problem()
    for how in ("mxfp4-weight-only", "nf4-g64", scheme(4, None)):
        q, record = awq(w, how, mean_abs=np.abs(x).mean(axis=0), hessian=h)
        assert record.details["objective"] <= record.details["rtn_objective"]
        assert q.scheme.weight.is_quantized


def test_bad_input():
    w, x, h = problem()
    mean = np.abs(x).mean(axis=0)
    bad = mean.copy()
    bad[4] = np.nan
    ragged = Scheme(weight=TensorScheme(format="uint4", granularity="group(96)", symmetric=False))
    for arguments, message in (
        ({"mean_abs": bad}, r"mean_abs must be finite .* an activation was NaN or Inf \(layer x\)"),
        ({"mean_abs": mean[:5]}, r"mean_abs has one entry an input, \(256,\): got \(5,\)"),
        ({"formula": "trio"}, "formula is awq or duo: got 'trio'"),
        ({"grid": 0}, "grid must be at least 1"),
        ({"scheme": ragged}, r"group_size must divide K: got group_size=96, K=256 \(layer x\)"),
        ({"hessian": h[:5]}, "Hessian of a weight with 256 columns"),
    ):
        given = {"scheme": scheme(4, 64), "mean_abs": mean, "hessian": h, **arguments}
        with pytest.raises(ValueError, match=message):
            awq(w, **given, name="x")
