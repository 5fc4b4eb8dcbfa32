"""FP8, MX and NVFP4 parts: scales, codes and sizes."""

import numpy as np
import pytest

from qsim.formats import decode, quantize_blocks
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, quantize

FLOATS = ["fp8-tensor", "fp8-rowwise", "fp8-block128", "mxfp8", "mxfp6", "mxfp4", "nvfp4", "nf4-g64"]


def weights(shape=(160, 256), seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_round_trip_and_size(tmp_path, name, suffix):
    q = quantize(weights(), name)
    assert q.nbytes == q.scheme.weight.nbytes((160, 256))
    assert np.linalg.norm(q.dequantize() - weights()) < 0.2 * np.linalg.norm(weights())
    path = tmp_path / f"q.{suffix}"
    q.save(path)
    assert QuantizedTensor.load(path) == q


def test_fp8_scales_are_amax_over_the_largest():
    w = weights()
    q = quantize(w, "fp8-rowwise")
    np.testing.assert_array_equal(q.scales[:, 0], np.abs(w).max(axis=1) / np.float32(448))
    assert (np.abs(decode(q.codes, "float8_e4m3fn")).max(axis=1) == 448).all()
    blocks = quantize(w, "fp8-block128")
    assert blocks.scales.shape == (2, 2)
    assert blocks.scales[1, 1] == np.abs(w[128:, 128:]).max() / np.float32(448)


def test_autofp8_stores_the_reciprocal():
    w = weights()
    q = quantize(w, "fp8-rowwise", scale_rule="autofp8")
    want = np.float32(1) / (np.float32(448) / np.abs(w).max(axis=1))
    np.testing.assert_array_equal(q.scales[:, 0], want)


def test_power_of_two_scales_do_not_clip():
    part = TensorScheme(format="float8_e4m3fn", granularity="channel", scale_format="float8_e8m0fnu")
    w = weights()
    q = quantize(w, Scheme(weight=part))
    assert (np.frexp(q.scales)[0] == 0.5).all()
    assert (q.scales[:, 0] >= np.abs(w).max(axis=1) / 448).all()
    assert (quantize(w, Scheme(weight=part), scale_rounding="down").scales <= q.scales).all()


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "nvfp4"])
def test_block_formats_are_those_of_formats(name):
    w = weights()
    q, want = quantize(w, name), quantize_blocks(w, quantize(w, name).scheme.weight.format)
    np.testing.assert_array_equal(q.codes, want.codes)
    np.testing.assert_allclose(q.dequantize(), want.dequantize(), rtol=1e-7)
    if name != "nvfp4":
        assert quantize(w, name, block_scale_rule="rceil") != q
    with pytest.raises(ValueError, match="block_scale_rule"):
        quantize(w, name, scale_rule="gptq")
    with pytest.raises(ValueError, match="belongs to block formats"):
        quantize(w, "fp8-tensor", block_scale_rule="rceil")


def test_a_region_of_zeros():
    w = weights()
    w[3] = 0
    for name in ("fp8-rowwise", "w4a16-channel", "w8a8", "mxfp4", "nvfp4"):
        assert (quantize(w, name).dequantize()[3] == 0).all()
