"""`exact=True`: the same pipeline through the tensor core's arithmetic."""

import numpy as np
import pytest

from qsim.formats import encode
from qsim.kernels import linear, pack
from qsim.scheme import quantize

tensorcore = pytest.importorskip("qsim.tensorcore")


def problem(name, seed=0):
    rng = np.random.default_rng(seed)
    w, x = rng.standard_normal((40, 256)).astype(np.float32), rng.standard_normal((5, 256)).astype(np.float32)
    return x, quantize(w, name)


def test_weight_only_is_dequantise_round_multiply():
    x, q = problem("w4a16-g128")
    for name, fmt in (("hopper.wgmma.f32.bf16", "bfloat16"), ("ampere.mma.f32.f16", "float16")):
        bits = tensorcore.matmul(encode(x, fmt), encode(q.dequantize(), fmt), instruction=name)
        np.testing.assert_array_equal(linear(x, pack(q), exact=True, instruction=name), bits.view(np.float32))
    np.testing.assert_array_equal(
        linear(x, pack(q), exact=True), linear(x, pack(q), exact=True, instruction="hopper.wgmma.f32.bf16")
    )


def test_integers_are_exact_in_both_fidelities():
    x, q = problem("w8a8")
    np.testing.assert_array_equal(linear(x, pack(q), exact=True), linear(x, pack(q)))
    for name in ("w4a8", "w4a8-g128-asym", "w8a8-channel-token-asym"):
        x, q = problem(name)
        np.testing.assert_allclose(linear(x, pack(q), exact=True), linear(x, pack(q)), rtol=1e-5, atol=1e-5)


def test_fp8_keeps_the_hardware_s_accumulator():
    x, q = problem("fp8-rowwise")
    exact = linear(x, pack(q), exact=True)
    fast = linear(x, pack(q))
    difference = np.linalg.norm(exact - fast) / np.linalg.norm(fast)
    assert 1e-6 < difference < 1e-2  # 13 fraction bits leave a trace, and only that
    wide = linear(x, pack(q), exact=True, instruction="ada.mma.f32.e4m3")
    assert wide.shape == fast.shape


def test_bias_and_refusals():
    x, q = problem("w8a8")
    bias = np.arange(40, dtype=np.float32)
    np.testing.assert_array_equal(linear(x, pack(q, bias), exact=True), linear(x, pack(q), exact=True) + bias)
    x, q = problem("w4a16-g128")
    with pytest.raises(ValueError, match="multiplies integers"):
        linear(x, pack(q), exact=True, instruction="hopper.wgmma.s32.s8")
