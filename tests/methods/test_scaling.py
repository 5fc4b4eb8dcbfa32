"""Results do not hang on the units of what calibration measured, and every method says the truth at the ends."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import QsimError
from qsim.methods import awq, fp8, gptq, linalg, quantize_model, rtn, smoothquant
from qsim.methods.activations import input_scale_of
from qsim.methods.awq import search_clip
from qsim.scheme import get_scheme, quantize
from tests.models.small import random_model

from .anchors import make

F32 = np.float32
W, X = make(48, 192, 400, 0)
H = X.astype(np.float64).T @ X


def with_float32_scales(name):
    scheme = get_scheme(name)
    return scheme.replace(weight=dataclasses.replace(scheme.weight, scale_format="float32"))


def parts(q):
    return [q.codes, q.scales, *(a for a in (q.zeros, q.group_index) if a is not None)]


def assert_same(a, b):
    for left, right in zip(parts(a), parts(b), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("columns", [192, 576])  # both ways to the factor
@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"act_order": "group_aware"}, {"correction": True}])
@settings(max_examples=3, deadline=None, derandomize=True, database=None)
@given(exponent=st.integers(-900, 900))
def test_gptq_gives_the_same_bits_for_the_hessian_in_any_power_of_two(columns, options, exponent):
    w, x = make(20, columns, 700, 2)
    x[:, [5, 70]] = 0  # dead inputs count for nothing, whatever the others are
    h = x.astype(np.float64).T @ x
    c = h * 0.1
    options = dict(options)
    here = options | ({"correction": c} if "correction" in options else {})
    there = options | ({"correction": np.ldexp(c, exponent)} if "correction" in options else {})
    want, record = gptq(w, h, "w4a16-g64", **here)
    got, other = gptq(w, np.ldexp(h, exponent), "w4a16-g64", **there)
    assert_same(got, want)
    assert (other.fallback, other.notes, other.error_ratio) == ("", (), record.error_ratio)
    assert (other.loss, other.damp) == (np.ldexp(record.loss, exponent), np.ldexp(record.damp, exponent))
    assert record.dead_columns == other.dead_columns == 2


@pytest.mark.parametrize("factor", [3.0, 1e-42, 1e-300, 1e37, 1e300])
def test_gptq_is_as_good_whatever_the_hessian_is_multiplied_by(factor):
    """A factor that is no power of two rounds every element anew, which may flip a code; the loss is the same."""

    def loss(q):
        d = q.dequantize().astype(np.float64) - W
        return np.einsum("ij,jk,ik->", d, H, d)

    right = loss(gptq(W, H, "w4a16-g64")[0])
    q, record = gptq(W, H * factor, "w4a16-g64")
    assert loss(q) == pytest.approx(right, rel=1e-3)  # a few flips of neighbours
    assert (record.fallback, record.notes) == ("", ())


def test_silent_inputs_in_float32_are_solved_or_fall_back_and_say_so():
    """A float32 Hessian of tiny inputs has few bits left, in the end none: never a silent 752-fold loss."""
    for size in (1e-18, 1e-20, 1e-21, 1e-22, 1e-23):
        x = (X * F32(size)).astype(F32)
        _, record = gptq(W, x.T @ x, "w4a16-g64")
        assert record.error_ratio < 1.01
        assert record.notes or not record.fallback


def test_a_factor_beyond_float32_is_a_failure_that_is_damped_and_recorded():
    """Cholesky takes this matrix; its inverse is 1e44 in one place."""
    h = np.eye(96, dtype=F32)
    h[1, 1] = 1e-44
    assert linalg.inverse_factor(h, np.arange(96), np.zeros(96, bool), 0.0, flip=False) is None
    bad = np.eye(96, dtype=F32)
    for value in (np.nan, np.inf):
        bad[3, 50] = value
        assert not linalg.is_finite_upper(bad)
    assert linalg.is_finite_upper(np.tril(np.full((96, 96), np.nan, F32), -1) + np.eye(96, dtype=F32))
    w = np.random.default_rng(0).standard_normal((8, 96)).astype(F32)
    q, record = gptq(w, h, "w4a16-g32", percdamp=0.0)
    assert np.isfinite(q.dequantize()).all()
    assert np.isfinite([record.loss, record.output_error]).all()
    assert record.notes == ("the Hessian is not positive definite with percdamp 0; used 0.01",)


def test_a_hessian_that_is_none_is_refused_with_its_reason():
    for h, told in (
        (np.where(np.eye(192) > 0, 1.0, 1e60), "none of its elements may exceed the largest of the diagonal"),
        (np.full((192, 192), np.nan), "must be finite: column 0 has NaN or Inf"),
        (-H * 1e37, "its diagonal is "),
    ):
        with pytest.raises(QsimError, match=told):
            gptq(W, h, "w4a16-g64")
    with pytest.raises(QsimError, match="correction must be finite"):
        gptq(W, H, "w4a16-g64", correction=np.full((192, 192), np.inf))


@pytest.mark.parametrize("formula", ["awq", "duo"])
@pytest.mark.parametrize("exponent", [-900, -140, -70, 66, 130, 900])
def test_awq_gives_the_same_codes_for_inputs_in_any_far_power_of_two(formula, exponent):
    x, mean = X.astype(np.float64), np.abs(X).mean(axis=0, dtype=np.float64)
    half = exponent // 2
    near = 2 * (41 - int(np.frexp(mean.max())[1]) // 2)  # already so far that inputs count in units of the largest
    want = awq(W, "w4a16-g64", mean_abs=np.ldexp(mean, near), hessian=x.T @ x, formula=formula)
    got = awq(W, "w4a16-g64", mean_abs=np.ldexp(mean, half), hessian=np.ldexp(x.T @ x, exponent), formula=formula)
    if abs(half) > 40:
        assert_same(got[0], want[0])
        np.testing.assert_array_equal(got[1].channel_scale, want[1].channel_scale)
    assert got[1].error_ratio < 1


@pytest.mark.parametrize("exponent", [-60, -30, 30, 55])
@pytest.mark.parametrize("scheme", ["w4a16-g64", "w3a16-g64", "fp8-rowwise"])
def test_searches_for_the_range_do_not_hang_on_the_size_of_the_weights(scheme, exponent):
    """Powers of errors leave float32's range long before the weights do: every candidate would be 0, or Inf."""
    scaled = with_float32_scales(scheme)
    floats = not scaled.weight.is_integer
    rule = {} if floats else {"scale_rule": "gptq"}
    norm = 2.0 if floats else 2.4
    want, got = (quantize(w, scaled, clip=norm, **rule) for w in (W, np.ldexp(W, exponent)))
    np.testing.assert_array_equal(got.scales, np.ldexp(want.scales, exponent))
    np.testing.assert_array_equal(got.codes, want.codes)
    assert (want.scales != quantize(W, scaled, **rule).scales).any()  # the search found something


def test_awq_clips_in_units_of_the_weights():
    def limits(w):
        return search_clip(w, H.astype(F32), with_float32_scales("w3a16-g64"), scale_rule="gptq")

    want = limits(W)
    assert (want < np.abs(W).max()).any()
    for exponent in (-70, 45):
        np.testing.assert_array_equal(limits(np.ldexp(W, exponent)), np.ldexp(want, exponent))


def test_weights_too_large_to_square_are_refused():
    for call in (
        lambda w: rtn(w, "w4a16-g64"), lambda w: gptq(w, H, "w4a16-g64"), lambda w: fp8(w),
        lambda w: smoothquant(w, max_abs=np.ones(192)), lambda w: awq(w, "w4a16-g64", mean_abs=np.ones(192), hessian=H),
    ):  # fmt: skip
        with pytest.raises(QsimError, match="weights must be below 2.60 in magnitude"):
            call(np.full((4, 192), 2e18, F32))


@pytest.mark.parametrize("peak", [1e-45, 1e-40, 1e-38, 1e-30, 1.0, 1e30, 3.4e38])
@pytest.mark.parametrize("scheme", ["fp8-static", "w8a8-tensor-static", "nvfp4"])
def test_stored_activation_scales_are_positive_numbers_at_both_ends(scheme, peak):
    scale = input_scale_of(peak, get_scheme(scheme))
    assert scale is None or 0 < F32(scale) < np.inf


def test_an_activation_peak_beyond_float32_is_refused():
    for bad in (1e39, np.inf, np.nan, -1.0):
        with pytest.raises(QsimError, match="must be a finite float32"):
            input_scale_of(bad, get_scheme("fp8-static"))


# --- the advice to allow a shorter last group -----------------------------------------------------------------

NARROW = np.random.default_rng(0).standard_normal((16, 200)).astype(F32)
SEEN = np.random.default_rng(1).standard_normal((300, 200)).astype(F32)
GRAM = SEEN.T @ SEEN
METHODS = {
    "quantize": lambda **how: quantize(NARROW, "w4a16-g128", **how),
    "rtn": lambda **how: rtn(NARROW, "w4a16-g128", **how)[0],
    "gptq": lambda **how: gptq(NARROW, GRAM, "w4a16-g128", **how)[0],
    "gptq with act order": lambda **how: gptq(NARROW, GRAM, "w4a16-g128", act_order=True, **how)[0],
    "awq": lambda **how: awq(NARROW, "w4a16-g128", mean_abs=np.abs(SEEN).mean(0), hessian=GRAM, **how)[0],
    "smoothquant": lambda **how: smoothquant(NARROW, "w4a8-g128", max_abs=np.abs(SEEN).max(0), **how)[0],
    "fp8": lambda **how: fp8(NARROW, "fp8-block128", **how)[0],
    "mxfp4": lambda **how: quantize(NARROW, "mxfp4", **how),
    "nvfp4": lambda **how: rtn(NARROW, "nvfp4", **how)[0],
}


@pytest.mark.parametrize("method", METHODS)
def test_the_advice_to_pass_ragged_is_true_where_it_is_given(method):
    run = METHODS[method]
    if method != "fp8":  # its blocks may be shorter anyway
        with pytest.raises(QsimError, match="allow a shorter last group: ragged=True, or a scheme such as"):
            run()
    q = run(ragged=True)
    assert q.scheme.weight.ragged
    assert q.shape == (16, 200)
    error = np.linalg.norm(q.dequantize() - NARROW) / np.linalg.norm(NARROW)
    assert error < (1.5 if method in ("awq", "smoothquant") else 0.2)  # those two scale channels


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "smoothquant", "fp8"])
def test_a_model_whose_columns_no_group_divides_is_quantised_with_ragged(method):
    model = random_model()
    tokens = np.random.default_rng(0).integers(0, 96, (4, 16))
    scheme = {"smoothquant": "w4a8-g48", "fp8": "fp8-block128"}.get(method, "w4a16-g48")
    if method != "fp8":
        with pytest.raises(QsimError, match="ragged=True"):
            quantize_model(model, method, scheme, tokens)
    result = quantize_model(model, method, scheme, tokens, ragged=True)
    assert result.scheme.weight.ragged
    assert len(result.layers) == len(model.linears())
