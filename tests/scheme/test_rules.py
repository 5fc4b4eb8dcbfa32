"""Scale rules equal the published quantisers bit for bit, ties and odd regions included."""

import dataclasses

import numpy as np
import pytest

from qsim.scheme import RULES, Scheme, TensorScheme, get_scheme, quantize

from . import published


def regions(columns=64, seed=0):
    """(rows, columns) float32: random rows of many magnitudes, then rows made to be awkward."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, columns)).astype(np.float32) * np.exp(rng.uniform(-12, 6, (300, 1))).astype(
        np.float32
    )
    ties = np.arange(columns, dtype=np.float32)[None, :] % 31 / 2 - 3.5  # halves: every code boundary
    odd = [
        np.abs(x[:40]) + 0.25,  # all positive: AWQ's range leaves 0 out
        -np.abs(x[:40]) - 0.25,
        x[:40] + 3,
        ties * np.exp2(np.arange(-6, 7, dtype=np.float32))[:, None],
        ties + np.arange(0, 4, 0.5, dtype=np.float32)[:, None],
        np.tile(np.array([[1, 2, 15, 0]], dtype=np.float32), (1, columns // 4)),
        np.eye(4, columns, dtype=np.float32),
        np.full((1, columns), 1e-7, dtype=np.float32),
    ]
    return np.ascontiguousarray(np.concatenate([x, *odd]).astype(np.float32))


def scheme_for(bits, symmetric, granularity="group(64)"):
    part = TensorScheme(
        format=f"{'' if symmetric else 'u'}int{bits}",
        granularity=granularity,
        symmetric=symmetric,
        scale_format="float32",
    )
    return Scheme(weight=part)


def check(x, rule, bits, symmetric, want, offset=0, **more):
    q, scale, zero = want
    got = quantize(x, scheme_for(bits, symmetric), scale_rule=rule, **more)
    np.testing.assert_array_equal(got.scales, scale)
    np.testing.assert_array_equal(got.integers.astype(np.float32), q + offset)
    if not symmetric:
        np.testing.assert_array_equal(got.zeros, zero + offset)
    return got


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq(bits, symmetric):
    x = regions()
    got = check(x, "gptq", bits, symmetric, published.gptq(x, bits, symmetric), -(2 ** (bits - 1)) if symmetric else 0)
    q, s, z = published.gptq(x, bits, symmetric)
    np.testing.assert_array_equal(got.dequantize(), s * (q - z))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(bits, symmetric):
    x = regions()
    got = check(x, "awq", bits, symmetric, published.awq(x, bits, not symmetric))
    q, s, z = published.awq(x, bits, not symmetric)
    np.testing.assert_array_equal(got.dequantize(), (q - z) * s)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors(bits, symmetric):
    x = regions()
    want = published.compressed_tensors(x, bits, symmetric)
    check(x, "compressed-tensors", bits, symmetric, want, 0 if symmetric else 2 ** (bits - 1))


@pytest.mark.parametrize("bits", [4, 8])
def test_smoothquant(bits):
    x = regions()
    check(x, "smoothquant", bits, True, published.smoothquant(x, bits))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_clip_search(bits, symmetric):
    x = regions()
    want = published.gptq(x, bits, symmetric, mse=True)
    check(x, "gptq", bits, symmetric, want, -(2 ** (bits - 1)) if symmetric else 0, clip=2.4)


def test_the_rules_do_differ():
    """Half-way codes at an odd zero point: w/s = 0.5, z = 1 is 1 or 2."""
    x = np.array([[-1, 0.5, 14, 0]], dtype=np.float32)
    codes = {
        r: quantize(x, scheme_for(4, False, "channel"), scale_rule=r).codes for r in ("gptq", "compressed-tensors")
    }
    assert codes["gptq"][0, 1] == 1
    assert codes["compressed-tensors"][0, 1] == 2
    quirk = quantize(np.array([[1, 2, 15]], dtype=np.float32), scheme_for(4, True, "channel"), scale_rule="gptq")
    np.testing.assert_array_equal(quirk.dequantize(), [[1, 2, 7]])


@pytest.mark.parametrize("rule", [r for r in RULES if RULES[r].integers])
@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0])
def test_clip_search_never_loses(rule, norm):
    x = regions(seed=3)
    scheme = scheme_for(4, True)
    plain = quantize(x, scheme, scale_rule=rule).dequantize()
    clipped = quantize(x, scheme, scale_rule=rule, clip=norm).dequantize()

    def error(y):
        return (np.abs(y - x).astype(np.float64) ** norm).sum(axis=1)

    # sums are float32, as in the original: a loss up to their rounding is a tie
    assert (error(clipped) <= error(plain) * (1 + 1e-5)).all()
    assert (error(clipped) < error(plain))[:300].mean() > 0.5


def test_rules_refuse_what_they_do_not_define():
    x = np.ones((2, 64), dtype=np.float32)
    with pytest.raises(ValueError, match="no zero point"):
        quantize(x, scheme_for(4, False), scale_rule="smoothquant")
    with pytest.raises(ValueError, match="'gptq' is not defined for float8_e4m3fn; use"):
        quantize(x, "fp8", scale_rule="gptq")
    with pytest.raises(ValueError, match="scale_rule must be one of"):
        quantize(x, scheme_for(4, True), scale_rule="rtn")
    with pytest.raises(ValueError, match="clip_shrink"):
        quantize(x, scheme_for(4, True), clip=2.0, clip_grid=0)


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_itself(bits, symmetric):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.lifecycle.forward import quantize as ct_quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    x = torch.from_numpy(regions())
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel")
    scale, zero = calculate_qparams(x.amin(1, keepdim=True), x.amax(1, keepdim=True), args)
    q = ct_quantize(x, scale, zero, args)
    got = quantize(x.numpy(), scheme_for(bits, symmetric, "channel"), scale_rule="compressed-tensors")
    np.testing.assert_array_equal(got.scales, scale.numpy())
    np.testing.assert_array_equal(got.integers.astype(np.float32) - (0 if symmetric else 2 ** (bits - 1)), q.numpy())
    np.testing.assert_array_equal(got.dequantize(), dequantize(q, scale, zero, args).numpy())


def test_anchor_errors_of_round_to_nearest():
    """tr((W-Q) H (W-Q)^T) of the seed recipe at (64, 256), T = 1024, gptq.py's quantiser per group."""
    rng = np.random.default_rng(0)
    rows, n, tokens = 64, 256, 1024
    w = (rng.standard_normal((rows, n)) * 0.02).astype(np.float32)
    r = n // 16
    z = rng.standard_normal((tokens, r)).astype(np.float32)
    f = rng.standard_normal((r, n)).astype(np.float32)
    e = rng.standard_normal((tokens, n)).astype(np.float32)
    c = np.exp(0.5 * rng.standard_normal(n)).astype(np.float32)
    c[rng.permutation(n)[: max(1, n // 256)]] *= np.float32(20)
    x = ((z @ f) / np.float32(np.sqrt(r)) + np.float32(0.5) * e) * c
    h = (np.float32(2.0 / tokens) * (x.T @ x)).astype(np.float64)
    f32 = TensorScheme(format="uint4", granularity="group(128)", symmetric=False, scale_format="float32")
    cases = {
        0.3846036999: (f32, None),
        0.4806832996: (scheme_for(4, True, "group(128)").weight, None),
        0.3473726547: (f32, 2.4),
        0.4830829215: (dataclasses.replace(f32, granularity="channel"), None),
        0.2544918096: (dataclasses.replace(f32, granularity="group(32)"), None),
        1.619496498: (dataclasses.replace(f32, format="uint3", zero_point_format=None), None),
        0.001473581266: (dataclasses.replace(f32, format="uint8", zero_point_format=None), None),
    }
    for want, (part, clip) in cases.items():
        d = w.astype(np.float64) - quantize(w, Scheme(weight=part), scale_rule="gptq", clip=clip).dequantize()
        # the Hessian itself is a float32 product, whose last bits depend on the BLAS
        # and so do the sums of the clip search, where a tie in a few rows can go either way
        assert np.trace(d @ h @ d.T) == pytest.approx(want, rel=1e-6 if clip is None else 1e-4)


def test_default_rules_are_documented():
    from qsim.scheme import default_rule

    assert default_rule(get_scheme("w4a16-g128")) == "gptq"
    assert default_rule(get_scheme("w8a8")) == "smoothquant"
    assert default_rule(get_scheme("fp8")) == "amax"
