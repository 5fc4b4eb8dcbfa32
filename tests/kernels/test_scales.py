"""Fused products under any scale that a file may hold: negative, zero, subnormal, huge, mixed within one tensor.

`linear(x, pack(q))` is `x @ q.dequantize().T` whatever the scales are. A product of K terms in float32 is off by at
most (K + few) * 2^-24 of the sum of their sizes (Higham, "Accuracy and Stability of Numerical Algorithms", section
3.1), and each operation whose result is subnormal by 2^-150 more.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import QsimError
from qsim.formats import FloatFormat, IntFormat, decode
from qsim.kernels import available_paths, linear, pack
from qsim.kernels.activations import take
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, get_scheme

F32 = np.float32
NAMED = [
    "w4a16-g128", "w4a16-g128-sym", "w3a16-g128", "w3a16-g128-sym", "w2a16-g64", "w8a16-channel", "w5a16-g128",
    "w4a8", "w8a8", "w8a8-channel-token-asym", "w8a8-tensor", "w4a8-g128-asym", "w4a8-g128-ag128", "w3a8-g64",
    "fp8-weight-only", "fp8-tensor", "fp8-rowwise", "fp8-block128", "mxfp8", "mxfp4", "nvfp4", "nvfp4-weight-only",
    "nf4-g64",
]  # fmt: skip
# scale and zero point formats that no name above has
OTHER = {
    f"{fmt}-{granularity}-{scale}-{zero}": TensorScheme(
        format=fmt, granularity=granularity, scale_format=scale, symmetric=zero == "none",
        zero_point_format=None if zero == "none" else zero,
    )
    for fmt, granularity, scale, zero in (
        ("uint4", "group(32)", "float16", "float16"), ("uint4", "group(64)", "bfloat16", "bfloat16"),
        ("int4", "group(32)", "float8_e8m0fnu", "none"), ("int4", "group(32)", "float8_e4m3fn", "none"),
        ("float8_e5m2", "channel", "float32", "none"), ("int4", "tensor", "float16", "none"),
        ("uint4", "block(32,64)", "float16", "uint4"),
    )
}  # fmt: skip


def scheme_of(name):
    if name in OTHER:
        scheme = Scheme(weight=OTHER[name])
    else:
        scheme = get_scheme(name)
    return scheme.replace(weight=dataclasses.replace(scheme.weight, ragged=True))


def any_finite(rng, fmt, shape, style):
    """Values of a format over its whole range (to 2^90 where it goes further, so that sums stay in float32's)."""
    if fmt.name in ("float32", "bfloat16"):
        size = np.ldexp(rng.uniform(1, 2, shape), rng.integers(-149, 90, shape))
        size = size.astype(F32).view(np.uint32) & np.uint32(0xFFFFFFFF if fmt.name == "float32" else 0xFFFF0000)
        values = size.view(F32) * rng.choice(F32([-1, 1]), shape)
    else:
        top = 127 + 90 if fmt.name == "float8_e8m0fnu" else fmt.max_code
        codes = rng.integers(0, top + 1, shape).astype(fmt.code_dtype)
        if fmt.signed:
            codes |= (rng.integers(0, 2, shape) * fmt.sign_mask).astype(fmt.code_dtype)
        values = np.asarray(decode(codes, fmt), dtype=F32)
    if not fmt.signed:
        return values
    if style == "negative":
        values = -np.abs(values)
    elif style == "with zeros":
        values = np.where(rng.random(shape) < 0.5, F32(-0.0), values)
    elif style == "subnormal":
        values = np.where(rng.random(shape) < 0.7, -F32(fmt.smallest_subnormal), values)
    return values.astype(F32)


def random_tensor(name, n, k, seed, style):
    rng, scheme = np.random.default_rng(seed), scheme_of(name)
    part = scheme.weight
    element = getattr(part.format, "element", part.format)
    codes = rng.integers(0, 1 << element.bits, (n, k)).astype(np.uint8)
    if isinstance(element, FloatFormat) and element.bits == 8:
        codes = np.where((codes & 0x7F) > element.max_code, codes & 0x80, codes)  # NaN and Inf are refused
    region = part.granularity.scale_shape((n, k))
    zeros = None
    if isinstance(part.zero_point_format, IntFormat):
        zeros = rng.integers(0, 1 << part.bits, region).astype(np.uint8)
    elif part.zero_point_format is not None:
        zeros = rng.uniform(-40, 40, region).astype(np.float16).astype(F32)
        zeros = (zeros.view(np.uint32) & np.uint32(0xFFFF0000)).view(F32)  # a value of all three formats
    return QuantizedTensor(
        codes=codes, scales=any_finite(rng, part.scale_format, region, style), zeros=zeros, scheme=scheme,
        tensor_scale=float(F32(rng.uniform(-3, 3))) if getattr(part.format, "tensor_scale", False) else None,
    )  # fmt: skip


def spread(q, values):
    return np.broadcast_to(q._per_element(values.astype(np.float64)), q.shape)


@pytest.mark.parametrize("name", [*NAMED, *OTHER])
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 1 << 30),
    m=st.sampled_from([1, 3, 17, 40]),
    n=st.sampled_from([1, 64, 100]),
    k=st.sampled_from([128, 200, 384]),
    style=st.sampled_from(["mixed", "negative", "with zeros", "subnormal"]),
)
def test_a_product_is_that_with_the_dequantised_weight_for_any_finite_scale(name, seed, m, n, k, style):
    q = random_tensor(name, n, k, seed, style)
    x = np.random.default_rng(seed + 1).standard_normal((m, k)).astype(F32)
    act = take(x, q.scheme.activation, input_scale=q.input_scale, activation=None)
    values = act.values.astype(np.float64) * act.row[:, None]
    if act.group is not None:
        values *= np.repeat(act.group, act.group_size, axis=1)[:, :k]
    want = values @ q.dequantize().astype(np.float64).T
    factor = abs(q.tensor_scale or 1.0)
    size = np.abs(q.integers if isinstance(q.element, IntFormat) else decode(q.codes, q.element)).astype(np.float64)
    if q.zeros is not None:
        size += np.abs(spread(q, q.zeros))
    elif isinstance(q.element, IntFormat):
        size += 2.0 ** (q.element.bits - 1)  # symmetric codes are kept unsigned
    size *= np.abs(spread(q, q.scales)) * factor
    bound = (k + 32) * 2.0**-24 * (np.abs(values) @ size.T)
    bound += 2.0**-149 * (k + np.abs(act.values).sum(axis=1)[:, None]) * max(1.0, factor)
    for path in available_paths():
        wrong = np.abs(linear(x, pack(q), path=path) - want) > bound
        assert not wrong.any(), (path, int(wrong.sum()))


@pytest.mark.parametrize("m", [1, 40])
def test_float_zero_points_are_not_cut_to_integers_by_sums_of_integers(m):
    """One scale per row and int8 activations: sums are int32 only where the zero points are integers too."""
    weight = TensorScheme(format="uint4", granularity="group(128)", scale_format="float16", symmetric=False,
                          zero_point_format="float16")  # fmt: skip
    rng, shape = np.random.default_rng(0), (64, 128)
    q = QuantizedTensor(
        codes=rng.integers(0, 16, shape).astype(np.uint8),
        scales=np.ones((64, 1), F32),
        zeros=np.full((64, 1), F32(7.5)),
        scheme=Scheme(weight=weight, activation=get_scheme("w8a8").activation),
    )
    x = rng.standard_normal((m, 128)).astype(F32)
    act = take(x, q.scheme.activation, input_scale=None, activation=None)
    given = act.given.astype(np.int64)
    sums = 2 * given @ q.codes.astype(np.int64).T - 15 * given.sum(axis=1)[:, None]
    want = (sums / 2).astype(F32) * act.row[:, None]
    np.testing.assert_array_equal(linear(x, pack(q)), want)
    np.testing.assert_array_equal(linear(x, pack(q), exact=True), want)


@pytest.mark.parametrize("name", ["mxfp8", "mxfp6", "mxfp4", "nvfp4-weight-only"])
def test_scales_are_folded_into_bf16_weights_only_where_that_is_exact(name):
    """What the BF16 kernels would multiply: field * 2^shift * scale, a BF16 number far from both ends of float32."""
    from qsim.kernels.stored import STORED

    for exponent in (-126, -60, -20, 0, 6, 20, 60, 90):
        q = random_tensor(name, 64, 128, 0, "mixed")
        e4m3 = q.tensor_scheme.scale_format.name == "float8_e4m3fn"
        scale = F32(2.0 ** np.clip(exponent, -9, 8)) if e4m3 else F32(2.0**exponent)
        packed = pack(dataclasses.replace(q, scales=np.full_like(q.scales, scale)))
        with np.errstate(over="ignore"):
            by = F32(2.0 ** STORED[packed.stored].shift) * scale
        values = np.abs(np.asarray(decode(q.codes, q.element), dtype=np.float64) * scale)
        some = values[values > 0]
        assert packed.folds == bool(np.isfinite(by) and scale >= 2.0**-48)
        if packed.folds:
            assert some.min() > 2.0**-80
            assert some.max() < 2.0**128
            assert not (some.astype(F32).view(np.uint32) & 0xFFFF).any()
    assert not pack(random_tensor("w4a16-g128", 64, 128, 0, "mixed")).folds


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["w4a16-g128", "w8a8", "fp8", "mxfp4", "nvfp4", "nf4-g64", *OTHER])
def test_scales_that_are_no_numbers_are_refused_before_they_multiply(name, bad):
    q = random_tensor(name, 64, 256, 0, "mixed")
    scales = q.scales.copy()
    scales[-1] = bad
    with pytest.raises(QsimError, match="scales must be finite: .* NaN or Inf, the first in row .* .layer model.q."):
        pack(dataclasses.replace(q, scales=scales, name="model.q"))


def test_zero_points_and_tensor_scales_that_are_no_numbers_are_refused():
    q = random_tensor("uint4-group(32)-float16-float16", 64, 256, 0, "mixed")
    q.zeros[3, 1] = np.nan
    with pytest.raises(QsimError, match="zero points must be finite: 1 of 512 are NaN or Inf, the first in row 3"):
        pack(q)
    q = random_tensor("nvfp4", 64, 256, 0, "mixed")
    with pytest.raises(QsimError, match="the tensor scale must be finite"):
        pack(dataclasses.replace(q, tensor_scale=np.inf))


@pytest.mark.parametrize(
    ("name", "value"),
    [("w4a16-g128", 0.1), ("w4a16-g128", 1e6), ("mxfp4", 3.0), ("mxfp4", 0.0), ("mxfp4", -1.0), ("nvfp4", 500.0)],
)
def test_a_scale_that_its_format_does_not_have_is_refused(name, value):
    """The kernels read scales in their format, `dequantize` reads float32: they must be one number."""
    q = random_tensor(name, 64, 256, 0, "mixed")
    scales = q.scales.copy()
    scales[5, 1] = value
    with pytest.raises(QsimError, match="a scale must be a value of its format: .* in row 5 is no "):
        pack(dataclasses.replace(q, scales=scales))
    w = random_tensor("uint4-group(32)-float16-float16", 64, 256, 0, "mixed")
    w.zeros[2, 0] = F32(0.1)
    with pytest.raises(QsimError, match="a zero point must be a value of its format: 0.1 in row 2 is no float16"):
        pack(w)
