"""Schemes: exact sizes, names, refusals, and both serialisations."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from qsim.formats import get_format
from qsim.layouts import from_config, to_config
from qsim.scheme import Granularity, Scheme, TensorScheme, get_scheme, list_schemes

ALL = [s.name for s in list_schemes()]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("bf16", 16),
        ("fp32", 32),
        ("w4a16-g128-sym", 4.125),
        ("w4a16-g128", 4.15625),
        ("w3a16-g128", 3.1484375),
        ("w4a16-g32-sym", 4.5),
        ("w8a16-channel", 8),
        ("fp8-tensor", 8),
        ("fp8-block128", 8 + 32 / 128**2),
        ("mxfp8", 8.25),
        ("mxfp6", 6.25),
        ("mxfp4", 4.25),
        ("nvfp4", 4.5),
        ("w4a8", 4.125),
    ],
)
def test_bits_per_element_of_a_large_tensor(name, bits):
    assert get_scheme(name).weight.bits_per_element() == bits
    # a large tensor approaches the limit: what is left is one scale per row or per tensor
    assert get_scheme(name).bits_per_weight((1 << 14, 1 << 14)) == pytest.approx(bits, abs=48 / (1 << 14))


def test_bits_with_a_float16_zero_point():
    part = TensorScheme(format="uint4", granularity="group(128)", symmetric=False, scale_format="float16",
                        zero_point_format="float16")  # fmt: skip
    assert part.bits_per_element((4096, 4096)) == 4.25


def _count_by_hand(part, shape):
    """Bytes by walking over the regions, one at a time."""
    n, k = shape
    kind = part.granularity.kind if part.granularity else None
    if kind is None:
        regions = 0
    elif kind == "tensor":
        regions = 1
    elif kind in ("channel", "token"):
        regions = n
    else:
        rows = part.granularity.rows or 1
        regions = len(range(0, n, rows)) * len(range(0, k, part.granularity.columns))
    total = math.ceil(n * k * part.bits / 8)
    if part.scale_format is not None:
        total += math.ceil(regions * part.scale_format.bits / 8)
    for shift in (part.zero_point_format, part.minimum_format):
        if shift is not None:
            total += math.ceil(regions * shift.bits / 8)
    if part.superblock is not None:
        total += 2 * (n * k // part.superblock) * (2 if part.minimum_format is not None else 1)
    return total + (4 if part.format.name == "nvfp4" else 0)


@pytest.mark.parametrize("name", [*ALL, "w3a16-g40", "w5a16-g128", "w2a16-g16", "w6a16-channel-sym"])
@pytest.mark.parametrize("shape", [(64, 256), (1, 1), (7, 129), (300, 200), (11008, 4096), (3, 1000)])
def test_nbytes_of_any_shape(name, shape):
    part = get_scheme(name).weight
    if part.superblock is None:
        part = dataclasses.replace(part, ragged=True)
    else:
        shape = (shape[0], -(-shape[1] // part.superblock) * part.superblock)
    assert part.nbytes(shape) == _count_by_hand(part, shape)
    assert part.bits_per_element(shape) == 8 * part.nbytes(shape) / (shape[0] * shape[1])


def test_sizes_broadcast_over_arrays_of_shapes():
    part = get_scheme("w4a16-g128").weight
    n, k = np.array([[4096], [11008]]), np.array([4096, 11008])
    got = part.nbytes((n, k))
    assert got.shape == (2, 2)
    assert got[1, 0] == part.nbytes((11008, 4096))
    np.testing.assert_array_equal(part.bits_per_element((n, k)), 8 * got / (n * k))
    with pytest.raises(ValueError, match="group_size=128, K=100"):
        part.nbytes((n, np.array([128, 100])))


def test_ragged_is_asked_for():
    part = get_scheme("w4a16-g96").weight
    with pytest.raises(ValueError, match=r"group_size must divide K: got group_size=96, K=4096; use 256 or 128, or"):
        part.nbytes((8, 4096))
    with pytest.raises(ValueError, match=r"\(layer model.layers.0.mlp.down_proj\)"):
        part.check_shape((8, 4096), name="model.layers.0.mlp.down_proj")
    assert get_scheme("w4a16-g96-ragged").weight.scale_count((8, 4096)) == 8 * 43


@pytest.mark.parametrize(
    ("name", "weight", "granularity", "symmetric", "activation", "region"),
    [
        ("w4a16-g128", "uint4", "group(128)", False, "bfloat16", None),
        ("w4a16-g128-sym", "int4", "group(128)", True, "bfloat16", None),
        ("w3a16-g64-asym", "uint3", "group(64)", False, "bfloat16", None),
        ("w8a16-channel-asym", "uint8", "channel", False, "bfloat16", None),
        ("w8a8-channel-token", "int8", "channel", True, "int8", "token"),
        ("w8a8-tensor", "int8", "tensor", True, "int8", "tensor"),
        ("W4A8_G64", "int4", "group(64)", True, "int8", "token"),
        ("w8a8", "int8", "channel", True, "int8", "token"),
        ("w4a8-g128-ag128", "int4", "group(128)", True, "int8", "group(128)"),
        ("w4a4-channel-token", "int4", "channel", True, "int4", "token"),
        ("w4a32-g128-sym", "int4", "group(128)", True, "float32", None),
    ],
)
def test_grammar(name, weight, granularity, symmetric, activation, region):
    s = get_scheme(name)
    assert (s.weight.format.name, str(s.weight.granularity), s.weight.symmetric) == (weight, granularity, symmetric)
    assert s.activation.format.name == activation
    assert (None if s.activation.granularity is None else str(s.activation.granularity)) == region
    assert s.activation.dynamic == (region is not None)


def test_static_and_kv_suffixes():
    assert not get_scheme("w8a8-tensor-static").activation.dynamic
    assert get_scheme("fp8-kv").kv_cache.format.name == "float8_e4m3fn"
    assert get_scheme("w4a16-g128-kvint8").kv_cache.format.name == "int8"
    assert get_scheme("bf16-kve5m2").kv_cache.format.name == "float8_e5m2"
    assert get_scheme("fp8").kv_cache.format.name == "bfloat16"


@pytest.mark.parametrize(
    ("name", "compute"),
    [("w4a16-g128", "bfloat16"), ("w8a8", "int8"), ("w4a8", "int8"), ("fp8", "float8_e4m3fn"), ("bf16", "bfloat16"),
     ("fp8-weight-only", "bfloat16"), ("mxfp4", "mxfp4"), ("fp16", "float16")],
)  # fmt: skip
def test_compute_is_derived(name, compute):
    assert get_scheme(name).compute.name == compute


@pytest.mark.parametrize("name", ALL)
def test_toml_round_trip(name):
    s = get_scheme(name)
    back = Scheme.from_toml(s.to_toml())
    assert back == s
    assert hash(back) == hash(s)
    assert back.name == name


@pytest.mark.parametrize("method", ["compressed-tensors", "gptq", "awq", "fp8"])
@pytest.mark.parametrize("name", ALL)
def test_quantization_config_round_trip_or_refusal(name, method):
    s = get_scheme(name)
    expressible = {
        "gptq": name in ("w4a16-g128", "w4a16-g128-sym", "w3a16-g128", "w3a16-g128-sym", "w8a16-channel", "q8_0",
                         "q4_0"),
        "awq": name in ("w4a16-g128", "w4a16-g128-sym", "q4_0"),
        "fp8": name in ("fp8-tensor", "fp8-static", "fp8-block128", "fp8-tensor-kvfp8"),
        "compressed-tensors": name not in ("bf16", "fp16", "nf4-g64") and not s.weight.has_own_rule,
    }[method]  # fmt: skip
    if not expressible:
        with pytest.raises(ValueError):
            to_config(s, method)
        return
    config = to_config(s, method)
    assert config["quant_method"] == method
    back = from_config(config)
    assert back == s


def test_configs_as_they_are_on_disk():
    gptq = {"bits": 4, "group_size": 128, "desc_act": True, "sym": True, "quant_method": "gptq", "dynamic": {}}
    assert from_config(gptq) == get_scheme("w4a16-g128-sym")
    awq = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    assert from_config(awq) == get_scheme("w4a16-g64")
    deepseek = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    assert from_config(deepseek) == get_scheme("fp8-block128")
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128,
               "dynamic": False, "actorder": None, "observer": "minmax", "observer_kwargs": {}}  # fmt: skip
    compressed = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
                  "kv_cache_scheme": None, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
                  "a_key_of_the_future": 1}  # fmt: skip
    assert from_config(compressed) == get_scheme("w4a16-g128-sym")
    with pytest.raises(ValueError, match="quant_method"):
        from_config({"quant_method": "bitsandbytes"})
    with pytest.raises(ValueError, match="group_size is missing"):
        from_config({"quant_method": "gptq", "bits": 4})


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"unknown scheme 'w4a16-g128-symm'.*w4a16-g128-sym"):
        get_scheme("w4a16-g128-symm")
    with pytest.raises(ValueError, match="fp8"):
        get_scheme("fp88")
    with pytest.raises(TypeError, match="int"):
        get_scheme(4)
    with pytest.raises(ValueError, match="belongs to a quantised activation"):
        get_scheme("w4a16-g128-token")


BAD = [
    ({"format": "float8_e4m3fn", "granularity": "tensor", "symmetric": False}, "zero point belongs to integer"),
    (
        {"format": "float8_e4m3fn", "granularity": "tensor", "zero_point_format": "uint4"},
        "zero point belongs to integer",
    ),
    ({"format": "mxfp4", "symmetric": False}, "takes no zero point"),
    ({"format": "mxfp4", "granularity": "group(16)"}, "blocks of 32"),
    ({"format": "nvfp4", "scale_format": "float32"}, "float8_e4m3fn scales"),
    ({"format": "int4", "granularity": "group(128)", "symmetric": False}, "unsigned.*use uint4"),
    ({"format": "uint4", "granularity": "group(128)"}, "signed.*use int4"),
    ({"format": "int4", "granularity": "group(128)", "zero_point_format": "uint4"}, "has no zero point"),
    (
        {"format": "uint4", "granularity": "group(128)", "symmetric": False, "zero_point_format": "uint8"},
        "stored as uint4",
    ),
    ({"format": "int4"}, "needs a granularity"),
    ({"format": "int4", "granularity": "group(0)"}, "at least 1"),
    ({"format": "int4", "granularity": "row"}, "granularity must be tensor"),
    (
        {"format": "int4", "granularity": "group(128)", "scale_format": "float8_e5m2"},
        "must be one of float32",
    ),
    ({"format": "bfloat16", "granularity": "tensor"}, "stands for itself"),
    ({"format": "bfloat16", "symmetric": False}, "symmetric=False"),
    ({"format": "int9", "granularity": "tensor"}, "unknown format"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_parts_that_do_not_fit_are_refused_when_built(fields, message):
    with pytest.raises(ValueError, match=message):
        TensorScheme(**fields)


def test_schemes_that_do_not_fit_are_refused_when_built():
    int4, int8 = get_scheme("w4a8").weight, get_scheme("w4a8").activation
    fp8 = get_scheme("fp8").weight
    with pytest.raises(ValueError, match="integer products need integer operands"):
        Scheme(weight=fp8, activation=int8, compute="int8")
    with pytest.raises(ValueError, match="integer products"):
        Scheme(weight=get_scheme("w8a8").weight, activation=int8, compute="int4")
    with pytest.raises(ValueError, match="cannot be multiplied in float8_e4m3fn"):
        Scheme(weight=fp8, compute="float8_e4m3fn")
    with pytest.raises(ValueError, match="must divide one another: got 128 and 48"):
        Scheme(weight=int4, activation=TensorScheme(format="int8", granularity="group(48)", dynamic=True))
    with pytest.raises(ValueError, match="weight granularity"):
        Scheme(weight=TensorScheme(format="int8", granularity="token"))
    with pytest.raises(ValueError, match="kv_cache granularity"):
        Scheme(weight=int4, kv_cache=TensorScheme(format="int8", granularity="channel"))
    with pytest.raises(ValueError, match="dynamic"):
        Scheme(weight=dataclasses.replace(int4, dynamic=True))
    with pytest.raises(ValueError, match="needs a granularity"):
        Scheme(weight=int4, activation="int8")
    with pytest.raises(ValueError, match="unknown key 'wieght'"):
        Scheme.from_dict({"wieght": {}})


def test_values_are_frozen_and_equal_by_content():
    s = get_scheme("w4a16-g128")
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.weight = None
    assert s == Scheme(weight=dataclasses.replace(s.weight))
    assert get_scheme(s) is s
    assert s.replace(activation="float16").compute.name == "float16"
    assert Granularity.parse("block(128, 128)") == Granularity(kind="block", rows=128, columns=128)
    assert TensorScheme(format=get_format("mxfp4")).group_size == 32


def test_the_top_level_names_are_lazy():
    import qsim

    assert qsim.Scheme is Scheme
    assert qsim.get_scheme("fp8") == get_scheme("fp8")


def test_quantize_is_a_function_and_its_former_module_still_imports():
    """`qsim.quantize` stays the function after `qsim.quantize`, the former package, was imported; in either order."""
    code = (
        "import numpy as np, qsim; from types import FunctionType; w = np.ones((2, 128), dtype=np.float32);"
        "a = qsim.quantize(w, 'w4a16-g128'); import qsim.quantize as q; from qsim import quantize as r;"
        "from qsim.scheme import quantize as f; from qsim.quantize import Granularity, get_scheme;"
        "assert q is r is f is qsim.quantize and isinstance(f, FunctionType); assert r(w, 'w4a16-g128') == a;"
        "assert Granularity is qsim.scheme.Granularity and get_scheme is qsim.get_scheme"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    subprocess.run([sys.executable, "-c", ";".join(["import qsim.quantize, qsim", *code.split(";")[1:]]).replace(
        "; w = np", "; import numpy as np; w = np")], check=True)  # fmt: skip
