"""Parts of a model that can be replaced: engines, Linears, attention's arithmetic, the KV cache, hidden states."""

from __future__ import annotations

import numpy as np
import pytest

import qsim
from qsim.models import AttentionMath
from qsim.models.cache import round_entries
from qsim.scheme import TensorScheme, get_scheme, quantize

from .small import random_model
from .test_model import TOKENS, close


@pytest.mark.parametrize("scheme", ["w4a16-g32", "w8a8", "fp8-rowwise", "w8a8-tensor", "mxfp8", "nvfp4", "nf4-g64"])
def test_engines_agree(scheme):
    """Fused, dequantised and layer by layer: the same codes meet, so only the order of float32 sums differs."""
    model = random_model()
    q = {f"{n}.weight": quantize(o.weight, get_scheme(scheme), name=n) for n, o in model.linears().items()
         if o.in_features % 64 == 0}  # fmt: skip
    fused = model.replace(tensors=q)
    got = fused.logits(TOKENS)
    slow = fused.replace(linear_settings={"*": {"engine": "dequantized"}})
    # one activation at a rounding boundary can fall to the other side and move logits by a step of its scale
    close(got, slow.logits(TOKENS), 0.05 if "a16" not in scheme and "nf4" not in scheme else 3e-5)
    assert np.abs(got - model.logits(TOKENS)).max() > 1e-3
    mixed = fused.replace(linear_settings={"*.0.*": {"engine": "dequantized"}, "*.o_proj": {"engine": "fused"}})
    engines = {n: o.engine for n, o in mixed.linears().items()}
    assert engines["model.layers.0.mlp.up_proj"] == "dequantized"
    assert engines["model.layers.0.self_attn.o_proj"] == engines["model.layers.1.mlp.up_proj"] == "fused"
    notes = [n for n in fused.notes if "no fused kernel" in n]
    assert bool(notes) == (scheme == "nf4-g64")
    assert not [n for n in slow.notes if "no fused kernel" in n]


def test_a_linear_of_ones_own():
    model = random_model()
    calls = []

    def double(linear, x):
        calls.append(linear.name)
        return 2 * (x @ linear.weight.T)

    name = "model.layers.0.self_attn.v_proj"
    got = model.replace(linear_settings={name: {"engine": double}}).logits(TOKENS)
    want = model.replace(tensors={f"{name}.weight": 2 * model.tensors[f"{name}.weight"]}).logits(TOKENS)
    close(got, want, 1e-5)
    assert calls == [name]


def test_exact_linears_are_the_instruction_bit_for_bit():
    from qsim.tensorcore import matmul_floats

    model = random_model(num_hidden_layers=1)
    exact = model.replace(linear_settings={"*": {"engine": "exact", "instruction": "ampere.mma.f32.bf16"}})
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    one = exact.linears()["model.layers.0.mlp.up_proj"]
    np.testing.assert_array_equal(one(x), matmul_floats(x, one.weight, instruction="ampere.mma.f32.bf16"))
    difference = np.abs(exact.logits(TOKENS) - model.logits(TOKENS)).max()
    assert 1e-4 < difference < 0.5
    w8 = model.replace(tensors={f"{n}.weight": quantize(o.weight, "w8a8") for n, o in model.linears().items()})
    s8 = w8.replace(linear_settings={"*_proj": {"engine": "exact", "instruction": "ada.mma.s32.s8"}})
    np.testing.assert_array_equal(s8.logits(TOKENS), w8.logits(TOKENS))  # integer sums have no order
    with pytest.raises(ValueError, match="bf16, f16 or tf32"):
        model.replace(linear_settings={"*": {"engine": "exact", "instruction": "ada.mma.s32.s8"}}).logits(TOKENS)


@pytest.mark.parametrize(
    ("math", "tolerance"),
    [
        (AttentionMath(operand_format="float32"), 1e-9),
        (AttentionMath(operand_format="bfloat16"), 0.1),
        (AttentionMath(instruction="hopper.wgmma.f32.bf16"), 0.1),
        (AttentionMath(operand_format="e4m3"), 0.5),
        (AttentionMath(instruction="hopper.wgmma.f32.e4m3"), 0.5),
    ],
)
def test_attention_math(math, tolerance):
    model = random_model()
    plain = model.logits(TOKENS)
    seam = model.replace(attention=math)
    got = seam.logits(TOKENS)
    difference = np.abs(got - plain).max()
    assert difference < tolerance
    assert (difference > 1e-4) == (tolerance > 1e-3)
    if math.operand_format != "float8_e4m3fn":  # FP8's scales are of a tile of queries, so they differ in decoding
        cache = model.new_cache(2)
        steps = [seam.logits(TOKENS[:, :20], cache=cache), seam.logits(TOKENS[:, 20:], cache=cache)]
        close(np.concatenate(steps, axis=1), got, 1e-2 if tolerance > 1e-3 else 1e-5)


def test_attention_math_forms_the_products_of_the_instruction():
    from qsim.models.attention import _product
    from qsim.tensorcore import matmul_floats

    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((7, 24)).astype(np.float32), rng.standard_normal((9, 24)).astype(np.float32)
    math = AttentionMath(instruction="hopper.wgmma.f32.f16")
    assert math.operand_format == "float16"
    np.testing.assert_array_equal(_product(q, k, math), matmul_floats(q, k, instruction="hopper.wgmma.f32.f16"))
    for bad in ({"instruction": "hopper.wgmma.s32.s8"}, {"operand_format": "int8"}, {"operand_format": "e2m1"},
                {"instruction": "hopper.wgmma.f32.f16", "operand_format": "bfloat16"}):  # fmt: skip
        with pytest.raises(ValueError):
            AttentionMath(**bad)


@pytest.mark.parametrize("suffix", ["kvfp8", "kve5m2", "kvint8", "kvint4"])
def test_quantised_kv_cache(suffix):
    scheme = get_scheme(f"bf16-{suffix}").kv_cache
    model = random_model()
    plain = model.logits(TOKENS)
    scale = 1 / 64
    scales = {f"model.layers.{i}.self_attn.{w}_scale": np.full(1, scale, np.float32) for i in (0, 1) for w in "kv"}
    quantized = model.replace(kv_cache=scheme, tensors=scales if "int" not in suffix else {})
    got, cache = quantized.logits(TOKENS), quantized.new_cache(2)
    difference = np.abs(got - plain).max()
    assert 1e-3 < difference < (2 if suffix in ("kvint4", "kve5m2") else 0.6)
    steps = [quantized.logits(TOKENS[:, :20], cache=cache), quantized.logits(TOKENS[:, 20:], cache=cache)]
    # a key can round to the other side of a tie, where the sums before it are in another order
    close(np.concatenate(steps, axis=1), got, 0.02)
    own, float_cache = quantized.new_cache(2), model.new_cache(2)
    quantized.logits(TOKENS, cache=own)
    model.logits(TOKENS, cache=float_cache)
    for name in ("keys", "values"):
        rows = getattr(float_cache, name)[0, :, :, :21].transpose(0, 2, 1, 3).reshape(42, 32)
        want = round_entries(rows, scheme, scale).reshape(2, 21, 2, 16).transpose(0, 2, 1, 3)
        np.testing.assert_array_equal(getattr(own, name)[0, :, :, :21], want)
    row = 2 * 16  # KV heads * head_dim
    per_token = row * scheme.bits / 8 + (2 if "int" in suffix else 0)
    scale_bytes = 0 if "int" in suffix else 2 * 2 * 2 * 4  # layers, K and V, sequences
    assert cache.nbytes == 2 * 2 * 2 * 21 * per_token + scale_bytes
    if "int" in suffix:
        assert not quantized.notes
    else:
        codes = own.keys[0, 0, :, :21] * 64
        np.testing.assert_array_equal(qsim.cast(codes, scheme.format), codes)  # values of the format, times the scale
        assert "taken as 1" in model.replace(kv_cache=scheme).notes[0]


def test_kv_schemes_that_cannot_be():
    model = random_model()
    for scheme in (
        TensorScheme(format="mxfp8_e4m3"),
        TensorScheme(format="int8", granularity="channel"),
        TensorScheme(format="int8", granularity="tensor"),
    ):
        with pytest.raises(ValueError, match="KV"):
            model.replace(kv_cache=scheme)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hidden_states_of_16_bits(dtype):
    model = random_model()
    half = model.replace(activation_format=dtype)
    got = half.logits(TOKENS)
    np.testing.assert_array_equal(qsim.cast(got, dtype), got)
    difference = np.abs(got - model.logits(TOKENS)).max()
    assert 1e-4 < difference < (0.2 if dtype == "bfloat16" else 0.03)
    with pytest.raises(ValueError, match="activation_format"):
        model.replace(activation_format="float8_e4m3fn")
