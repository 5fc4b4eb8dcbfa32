"""Block formats against an exact transcription of their rules in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import qsim
from qsim.errors import QsimError
from qsim.formats import dequantize_blocks, get_format, quantize_blocks, reference

MX = ["mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "mxint8"]
RULES = ["floor", "ceil", "even", "rceil"]


def floor_log2(x: Fraction) -> int:
    e = 0
    while Fraction(2) ** e > x:
        e -= 1
    while Fraction(2) ** (e + 1) <= x:
        e += 1
    return e


def exact_block(x, name, rule, rounding="nearest_even"):
    """Scale code and element codes of one block, in Fractions."""
    fmt = get_format(name)
    element = fmt.element
    amax = max(abs(Fraction(float(v))) for v in x)
    if amax == 0:
        return 0, [reference.encode(float(v), element) for v in x]
    e = floor_log2(amax)
    if rule == "ceil":
        e += Fraction(2) ** e != amax
    elif rule == "even":  # round amax to the element's precision first
        bits = getattr(element, "mantissa_bits", 6)
        unit = Fraction(2) ** (e - bits)
        e = floor_log2(Fraction(int(amax / unit + Fraction(1, 2))) * unit)
    e -= element.emax
    if rule == "rceil":
        e = floor_log2(amax / Fraction(element.max))
        e += Fraction(2) ** e * Fraction(element.max) < amax
    e = min(max(e, -127), 127)
    codes = []
    for v in x:
        scaled = Fraction(float(v)) / Fraction(2) ** e
        zero = float(v) == 0
        codes.append(reference.encode(float(v) if zero else scaled, element, rounding=rounding))
    return e + 127, codes


def sample(rng, blocks, dtype):
    x = rng.standard_normal((blocks, 32)) * np.exp2(rng.integers(-20, 20, (blocks, 1)))
    x[0] = 0
    x[1, :] = -0.0
    x[1, 3] = 2.0**-140 if dtype is np.float32 else 2.0**-300  # scale below E8M0's smallest
    x[2, 7] = np.nextafter(dtype(2.0**5), dtype(0))
    x[3] = 448.0
    x[4] = np.float32(np.finfo(np.float32).max)
    x[5] = np.float32(1.75) * 2.0 ** rng.integers(-30, 30)
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MX)
def test_mx_equals_the_exact_rule(name, rule, dtype):
    x = sample(np.random.default_rng(3), 14, dtype)
    q = quantize_blocks(x, name, scale_rule=rule)
    for row, codes, scale in zip(x, q.codes, q.scales, strict=True):
        want_scale, want_codes = exact_block(row, name, rule)
        assert int(scale[0]) == want_scale
        assert codes.tolist() == want_codes


@pytest.mark.parametrize("rounding", ["up", "down", "toward_zero", "nearest_away", "to_odd"])
def test_element_roundings(rounding):
    x = sample(np.random.default_rng(4), 8, np.float32)
    x[6, 0] = 1e-38  # far below the grid, but not zero: `up` must see it
    q = quantize_blocks(x, "mxfp4", rounding=rounding)
    for row, codes in zip(x, q.codes, strict=True):
        assert codes.tolist() == exact_block(row, "mxfp4", "floor", rounding)[1]


def test_rceil_never_clips_and_floor_does():
    x = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    amax = np.abs(x).max(axis=1, keepdims=True)
    for name in ("mxfp8_e4m3", "mxfp4"):
        top = get_format(name).element.max
        for rule, clips in (("rceil", False), ("ceil", False), ("floor", True)):
            scale = np.exp2(quantize_blocks(x, name, scale_rule=rule).scales.astype(float) - 127)
            assert bool((amax > top * scale).any()) == clips
    share = np.mean(amax > 6 * np.exp2(quantize_blocks(x, "mxfp4").scales.astype(float) - 127))
    assert 0.25 < share < 0.5  # about 37 % of FP4 blocks clip under the OCP rule (formats that `rceil` was made for)


def test_nvfp4_equals_the_exact_rule():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((6, 64)) * np.exp2(rng.integers(-12, 3, (6, 1)))).astype(np.float32)
    x[0, :16] = 0
    x[1, :16] *= np.float32(1e-9)  # would have a zero scale: gets the smallest
    q = quantize_blocks(x, "nvfp4")
    tensor = np.float32(np.abs(x).max()) / np.float32(2688)
    assert q.tensor_scale == tensor
    for row, codes, scales in zip(x, q.codes, q.scales, strict=True):
        for k in range(4):
            block = [Fraction(float(v)) for v in row[16 * k : 16 * k + 16]]
            amax = max(abs(v) for v in block)
            want = max(amax / (6 * Fraction(float(tensor))), Fraction(1, 512)) if amax else Fraction(0)
            assert scales[k] == reference.encode(want, "e4m3")
            factor = np.float32(float(reference.decode(int(scales[k]), "e4m3"))) * tensor
            for v, code in zip(block, codes[16 * k : 16 * k + 16], strict=True):
                assert code == (reference.encode(v / Fraction(float(factor)), "fp4") if amax else 0)


def test_nvfp4_scale_is_given_or_derived():
    x = np.linspace(-1, 1, 32, dtype=np.float32)
    assert quantize_blocks(x, "nvfp4", tensor_scale=0.25).tensor_scale == 0.25
    assert quantize_blocks(np.zeros(16), "nvfp4").tensor_scale == 1.0
    assert quantize_blocks(np.zeros(16), "nvfp4").dequantize().tolist() == [0.0] * 16
    error = np.abs(quantize_blocks(x, "nvfp4").dequantize() - x).max()
    assert error <= 1 / 6 + 1e-3  # half the widest step of E2M1, 4 to 6, at block maximum 1


@pytest.mark.parametrize("name", [*MX, "nvfp4"])
def test_axes_ragged_ends_and_types(name):
    x = np.random.default_rng(0).standard_normal((3, 5, 64)).astype(np.float32)
    q = quantize_blocks(x, name)
    for axis in (0, 1):
        moved = np.moveaxis(x, -1, axis)
        turned = quantize_blocks(moved, name, axis=axis)
        assert turned.codes.shape == moved.shape
        assert np.array_equal(np.moveaxis(turned.codes, axis, -1), q.codes)
        assert np.array_equal(np.moveaxis(turned.scales, axis, -1), q.scales)
        assert np.array_equal(np.moveaxis(dequantize_blocks(turned), axis, -1), dequantize_blocks(q))
    assert np.array_equal(quantize_blocks(x.astype(np.float64), name).codes, q.codes)
    short = quantize_blocks(x[..., :50], name, ragged=True)
    padded = np.concatenate([x[..., :50], np.zeros((3, 5, 14), np.float32)], axis=-1)
    assert np.array_equal(short.codes, quantize_blocks(padded, name, tensor_scale=short.tensor_scale).codes[..., :50])
    assert short.dequantize().shape == (3, 5, 50)
    assert quantize_blocks(np.zeros((0, 64)), name).codes.shape == (0, 64)
    other = quantize_blocks(x, name, block_size=64)
    assert other.scales.shape == (3, 5, 1)
    assert other.fmt.block_size == 64


@pytest.mark.parametrize("name", [*MX, "nvfp4"])
def test_sizes_count_every_byte(name):
    fmt = get_format(name)
    q = quantize_blocks(np.ones((8, 4096), np.float32), name)
    assert q.nbytes * 8 == 8 * 4096 * fmt.bits_per_element + 32 * fmt.tensor_scale


@pytest.mark.parametrize("name", [*MX, "nvfp4"])
def test_nan_takes_its_block_or_is_refused(name):
    x = np.ones((2, 64), np.float32)
    x[1, 40] = np.nan
    size = get_format(name).block_size
    q = quantize_blocks(x, name)
    nan = np.isnan(q.dequantize())
    first = 40 // size * size
    assert nan[1, first : first + size].all()
    assert nan.sum() == size
    assert q.scales[1, 40 // size] == get_format(name).scale.nan_code
    with pytest.raises(ValueError, match="1 NaN values, the first in row 1 at 40"):
        quantize_blocks(x, name, nan="error")
    zeroed = quantize_blocks(x, name, nan="zero").dequantize()
    assert zeroed[1, 40] == 0
    assert np.isfinite(zeroed).all()


def test_infinity():
    x = np.ones(32, np.float32)
    x[3] = np.inf
    q = quantize_blocks(x, "mxfp8_e4m3")
    assert q.scales[0] == 254
    values = q.dequantize(np.float64)
    assert values[3] == 448 * 2.0**127
    assert values[0] == 0
    assert np.isinf(quantize_blocks(x, "mxfp8_e5m2", overflow="nonsaturating").dequantize()[3])
    with pytest.raises(ValueError, match="cannot scale Inf: the first is in row 0 at 3"):
        quantize_blocks(x, "nvfp4")


def test_scale_code_255_makes_a_block_nan():
    q = quantize_blocks(np.ones(64, np.float32), "mxfp4")
    q.scales[1] = 255
    values = dequantize_blocks(q)
    assert np.isnan(values[32:]).all()
    assert (values[:32] == 1).all()


def test_wrong_input():
    x = np.ones((4, 96), np.float32)
    with pytest.raises(ValueError, match="must divide the axis: got block_size=64, length 96 of axis 1"):
        quantize_blocks(x, "mxfp4", block_size=64)
    with pytest.raises(ValueError, match="must be a positive integer: got -32"):
        quantize_blocks(x, "mxfp4", block_size=-32)
    with pytest.raises(ValueError, match="not a block format: use qsim.encode"):
        quantize_blocks(x, "e4m3")
    with pytest.raises(ValueError, match="unknown scale rule 'nearest': choose one of floor, ceil, even, rceil"):
        quantize_blocks(x, "mxfp4", scale_rule="nearest")
    with pytest.raises(ValueError, match="has its own scale rule"):
        quantize_blocks(x, "nvfp4", scale_rule="floor")
    with pytest.raises(ValueError, match="tensor_scale is not part of mxfp4: got 2.0"):
        quantize_blocks(x, "mxfp4", tensor_scale=2.0)
    with pytest.raises(ValueError, match="tensor_scale must be positive, finite and within float32's range: got -1"):
        quantize_blocks(x, "nvfp4", tensor_scale=-1.0)
    with pytest.raises(ValueError, match="axis must be in -2 to 1: got 2"):
        quantize_blocks(x, "mxfp4", axis=2)
    with pytest.raises(ValueError, match="0-d array"):
        quantize_blocks(1.0, "mxfp4")
    with pytest.raises(ValueError, match="dtype complex64"):
        quantize_blocks(x * 1j, "mxfp4")
    q = quantize_blocks(x, "mxfp4")
    with pytest.raises(ValueError, match=r"need scales of shape \(4, 3\)"):
        dequantize_blocks(type(q)(fmt=q.fmt, codes=q.codes, scales=q.scales[:, :2], tensor_scale=None, axis=1))


def test_cast_of_a_block_format_names_the_way():
    with pytest.raises(ValueError, match="use qsim.formats.quantize_blocks"):
        qsim.encode(np.ones(32), "mxfp4")


@pytest.mark.parametrize("amplitude", [1e-300, 1e-44, 1e-38, 1e38, 3.4e38, 1e39, 1e41, 9e41])
def test_nvfp4_of_float64_beyond_float32_has_a_representable_tensor_scale(amplitude):
    """As far as amax / 2688 is a float32. Before: a tensor scale of Inf, all values NaN, and a warning."""
    x = np.linspace(-1, 1, 64).reshape(2, 32) * amplitude
    q = quantize_blocks(x, "nvfp4")
    assert 0 < np.float32(q.tensor_scale) < np.inf
    values = q.dequantize(dtype=np.float64)
    assert np.isfinite(values).all()
    if amplitude > 1e-37:  # below, the smallest tensor scale does not reach
        assert q.tensor_scale == pytest.approx(amplitude / 2688, rel=1e-6)
        # half a step of E2M1 below its largest value is 1/6 of it, and the block scale is rounded by up to 1/16
        assert np.abs(values - x).max() <= 0.25 * amplitude


@pytest.mark.parametrize("amplitude", [1e42, 1e300])
def test_nvfp4_of_what_no_float32_scale_reaches_is_one_sentence(amplitude):
    with pytest.raises(QsimError, match="has a float32 tensor scale: the largest value .* beyond float32; scale"):
        quantize_blocks(np.full((1, 16), amplitude), "nvfp4")
    for scale in (amplitude, 1e-50, 0.0, -1.0, np.nan):
        with pytest.raises(QsimError, match="tensor_scale must be positive, finite and within float32's range"):
            quantize_blocks(np.ones((1, 16)), "nvfp4", tensor_scale=scale)


@pytest.mark.parametrize("name", ["mxfp8", "mxfp6", "mxfp4", "mxint8"])
@pytest.mark.parametrize("amplitude", [1e-300, 1e-44, 1e38, 1e39, 1e41, 1e300])
def test_mx_of_any_float64_is_finite_and_saturates_at_its_largest_value(name, amplitude):
    x = np.linspace(-1, 1, 32).reshape(1, 32) * amplitude
    q = quantize_blocks(x, name)
    values = q.dequantize(dtype=np.float64)
    top = q.fmt.element.max * 2.0**127
    assert np.isfinite(values).all()
    assert np.abs(values - np.clip(x, -top, top)).max() <= 0.5 * min(amplitude, top) + 2.0**-127


def test_numpy_takes_quantised_blocks_for_their_values():
    q = quantize_blocks(np.linspace(-1, 1, 64).reshape(2, 32) * 1e39, "mxfp8")
    np.testing.assert_array_equal(np.asarray(q, dtype=np.float64), q.dequantize(np.float64))
    assert np.asarray(quantize_blocks(np.ones((1, 32)), "mxfp4")).dtype == np.float32
    with pytest.raises(ValueError, match="no array to share without a copy"):
        q.__array__(copy=False)
