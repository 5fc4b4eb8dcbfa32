"""Layers in each layout: exact round trips, values by an independent reading, and what a reader meets on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.layouts import LAYOUTS, awq, compressed, fp8, gptq, reason
from qsim.layouts.compressed_config import compressed_layout
from qsim.layouts.parts import Notes, Parts
from qsim.layouts.words import pack_dense, pack_whole
from qsim.safetensors import Stored, integers
from qsim.scheme import QuantizedTensor, get_scheme, quantize

from . import reference as slow


def weight(n=64, k=128, seed=0):
    return (np.random.default_rng(seed).standard_normal((n, k)) * 0.05).astype(np.float32)


def random_codes(scheme, n=64, k=128, seed=0, lowest_zero=1):
    """Every code and zero point equally likely, float16 scales."""
    rng, scheme = np.random.default_rng(seed), get_scheme(scheme)
    w = scheme.weight
    shape = w.granularity.scale_shape((n, k))
    zeros = None if w.symmetric else rng.integers(lowest_zero, 1 << w.bits, shape).astype(np.uint8)
    scales = rng.uniform(0.001, 0.1, shape).astype(np.float16).astype(np.float32)
    codes = rng.integers(0, 1 << w.bits, (n, k)).astype(np.uint8)
    return QuantizedTensor(codes=codes, scales=scales, zeros=zeros, scheme=scheme, name="layer")


def decode(layout, stored, scheme, notes=None):
    scheme, notes, parts = get_scheme(scheme), notes or Notes(), Parts("layer", stored)
    if layout.startswith("gptq"):
        return gptq.decode(parts, scheme, notes, version=1 + layout.endswith("v2"))
    if layout == "compressed-tensors":
        return compressed.decode(parts, scheme, notes, fmt=compressed_layout(scheme))
    return (awq if layout == "awq" else fp8).decode(parts, scheme, notes)


INTEGERS = [f"w{b}a16-{g}-{s}" for b in (2, 3, 4, 8) for g in ("g32", "g64", "channel") for s in ("sym", "asym")]


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "awq", "compressed-tensors"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers_round_trip(name, layout):
    qt = random_codes(name)
    if reason(qt, layout) is not None:
        assert layout == "awq"
        assert qt.element.bits != 4
        return
    stored = LAYOUTS[layout].encode(qt)
    notes = Notes()
    assert decode(layout, stored, name, notes) == qt
    assert notes.lines() == ()


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "awq", "compressed-tensors"])
@pytest.mark.parametrize("name", ["w3a16-g32-asym", "w4a16-g32-asym", "w4a16-g32-sym", "w8a16-g32-asym"])
def test_an_independent_reading_gives_the_same_values(name, layout):
    qt = random_codes(name, 32, 64, seed=3)
    if reason(qt, layout) is not None:
        return
    arrays = {key: s.bits for key, s in LAYOUTS[layout].encode(qt).items()}
    bits = qt.element.bits
    if layout.startswith("gptq"):
        values = slow.gptq(arrays, bits, 2 if layout.endswith("v2") else 1)
    elif layout == "awq":
        values = slow.awq(arrays, 32)
    else:
        values = slow.compressed(arrays, bits, 32)
    np.testing.assert_array_equal(values.astype(np.float32), qt.dequantize())


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_odd_widths_in_compressed_tensors(bits):
    for how in ("sym", "asym"):
        qt = random_codes(f"w{bits}a16-g32-{how}")
        assert decode("compressed-tensors", compressed.encode(qt), qt.scheme) == qt
        assert "2, 3, 4 and 8 bits" in reason(qt, "gptq")


FLOATS = ["fp8-tensor", "fp8-static", "fp8-rowwise", "fp8-weight-only", "fp8-block128", "mxfp8", "mxfp6", "mxfp4",
          "nvfp4", "mxfp4-weight-only", "nvfp4-weight-only", "w8a8-tensor", "w8a8-channel-token", "w4a8-g32",
          "w8a8-asym", "w8a8-tensor-static", "w4a16-tensor-asym", "w8a8-tensor-asym"]  # fmt: skip


@pytest.mark.parametrize("layout", ["compressed-tensors", "fp8"])
@pytest.mark.parametrize("name", FLOATS)
def test_floats_and_activations_round_trip(name, layout):
    for shape in ((64, 128), (160, 256)):
        qt = quantize(weight(*shape), name, input_scale=0.0625)
        scheme = qt.scheme
        if reason(qt, layout) is not None:
            assert layout == "fp8"
            assert name not in ("fp8-tensor", "fp8-static", "fp8-block128")
            continue
        back = decode(layout, LAYOUTS[layout].encode(qt), scheme)
        np.testing.assert_array_equal(back.codes, qt.codes)
        np.testing.assert_array_equal(back.scales, qt.scales)
        assert back.scheme == scheme
        assert back.tensor_scale == qt.tensor_scale or name.startswith("nvfp4")
        np.testing.assert_array_equal(back.dequantize(), qt.dequantize())
        if (not scheme.activation.dynamic and scheme.activation.is_quantized) or name == "nvfp4":
            assert back.input_scale == 0.0625


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_integer_layer(data):
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    n, k = (32 * data.draw(st.integers(1, 3)) for _ in range(2))
    group = data.draw(st.sampled_from([16, 32]))
    how = data.draw(st.sampled_from(["sym", "asym"]))
    qt = random_codes(f"w{bits}a16-g{group}-{how}", n, k, seed=data.draw(st.integers(0, 99)), lowest_zero=0)
    for layout in ("gptq_v2", "awq", "compressed-tensors"):
        if reason(qt, layout) is None:
            assert decode(layout, LAYOUTS[layout].encode(qt), qt.scheme) == qt


# --- GPTQ -------------------------------------------------------------------------------------------------------


def test_act_order_keeps_its_index():
    qt = random_codes("w4a16-g32-asym")
    order = np.random.default_rng(1).permutation(128)
    index = (np.arange(128) // 32)[order].astype(np.int32)
    ordered = QuantizedTensor(
        codes=qt.codes, scales=qt.scales, zeros=qt.zeros, scheme=qt.scheme, group_index=index, name="layer"
    )
    for layout in ("gptq", "gptq_v2"):
        stored = LAYOUTS[layout].encode(ordered)
        np.testing.assert_array_equal(stored["g_idx"].bits, index)
        assert decode(layout, stored, qt.scheme) == ordered
        arrays = {key: s.bits for key, s in stored.items()}
        values = slow.gptq(arrays, 4, 1 + layout.endswith("v2"))
        np.testing.assert_array_equal(values.astype(np.float32), ordered.dequantize())
    assert "no g_idx" in reason(ordered, "awq")
    assert "dropped act order" in reason(ordered, "compressed-tensors")


@pytest.mark.parametrize(("bits", "step"), [(2, 0x55555555), (4, 0x11111111), (8, 0x01010101)])
def test_versions_differ_by_one_in_every_field(bits, step):
    qt = random_codes(f"w{bits}a16-g32-asym")
    one, two = (gptq.encode(qt, version=v)["qzeros"].bits.view(np.uint32) for v in (1, 2))
    np.testing.assert_array_equal(two - one, np.uint32(step))


def test_zero_points_of_zero():
    qt = random_codes("w4a16-g32-asym", lowest_zero=0)
    assert (qt.zeros == 0).any()
    count = int((qt.zeros == 0).sum())
    assert f"has no 0: got {count} of them" in reason(qt, "gptq")
    assert reason(qt, "gptq_v2") is None
    stored = gptq.encode(qt, version=2)
    minus_one = pack_dense(np.ascontiguousarray((qt.zeros - np.uint8(1)).T) & np.uint8(15), 4)
    stored["qzeros"] = Stored(dtype="I32", bits=minus_one.view(np.int32))
    notes = Notes()
    assert decode("gptq", stored, qt.scheme, notes) == qt
    assert "stored as -1 are read as 0" in notes.lines()[0]


def test_the_stored_zero_points_decide():
    """GPTQ's symmetric flag with other zero points keeps its values, as an asymmetric layer."""
    asym = random_codes("w4a16-g32-asym")
    for layout in ("gptq_v2", "awq", "compressed-tensors"):
        notes = Notes()
        back = decode(layout, LAYOUTS[layout].encode(asym), "w4a16-g32-sym", notes)
        assert back == asym
        assert "read as asymmetric" in notes.lines()[0]


def test_missing_index_means_consecutive_groups():
    qt = random_codes("w4a16-g32-asym")
    stored = gptq.encode(qt)
    del stored["g_idx"]
    assert decode("gptq", stored, qt.scheme) == qt


def test_ragged_last_group():
    qt = random_codes("w4a16-g64-asym-ragged", 64, 96)
    assert qt.scales.shape == (64, 2)
    assert decode("gptq", gptq.encode(qt), qt.scheme) == qt
    assert "groups that divide K" in reason(qt, "awq")
    assert "groups that divide K" in reason(qt, "compressed-tensors")


# --- compressed-tensors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("how", ["sym", "asym"])
def test_words_of_releases_before_and_after(bits, how):
    """Both packings are told apart by their shape."""
    qt = random_codes(f"w{bits}a16-g32-{how}")
    dense, whole = compressed.encode(qt), compressed.encode(qt, packing="whole")
    assert dense["weight_packed"].shape[1] < whole["weight_packed"].shape[1]
    if bits == 3:
        assert (dense["weight_packed"].shape, whole["weight_packed"].shape) == ((64, 12), (64, 13))
    assert decode("compressed-tensors", dense, qt.scheme) == qt
    assert decode("compressed-tensors", whole, qt.scheme) == qt


def test_dense_words_are_those_of_gptq():
    """3-bit words along K are bit for bit GPTQ's, transposed."""
    qt = random_codes("w3a16-g32-asym")
    a, b = compressed.encode(qt)["weight_packed"], gptq.encode(qt)["qweight"]
    np.testing.assert_array_equal(a.bits, b.bits.T)


@pytest.mark.parametrize(("pack", "n"), [(pack_dense, 20), (pack_whole, 20)])
def test_short_rows_are_told_apart_by_their_top_bits(pack, n):
    """20 codes of 3 bits take two words either way; whole words leave two bits of each unused."""
    codes = np.random.default_rng(0).integers(1, 8, (32, n)).astype(np.uint8)
    stored = {
        "weight_packed": Stored(dtype="I32", bits=pack(codes, 3).view(np.int32)),
        "weight_shape": integers(np.array([32, n]), "I64"),
        "weight_scale": Stored(dtype="F32", bits=np.ones((32, 1), np.float32)),
    }
    back = decode("compressed-tensors", stored, "w3a16-channel-sym")
    np.testing.assert_array_equal(back.codes ^ 4, codes)


def test_zero_points_stored_as_int8():
    qt = random_codes("w4a16-g32-asym")
    stored = compressed.encode(qt)
    stored["weight_zero_point"] = integers(qt.zeros.astype(np.int8) - 8, "I8")
    assert decode("compressed-tensors", stored, qt.scheme) == qt


def test_global_scale_is_the_reciprocal():
    qt = quantize(weight(), "nvfp4-weight-only")
    stored = compressed.encode(qt)
    np.testing.assert_allclose(stored["weight_global_scale"].bits, [448 * 6 / np.abs(weight()).max()], rtol=1e-6)
    back = decode("compressed-tensors", stored, qt.scheme)
    again = compressed.encode(back)
    assert all(np.array_equal(again[key].bits, s.bits) for key, s in stored.items())


def test_every_stored_global_scale_survives():
    """From file to file, to the last bit, over all of a binade's significands that are multiples of 4099."""
    qt = quantize(weight(32, 32), "nvfp4-weight-only")
    stored = compressed.encode(qt)
    for step in range(0, 1 << 23, 4099):
        g = np.array([(127 << 23) + step], np.uint32).view(np.float32)
        stored["weight_global_scale"] = Stored(dtype="F32", bits=g)
        back = decode("compressed-tensors", stored, qt.scheme)
        assert compressed._global_scale(back.tensor_scale) == g[0]


def test_a_tensor_scale_that_is_no_reciprocal_is_refused():
    qt = quantize(weight(), "nvfp4-weight-only")
    odd = next(
        s for s in (np.float32(1.9) + np.float32(2**-23) * np.arange(20, dtype=np.float32))
        if compressed._global_scale(float(s)) is None
    )  # fmt: skip
    broken = QuantizedTensor(codes=qt.codes, scales=qt.scales, scheme=qt.scheme, tensor_scale=float(odd))
    assert "not the reciprocal" in reason(broken, "compressed-tensors")


def test_the_index_of_older_releases_is_read():
    qt = random_codes("w4a16-g32-asym")
    stored = compressed.encode(qt)
    index = np.random.default_rng(0).permutation(np.arange(128) // 32).astype(np.int32)
    back = decode("compressed-tensors", stored | {"weight_g_idx": integers(index, "I32")}, qt.scheme)
    np.testing.assert_array_equal(back.group_index, index)
    none = decode("compressed-tensors", stored | {"weight_g_idx": integers(np.full(128, -1), "I32")}, qt.scheme)
    assert none == qt


# --- FP8 --------------------------------------------------------------------------------------------------------


def test_two_meanings_of_weight_scale_inv():
    """A multiplier in DeepSeek's files, a divisor in GPTQModel's."""
    qt = quantize(weight(128, 256), "fp8-block128")
    stored = fp8.encode(qt)
    np.testing.assert_array_equal(stored["weight_scale_inv"].bits, qt.scales)
    assert decode("fp8", stored, qt.scheme) == qt
    other = dict(stored) | {"weight_scale_inv": Stored(dtype="F32", bits=np.float32(1) / qt.scales)}
    with pytest.raises(ValueError, match=r'layer.weight_scale_inv is around .*scale_inv="divide"'):
        decode("fp8", other, qt.scheme)
    notes = Notes()
    divided = fp8.decode(Parts("layer", other), qt.scheme, notes, meaning="divide")
    np.testing.assert_allclose(divided.dequantize(), qt.dequantize(), rtol=2e-7)
    assert "weight_scale_inv divides" in notes.lines()[0]
    assert fp8.decode(Parts("layer", other), qt.scheme, notes, meaning="multiply").scales.max() > 1000


def test_scales_of_rows_are_read():
    qt = quantize(weight(), "fp8-rowwise")
    for shape in ((64,), (64, 1)):
        stored = {
            "weight": Stored(dtype="F8_E4M3", bits=qt.codes),
            "weight_scale": Stored(dtype="F32", bits=qt.scales.reshape(shape)),
        }
        back = decode("fp8", stored, "fp8-tensor")
        assert back.scheme.weight.granularity.kind == "channel"
        np.testing.assert_array_equal(back.dequantize(), qt.dequantize())


def test_bfloat16_and_e8m0_scales_are_read():
    qt = quantize(weight(128, 128), "fp8-block128")
    stored = fp8.encode(qt)
    half = Stored(dtype="BF16", bits=(qt.scales.view(np.uint32) >> 16).astype(np.uint16))
    back = decode("fp8", stored | {"weight_scale_inv": half}, "fp8-block128")
    assert back.scheme.weight.scale_format.name == "bfloat16"
    assert decode("fp8", fp8.encode(back), "fp8-block128") == back
    power = Stored(dtype="F8_E8M0", bits=np.full((1, 1), 117, np.uint8))
    back = decode("fp8", stored | {"weight_scale_inv": power}, "fp8-block128")
    assert (back.scheme.weight.scale_format.name, back.scales.tolist()) == ("float8_e8m0fnu", [[2.0**-10]])
    assert decode("fp8", fp8.encode(back), "fp8-block128") == back


# --- what does not fit ------------------------------------------------------------------------------------------


def without(stored, key):
    return {k: v for k, v in stored.items() if k != key}


@pytest.mark.parametrize("layout", ["gptq", "awq", "compressed-tensors"])
def test_a_part_that_is_missing_or_odd_is_named(layout):
    qt = random_codes("w4a16-g32-asym")
    stored = LAYOUTS[layout].encode(qt)
    for key, part in stored.items():
        if key in ("g_idx", "weight_shape"):
            continue
        with pytest.raises(ValueError, match=rf"tensor layer.{key} is missing"):
            decode(layout, without(stored, key), qt.scheme)
        with pytest.raises(ValueError, match=rf"tensor layer.{key} is BOOL, expected"):
            decode(layout, stored | {key: Stored(dtype="BOOL", bits=np.ones(part.shape, bool))}, qt.scheme)
        short = Stored(dtype=part.dtype, bits=part.bits[:-1])
        with pytest.raises(ValueError, match=r"tensor layer\.\w+ (has|says)"):
            decode(layout, stored | {key: short}, qt.scheme)


def test_scales_that_are_no_numbers():
    qt = random_codes("w4a16-g32-asym")
    stored = gptq.encode(qt)
    bad = stored["scales"].bits.copy()
    bad[1, 2] = np.nan
    with pytest.raises(ValueError, match="layer.scales has 1 scales that are NaN or Inf"):
        decode("gptq", stored | {"scales": Stored(dtype="F16", bits=bad)}, qt.scheme)


def test_an_index_out_of_range():
    qt = random_codes("w4a16-g32-asym")
    stored = gptq.encode(qt)
    with pytest.raises(ValueError, match=r"layer.g_idx must have groups 0 to 3: got 0 to 4"):
        decode("gptq", stored | {"g_idx": integers(np.arange(128) // 31, "I32")}, qt.scheme)


def test_static_activations_need_their_scale():
    for layout in ("fp8", "compressed-tensors"):
        qt = quantize(weight(), "fp8-static", input_scale=0.5)
        stored = LAYOUTS[layout].encode(qt)
        with pytest.raises(ValueError, match=r"layer.input_scale is missing"):
            decode(layout, without(stored, "input_scale"), qt.scheme)
        assert "calibrate first" in reason(quantize(weight(), "fp8-static"), layout)
