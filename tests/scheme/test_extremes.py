"""Weights at the ends of float32: a scale that can be stored and values that come back, or one sentence, no warning."""

import contextlib

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.scheme import RULES, Scheme, TensorScheme, get_scheme, quantize

F32 = np.float32
SIZES = [1e-45, 1e-42, 1e-38, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e37, 1.7e38, 2e38, 3.4e38]
SHAPES = {
    "both signs": np.linspace(-1, 1, 256, dtype=F32).reshape(2, 128),
    "positive": np.linspace(0.5, 1, 256, dtype=F32).reshape(2, 128),
    "one of many": np.eye(2, 128, dtype=F32) * F32(0.9) + F32(1e-3),
    "uneven": np.linspace(-0.2, 1, 256, dtype=F32).reshape(2, 128),
}
FORMATS = [("int4", True), ("uint4", False), ("int8", True), ("uint8", False), ("float8_e4m3fn", True),
           ("float8_e5m2", True), ("float4_e2m1fn", True), ("nf4", True)]  # fmt: skip
SCALES = ["float32", "float16", "bfloat16", "float8_e8m0fnu"]


def check(w, scheme, **how):
    """Quantise, and hold the result against what is possible; whether it was refused."""
    q = None
    with contextlib.suppress(QsimError):
        q = quantize(w, scheme, **how)
    if q is None:
        with pytest.raises(QsimError, match="scales must be positive|must be within float32's range"):
            quantize(w, scheme, **how)
        return True
    values = q.dequantize()
    assert np.isfinite(values).all()
    assert np.isfinite(q.scales).all()
    assert (q.scales >= 0).all()
    largest = float(np.abs(w).max())
    assert float(np.abs(values).max()) <= 2.5 * largest or largest < 1e-4  # rules have floors of 1e-5
    return False


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("clip", [None, 2.0])
def test_every_rule_gives_representable_values_or_says_why_not(rule, size, clip):
    refused = 0
    for fmt, symmetric in FORMATS:
        for scale in SCALES:
            part = TensorScheme(format=fmt, granularity="group(64)", symmetric=symmetric, scale_format=scale)
            if not (RULES[rule].integers if part.is_integer else RULES[rule].floats):
                continue
            if not symmetric and not RULES[rule].asymmetric:
                continue
            for shape in SHAPES.values():
                how = {} if clip is None else {"clip": clip, "clip_grid": 5}
                refused += (scale == "float32") & check(shape * F32(size), Scheme(weight=part), scale_rule=rule, **how)
    assert not refused or not 1e-6 < size < 1e4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp4", "mxint8", "nvfp4"])
def test_every_block_format_gives_representable_values_or_says_why_not(name, size):
    scheme = Scheme(weight=TensorScheme(format=name))
    for rule in (None,) if name == "nvfp4" else ("floor", "ceil", "even", "rceil"):
        for shape in SHAPES.values():
            check(shape * F32(size), scheme, block_scale_rule=rule)


@pytest.mark.parametrize("size", [1.7e38, 3.4e38])
def test_a_range_wider_than_float32_has_a_scale(size):
    """high - low overflows float32; the scale, a fifteenth of it, does not."""
    w = np.linspace(-1, 1, 128, dtype=F32).reshape(1, 128) * F32(size)
    part = TensorScheme(format="uint8", granularity="channel", symmetric=False, scale_format="float32")
    for rule in ("gptq", "awq", "compressed-tensors"):
        q = quantize(w / F32(1.01), Scheme(weight=part), scale_rule=rule)
        assert np.abs(q.dequantize() / size - w / size).max() < 0.02


def test_a_refusal_names_layer_and_row():
    w = np.ones((3, 128), F32)
    w[1] *= 3.4e38
    w[1, 0] *= -1
    with pytest.raises(QsimError, match="round to Inf, the first in row 1 .layer a.b.; scale the tensor down"):
        quantize(w, Scheme(weight=TensorScheme(format="int4", granularity="channel")), scale_rule="gptq", name="a.b")
    with pytest.raises(QsimError, match="scales must be positive float16 numbers: row 0 needs .* .layer a.b."):
        quantize(np.full((3, 128), 1e-12, F32), "w4a16-g128", name="a.b")


def test_ragged_is_said_of_the_call_or_of_the_scheme():
    w = np.random.default_rng(0).standard_normal((4, 200)).astype(F32)
    assert quantize(w, "w4a16-g128", ragged=True) == quantize(w, "w4a16-g128-ragged")
    for name in ("w4a16-g128", "w4a8-g128-ag128", "w8a8-channel-token"):
        assert get_scheme(name).with_ragged() == get_scheme(f"{name}-ragged")
    assert quantize(w, "w4a8-g128-ag128", part="activation", ragged=True).shape == w.shape
