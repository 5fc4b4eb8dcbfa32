"""`linear` against a float64 oracle: every scheme, every path, awkward shapes."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from qsim.formats import decode, get_format
from qsim.kernels import available_paths, features, ladder, linear, pack, traffic
from qsim.kernels.activations import take
from qsim.kernels.codes import quantize_floats, quantize_tokens
from qsim.kernels.portable import ir
from qsim.scheme import Scheme, TensorScheme, get_scheme, quantize

SCHEMES = [
    "w4a16-g128", "w4a16-g128-sym", "w4a16-g64", "w4a16-g32", "w3a16-g128", "w3a16-g128-sym", "w2a16-g64",
    "w8a16-channel", "w5a16-g128", "w8a8", "w8a8-channel-token-asym", "w8a8-tensor", "w4a8", "w4a8-g128-asym",
    "w4a8-g128-ag128", "w3a8-g64", "fp8-weight-only", "fp8-tensor", "fp8-rowwise", "fp8-block128", "mxfp8", "mxfp4",
    "nvfp4", "nf4-g64",
]  # fmt: skip
SHAPES = [(1, 64, 128), (1, 100, 384), (3, 130, 256), (16, 64, 512), (17, 96, 256), (70, 200, 384)]


def problem(name, m, n, k, seed=0):
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((n, k)) * 0.02).astype(np.float32)
    scheme = get_scheme(name)
    q = quantize(w, scheme.replace(weight=dataclasses.replace(scheme.weight, ragged=True)))
    return rng.standard_normal((m, k)).astype(np.float32), q, rng.standard_normal(n).astype(np.float32)


def oracle(x, q, activation=None):
    """float64 product of what the activation becomes with the dequantised weight."""
    act = take(x, q.scheme.activation, input_scale=q.input_scale, activation=activation)
    values = act.values.astype(np.float64) * act.row[:, None]
    if act.group is not None:
        values *= np.repeat(act.group, act.group_size, axis=1)[:, : x.shape[1]]
    return values @ q.dequantize().astype(np.float64).T


def error(y, want):
    return np.linalg.norm(y - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_on_every_path(name):
    for m, n, k in SHAPES:
        x, q, bias = problem(name, m, n, k)
        packed = pack(q, bias=bias)
        want = oracle(x, q)
        for path in available_paths():
            y = linear(x, packed, path=path)
            assert y.dtype == np.float32
            assert y.shape == (m, n)
            assert error(y - bias, want) < 1.5e-6, (m, n, k, path)


@pytest.mark.parametrize("name", ["w4a16-g128", "w4a16-g128-sym", "w4a16-g32", "w3a16-g128"])
@pytest.mark.parametrize("m", [1, 8, 64])
def test_w4a16_is_as_good_as_float32(name, m):
    x, q, _ = problem(name, m, 256, 1024)
    for path in available_paths():
        assert error(linear(x, pack(q), path=path), oracle(x, q)) <= 1e-6


@pytest.mark.parametrize("name", ["w8a8", "w8a8-channel-token-asym", "w8a8-tensor"])
@pytest.mark.parametrize(("m", "k"), [(1, 4096), (5, 1000), (40, 2048), (300, 1216)])
def test_w8a8_sums_are_exact(name, m, k):
    """int32 sums, then one product with each scale: equal bit for bit on every path, also for the largest codes."""
    x, q, _ = problem(name, m, 80, k)
    x[0] = np.abs(x[0]).max()
    q.codes[0] = 0x7F
    act = take(x, q.scheme.activation, input_scale=None, activation=None)
    zeros = 0 if q.zeros is None else q.zeros.astype(np.int64)
    sums = act.given.astype(np.int64) @ (q.integers.astype(np.int64) - zeros).T
    want = sums.astype(np.float32) * q.scales.reshape(-1) * act.row[:, None]
    for path in available_paths():
        np.testing.assert_array_equal(linear(x, pack(q), path=path), want)


@pytest.mark.parametrize("activation", ["bfloat16", "float16"])
def test_activations_of_16_bits(activation):
    x, q, _ = problem("w4a16-g128", 40, 128, 512)
    want = oracle(x, q, activation)
    for path in available_paths():
        assert error(linear(x, pack(q), activation=activation, path=path), want) < 1e-6
    ml_dtypes = pytest.importorskip("ml_dtypes")
    y = linear(x.astype(ml_dtypes.bfloat16), pack(q))
    np.testing.assert_array_equal(y, linear(x, pack(q), activation="bfloat16"))


def test_static_activation_scales():
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((64, 128)).astype(np.float32), rng.standard_normal((4, 128)).astype(np.float32)
    for name in ("w8a8-tensor-static", "fp8-static"):
        q = quantize(w, name, input_scale=float(np.abs(x).max()) / 448)
        assert error(linear(x, pack(q)), oracle(x, q)) < 1e-6
        with pytest.raises(ValueError, match="needs the scale that calibration found"):
            linear(x, pack(quantize(w, name)))


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_fp8_subnormals_and_small_activations(fmt, scale):
    """All finite codes, and weights that are all subnormal: no product may fall out of float32's range on the way."""
    rng = np.random.default_rng(1)
    scheme = Scheme(weight=TensorScheme(format=fmt, granularity="tensor"))
    q = quantize(np.ones((64, 256), dtype=np.float32), scheme)
    for codes in (np.arange(256) % 127 % 124, rng.integers(0, 4, 256)):
        q.codes[:] = codes.astype(np.uint8) | (rng.integers(0, 2, (64, 256)).astype(np.uint8) << 7)
        x = (rng.standard_normal((3, 256)) * scale).astype(np.float32)
        for path in available_paths():
            assert error(linear(x, pack(q), path=path), oracle(x, q)) < 1e-6
            assert error(linear(np.tile(x, (8, 1)), pack(q), path=path), oracle(np.tile(x, (8, 1)), q)) < 1e-6


def test_act_order_groups_are_gathered():
    x, q, _ = problem("w4a16-g64", 3, 64, 256)
    order = np.random.default_rng(3).permutation(256)
    moved = dataclasses.replace(
        q, codes=np.ascontiguousarray(q.codes[:, order]), group_index=(order // 64).astype(np.int32)
    )
    for m in (3, 40):
        xm = np.tile(x, (m // 3 + 1, 1))[:m]
        assert error(linear(xm, pack(moved)), oracle(xm, moved)) < 1e-6
    with pytest.raises(ValueError, match="every group 64 columns"):
        pack(dataclasses.replace(q, group_index=np.zeros(256, dtype=np.int32)))


def test_shapes_and_dtypes_of_x():
    x, q, bias = problem("w4a16-g128", 6, 64, 128)
    p = pack(q, bias=bias)
    y = linear(x, p)
    np.testing.assert_array_equal(linear(x.reshape(2, 3, 128), p), y.reshape(2, 3, 64))
    np.testing.assert_array_equal(linear(x[0], p), linear(x[:1], p)[0])
    np.testing.assert_array_equal(linear(x.astype(np.float64), p), y)
    np.testing.assert_array_equal(linear(np.asfortranarray(x), p), y)
    assert linear(x[:0], p).shape == (0, 64)


@pytest.mark.parametrize("name", [*(s for s in SCHEMES if s != "nf4-g64"), "mxfp6"])
def test_traffic_is_what_the_scheme_counts(name):
    """The buffers hold what `Scheme` counts, to the byte; whole tiles have no padding at all."""
    for n, k in ((128, 512), (100, 384)):
        _, q, _ = problem(name, 1, n, k)
        packed = pack(q)
        count = traffic(packed, 3)
        assert count.weight_bytes == q.scheme.weight.nbytes((n, k)) == q.nbytes
        assert count.streamed_bytes == packed.nbytes
        assert count.operations == 2 * 3 * n * k
        assert count.output_bytes == 12 * n
        assert count.activation_bytes == q.scheme.activation.nbytes((3, k))
        if n == 128 and name not in ("w5a16-g128", "mxfp6"):  # stored in bytes
            assert count.padding_bytes == 0
            assert 8 * packed.nbytes / (n * k) == q.scheme.bits_per_weight((n, k))
    with pytest.raises(ValueError, match="at least one token"):
        traffic(packed, 0)


def test_token_codes_equal_the_rule():
    x = np.random.default_rng(0).standard_normal((9, 515)).astype(np.float32)
    x[3] = 0
    x[4, :64] = np.arange(64) / 2 - 16
    x[4, 64:] = 127 / 4
    codes, scale = quantize_tokens(x, 8)
    want = quantize(x, "w8a8", part="activation", scale_rule="smoothquant")
    np.testing.assert_array_equal(codes, want.integers)
    np.testing.assert_array_equal(scale, want.scales[:, 0])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("m", [1, 16, 80])
def test_token_floats_equal_the_rule(name, m):
    """Codes, values and scales bit for bit: ties, subnormals, -0, a row of zeros, one of float32 subnormals."""
    fmt = get_format(name)
    x = np.random.default_rng(0).standard_normal((m, 515)).astype(np.float32)
    x[0, ::3] *= np.float32(2.0) ** -np.arange(172, dtype=np.float32)
    if m > 1:
        x[1], x[2], x[3] = 0, x[2] * 1e-42, x[3] * 1e38
        grid = decode(np.arange(int(fmt.max_code) + 1, dtype=np.uint8), fmt).astype(np.float32)
        middles = (grid[1:] + grid[:-1]) / 2
        x[4] = np.resize(np.concatenate([middles, -middles, np.nextafter(middles, np.float32(0)), [-0.0]]), 515)
        x[4, 0] = fmt.max
    part = TensorScheme(format=name, granularity="token", dynamic=True)
    scheme = Scheme(weight=TensorScheme(format=name, granularity="channel"), activation=part)
    want = quantize(x, scheme, part="activation")
    codes, values, scale = quantize_floats(x, fmt)
    np.testing.assert_array_equal(codes, want.codes)
    np.testing.assert_array_equal(scale, want.scales[:, 0])
    np.testing.assert_array_equal(values.view(np.uint32), decode(codes, fmt).astype(np.float32).view(np.uint32))
    x[-1, 7] = np.inf
    with pytest.raises(ValueError, match=f"activations must be finite: .* inf in row {m - 1}"):
        quantize_floats(x, fmt)


def test_bad_input():
    x, q, _ = problem("w8a8", 3, 64, 128)
    p = pack(q)
    with pytest.raises(ValueError, match="have 128 columns: got shape .3, 127."):
        linear(x[:, :127], p)
    x[1, 5] = np.nan
    with pytest.raises(
        ValueError, match="activations must be finite: 1 values in 1 rows are not, the first is nan in row 1"
    ):
        linear(x, p)
    with pytest.raises(ValueError, match="one entry per output row"):
        pack(q, bias=np.ones(3))
    x[1, 5] = 0
    with pytest.raises(ValueError, match="kernel path must be one of"):
        linear(x, p, path="cuda")
    with pytest.raises(ValueError, match="exact=True"):
        linear(x, p, instruction="hopper.wgmma.s32.s8")
    with pytest.raises(ValueError, match="quantises activations to int8"):
        linear(x, p, activation="bfloat16")
    f = quantize(np.ones((64, 128), dtype=np.float32), "fp8-tensor")
    f.codes[7, 3] = 0x7F
    with pytest.raises(ValueError, match="NaN or Inf, the first in row 7"):
        pack(f)


def test_rungs_of_the_ladder_agree():
    x, q, _ = problem("w4a16-g128", 1, 64, 512)
    packed = pack(q)
    words, scales, zeros = ladder.by_rows(packed)
    want, got = oracle(x, q)[0], np.empty(64, dtype=np.float32)
    ladder.naive(words, scales, zeros, x[0], 128, got)
    assert error(got, want) < 1e-6
    ladder.factored(words, scales, zeros, x[0], x[0].reshape(-1, 128).sum(axis=1), 128, got)
    assert error(got, want) < 1e-6
    assert error(ladder.lanes(packed, x[0]), want) < 1e-6
    if "vnni" in available_paths():
        x, q, _ = problem("w4a8", 1, 64, 512)
        assert error(ladder.intrinsics(pack(q), x[0]), oracle(x, q)[0]) < 1e-6


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


CODE = """
import numpy as np, qsim
from qsim.formats import decode, get_format
from qsim.kernels import available_paths, linear, pack
rng = np.random.default_rng(0)
x, w = rng.standard_normal((40, 256)).astype('f4'), rng.standard_normal((64, 256)).astype('f4')
for name in ('w4a16-g128', 'w8a8'):
    q = qsim.quantize(w, name)
    y = linear(x, pack(q))
    assert np.linalg.norm(y - x @ q.dequantize().T) < 0.02 * np.linalg.norm(y)
print(*available_paths())
"""


def test_intrinsics_can_be_switched_off():
    assert run(CODE, QSIM_KERNELS="portable").split() == ["portable"]


def test_no_path_kills_the_process_on_a_cpu_without_the_feature():
    """LLVM ends the process when asked for an instruction of another CPU: nothing may ask."""
    if "avx2" not in features.compiled_features():
        pytest.skip("needs an x86-64 CPU that runs code compiled for haswell")
    assert run(CODE, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="").split() == ["portable"]
    assert run(CODE, NUMBA_CPU_NAME="haswell").split() == ["portable"]


@pytest.mark.parametrize("wide", [False, True])
def test_the_sums_of_a_loop_fit_in_registers(wide, monkeypatch):
    monkeypatch.setattr(ir, "has_wide_registers", lambda: wide)
    for registers in range(2, 17, 2):
        passes = ir.passes(registers)
        assert [v for lanes in passes for v in lanes] == [0, 1, 2, 3]
        assert wide or all(len(lanes) * registers <= 12 or len(lanes) == 1 for lanes in passes)
        assert len(passes) == 1 or not wide


def test_unknown_path_in_the_environment():
    with pytest.raises(AssertionError, match="QSIM_KERNELS must be one of auto, portable, vnni, bf16, amx: got 'avx'"):
        run(CODE, QSIM_KERNELS="avx")
