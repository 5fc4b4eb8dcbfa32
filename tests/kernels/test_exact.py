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


@pytest.mark.parametrize("name", ["w4a8-g128", "w4a8-g128-asym", "fp8-block128", "w4a8-g64-ag32-sym"])
def test_chains_of_groups_join_by_one_fused_multiply_add(name):
    """Chain by chain in float64: the product of a chain and a scale has at most 48 bits, so it is exact. Adding the
    register may round, which moves the float32 rounding only next to a tie: with these numbers it never does.
    """
    rng = np.random.default_rng(8)
    w, x = (rng.standard_normal((m, 256)).astype(np.float32) for m in (128, 3))
    q = quantize(w, name)
    packed = pack(q)
    from qsim.kernels.activations import take

    act = take(x, q.scheme.activation, input_scale=None, activation=None)
    how, k = q.tensor_scheme, 256
    step = min(s for s in (how.group_size, act.group_size) if s)
    rows = np.ones((3, k // step), np.float32) if act.group is None else np.repeat(act.group, act.group_size // step, 1)
    scale = np.repeat(q.scales, how.granularity.rows or 1, axis=0)
    columns = np.repeat(scale, how.group_size // step, axis=1)
    total = np.zeros((3, 128), np.float32)
    for g in range(k // step):
        part = slice(g * step, (g + 1) * step)
        if act.integer:
            b = q.integers.astype(np.int64)[:, part]
            if q.zeros is not None:
                b = b - np.repeat(q.zeros, how.group_size, axis=1)[:, part].astype(np.int64)
            chain = (act.given[:, part].astype(np.int64) @ b.T).astype(np.float32)
        else:
            chain = tensorcore.matmul(act.codes[:, part], q.codes[:, part], preset="cublaslt_fp8_fast").view(np.float32)
        scaled = (rows[:, g, None] * columns[None, :, g]).astype(np.float64)
        total = (chain.astype(np.float64) * scaled + total.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(linear(x, packed, exact=True), total * act.row[:, None])


def test_an_emulated_instruction_has_no_chains_to_scale():
    x, _ = problem("w8a8")
    with pytest.raises(ValueError, match="hopper.mma.f32.e4m3 is made of other instructions and has no chains"):
        linear(x, pack(quantize(np.ones((128, 256), np.float32), "fp8-block128")), exact=True,
               instruction="hopper.mma.f32.e4m3")  # fmt: skip
