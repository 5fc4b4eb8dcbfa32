"""Faults found in other projects' codecs, each of which this one must not have."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import qsim
from qsim.formats import get_format, quantize_blocks

from .oracle import bfloat16_patterns


def test_values_between_240_and_448_survive():
    """pychop 0.4.4: 448, 449, 464 and 465 became 0, 248 became 256, 1000 became inf (E4M3 as IEEE-like)."""
    x = [448.0, 449.0, 464.0, 465.0, 248.0, 1000.0, 240.0]
    assert qsim.cast(x, "e4m3").tolist() == [448, 448, 448, 448, 256, 448, 240]  # 248 ties between 240 and 256
    assert qsim.encode(x, "e4m3", overflow="nonsaturating").tolist()[2:6] == [0x7E, 0x7F, 0x78, 0x7F]


def test_ties_go_to_even_not_away():
    """microxcaling: its default `nearest` rounds ties away; 126 of the finite bfloat16 patterns differ from RNE."""
    x = bfloat16_patterns()
    x = x[np.isfinite(x)]
    even, away = qsim.encode(x, "e4m3"), qsim.encode(x, "e4m3", rounding="nearest_away")
    assert np.count_nonzero(even != away) == 126
    assert np.array_equal(even, np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def test_no_infinity_where_there_is_none_and_no_nan_near_the_top():
    """microxcaling: Inf in formats without it, Inf kept under saturation, NaN near FLT_MAX, -0 lost."""
    top = np.float32(np.finfo(np.float32).max)
    x = np.array([np.inf, -np.inf, top, -top, -0.0], np.float32)
    for name in ("e4m3", "e2m3", "e3m2", "e2m1"):
        m = get_format(name).max
        got = qsim.cast(x, name)
        assert got.tolist() == [m, -m, m, -m, 0.0]
        assert np.signbit(got[4])
    assert np.isnan(qsim.cast(x[:2], "e4m3", overflow="nonsaturating")).all()


@pytest.mark.parametrize(
    ("value", "want"),
    [(8, 7), (9, 7), (100, 7), (-9, -8), (-100, -8), (7.5, 7), (2.5, 2), (3.5, 4), (-2.5, -2), (-8.5, -8)],
)
def test_integers_round_and_saturate_instead_of_truncating_and_wrapping(value, want):
    """ml_dtypes: float32 to int4 wraps (8 -> -8, 9 -> -7, 100 -> 4), truncates (7.5 -> 7, 2.5 -> 2), NaN -> 0."""
    assert qsim.cast(np.float32(value), "int4") == want
    if not -8.5 <= value <= 7.5:
        with pytest.raises(ValueError, match="outside -8.0 to 7.0"):
            qsim.encode(np.float32(value), "int4", overflow="nonsaturating")


def test_nan_into_a_format_without_nan_is_never_silent():
    """ml_dtypes: NaN becomes 0 in int4, -0 or +0 in FP4 and FP6."""
    x = np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32)
    for name in ("int4", "uint8", "e2m1", "e2m3", "e3m2", "nf4"):
        with pytest.raises(ValueError, match=r"2 NaN values .* has no NaN.* the first is nan at index \(1, 0\)"):
            qsim.encode(x, name)
        assert qsim.cast(x, name, nan="zero")[1].tolist() == [0.0, 0.0]
        assert qsim.cast(x, name, nan="max")[1, 0] == get_format(name).max  # CUDA's FP6 and FP4 conversions


def test_float64_does_not_double_round():
    """ml_dtypes' astype and torch go through float32 (0x38); the scalar constructor and CUDA's from-double do not."""
    x = np.array([1.0625 + 2**-40])
    assert x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)[0] == 0x38
    assert qsim.encode(x, "e4m3")[0] == 0x39 == np.array(ml_dtypes.float8_e4m3fn(x[0])).view(np.uint8)


def test_fp4_ties_are_even_not_downward():
    """Table-argmin casts (compressed-tensors' pattern): 0.75 -> 0.5, 1.75 -> 1.5, 3.5 -> 3. RNE: 1, 2, 4."""
    assert qsim.cast([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], "fp4").tolist() == [0, 1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [-100, -3, 0, 1, 5, 10, 100])
def test_shared_exponent_just_below_a_power_of_two(k, dtype):
    """microxcaling and gfloat: floor(log2(nextbelow(2^k))) in float32 is k at k = -3, 5, 10, 100; it is k - 1."""
    amax = np.nextafter(dtype(2.0**k), dtype(0))
    x = np.zeros(32, dtype)
    x[5] = amax
    q = quantize_blocks(x, "mxfp8_e4m3", scale_rule="floor")
    assert int(q.scales[0]) - 127 == (k - 1) - 8
    assert int(quantize_blocks(x, "mxfp8_e4m3", scale_rule="ceil").scales[0]) - 127 == k - 8


def test_reductions_are_not_done_in_the_narrow_type():
    """ml_dtypes: np.ones(1000, e4m3fn).sum() is 16. Values here are float32."""
    assert qsim.cast(np.ones(1000), "e4m3").sum() == 1000


def test_quantiser_does_not_default_to_chance():
    """QPyTorch rounds stochastically by default."""
    x = np.linspace(-3, 3, 1001)
    assert np.array_equal(qsim.encode(x, "e4m3"), qsim.encode(x, "e4m3"))
