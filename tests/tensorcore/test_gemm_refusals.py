"""What a GEMM does not take is refused in a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.formats import encode
from qsim.tensorcore import (
    generic,
    matmul,
    mma,
)

from .test_gemm import WGMMA

BAD_MMA = [
    ({"instruction": "hopper.mma.s32.s4"}, ValueError, "hopper.mma has no s32.s4: it has .*ampere.mma.s32.s4"),
    ({"instruction": "hoper.mma.f32.f16"}, ValueError, "the nearest are hopper.mma.f32.f16, .*; architectures are "),
    ({"instruction": "ada.wgmma.f32.f16"}, ValueError, "ada has no operation 'wgmma': it has mma"),
    ({"instruction": 5}, TypeError, "an instruction must be a name or an Instruction: got int"),
    ({"a": np.zeros((2, 32), np.float32)}, TypeError, "holds e4m3 codes as uint8.*float32; encode floats first"),
    ({"a": np.zeros((2, 32), np.uint16)}, TypeError, "holds e4m3 codes as uint8: got an array of uint16"),
    ({"b": np.zeros((3, 64), np.uint8)}, ValueError, r"must share K: got \(2, 32\) and \(3, 64\)"),
    ({"a": np.zeros(32, np.uint8)}, ValueError, r"must have shapes \(..., M, K\)"),
    (
        {"a": np.zeros((2, 33), np.uint8), "b": np.zeros((3, 33), np.uint8)},
        ValueError,
        "multiple of the step.*got K=33",
    ),
    ({"c": np.zeros((3, 2), np.uint32)}, ValueError, r"shape of the result, \(2, 3\): got \(3, 2\)"),
    ({"c": np.zeros((2, 3), np.uint16)}, TypeError, "holds f32 as uint32: got an array of uint16"),
    ({"satfinite": True}, ValueError, "satfinite applies to s32 outputs only"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_MMA)
def test_bad_mma(change, error, message):
    arguments = {
        "instruction": WGMMA,
        "a": np.zeros((2, 32), np.uint8),
        "b": np.zeros((3, 32), np.uint8),
        "c": np.zeros((2, 3), np.uint32),
        **change,
    }
    with pytest.raises(error, match=message):
        mma(arguments.pop("instruction"), arguments.pop("a"), arguments.pop("b"), arguments.pop("c"), **arguments)


BAD_MATMUL = [
    ({"instruction": None}, "needs an instruction or a preset"),
    ({"preset": "cublaslt_fp8_fats"}, "unknown preset 'cublaslt_fp8_fats': the nearest are cublaslt_fp8_fast"),
    ({"promote_every": 100}, "promote_every must be a multiple of the step of hopper.wgmma.f32.e4m3, 32: got 100"),
    ({"promotion": "ffma"}, "promotion='ffma' needs promote_every"),
    ({"promotion": "exact"}, "promotion must be 'add', 'ffma' or 'ffma_a_first'"),
    ({"split_k": 0}, "split_k must be at least 1: got 0"),
    ({"split_k": [32, 16]}, r"must add up to K=64: got \[32, 16\]"),
    ({"k_order": [0, 0, 1]}, "k_order must be a permutation of 0..n-1 with n dividing K=64"),
    ({"scale_a": np.ones(5)}, r"scale_a must be a scalar or one float32 per row \(2\): got shape \(5,\)"),
    ({"scale_order": "last"}, "scale_order must be"),
    ({"out_format": "int8"}, "out_format converts f32 and f16 accumulators to a float format: got 'int8'"),
    ({"preset": "deepgemm", "scale_a": np.ones((2, 2))}, r"scale_a must have shape \(2, 1\)"),
    ({"instruction": "hopper.mma.f32.e4m3", "promote_every": 32}, "chains of native f32 or f16 instructions"),
    ({"instruction": "blackwell.tcgen05.f32.mxfp8_e4m3"}, "scale_a is missing: mxfp8_e4m3 operands have one"),
]


@pytest.mark.parametrize(("change", "message"), BAD_MATMUL)
def test_bad_matmul(change, message):
    x, w = np.zeros((2, 64), np.uint8), np.zeros((3, 64), np.uint8)
    with pytest.raises(ValueError, match=message):
        matmul(x, w, **{"instruction": WGMMA, **change})


def test_codes_outside_a_narrow_format():
    x = np.full((2, 32), 0x10, np.uint8)
    with pytest.raises(ValueError, match="holds 4-bit e2m1 codes: got code 0x10"):
        matmul(x, x, instruction="blackwell.tcgen05.f32.e2m1")
    y = np.full((2, 64), 9, np.int8)
    with pytest.raises(ValueError, match="s4 values from -8 to 7: got 9 to 9"):
        matmul(y, y, instruction="ampere.mma.s32.s4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction_bits": 60}, "fraction_bits must be 1..46: got 60"),
        ({"rounding": "up_f32"}, "rounding must be rz_ or rne_"),
        ({"products": 0}, "products must be 1..4096"),
        ({"k": 24}, "products must be 1..4096 and divide k: got products=16, k=24"),
        ({"input": "s8"}, "int8 operands do not fit arithmetic 'truncated'"),
        ({"input": "nf4"}, "reads float or integer codes: got format 'nf4'"),
        ({"arithmetic": "exact", "output": "f16"}, "arithmetic 'exact' must have f32 accumulators: got f16"),
        ({"zero_exponent": 1000}, "zero_exponent must be -400..400"),
    ],
)
def test_bad_generic(arguments, message):
    with pytest.raises(ValueError, match=message):
        generic(**{"input": "bf16", **arguments})


def test_ml_dtypes_arrays_are_codes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(18).standard_normal((3, 32)).astype(np.float32)
    codes = encode(x, "e4m3")
    expected = matmul(codes, codes, instruction=WGMMA)
    typed = codes.view(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(matmul(typed, typed, instruction=WGMMA), expected)
