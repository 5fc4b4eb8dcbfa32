"""GPTQ and RTN against the errors that the original code gave on the same layers."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import gptq, rtn

from . import anchors
from .anchors import CASES, COMPRESSOR, LARGE, MEDIUM, SMALL, Case, layer, output_error, scheme

CHECK = {  # sum(W), tr(H), tr(W H W^T)
    SMALL: (1.8994409749, 1562.16209, 37.33614324),
    MEDIUM: (2.7841467708, 11000.3046, 1230.749281),
    LARGE: (2.7336973276, 31394.1935, 51237.60691),
}
RTOL = {SMALL: 1e-5, MEDIUM: 1e-3, LARGE: 1e-3}  # rounding flips make GPTQ chaotic in the last digits


@pytest.mark.parametrize("size", [SMALL, MEDIUM])
def test_the_layers_are_those_of_the_recorded_runs(size):
    w, _, h = layer(*size)
    np.testing.assert_allclose(w[0, :4], [0.002514604479, -0.002642097184, 0.01280845329, 0.002098002238], rtol=1e-9)
    got = w.sum(dtype=np.float64), np.trace(h.astype(np.float64)), np.einsum("nk,nk->", w.astype(float) @ h, w)
    np.testing.assert_allclose(got, CHECK[size], rtol=5e-9)


@pytest.mark.parametrize("size", [SMALL, MEDIUM])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_errors_of_the_original(case: Case, size):
    check(case, size)


def check(case: Case, size: tuple[int, int, int]) -> None:
    w, _, h = layer(*size)
    how = scheme(case.bits, case.group, case.symmetric)
    plain, _ = rtn(w, how, scale_rule="gptq", mse=case.options.get("mse", False))
    assert output_error(w, plain, h) == pytest.approx(case.rtn[size], rel=1e-9)
    q, record = gptq(w, h, how, **case.options)
    assert output_error(w, q, h) == pytest.approx(case.gptq[size], rel=RTOL[size])

    d = w.astype(np.float64) - q.dequantize()
    damped = output_error(w, q, h) + record.damp * np.square(d).sum()
    assert 2 * record.loss == pytest.approx(damped, rel=1e-5)
    assert q.codes.max() >> case.bits == 0
    assert record.output_error == pytest.approx(case.gptq[size] / CHECK[size][2], rel=RTOL[size])
    assert record.rtn_output_error == pytest.approx(case.rtn[size] / CHECK[size][2], rel=1e-5)


@pytest.mark.parametrize("size", [SMALL, MEDIUM])
@pytest.mark.parametrize("case", COMPRESSOR, ids=lambda c: c.name)
def test_errors_of_llm_compressor(case: Case, size):
    w, _, h = layer(*size)
    rule = "compressed-tensors"
    q, _ = gptq(w, h, scheme(4, 128, case.symmetric), scale_rule=rule, **case.options)
    assert output_error(w, q, h) == pytest.approx(case.gptq[size], rel=RTOL[size])


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [c for c in CASES if LARGE in c.gptq], ids=lambda c: c.name)
def test_errors_of_the_original_at_4096(case: Case):
    check(case, LARGE)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", COMPRESSOR, ids=lambda c: c.name)
def test_errors_of_llm_compressor_at_4096(case: Case):
    w, _, h = layer(*LARGE)
    q, _ = gptq(w, h, scheme(4, 128, case.symmetric), scale_rule="compressed-tensors", **case.options)
    assert output_error(w, q, h) == pytest.approx(case.gptq[LARGE], rel=1e-3)


def test_the_hessian_kernel_adds_up():
    _, x = anchors.make(*SMALL)
    np.testing.assert_allclose(anchors.hessian(x), 2 / SMALL[2] * x.astype(np.float64).T @ x, rtol=1e-4, atol=1e-4)
