"""Schemes with minima and superblocks: what they weigh, what they give back, what they refuse."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.kernels import available_paths, linear, pack
from qsim.kernels.pipelines import list_pipelines
from qsim.methods import awq, gptq, quantize_model, rtn
from qsim.methods.errors import delta
from qsim.models import Model, ModelConfig
from qsim.models.families import expected_tensors
from qsim.models.fingerprint import fingerprint
from qsim.models.linear import Linear, stack
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, from_codes, get_scheme, quantize

BITS = {"q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5, "q5_k": 5.5, "q6_k": 6.5625, "q4_1": 5.0, "q5_1": 6.0}
"""Of a weight, with its share of everything: bytes of a block of ggml over its values."""
SUPER = tuple(name for name in BITS if name.endswith("_k"))


def weights(n=24, k=512, seed=0):
    w = (np.random.default_rng(seed).standard_normal((n, k)) * 0.02).astype(np.float32)
    w[3], w[4, :256] = 0, -0.3  # groups without a range
    return w


@pytest.mark.parametrize(("name", "bits"), BITS.items())
def test_a_weight_takes_the_bits_of_its_block(name, bits):
    scheme, q = get_scheme(name), quantize(weights(), name)
    assert scheme.bits_per_weight() == scheme.bits_per_weight((24, 512)) == bits
    assert q.nbytes * 8 == bits * 24 * 512
    stored = q.to_arrays()[0]
    assert sum(array.nbytes for key, array in stored.items() if key != "shape") == q.nbytes


def test_types_of_gguf_without_minima_are_names_of_the_grammar():
    for name, same in (("q4_0", "w4a16-g32-sym"), ("Q5_0", "w5a16-g32-sym"), ("q8-0", "w8a16-g32-sym")):
        assert get_scheme(name) == get_scheme(same)
    assert [get_scheme(name).name for name in ("Q4_K", "q4-k", "q8-0", "q6_k-kvfp8")] == ["q4_k", "q4_k", "q8_0",
                                                                                         "q6_k-kvfp8"]  # fmt: skip


@pytest.mark.parametrize("name", BITS)
def test_values_are_code_times_scale_less_minimum(name):
    """By hand from what is stored, exactly, with one rounding at the end."""
    q = quantize(weights(6), name)
    part, stored = q.tensor_scheme, q.to_arrays()[0]
    size = part.superblock or part.group_size
    above = {key: stored.get(f"super_{key}") for key in ("scales", "minima")}
    for n, k in ((0, 0), (1, 77), (3, 300), (4, 5), (5, 511)):
        g, s = k // part.group_size, k // size
        factors = []
        for key in ("scales", "minima"):
            if above[key] is None:
                values = stored.get(key)
                factors.append(Fraction(0) if values is None else Fraction(float(values[n, g])))
            else:
                factors.append(Fraction(float(above[key][n, s])) * Fraction(float(q.integers_of(key)[n, g])))
        code = Fraction(int(q.integers[n, k]))
        assert np.float32(float(code * factors[0] - factors[1])) == q.dequantize()[n, k]


def test_small_groups_under_one_number_lose_less_than_larger_groups():
    w = weights(64, 1024, seed=1)

    def lost(name):
        return float(np.square(quantize(w, name).dequantize() - w).mean())

    assert lost("q4_k") < lost("w4a16-g32") < lost("w4a16-g128")
    assert lost("q8_0") < lost("q6_k") < lost("q5_k") < lost("q4_k") < lost("q3_k") < lost("q2_k")


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_tensor_is_the_same_after_the_disk(name, suffix, tmp_path):
    q = quantize(weights(), name, name="layer")
    q.save(tmp_path / f"q{suffix}")
    back = QuantizedTensor.load(tmp_path / f"q{suffix}")
    assert back == q
    np.testing.assert_array_equal(back.dequantize(), q.dequantize())


def test_rows_are_sliced_and_stacked_with_all_that_belongs_to_them():
    w = weights()
    for name in BITS:
        q = quantize(w, name)
        assert q[4:9] == quantize(w[4:9], name)
        parts = [Linear(name=str(i), weight=q[8 * i : 8 * i + 8]) for i in range(3)]
        joined = stack(parts, "all")
        assert joined is not None
        assert joined.weight == q


def test_a_change_of_any_array_is_another_tensor_and_another_fingerprint():
    q = quantize(weights(512, 256), "q4_k")
    other = dataclasses.replace(q, minima=q.minima * 2, super_minima=q.super_minima * 2)
    assert other != q
    model = small()
    prints = {fingerprint(model.replace(tensors={**model.tensors, "model.layers.0.mlp.up_proj.weight": one}))
              for one in (q, other)}  # fmt: skip
    assert len(prints) == 2


@pytest.mark.parametrize("name", BITS)
def test_products_run_on_codes_on_every_path(name):
    """As good as float32: the bound of `tests.kernels.test_linear`, with one rounding more for each zero point."""
    rng, q = np.random.default_rng(0), quantize(weights(100), name)
    bias = rng.standard_normal(100).astype(np.float32)
    packed = pack(q, bias=bias)
    assert packed.kind == "uint"
    for tokens in (1, 3, 17, 70):
        x = rng.standard_normal((tokens, 512)).astype(np.float32)
        want = x.astype(np.float64) @ q.dequantize().astype(np.float64).T
        for path in available_paths():
            y = linear(x, packed, path=path) - bias
            assert np.linalg.norm(y - want) <= 1.5e-6 * np.linalg.norm(want), (tokens, path)
        exact = linear(x, packed, exact=True)
        assert np.linalg.norm(exact - bias - want) < 0.01 * np.linalg.norm(want)  # BF16 operands


def test_no_kernel_of_a_gpu_is_said_to_run_them():
    for name in BITS:
        fits = [row for row in list_pipelines() if row.fits(get_scheme(name))]
        assert {row.operand for row in fits} <= {"dequantize"}


def small():
    config = ModelConfig.from_dict({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
                                    "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 32})  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {name: (rng.standard_normal(shape) * 0.05).astype(np.float32)
               for name, shape in expected_tensors(config).items()}  # fmt: skip
    return Model(config=config, tensors=tensors)


def test_rounding_to_nearest_quantises_a_model_and_records_it():
    result = quantize_model(small(), "rtn", "q4_k")
    assert all(one.is_quantized and one.weight.scheme.name == "q4_k" for one in result.model.linears().values())
    assert all(record.scheme == "q4_k" and 0 < record.weight_mse < 1e-4 for record in result.layers)


def test_a_weight_beyond_its_group_is_counted():
    w = weights(8, 256, seed=3)
    for name in ("q4_k", "q6_k"):
        q = quantize(w, name)
        gap, beyond = delta(w, q)
        np.testing.assert_array_equal(gap, w - q.dequantize())
        assert beyond <= delta(w * 2, q)[1]
        assert delta(w * 0, q)[1] <= 256  # a row of zeros has no range


def part(fmt, granularity="group(16)", **more):
    return lambda: TensorScheme(format=fmt, granularity=granularity, **more)


def rounded(scheme, w=None, **more):
    return lambda: quantize(weights() if w is None else w, scheme, **more)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (rounded("q4_k", weights(8, 384), name="a.b"), r"superblocks of 256 must divide K: got K=384 \(layer a.b"),
        (rounded("q4_k", clip=2.0), "q4_k finds its scales by a rule of its own: clip does not belong"),
        (rounded("q4_1", scale_rule="gptq"), "q4_1 finds its scales by a rule of its own: scale_rule does not"),
        (rounded("q4_k", weights() * 1e9), "float16 scales, up to 65504"),
        (lambda: get_scheme("q4_k").with_ragged(), "need stored scales of whole groups: got ragged=True"),
        (lambda: get_scheme("q4_k").replace(activation=get_scheme("w8a8").activation), "32-bit activations: got int8"),
        (lambda: get_scheme("bf16").replace(kv_cache=get_scheme("q4_k").weight), "are of weights: got kv_cache uint4"),
        (lambda: gptq(weights(), np.eye(512, dtype=np.float32), "q4_k"), "GPTQ does not find scales in superblocks"),
        (lambda: awq(weights(), "q6_k", mean_abs=np.ones(512), hessian=np.eye(512)), "AWQ does not find scales in"),
        (lambda: rtn(weights(), "q4_k", mse=True), "clip does not belong"),
        (lambda: from_codes(np.zeros((2, 256), np.uint8), "q4_k", np.ones((2, 8))), "which from_codes does not take"),
        (part("uint4", symmetric=False, superblock=256), "minimum_format must be given exactly when"),
        (part("int6", superblock=256), "scale_format must be an integer format beside a superblock: got None"),
        (part("int6", scale_format="int8", superblock=24), "must be several groups of 16: got 24"),
        (part("int6", "channel", scale_format="int8", superblock=256), "of whole groups: got channel"),
        (part("uint4", symmetric=False, minimum_format="float16", scale_format="float32"),
         "scale_format must be float16 beside a minimum: got float32"),
        (part("mxfp4", None, superblock=256), "takes no zero point, minimum or superblock"),
        (part("bfloat16", None, superblock=256), "superblock does not belong to it"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_a_sentence(call, words):
    with pytest.raises(QsimError, match=words):
        call()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minima": None}, "minima must be float32 for .*: got none"),
        ({"super_scales": None}, "super_scales must be float32 for .*: got none"),
        ({"super_minima": np.ones((24, 3), np.float32)}, r"super_minima must have the shape \(24, 2\)"),
        (
            {"scales": np.full((24, 16), 0.1, np.float32)},
            "scales of layer l of a superblock must be integers from 0 to 63",
        ),
        ({"zeros": np.zeros((24, 16), np.uint8)}, "has neither zero points nor a group_index"),
        ({"scheme": get_scheme("w4a16-g32")}, "minima and superblocks belong to schemes that have them"),
    ],
)
def test_arrays_that_do_not_fit_the_scheme_are_refused(change, words):
    q = quantize(weights(), "q4_k", name="l")
    with pytest.raises(QsimError, match=words):
        dataclasses.replace(q, **change)


@pytest.mark.parametrize("name", BITS)
def test_a_scheme_is_the_same_after_toml(name):
    scheme = get_scheme(f"{name}-kvfp8")
    assert Scheme.from_toml(scheme.to_toml()) == scheme
    with pytest.raises(QsimError, match="superblock must be an integer|unknown key"):
        Scheme.from_toml(
            scheme.to_toml().replace("superblock = 256", 'superblock = "256"') + ("x = 1" * ("k" not in name))
        )
