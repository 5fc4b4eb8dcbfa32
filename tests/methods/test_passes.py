"""What is arranged for speed: halves of blocks, windows side by side, factors, errors from losses."""

from __future__ import annotations

import threading

import numba
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from qsim._native.blas import one_blas_thread
from qsim._native.threads import for_chunks
from qsim.methods import errors, gptq, linalg, quantize_model
from qsim.methods.passes import for_many_tokens, through_block
from qsim.scheme import quantize
from tests.models.small import random_model

from .anchors import make
from .test_pipeline import assert_same

F32 = np.float32
TOKENS = np.random.default_rng(7).integers(0, 96, (12, 32))


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


def test_one_blas_thread_is_taken_back_by_the_last_to_leave():
    with one_blas_thread():
        pass  # both libraries are loaded now
    before = blas_threads()
    with one_blas_thread(False):
        assert blas_threads() == before
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_blas_thread():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        entered.wait(10)
        with one_blas_thread():
            assert blas_threads() == {1}
    assert blas_threads() == {1}  # the other one is still inside
    leave.set()
    thread.join()
    assert blas_threads() == before


def test_pieces_that_call_for_chunks_keep_to_their_thread():
    inner: dict[int, set[int]] = {}

    def piece(first: int, stop: int) -> None:
        for_chunks(8, lambda a, b: inner.setdefault(first, set()).add(threading.get_ident()), chunk=1)

    for_chunks(4, piece, chunk=1)
    assert all(len(threads) == 1 for threads in inner.values())
    assert sorted(inner) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_halves_make_a_block(kind):
    model = random_model(kind)
    hidden = model.embed(TOKENS)
    whole = model.block(0, hidden)
    between = model.block(0, hidden, half="attention")
    np.testing.assert_array_equal(model.block(0, between, half="mlp"), whole)
    names = [g[0] for g in model.block_linears(0)]
    seen = {}
    model.block(0, hidden, observe=lambda n, x: seen.update({n: x.copy()}))
    out, inputs = through_block(model, 0, hidden, names)
    np.testing.assert_allclose(out, whole, rtol=1e-4, atol=1e-5)  # products of other sizes sum in another order
    assert list(inputs) == names
    for name in names:
        np.testing.assert_allclose(inputs[name], seen[name], rtol=1e-4, atol=1e-5)
    _, inputs = through_block(model, 0, between, names[2:], half="mlp", last=names[2])
    np.testing.assert_allclose(inputs[names[2]], seen[names[2]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "scheme"), [("gptq", "w4a16-g32"), ("gptq", "w4a8-g32"), ("awq", "w4a16-g32"), ("rtn", "mxfp4")]
)
def test_the_number_of_threads_does_not_matter(method, scheme):
    model, threads = random_model(), numba.get_num_threads()
    many = quantize_model(model, method, scheme, TOKENS)
    try:
        numba.set_num_threads(1)
        one = quantize_model(model, method, scheme, TOKENS)
    finally:
        numba.set_num_threads(threads)
    assert_same(many, one)


def test_calibration_dequantises_but_keeps_an_engine_that_was_asked_for():
    model = random_model()
    name = "model.layers.0.mlp.down_proj"
    model = model.replace(tensors={f"{name}.weight": quantize(model.tensors[f"{name}.weight"], "w4a16-g32")})
    assert for_many_tokens(model).linears()[name].engine == "dequantized"
    asked = model.replace(linear_settings={"*down_proj": {"engine": "exact"}})
    assert for_many_tokens(asked).linears()[name].engine == "exact"
    assert model.linears()[name].engine == "fused"


@pytest.mark.parametrize("n", [513, 1100])
def test_the_factor_above_512_columns(n):
    _, x = make(1, n, 2 * n)
    h = (x.T @ x / F32(n)).astype(F32)
    dead = np.zeros(n, bool)
    dead[7] = True
    h[7] = h[:, 7] = 0
    order = np.argsort(-h.diagonal(), kind="stable")
    damp = F32(0.01) * h.diagonal().mean()
    u, condition = linalg.inverse_factor(h, order, dead, damp)
    exact = h.astype(np.float64)
    exact[7, 7] = 1
    exact = exact[np.ix_(order, order)] + damp * np.eye(n)
    want = np.linalg.cholesky(np.linalg.inv(exact)).T
    assert np.abs(np.triu(u) - want).max() < 1e-5 * np.abs(want).max()
    assert condition == pytest.approx(np.linalg.cond(exact, 1), rel=0.9)  # LAPACK's is an estimate from below
    h[order[-2], order[-2]] *= -1  # order[-1] is dead; found in the first block, or in the last
    assert linalg.inverse_factor(h, order, dead, 0.0) is None
    assert linalg.inverse_factor(h, order[::-1], dead, 0.0) is None


def test_errors_from_losses():
    w, x = make(200, 1536, 3000)
    h = (F32(2 / 3000) * (x.T @ x)).astype(F32)
    q, record = gptq(w, h, "w4a16-g128", act_order=True)
    d = w - q.dequantize()
    exact = float(np.einsum("nk,nk->", d.astype(np.float64) @ h, d))
    size = float(np.einsum("nk,nk->", w.astype(np.float64) @ h, w))
    assert record.output_error == pytest.approx(exact / size, rel=1e-5)
    rows = slice(0, 200)
    # losses of another Hessian do not pass: the rows are measured
    wrong = errors.RowLosses(loss=np.full(200, record.loss / 200), damp=record.damp)
    assert wrong.output_error(d, rows, h) == pytest.approx(exact, rel=1e-6)
    # where scales are rounded after solving, losses are not those of the result
    q, record = gptq(w, h, "w4a16-g128", stored_scales=False)
    d = w - q.dequantize()
    exact = float(np.einsum("nk,nk->", d.astype(np.float64) @ h, d))
    assert record.output_error == pytest.approx(exact / size, rel=1e-5)


@pytest.mark.parametrize("columns", [1, 63, 64, 200, 1024, 1030])
def test_accumulation_by_strips(columns):
    x = np.random.default_rng(0).standard_normal((50, columns)).astype(F32)
    total = np.zeros((columns, columns), F32)
    linalg.accumulate(total, x)
    linalg.accumulate(total, x)
    exact = 2 * x.T.astype(np.float64) @ x
    np.testing.assert_allclose(linalg.mirror(total), exact, atol=1e-4)
