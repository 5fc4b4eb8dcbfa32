"""Which layout holds what, and the sentences of refusal."""

import numpy as np
import pytest

import qsim.checkpoints
from qsim.checkpoints import LAYOUTS, default_layout, layouts_for, reason
from qsim.layouts import refusal
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme, get_scheme, list_schemes, quantize

CT = "compressed-tensors"
HELD = {
    "bf16": "plain gguf", "fp16": "plain gguf", "mxfp4-weight-only": "compressed-tensors gguf",
    "w4a16-g128": "compressed-tensors gptq gptq_v2 awq",
    "w4a16-g128-sym": "compressed-tensors gptq gptq_v2 awq", "w3a16-g128": "compressed-tensors gptq gptq_v2",
    "w3a16-g128-sym": "compressed-tensors gptq gptq_v2", "w8a16-channel": "compressed-tensors gptq gptq_v2",
    "fp8-tensor": "compressed-tensors fp8", "fp8-static": "compressed-tensors fp8",
    "fp8-block128": "compressed-tensors fp8",
    "fp8-tensor-kvfp8": "compressed-tensors fp8", "nf4-g64": "",
    "q8_0": "compressed-tensors gptq gptq_v2 gguf", "q4_0": "compressed-tensors gptq gptq_v2 awq gguf",
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"), "gguf"),
}  # fmt: skip


@pytest.mark.parametrize("scheme", list(list_schemes()), ids=lambda s: s.name)
def test_layouts_of_the_presets(scheme):
    expected = tuple(HELD.get(scheme.name, CT).split())
    assert layouts_for(scheme) == expected
    for name in LAYOUTS:
        assert (reason(scheme, name) is None) == (name in expected)
    if expected:
        assert default_layout(scheme) == expected[0]
    else:
        with pytest.raises(ValueError, match="no checkpoint layout holds scheme nf4-g64: .*got nf4"):
            default_layout(scheme)


def test_the_table_of_the_package_is_true():
    rows = {
        "integers of 2, 3, 4, 8 bits": ["w2a16-g64", "w3a16-g128", "w4a16-g128", "w8a16-channel"],
        "integers of 5, 6, 7 bits": ["w5a16-channel", "w6a16-g64-sym", "w7a16-channel"],
        "symmetric 4, 5, 8 bits, groups of 32": ["w4a16-g32-sym", "w5a16-g32-sym", "w8a16-g32-sym"],
        "MXFP4, weights only": ["mxfp4-weight-only"],
        "with minima or superblocks": ["q4_1", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"],
        "with integer activations": ["w8a8", "w4a8", "w8a8-tensor-static"],
        "E4M3, one scale per tensor": ["fp8-tensor", "fp8-static"],
        "E4M3, one scale per row": ["fp8-rowwise", "fp8-weight-only"],
        "E4M3, one scale per 128x128 block": ["fp8-block128"],
        "MXFP4, MXFP6 (E2M3), MXFP8, NVFP4": ["mxfp4", "mxfp6", "mxfp8", "nvfp4", "nvfp4-weight-only"],
        "16- and 32-bit floats": ["bf16", "fp16", "fp32"],
    }
    lines = qsim.checkpoints.__doc__.splitlines()
    head = next(line for line in lines if line.strip().startswith("weights"))
    columns = {name: head.index(f" {name}") + 1 for name in LAYOUTS if name != "gptq_v2"}
    columns["gptq_v2"] = head.index("gptq_v2")
    for label, schemes in rows.items():
        line = next(x for x in lines if x.strip().startswith(label))
        for layout, at in columns.items():
            mark = line[at : at + len(layout)].strip()
            held = {layout in layouts_for(name) for name in schemes}
            assert held == ({True, False} if mark in ("4 b", "-") else {mark == "x"}), (label, layout)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def scheme(**weight):
    return Scheme(weight=TensorScheme(**weight))


@pytest.mark.parametrize(
    ("value", "layout", "words"),
    [
        ("w5a16-channel", "gptq", "2, 3, 4 and 8 bits: got uint5"),
        ("w3a16-g128", "awq", "4-bit integers: got uint3"),
        ("w8a8", "gptq", "weights only: activations are int8"),
        ("w4a8", "awq", "weights only: activations are int8"),
        ("w4a16-tensor", "gptq", "one scale per group or row: got tensor"),
        ("w4a16-g48", "awq", "groups of 16, 32, 64, 128, 256, 512, 1024: got 48"),
        ("w4a16-g128-kvfp8", "gptq", "no place for a quantised KV cache: got float8_e4m3fn"),
        ("w4a16-g128-kvfp8", "awq", "no place for a quantised KV cache"),
        ("fp8-tensor", "gptq", "holds integers: got float8_e4m3fn"),
        ("fp8-rowwise", "fp8", "one scale per tensor or block: got channel"),
        ("fp8-weight-only", "fp8", "got channel"),
        ("w4a16-g128", "fp8", "float8_e4m3fn: got uint4"),
        ("fp8-tensor-kve5m2", "fp8", "cannot express kv_cache"),
        ("fp8-tensor-kve5m2", CT, "got float8_e5m2"),
        ("nf4-g64", CT, "got nf4"),
        ("w8a8-channel-token-static", CT, "one static activation scale per layer: got token"),
        ("bf16", "awq", "quantised weights: got bfloat16"),
        ("fp8-tensor", "plain", "unquantised weights: got float8_e4m3fn"),
        (scheme(format="int4", granularity="group(128)"), "gptq", "float16 scales: got float32"),
        (scheme(format="int4", granularity="group(128)", scale_format="bfloat16"), "awq", "got bfloat16"),
        (
            scheme(format="uint4", granularity="group(128)", symmetric=False, scale_format="float16",
                   zero_point_format="float16"),
            "gptq",
            "zero points as packed integers: got float16",
        ),
        (
            scheme(format="uint4", granularity="group(128)", symmetric=False, zero_point_format="bfloat16"),
            CT,
            "zero points as integers: got bfloat16",
        ),
        (scheme(format="float8_e4m3fn", granularity="channel", scale_format="float8_e8m0fnu"), CT, "got float8_e8m0"),
        (scheme(format="float8_e5m2", granularity="tensor"), CT, "got float8_e5m2"),
        (scheme(format="float4_e2m1fn", granularity="group(64)"), CT, "got float4_e2m1fn"),
        (scheme(format="mxfp6_e3m2"), CT, "mxfp4, mxfp6_e2m3, mxfp8_e4m3, nvfp4: got mxfp6_e3m2"),
    ],
)  # fmt: skip
def test_reasons(value, layout, words):
    assert words in reason(value, layout)
    assert layout not in layouts_for(value)


def test_a_refusal_names_layer_rule_and_what_to_use():
    qt = quantize(normal(40, 128), "w4a16-g128", name="model.layers.3.mlp.up_proj")
    assert refusal(qt, "gptq") == (
        "layer model.layers.3.mlp.up_proj: GPTQ needs N to be a multiple of 32: got N=40; use layout "
        "'compressed-tensors' or 'awq'"
    )
    assert "'compressed-tensors'" in refusal(qt, "plain")
    assert "dequantize=True" in refusal(qt, "plain")
    assert refusal(qt, "awq") is None


def test_scales_that_are_not_of_their_format():
    good = quantize(normal(32, 128), "w4a16-g128")
    third = good.scales * np.float32(1 / 3)
    with pytest.raises(ValueError, match="a scale must be a value of its format: .* is no float16 number"):
        QuantizedTensor(codes=good.codes, scales=third, zeros=good.zeros, scheme=good.scheme)


def test_default_layout_looks_at_the_tensors():
    """Act order with scattered groups has a place in GPTQ only; zero points of 0 in its version 2."""
    qt = quantize(normal(32, 128), "w4a16-g32")
    index = np.arange(128, dtype=np.int32) % 4
    ordered = QuantizedTensor(codes=qt.codes, scales=qt.scales, zeros=np.maximum(qt.zeros, 1), scheme=qt.scheme,
                              group_index=index)  # fmt: skip
    assert default_layout("w4a16-g32", [qt]) == CT
    assert default_layout("w4a16-g32", [qt, ordered]) == "gptq"
    zero = QuantizedTensor(codes=qt.codes, scales=qt.scales, zeros=qt.zeros * 0, scheme=qt.scheme, group_index=index)
    assert default_layout("w4a16-g32", [zero]) == "gptq_v2"
    odd = QuantizedTensor(codes=qt.codes[:, :96], scales=qt.scales[:, :3], zeros=qt.zeros[:, :3], scheme=qt.scheme,
                          group_index=index[:96] % 3, name="x")[:20]  # fmt: skip
    with pytest.raises(ValueError, match="layer x: .*dropped act order.*no other layout holds it"):
        default_layout("w4a16-g32", [odd])


def test_unknown_names():
    with pytest.raises(ValueError, match="layout must be one of plain, .*awq, fp8, gguf: got 'ggml'"):
        reason("w4a16", "ggml")
    with pytest.raises(ValueError, match="unknown scheme"):
        layouts_for("w4a17")
    assert get_scheme("w4a16").name
