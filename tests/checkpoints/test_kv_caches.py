"""Scales of the KV cache in checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.checkpoints import read, write
from qsim.models import Model
from qsim.scheme import TensorScheme

from .tiny import quantized, tiny


def with_kv(model: Model, scale: float = 0.25) -> Model:
    scales = {
        f"model.layers.{i}.self_attn.{which}_scale": np.array([scale], np.float32) for i in range(2) for which in "kv"
    }
    return model.replace(tensors=scales, kv_cache=TensorScheme(format="float8_e4m3fn", granularity="tensor"))


@pytest.mark.parametrize(("layout", "name"), [("compressed-tensors", "w4a16-g32"), ("fp8", "fp8-tensor"),
                                              ("compressed-tensors", "bf16")])  # fmt: skip
def test_scales_of_the_kv_cache(tmp_path, layout, name):
    model = with_kv(tiny() if name == "bf16" else quantized(name))
    write(model, tmp_path / "out", layout)
    back = read(tmp_path / "out")
    assert back.kv_cache == model.kv_cache
    assert back.notes == ()
    tokens = np.arange(24)
    np.testing.assert_array_equal(back.logits(tokens), model.logits(tokens))
    np.testing.assert_array_equal(back.tensors["model.layers.1.self_attn.v_scale"], [0.25])


def test_a_kv_scale_of_one_is_noted(tmp_path):
    write(with_kv(quantized("fp8-tensor"), 1.0), tmp_path / "out", "fp8")
    assert read(tmp_path / "out").notes == (
        "a KV scale is exactly 1, as in an uncalibrated cache: values beyond the format clip "
        "(model.layers.0.self_attn.k_scale and 3 more)",
    )


def test_kv_caches_where_they_have_no_place(tmp_path):
    with pytest.raises(ValueError, match="layout plain has no place for that"):
        write(with_kv(tiny()), tmp_path / "out", "plain")
    with pytest.raises(ValueError, match="GPTQ has no place for a quantised KV cache.*use layout 'compressed-tensors'"):
        write(with_kv(quantized("w4a16-g32-sym")), tmp_path / "out", "gptq")
    written = write(with_kv(quantized("fp8-tensor")), tmp_path / "out", "plain", dequantize=True)
    assert written.notes[0].startswith("the KV cache is not quantised in a plain checkpoint")
    assert read(tmp_path / "out").kv_cache is None
