"""GGUF's blocks: values bit for bit as ggml's loops give them, and what rounding to a type loses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsim.errors import QsimError
from qsim.layouts import Layer, layouts_for, reason
from qsim.layouts.gguf import decode, encode
from qsim.layouts.gguf.tensors import from_blocks, to_blocks, type_of
from qsim.layouts.gguf.types import READ, TYPES, WRITTEN, get_type
from qsim.scheme import get_scheme, quantize

from . import gguf_reference as slow

BY_NAME = {one.name: one for one in TYPES.values()}
READ_HERE = ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl",
             "iq4_xs", "f64", "bf16", "tq1_0", "tq2_0", "mxfp4")  # fmt: skip
OWN_RULE = ("q4_1", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
HALVES = {"q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2),
          "q6_k": (208,)}  # fmt: skip
"""Where a block's float16 numbers are, if not at its beginning alone."""
WRITTEN_HERE = ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "bf16",
                "mxfp4")  # fmt: skip
EXACT = {"q4_0": "w4a16-g32-sym", "q5_0": "w5a16-g32-sym", "q8_0": "w8a16-g32-sym", "mxfp4": "mxfp4-weight-only",
         **{name: name for name in OWN_RULE}}  # fmt: skip


def blocks(kind, count, seed=0):
    """Random bytes, and bytes that are all 0 or all 1."""
    found = np.random.default_rng(seed).integers(0, 256, (count, kind.size), dtype=np.uint8)
    found[0], found[1] = 0, 255
    return found


def same_bits(a, b):
    """Equal in every bit, and NaN where the other is NaN."""
    a, b = (np.ascontiguousarray(x, np.float32).reshape(-1) for x in (a, b))
    return (a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))


def weights(*shape, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(np.float32)


def rmse(kind, x):
    back = kind.dequantize(kind.quantize(x)).reshape(x.shape)
    return float(np.sqrt(np.square(back - x, dtype=np.float64).mean()))


def test_the_types_that_are_read_and_written_are_those_of_the_documents():
    assert READ == READ_HERE
    assert WRITTEN == WRITTEN_HERE
    assert {name: BY_NAME[name].scheme for name in EXACT} == EXACT


@pytest.mark.parametrize("name", READ_HERE)
def test_values_are_those_of_the_slow_loops_to_the_last_bit(name):
    kind = BY_NAME[name]
    raw = blocks(kind, 40)
    with np.errstate(all="ignore"):
        fast = kind.dequantize(raw)
        exact = np.array([getattr(slow, name)(b) for b in raw], np.float32)
    assert exact.shape == (40, kind.values)
    assert same_bits(fast, exact).all()


def test_pieces_join_to_the_same_values(monkeypatch):
    from qsim.layouts.gguf import types

    kind = BY_NAME["q5_k"]
    raw, x = blocks(kind, 9, seed=1)[2:], weights(4, 512)
    whole, stored = kind.dequantize(raw), BY_NAME["q4_0"].quantize(x)
    monkeypatch.setattr(types, "PIECE", 512)
    assert same_bits(kind.dequantize(raw), whole).all()
    assert (BY_NAME["q4_0"].quantize(x) == stored).all()


@pytest.mark.parametrize(
    ("name", "bits", "most"),
    [("q8_0", 8.5, 0.0070), ("q6_k", 6.5625, 0.024), ("q5_0", 5.5, 0.048), ("q4_k", 4.5, 0.085), ("q4_0", 4.5, 0.094),
     ("q5_1", 6, 0.037), ("q5_k", 5.5, 0.042), ("q4_1", 5, 0.077), ("q3_k", 3.4375, 0.18), ("q2_k", 2.625, 0.31),
     ("mxfp4", 4.25, 0.13), ("bf16", 16, 0.0025), ("f16", 16, 0.0004), ("f32", 32, 0)],
)  # fmt: skip
def test_normal_weights_are_rounded_as_well_as_the_bits_allow(name, bits, most):
    """RMSE relative to the weights' own. The bounds are what this search reaches, a few percent looser."""
    kind, x = get_type(name.upper()), weights(64, 1024)
    assert float(kind.bits_per_weight) == bits
    assert rmse(kind, x) / 0.05 <= most


@pytest.mark.parametrize("name", ["q8_0", "q5_0", "q4_0", "mxfp4", *OWN_RULE])
def test_blocks_of_zeros_and_of_one_value_are_kept(name):
    kind = BY_NAME[name]
    for value in (0.0, -0.0, 0.5, -0.5, 1.0):
        x = np.full((2, 256), value, np.float32)
        back = kind.dequantize(kind.quantize(x))
        # one value in all of a block is exact but for the rounding of the scale, to float16 or to 6 or 8 bits of it
        np.testing.assert_allclose(back, x.reshape(-1), rtol=2**-5, atol=0)


@pytest.mark.parametrize("name", ["q8_0", "q5_0", "q4_0", "mxfp4", *OWN_RULE])
@given(seed=st.integers(0, 99), exponents=st.lists(st.integers(-30, 12), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_values_of_any_size_are_finite_and_near(name, seed, exponents):
    """Of each 32 values the error is below the largest of them: no block falls apart."""
    kind = BY_NAME[name]
    x = np.random.default_rng(seed).uniform(-1, 1, (len(exponents), 256)).astype(np.float32)
    x *= np.exp2(np.array(exponents, np.float32))[:, None]
    back = kind.dequantize(kind.quantize(x)).reshape(x.shape)
    assert np.isfinite(back).all()
    assert (np.abs(back - x).max(axis=1) <= np.abs(x).max(axis=1)).all()


@pytest.mark.parametrize("name", ["q8_0", "q5_0", "q4_0", *OWN_RULE])
def test_values_beyond_the_scales_are_refused(name):
    with pytest.raises(QsimError, match="float16 scales, up to 65504: values need one of .*; use f32"):
        BY_NAME[name].quantize(np.full((1, 256), 1e30, np.float32))


def test_every_code_is_the_nearest_under_the_stored_scale():
    x = weights(64, 256)
    for name, low, high in (("q8_0", -127, 127), ("q4_0", -8, 7), ("q5_0", -16, 15)):
        kind = BY_NAME[name]
        qt = from_blocks(kind, kind.quantize(x), "x")
        steps = np.arange(low, high + 1, dtype=np.float32)
        choices = steps * qt.scales.reshape(-1, 1, 1)
        best = np.abs(choices - x.reshape(-1, 32, 1)).min(axis=2)
        assert (np.abs(qt.dequantize() - x).reshape(-1, 32) <= best * (1 + 2**-20)).all(), name


def test_six_bits_survive_packing():
    rng = np.random.default_rng(0)
    scales, minima = rng.integers(0, 64, (2, 50, 8)).astype(np.uint8)
    back = decode.six_bits(encode.pack_six_bits(scales, minima))
    assert (back[0] == scales).all()
    assert (back[1] == minima).all()


@pytest.mark.parametrize(("name", "scheme"), EXACT.items())
def test_a_scheme_s_codes_and_scales_are_a_type_s(name, scheme):
    qt = quantize(weights(8, 3 * BY_NAME[name].values), scheme, name="layer")
    assert type_of(qt.scheme) is BY_NAME[name]
    raw = to_blocks(qt)
    assert raw.shape == (8, 3 * BY_NAME[name].size)
    assert from_blocks(BY_NAME[name], raw, "layer") == qt
    np.testing.assert_array_equal(BY_NAME[name].dequantize(raw), qt.dequantize().reshape(-1))
    any_blocks = blocks(BY_NAME[name], 12, seed=3)[2:]
    if name == "mxfp4":
        any_blocks[:, :2] %= 200
    else:  # float16 numbers that are finite
        for at in HALVES.get(name, (0,)):
            any_blocks[:, at : at + 2] = [0, 60]
    read = from_blocks(BY_NAME[name], any_blocks.reshape(2, -1), "layer")
    assert (to_blocks(read) == any_blocks.reshape(2, -1)).all()
    np.testing.assert_array_equal(read.dequantize().reshape(-1), BY_NAME[name].dequantize(any_blocks))


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("w4a16-g128", "code by code, with float16 scales: got uint4 in group(128)"),
        ("w4a16-g128-sym", "got int4 in group(128)"),
        ("w8a8", "weights only: activations are int8"),
        ("w4a16-g32-sym-kvfp8", "no place for a quantised KV cache"),
        ("nvfp4-weight-only", "got nvfp4"),
        ("fp8-weight-only", "got float8_e4m3fn"),
    ],
)
def test_what_gguf_cannot_hold_is_refused(scheme, words):
    assert words in reason(scheme, "gguf")


def test_shapes_and_order_of_columns_are_refused_too():
    scheme = get_scheme("w4a16-g32-sym")
    assert "divide K: got K=40" in reason(Layer(scheme=scheme.with_ragged(), shape=(8, 40)), "gguf")
    assert "act order" in reason(Layer(scheme=scheme, shape=(8, 64), act_order=True), "gguf")
    assert "gguf" in layouts_for(scheme)
    assert layouts_for("bf16") == ("plain", "gguf")


def test_types_that_are_not_read_or_written_are_named():
    with pytest.raises(QsimError, match="GGUF type iq2_xxs is not read: f32, f16, q4_0"):
        BY_NAME["iq2_xxs"].dequantize(np.zeros((1, 66), np.uint8))
    with pytest.raises(QsimError, match="unknown GGUF type to write 'q4_k_m'"):
        get_type("Q4_K_M")
    with pytest.raises(QsimError, match="unknown GGUF type to write 'iq4_nl'"):
        get_type("iq4_nl")
    with pytest.raises(QsimError, match="multiple of 256: got 128"):
        get_type("q4_k").quantize(np.zeros((2, 128), np.float32))


@pytest.mark.parametrize("name", OWN_RULE)
def test_a_tensor_of_the_scheme_is_written_as_the_type_rounds(name):
    """One implementation: what the scheme finds and what the type writes are the same bytes, pieces joined."""
    x = weights(1100, 256, seed=2)
    x[3], x[4] = 0, -0.25
    assert (to_blocks(quantize(x, name)) == BY_NAME[name].quantize(x)).all()


def test_numbers_of_superblocks_that_are_nan_or_inf_are_refused():
    for name in OWN_RULE:
        raw = BY_NAME[name].quantize(weights(4, 256))
        at = HALVES[name][-1]
        raw.reshape(-1, BY_NAME[name].size)[0, at : at + 2] = [0, 0x7C]
        with pytest.raises(QsimError, match="1 scales are NaN or Inf"):
            from_blocks(BY_NAME[name], raw, "layer")


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [("q4_k", "gptq", "GPTQ has no place for minima or superblocks: got uint4 group"),
     ("q4_1", "awq", "AWQ has no place for minima or superblocks: got uint4 group"),
     ("q6_k", "compressed-tensors", "compressed-tensors has no place for minima or superblocks: got int6"),
     ("q4_1", "gptq_v2", "GPTQ has no place for minima")],
)  # fmt: skip
def test_other_layouts_refuse_minima_and_superblocks(name, layout, words):
    assert words in reason(name, layout)
    assert layouts_for(name) == ("gguf",)
