"""FP8: codes are those of the hardware, scales those of the rules."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from qsim.methods import fp8
from qsim.scheme import Scheme, TensorScheme, get_scheme

from .anchors import make

F32 = np.float32
GOLDEN = Path(__file__).parents[1] / "golden" / "conversions.npz"


@pytest.mark.parametrize(
    ("table", "fmt", "largest", "top"),
    [("f32_e4m3", "float8_e4m3fn", 448.0, 0x7E), ("f32_e5m2", "float8_e5m2", 57344.0, 0x7B)],
)
@pytest.mark.parametrize("exponent", [0, -9, 5])
def test_codes_of_the_hardware(table, fmt, largest, top, exponent):
    """First and last pattern of every run that an H200 recorded, as one weight whose scale is 2^exponent."""
    with np.load(GOLDEN) as golden:
        ends = np.concatenate([golden[f"{table}.min_bits"], golden[f"{table}.max_bits"]]).astype(np.uint32).view(F32)
        codes = np.tile(golden[f"{table}.code"], 2)
    fits = np.isfinite(ends) & (np.abs(ends) <= largest)
    if exponent < 0:  # float32 subnormals cannot be divided by a power of two and come back
        fits &= np.abs(ends) >= 2.0**-110
    assert fits.sum() > 400
    x, codes = np.append(ends[fits], F32(largest)), np.append(codes[fits], top)
    how = Scheme(weight=TensorScheme(format=fmt, granularity="tensor"))
    q, record = fp8(np.ldexp(x, exponent)[None], how)
    assert q.scales == 2.0**exponent
    np.testing.assert_array_equal(q.codes[0], codes)
    assert record.clip_fraction == 0
    assert (record.notes != ()) == (exponent == 0)  # a scale of exactly 1.0 is said


@pytest.mark.parametrize("name", ["fp8-tensor", "fp8-rowwise", "fp8-block128", "fp8-weight-only"])
def test_every_granularity_against_ml_dtypes(name):
    w, x = make(200, 320, 64)
    q, record = fp8(w, name, inputs=x, hessian=x.T @ x)
    granularity = get_scheme(name).weight.granularity
    scale = {
        "tensor": np.full_like(w, np.abs(w).max() / F32(448)),
        "channel": np.broadcast_to(np.abs(w).max(axis=1, keepdims=True) / F32(448), w.shape),
    }.get(granularity.kind)
    if scale is None:
        scale = np.empty_like(w)
        for r in range(0, 200, 128):
            for c in range(0, 320, 128):  # ragged last blocks
                block = w[r : r + 128, c : c + 128]
                scale[r : r + 128, c : c + 128] = np.abs(block).max() / F32(448)
    codes = np.clip(w / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(q.codes, codes.view(np.uint8))
    d = codes.astype(F32) * scale - w
    assert record.output_error == pytest.approx(np.sum((x @ d.T) ** 2) / np.sum((x @ w.T) ** 2), rel=1e-3)
    assert record.joint_error >= 0.9 * record.output_error
    assert record.error_ratio == 1


def test_static_activations():
    w, x = make(64, 256, 128)
    peaks = np.abs(x).max(axis=0)
    q, record = fp8(w, "fp8-static", max_abs=peaks, inputs=x)
    assert q.input_scale == pytest.approx(peaks.max() / 448, rel=1e-6)
    assert record.details["activation_clip_fraction"] == 0
    q, record = fp8(w, "fp8-static", max_abs=float(np.quantile(np.abs(x), 0.99)), inputs=x)
    assert record.details["activation_clip_fraction"] == pytest.approx(0.01, abs=1e-3)
    q, record = fp8(w, "fp8-static", max_abs=448.0)
    assert record.notes == ("the activation scale is exactly 1.0: was it ever found?",)
    with pytest.raises(ValueError, match=r"static activation scale needs the largest \|x\| .*\(layer x\)"):
        fp8(w, "fp8-static", name="x")
    with pytest.raises(ValueError, match="the largest activation is nan"):
        fp8(w, "fp8-static", max_abs=np.nan)


@pytest.mark.parametrize("name", ["fp8-static", "fp8-rowwise", "fp8-block128"])
def test_powers_of_two(name):
    w, _ = make(130, 256, 8)
    q, record = fp8(w, name, max_abs=3.0, power_of_two=True)
    plain, _ = fp8(w, name, max_abs=3.0)
    assert (np.frexp(q.scales)[0] == 0.5).all()
    assert (q.scales >= plain.scales).all()
    assert (q.scales < 2 * plain.scales).all()
    assert record.clip_fraction == 0
    if name == "fp8-static":
        assert q.input_scale == 2.0**-7  # 3 / 448 = 2^-7.2
    from qsim.scheme.tensor import expand

    scale = expand(q.scales, q.tensor_scheme.granularity, w.shape)
    np.testing.assert_array_equal(q.codes, (w / scale).astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def test_rules():
    w, _ = make(64, 256, 8)
    w[3] = 0
    amax, _ = fp8(w, "fp8-rowwise")
    auto, record = fp8(w, "fp8-rowwise", scale_rule="autofp8")
    compressed, _ = fp8(w, "fp8-rowwise", scale_rule="compressed-tensors")
    assert amax.scales[3] == 1
    assert compressed.scales[3] == np.finfo(F32).eps
    np.testing.assert_allclose(auto.scales[:3], amax.scales[:3], rtol=2e-7)
    assert (auto.scales != amax.scales).any()
    assert record.zero_groups == 1
    assert fp8(w, "fp8-rowwise")[1].notes == ("1 of 64 weight scales are exactly 1.0",)


def test_range_search():
    w, _ = make(64, 256, 8)
    w[:, 0] *= 50
    wide, a = fp8(w, "fp8-rowwise")
    narrow, b = fp8(w, "fp8-rowwise", mse=True)
    assert b.weight_mse <= a.weight_mse
    assert (narrow.scales <= wide.scales).all()


def test_e5m2():
    w, _ = make(32, 64, 8)
    how = Scheme(weight=TensorScheme(format="float8_e5m2", granularity="channel"))
    q, _ = fp8(w, how)
    np.testing.assert_array_equal(q.codes, (w / q.scales).astype(ml_dtypes.float8_e5m2).view(np.uint8))


def test_other_formats_are_refused():
    w, _ = make(32, 64, 8)
    for name in ("w4a16-g128", "mxfp8", "bf16"):
        with pytest.raises(ValueError, match=r"fp8 rounds weights to 8-bit floats: got .*\(layer x\)"):
            fp8(w, name, name="x")
