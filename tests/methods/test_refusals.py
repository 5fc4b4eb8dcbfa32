"""What a run cannot do is refused before it begins, and what it fell back to is told."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import quantize_model
from tests.models.small import random_model

from .test_pipeline import F32, IDS, METHODS, TOKENS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"method": "gptq", "calibration": None}, "gptq with w4a16-g32 needs calibration text"),
        ({"method": "fp8", "scheme": "fp8-static", "calibration": None}, "fp8 with fp8-static needs calibration text"),
        ({"method": "rtn", "scheme": "w4a16-g32-kvfp8", "calibration": None}, "needs calibration text"),
        ({"order": True}, "gptq has no option 'order'; it has act_order, static_groups"),
        ({"scheme": "fp8-tensor"}, "GPTQ rounds weights to integer codes: got float8_e4m3fn"),
        ({"scheme": "bf16"}, "GPTQ rounds weights to integer codes: got bfloat16"),
        ({"method": "rtn", "scheme": "bf16"}, "bf16 keeps weights in bfloat16: nothing to quantise"),
        ({"method": "fp8", "scheme": "w4a16-g32"}, "fp8 rounds weights to 8-bit floats"),
        ({"method": "smoothquant", "scheme": "w4a16-g32"}, "SmoothQuant is for quantised activations"),
        ({"scheme": "w4a16-g40"}, r"must divide K: got group_size=40, K=64 \(layer model.layers.0.self_attn.q_proj\).*"
                                  r" \(and 13 more layers\)"),
        ({"calibration": np.arange(5)}, "at least one window of 64 tokens: got 5"),
        ({"ignore": ["*"]}, "ignore leaves no Linear to quantise"),
        ({"rotate": "sideways"}, "rotations are offline, online: got 'sideways'"),
        ({"percdamp": -1.0}, "percdamp is a fraction"),
    ],
)  # fmt: skip
def test_refused_up_front(arguments, message):
    computed = []
    given = {"method": "gptq", "scheme": "w4a16-g32", "calibration": TOKENS, **arguments}
    with pytest.raises(ValueError, match=message):
        quantize_model(random_model(), **given, progress=lambda *_: computed.append(1))
    assert computed == []


def test_activations_that_overflow_name_the_layer():
    model = random_model()
    gain = model.tensors["model.layers.1.post_attention_layernorm.weight"].copy()
    gain[3] = 3e38
    broken = model.replace(tensors={"model.layers.1.post_attention_layernorm.weight": gain})
    for method, scheme in (
        ("gptq", "w4a16-g32"), ("awq", "w4a16-g32"), ("rtn", "nvfp4"), ("smoothquant", None), ("fp8", "fp8-static"),
    ):  # fmt: skip
        with (
            np.errstate(all="ignore"),
            pytest.raises(ValueError, match=r"has NaN or Inf \(layer model.layers.1.mlp.gate_proj\)"),
        ):
            quantize_model(broken, method, scheme, TOKENS)


@pytest.mark.parametrize(("method", "scheme", "options"), METHODS, ids=IDS)
def test_weights_that_are_all_zero(method, scheme, options):
    """Rows, groups, a whole Linear and with it all inputs of the next: every scale is finite, zeros stay zeros."""
    model = random_model()
    rows, group = (model.tensors[f"model.layers.0.mlp.{n}_proj.weight"].copy() for n in ("gate", "down"))
    rows[3:7], group[:, :32] = 0, 0
    silent = model.replace(
        tensors={
            "model.layers.0.mlp.gate_proj.weight": rows, "model.layers.0.mlp.down_proj.weight": group,
            "model.layers.1.mlp.up_proj.weight": np.zeros((96, 64), F32),
        }
    )  # fmt: skip
    result = quantize_model(silent, method, scheme, TOKENS, **options)
    for name in silent.linears():
        q = result.model.tensors[f"{name}.weight"]
        assert np.isfinite(q.scales).all()
        assert np.isfinite(q.dequantize()).all()
    assert not result.model.tensors["model.layers.0.mlp.gate_proj.weight"].dequantize()[3:7].any()
    assert not result.model.tensors["model.layers.1.mlp.up_proj.weight"].dequantize().any()
    found = result.records.set_index("layer").zero_groups
    one_scale = result.scheme.weight.granularity.kind == "tensor"
    assert found["model.layers.0.mlp.gate_proj"] >= (0 if one_scale else 4)
    assert found["model.layers.1.mlp.up_proj"] >= 1
    assert np.isfinite(result.model.logits(TOKENS)).all()


def test_nvfp4_finds_the_tensor_scale_that_files_hold():
    model, seen = random_model(), {}
    model.logits(TOKENS, observe=lambda name, x: seen.update({name: np.abs(x).max()}))
    result = quantize_model(model, "rtn", "nvfp4", TOKENS)
    plain = quantize_model(model, "rtn", "nvfp4")
    for name in model.linears():
        q, other = (r.model.tensors[f"{name}.weight"] for r in (result, plain))
        assert q.input_scale == pytest.approx(seen[name] / (448 * 6), rel=1e-5)
        assert other.input_scale is None
        np.testing.assert_array_equal(q.codes, other.codes)
    # our own kernels find it as they go: what is stored changes nothing here
    np.testing.assert_array_equal(result.model.logits(TOKENS), plain.model.logits(TOKENS))


def test_quantised_models_are_refused():
    model = quantize_model(random_model(), "rtn", "w4a16-g32").model
    with pytest.raises(ValueError, match=r"weights to quantise are float: model.layers.0.self_attn.q_proj and 13 more"):
        quantize_model(model, "rtn", "w4a16-g32")


def test_fallbacks_are_in_the_model_and_the_record():
    """Inputs that are all zero: no GPTQ without a Hessian."""
    model = random_model()
    silent = model.replace(
        tensors={"model.layers.0.mlp.up_proj.weight": np.zeros((96, 64), F32)}
    )  # down_proj's input is silu(gate) * 0
    result = quantize_model(silent, "gptq", "w4a16-g32", TOKENS)
    assert result.fallbacks == ("model.layers.0.mlp.down_proj",)
    assert "model.layers.0.mlp.down_proj: rtn stood in for gptq" in result.model.notes
    row = result.records.set_index("layer").loc["model.layers.0.mlp.down_proj"]
    assert row.fallback == "rtn"
    assert "no calibration token reached this layer" in row.notes
