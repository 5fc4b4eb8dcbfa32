"""Operators of eager PyTorch: equal to what an H200 returned, and refused where nothing was recorded."""

import functools

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.kernels import eager
from qsim.tensorcore import approximate, cuda_math
from tests.golden.test_recordings import functions, load, script

layers = script("fused_layers")
F32, U16, U32 = np.float32, np.uint16, np.uint32
TREES = [key for key in load("block")[0] if key.startswith("tree.sum.")]  # those of means are the same


def bits(values):
    return np.ascontiguousarray(values).view(U32)


@pytest.mark.parametrize("key", [key for key in TREES if int(key.split(".")[2]) <= 2048])
def test_every_element_meets_every_other_where_it_did_on_the_device(key):
    arrays, notes = load("block")
    length, chunk = map(int, key.split(".")[2:])
    rows = np.arange(0, length, chunk if chunk > 1 else 13)
    for i in (0, len(arrays[key]) - 1):
        anchor, found = notes["reductions"]["anchors"][i], []
        for first in rows:
            p = np.arange(first, first + chunk)
            x = np.ones((chunk, length), F32)
            x[:, anchor], x[np.arange(chunk), p] = 2.0**40, -(2.0**40)
            x[p == anchor] = 1
            found.append(eager.row_sums(x))
        picked = np.concatenate([np.arange(first, first + chunk) for first in rows])
        np.testing.assert_array_equal(np.concatenate(found).astype(U16), arrays[key][i][picked])


@functools.cache
def random_rows(length):
    draw = layers.generator("rows", length)
    x = draw.standard_normal((16, length)).astype(F32)
    wide = x * np.exp2(draw.integers(-6, 7, length)).astype(F32)
    return {"normal": eager.narrow(x), "wide": eager.narrow(wide)}


@pytest.mark.parametrize("length", [256, 512, 2048, 4096])
def test_sums_means_and_softmax_of_random_rows_have_the_recorded_bits(length):
    arrays, _ = load("block")
    for label, codes in random_rows(length).items():
        x, key = eager.widen(codes), f"rows.{label}.{length}."
        np.testing.assert_array_equal(bits(eager.row_sums(x)), arrays[key + "sum.f32"])
        np.testing.assert_array_equal(bits(eager.mean_squares(codes))[:, 0], arrays[key + "mean_square.f32"])
        if length <= eager.LONGEST_SOFTMAX:
            np.testing.assert_array_equal(bits(eager.softmax(x)[:2]), arrays[key + "softmax.f32"])


LENGTHS = load("model")[1]["lengths"]


@pytest.mark.parametrize("length", sorted({int(key.split(".")[0]) for key in LENGTHS["sums"]}))
def test_sums_of_any_number_of_rows_and_any_length_have_the_recorded_bits(length):
    """Rows of odd lengths start between aligned addresses; long ones are shared by warps."""
    arrays, _ = load("model")
    count = 256 if length <= 4096 else 16
    x = layers.generator("few", length).standard_normal((count, length)).astype(F32)
    for rows in (n for n in (1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 64, 100, 256) if n <= count):
        mine = eager.row_sums(x[:rows])
        np.testing.assert_array_equal(bits(mine[:8]), arrays[f"sums.{length}.{rows}"])
        assert layers.sha256(mine) == LENGTHS["sums"][f"{length}.{rows}"]


@pytest.mark.parametrize("length", [int(key) for key in LENGTHS["softmax"] if key.isdigit() and int(key) <= 8192])
def test_softmax_of_any_length_has_the_recorded_bits(length):
    x = layers.generator("softmax", length).standard_normal((4, length)).astype(F32) * 4
    assert layers.sha256(eager.softmax(x)) == LENGTHS["softmax"][f"{length}"]
    assert layers.sha256(eager.softmax(eager.widen(eager.narrow(x)))) == LENGTHS["softmax"][f"{length}.of_bf16"]


@pytest.mark.parametrize("name", ["exp", "silu", "rsqrt"])
def test_functions_of_all_bf16_codes_have_the_recorded_bits(name):
    codes = np.arange(1 << 16, dtype=U16)
    recorded = functions.half(load("functions")[0], f"torch.{name}.bf16")
    mine = {
        "exp": lambda: eager.narrow(cuda_math.expf(eager.widen(codes))),
        "silu": lambda: eager.silu(codes),
        "rsqrt": lambda: eager.narrow(approximate("rsqrt", eager.widen(codes))),
    }[name]()
    number = ~np.isnan(eager.widen(recorded))
    np.testing.assert_array_equal(mine[number], recorded[number])
    assert np.isnan(eager.widen(mine[~number])).all()


def test_attention_of_the_math_back_end_has_the_recorded_bits():
    arrays, _ = load("block")
    q, k, v = (arrays[f"block.bf16.{name}"] for name in ("q_rope", "k_rope", "v"))
    v = v.reshape(64, 2, 64).transpose(1, 0, 2)
    mine = [eager.sdpa_math(q[h], k[h // 3], v[h // 3]) for h in range(6)]
    np.testing.assert_array_equal(mine, arrays["sdpa.math"])


def test_functions_of_cuda_are_as_exact_as_its_manual_says():
    """CUDA's documented bounds: cosf and sinf 2 ulp, powf 4 ulp, expf 2 ulp."""
    x = np.concatenate((np.linspace(-40, 40, 20001), np.geomspace(1e-6, 1e5, 20001))).astype(F32)
    for mine, exact in (
        (cuda_math.cosf(x), np.cos(x.astype(np.float64))),
        (cuda_math.sinf(x), np.sin(x.astype(np.float64))),
        (cuda_math.expf(x[x < 80]), np.exp(x[x < 80].astype(np.float64))),
        (cuda_math.powf(10000.0, x[:20001] / 40), 10000.0 ** (x[:20001] / F32(40)).astype(np.float64)),
    ):
        assert (np.abs(mine - exact) <= 4 * np.spacing(np.abs(exact).astype(F32))).all()


def test_fp8_codes_of_rows_whose_largest_element_is_rounded_stay_in_range():
    x = eager.narrow(np.random.default_rng(3).standard_normal((64, 256)).astype(F32))
    codes, scale = eager.quantize_fp8(x)
    assert codes.dtype == np.uint8
    assert ((codes & 0x7F).max(axis=1) == 0x7E).all()  # every row reaches 448
    np.testing.assert_allclose(scale[:, 0], np.abs(eager.widen(x)).max(1) / 448, rtol=2.0**-22)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: eager.row_sums(np.ones((2, 0), F32)), "1 to 131071: got 0"),
        (lambda: eager.row_sums(np.ones((1, 131072), F32)), "1 to 131071"),
        (lambda: eager.row_sums(np.ones(256, F32)), "shape"),
        (lambda: eager.row_sums(np.ones((2, 256))), "float64"),
        (lambda: eager.softmax(np.ones((2, 8193), F32)), "1 to 8192"),
        (lambda: eager.softmax(np.ones((2, 8), U16)), "float32"),
        (lambda: eager.silu(np.ones(4, F32)), "BF16 tensors are given as codes"),
        (lambda: eager.rms_norm(np.ones((2, 256), F32), np.ones(256, U16)), "BF16 tensors are given as codes"),
        (lambda: eager.quantize_fp8(np.zeros((2, 8), U16)), "not zero"),
        (lambda: eager.quantize_fp8(np.full((2, 8), 0x7FC0, U16)), "finite"),
        (lambda: cuda_math.cosf(F32(2e5)), "below 105615"),
        (lambda: cuda_math.powf(-1.0, F32([1])), "positive base"),
        (lambda: approximate("rsqrrt", F32([1])), "rsqrt"),
        (lambda: approximate("rcp", ["a"]), "inputs of rcp"),
    ],
)
def test_what_was_not_recorded_is_refused(call, words):
    with pytest.raises(QsimError, match=words):
        call()
