"""`quantize.from_codes`: codes, scales and zero points that exist already become a quantised tensor."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import qsim
from qsim.formats import decode, encode

F32 = np.float32
from_codes = qsim.scheme.from_codes
NAMES = ("W4A16", "w3a16-g128-sym", "W8A16", "MXFP4A16", "NVFP4A16", "W4A8", "W4AFP8", "mxfp4-fp8",
         "w8a8-channel-token", "fp8-rowwise")  # fmt: skip


def test_it_is_reached_from_quantize_too():
    assert qsim.quantize.from_codes is from_codes


@pytest.mark.parametrize("name", [*NAMES, "W4A16_ASYM", "fp8-block128", "fp8-tensor"])
def test_parts_of_a_quantised_tensor_give_it_back(name):
    w = np.random.default_rng(1).standard_normal((256, 256)).astype(F32)
    q = qsim.quantize(w, name)
    codes = q.integers if q.tensor_scheme.is_integer else q.codes
    assert from_codes(codes, name, q.scales, q.zeros, q.tensor_scale) == q
    if q.tensor_scheme.is_integer and q.zeros is None:
        unsigned = (codes.astype(np.int16) + (1 << (q.element.bits - 1))).astype(np.uint32)
        assert from_codes(unsigned, name, q.scales) == q
    stored = encode(q.scales, q.tensor_scheme.scale_format)
    if stored.dtype == np.uint8:
        assert from_codes(codes, name, stored, tensor_scale=q.tensor_scale) == q
        if q.tensor_scale is not None:
            word = np.float32(q.tensor_scale).view(np.uint32)
            assert from_codes(codes, name, stored, tensor_scale=word) == q


def test_bf16_scales_are_kept_as_bf16():
    values = np.array([[0.011], [-2.5], [1.0], [3.0e-5]], F32)
    codes = encode(values, "bfloat16")
    exact = decode(codes, "bfloat16", dtype=F32)
    for scales in (codes, exact.astype(ml_dtypes.bfloat16)):
        q = from_codes(np.zeros((4, 128), np.int8), "W4A16", scales)
        np.testing.assert_array_equal(q.scales, exact)
        assert q.scheme.weight.scale_format.name == "bfloat16"
    assert (
        from_codes(np.zeros((4, 128), np.int8), "W4A16", F32([[1e-30]] * 4)).scheme.weight.scale_format.name
        == "float32"
    )
    assert from_codes(np.zeros((4, 128), np.int8), "W4A16", F32([[0.5]] * 4)).scheme == qsim.get_scheme("W4A16")


def test_zero_points_and_one_scale_per_row_are_said_by_what_is_given():
    codes = np.arange(16, dtype=np.uint8).repeat(16).reshape(1, 256)
    q = from_codes(codes, "W4A16", np.ones((1, 2)), zero_points=np.array([[7, 9]]))
    np.testing.assert_array_equal(q.dequantize()[0, ::16], np.arange(16) - np.array([7, 9]).repeat(8))
    moved = from_codes(codes.astype(np.int8) - 8, "W4A16", np.ones((1, 2)), zero_points=np.array([[-1, 1]]))
    assert moved == q
    row = from_codes(np.zeros((3, 256), np.int8), "W8A16", np.ones(3, F32))
    assert str(row.tensor_scheme.granularity) == "channel"
    assert row.scheme.activation == qsim.get_scheme("W8A16").activation


CODES = np.zeros((2, 256), np.uint8)
REFUSED = [
    (
        {"codes": CODES.astype(np.int64) + 9},
        "a signed type must be from -8 to 7: got 9; codes with an offset must have",
    ),
    ({"codes": CODES + 16}, "an unsigned type must be from 0 to 15: got 16"),
    ({"codes": CODES.astype(F32)}, "codes must be whole numbers: got float32"),
    ({"codes": CODES[0]}, r"must have the shape \(N, K\): got \(256,\)"),
    ({"codes": CODES[:, :200], "scales": np.ones((2, 2))}, "group_size must divide K"),
    ({"scales": np.ones((2, 4))}, r"must have the shape \(2, 2\): got \(2, 4\); another group size has another scheme"),
    ({"scales": np.full((2, 2), np.nan)}, "scales must be finite: 4 are not, the first in row 0"),
    ({"scales": np.ones((2, 2), np.uint8)}, "scales as bytes must be codes of an 8-bit format"),
    ({"scales": np.ones((2, 2), np.int32)}, "scales must be real floating-point numbers: got int32"),
    (
        {"scheme": "mxfp4a16", "scales": np.full((2, 8), 3.0)},
        "scales of mxfp4 must be values of float8_e8m0fnu: 3.0 is none",
    ),
    ({"scheme": "mxfp4a16", "scales": np.ones(2)}, "mxfp4 must have one scale per 32 of K: got one per row"),
    ({"scheme": "nvfp4a16", "scales": np.ones((2, 16))}, "nvfp4 has a scale over the whole tensor: give tensor_scale"),
    ({"tensor_scale": 2.0}, "tensor_scale belongs to NVFP4: int4 has none"),
    ({"scheme": "nvfp4a16", "scales": np.ones((2, 16)), "tensor_scale": [1.0, 2.0]}, "must be one finite number"),
    (
        {"scheme": "fp8-rowwise", "scales": np.ones(2), "zero_points": np.ones(2, int)},
        "zero_points belong to integer codes",
    ),
    ({"scheme": "w4a16-g128"}, "uint4 codes have zero points: give zero_points, or name a symmetric scheme"),
    ({"zero_points": np.ones((2, 3), int)}, r"zero_points must have the shape of scales, \(2, 2\): got \(2, 3\)"),
    ({"zero_points": np.full((2, 2), 16)}, "zero points of 4 bits in an unsigned type must be from 0 to 15: got 16"),
    ({"scheme": "bf16"}, "is bfloat16: it has no codes"),
    (
        {"scheme": "mxfp4a16", "codes": CODES + 16, "scales": np.ones((2, 8))},
        "float4_e2m1fn must be from 0 to 15: got 16",
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_does_not_fit_is_refused_with_the_rule(change, message):
    with pytest.raises(qsim.QsimError, match=message):
        from_codes(**{"codes": CODES, "scheme": "W4A16", "scales": np.ones((2, 2), F32), **change})


def test_the_layer_is_named():
    with pytest.raises(qsim.QsimError, match=r"got 16 \(layer mlp.up\)"):
        from_codes(CODES + 16, "W4A16", np.ones((2, 2), F32), name="mlp.up")
