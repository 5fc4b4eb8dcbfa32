"""What must hold for any input, by hypothesis."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qsim
from qsim.formats import get_element_format, list_formats, pack, quantize_blocks, reference, unpack

from .oracle import ALL_ROUNDINGS

NAMES = [f.name for f in list_formats() if hasattr(f, "code_dtype")] + ["binary8p4se", "binary6p2ue", "float7_e3m3fn"]
names = st.sampled_from(NAMES)
doubles = st.floats(allow_nan=False)
arrays = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=3, max_side=40), elements=st.floats(width=32, allow_nan=False)
)
quick = settings(max_examples=150, deadline=None)  # the first example of a format may compile


@quick
@given(doubles, names, st.sampled_from(ALL_ROUNDINGS))
def test_fast_equals_reference(x, name, rounding):
    assert int(qsim.encode(x, name, rounding=rounding)) == reference.encode(x, name, rounding=rounding)


@quick
@given(arrays, names)
def test_cast_is_idempotent_and_is_decode_of_encode(x, name):
    once = qsim.cast(x, name)
    assert np.array_equal(qsim.cast(once, name), once)
    assert np.array_equal(once, qsim.decode(qsim.encode(x, name), name))


@quick
@given(arrays, names, st.sampled_from(ALL_ROUNDINGS[:5]))
def test_rounding_is_monotone(x, name, rounding):
    ordered = np.sort(x.ravel())
    rounded = qsim.cast(ordered, name, rounding=rounding)
    assert np.all(rounded[1:] >= rounded[:-1])


@quick
@given(arrays, names)
def test_up_and_down_bracket_the_value(x, name):
    fmt = get_element_format(name)
    x = np.clip(x, np.float32(fmt.min), np.float32(fmt.max))
    if not fmt.has_zero:
        x = np.abs(x) + np.float32(fmt.min)
    low, high = qsim.cast(x, name, rounding="down"), qsim.cast(x, name, rounding="up")
    assert np.all(low <= x)
    assert np.all(high >= x)
    near = qsim.cast(x, name)
    assert np.all((near == low) | (near == high))
    assert np.all(
        np.abs(near - x.astype(np.float64)) <= np.minimum(x - low.astype(np.float64), high.astype(np.float64) - x)
    )


@quick
@given(doubles, st.sampled_from(["e4m3", "e5m2", "e2m1", "e3m4", "bfloat16"]))
def test_rounding_to_odd_in_between_is_innocent(x, name):
    """Boldo and Melquiond 2008: to odd at two more bits, then to nearest, is one rounding."""
    fmt = get_element_format(name)
    exponent_bits = fmt.exponent_bits + 2
    wide = qsim.formats.FloatFormat(
        name="wide",
        exponent_bits=exponent_bits,
        mantissa_bits=fmt.mantissa_bits + 4,
        bias=(1 << (exponent_bits - 1)) - 1,
        nan="ieee",
        has_inf=True,
    )
    if abs(x) > fmt.max:
        return
    assert qsim.encode(qsim.cast(x, wide, rounding="to_odd"), name) == qsim.encode(x, name)


@quick
@given(hnp.arrays(np.uint8, st.tuples(st.integers(0, 4), st.integers(0, 70))), st.integers(1, 8),
       st.sampled_from(["low_first", "high_first"]))  # fmt: skip
def test_packing_round_trips(codes, width, order):
    codes = codes & np.uint8((1 << width) - 1)
    assert np.array_equal(unpack(pack(codes, width, order=order), width, codes.shape[-1], order=order), codes)


@quick
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(0, 5), st.just(64)), elements=st.floats(-(2**100), 2**100, width=32)),
    st.sampled_from(["mxfp8_e4m3", "mxfp6_e3m2", "mxfp4", "mxint8"]),
)
def test_blocks_are_idempotent_and_their_error_is_bounded(x, name):
    q = quantize_blocks(x, name, scale_rule="rceil")
    values = q.dequantize(np.float64)
    assert np.array_equal(quantize_blocks(values, name, scale_rule="rceil").dequantize(np.float64), values)
    element = q.fmt.element
    scale = np.repeat(np.exp2(q.scales.astype(float) - 127), 32, axis=-1)
    widest = float(np.max(np.diff(element.values)))
    assert np.all(np.abs(values - x) <= widest / 2 * scale)


@quick
@given(doubles, names)
def test_error_is_at_most_half_the_gap(x, name):
    fmt = get_element_format(name)
    if not (fmt.min <= x <= fmt.max) or not fmt.has_zero:
        return
    got = Fraction(float(qsim.cast(np.float64(x), name)))
    low = Fraction(float(qsim.cast(np.float64(x), name, rounding="down")))
    high = Fraction(float(qsim.cast(np.float64(x), name, rounding="up")))
    assert low <= Fraction(x) <= high
    assert 2 * abs(got - Fraction(x)) <= high - low
    assert not math.isinf(got)
