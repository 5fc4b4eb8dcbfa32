"""One tensor scale for layers that engines fuse: what an engine makes of the checkpoint is what was measured here."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.formats import decode, encode
from qsim.methods import quantize_model
from qsim.models import Model, with_scheme
from qsim.scheme import Granularity, get_scheme, quantize, shared_scale, tensor_scale_of, with_tensor_scale

from ..models.small import random_model

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 96, (3, 32))
GROUPS = [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], ["mlp.gate_proj", "mlp.up_proj"]]


def uneven() -> Model:
    """q k v and gate up of sizes that differ by factors which are no powers of two."""
    model, changed = random_model(), {}
    for i in range(2):
        for name, factor in (("self_attn.k_proj", 0.3), ("self_attn.v_proj", 2.7), ("mlp.up_proj", 5.1)):
            key = f"model.layers.{i}.{name}.weight"
            changed[key] = model.tensors[key] * np.float32(factor)
    return model.replace(tensors=changed)


def as_vllm_runs(group: list) -> list[np.ndarray]:
    """The values that vLLM multiplies with after it has fused some layers.

    NVFP4: `weight_global_scale.max()` of the stored divisors for all. FP8: `requantize_with_max_scale`.
    """
    if group[0].tensor_scheme.format.name == "nvfp4":
        one = np.float32(1) / max(np.float32(1.0 / q.tensor_scale) for q in group)
        return [(q.dequantize() / np.float32(q.tensor_scale)) * one for q in group]
    top = max(q.scales.reshape(()) for q in group)
    values = []
    for q in group:
        plain = np.asarray(decode(q.codes, "float8_e4m3fn"), np.float32) * q.scales
        codes = encode(np.clip(plain / top, -448, 448), "float8_e4m3fn")
        values.append(np.asarray(decode(np.asarray(codes), "float8_e4m3fn"), np.float32) * top)
    return values


CASES = [("rtn", "nvfp4", {}), ("rtn", "nvfp4-weight-only", {}), ("rtn", "fp8-tensor", {}),
         ("rtn", "fp8-tensor", {"mse": True}),
         ("fp8", "fp8-tensor", {}), ("fp8", "fp8-static", {}), ("fp8", "fp8-tensor", {"power_of_two": True}),
         ("fp8", "fp8-tensor", {"mse": True}), ("fp8", "fp8-tensor", {"scale_rule": "autofp8"}),
         ("smoothquant", "fp8-tensor", {})]  # fmt: skip


@pytest.mark.parametrize(("method", "scheme", "options"), CASES)
def test_fused_layers_share_one_scale(method, scheme, options):
    result = quantize_model(uneven(), method, scheme, TOKENS, **options)
    records = {r.layer: r for r in result.layers}
    for i in range(2):
        for group in GROUPS:
            names = [f"model.layers.{i}.{n}" for n in group]
            found = [result.model.tensors[f"{n}.weight"] for n in names]
            assert len({tensor_scale_of(q) for q in found}) == 1
            assert len({q.input_scale for q in found}) == 1
            for q, run in zip(found, as_vllm_runs(found), strict=True):
                np.testing.assert_array_equal(run, q.dequantize())
            ratios = [records[n].details["shared_scale_ratio"] for n in names]
            assert min(ratios) == 1
            assert max(ratios) > 1.2
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            assert "shared_scale_ratio" not in records[f"model.layers.{i}.{name}"].details
    if options.get("power_of_two"):
        q = result.model.tensors["model.layers.0.self_attn.q_proj.weight"]
        assert np.frexp(q.scales)[0] == 0.5
    assert any("share one tensor scale" in note for note in result.model.notes)


def test_scales_of_their_own_are_not_what_an_engine_runs():
    """The reason for all this: without sharing, half of the weights come out several times too small."""
    w = {n: uneven().tensors[f"model.layers.0.{n}.weight"] for n in GROUPS[1]}
    apart = [quantize(x, "nvfp4-weight-only") for x in w.values()]
    runs = as_vllm_runs(apart)
    wrong = [np.linalg.norm(r - x) / np.linalg.norm(x) for r, x in zip(runs, w.values(), strict=True)]
    assert max(wrong) > 0.5
    shared = shared_scale(list(w.values()), get_scheme("nvfp4-weight-only"))
    assert shared == max(q.tensor_scale for q in apart)
    together = [with_tensor_scale(q, x, shared) for q, x in zip(apart, w.values(), strict=True)]
    right = [np.linalg.norm(r - x) / np.linalg.norm(x) for r, x in zip(as_vllm_runs(together), w.values(), strict=True)]
    assert max(right) < 0.15


@pytest.mark.parametrize("scheme", ["w8a8-tensor", "fp8-rowwise", "fp8-block128", "mxfp8", "w4a16-g32"])
def test_other_schemes_keep_their_own(scheme):
    """Engines spread integers with one scale per tensor to one per row; the others have no scale to share."""
    given = get_scheme(scheme)
    assert shared_scale([np.ones((4, 64), np.float32)], given) is None
    result = quantize_model(uneven(), "rtn", scheme, TOKENS)
    for name in ("self_attn.k_proj", "mlp.gate_proj"):
        key = f"model.layers.1.{name}.weight"
        assert result.model.tensors[key] == quantize(uneven().tensors[key], scheme)
    assert all("shared_scale_ratio" not in r.details for r in result.layers)


@pytest.mark.parametrize("scheme", ["nvfp4-weight-only", "fp8-tensor"])
def test_a_layer_of_zeros_decides_nothing(scheme):
    """Its own scale is 1, the stand-in for none, which would wipe the others out."""
    zero = {"model.layers.0.self_attn.k_proj.weight": np.zeros((32, 64), np.float32)}
    found = with_scheme(uneven().replace(tensors=zero), scheme).tensors
    without = with_scheme(uneven(), scheme).tensors
    for name in ("q_proj", "v_proj"):
        assert found[f"model.layers.0.self_attn.{name}.weight"] == without[f"model.layers.0.self_attn.{name}.weight"]
    k = found["model.layers.0.self_attn.k_proj.weight"]
    assert not k.dequantize().any()
    assert tensor_scale_of(k) == tensor_scale_of(found["model.layers.0.self_attn.q_proj.weight"])
    assert shared_scale([np.zeros((2, 16), np.float32)] * 2, get_scheme(scheme)) is None


@pytest.mark.parametrize("scheme", ["nvfp4", "fp8-tensor"])
def test_rounding_to_nearest_is_the_same_in_both_places(scheme):
    plain, run = with_scheme(uneven(), scheme), quantize_model(uneven(), "rtn", scheme, TOKENS).model
    for name in plain.linears():
        a, b = plain.tensors[f"{name}.weight"], run.tensors[f"{name}.weight"]
        np.testing.assert_array_equal(a.codes, b.codes)
        np.testing.assert_array_equal(a.scales, b.scales)
        assert a.tensor_scale == b.tensor_scale


def test_a_layer_that_is_left_out_shares_nothing():
    """What stays float is not fused with codes; two that are left still share."""
    result = quantize_model(uneven(), "rtn", "nvfp4-weight-only", ignore=["*.v_proj", "*.up_proj"])
    q, k, gate = (result.model.tensors[f"model.layers.0.{n}.weight"] for n in
                  ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"))  # fmt: skip
    assert q.tensor_scale == k.tensor_scale
    assert gate == quantize(uneven().tensors["model.layers.0.mlp.gate_proj.weight"], "nvfp4-weight-only")


class Stop(BaseException):
    pass


def test_a_run_that_goes_on_shares_the_same_scales(tmp_path):
    """Stopped after every number of finished layers: the scale follows from the weights, not from who is left."""
    whole = quantize_model(uneven(), "rtn", "fp8-tensor").model
    for stop_at in (1, 2, 5):
        count = 0

        def progress(done, total, what):
            nonlocal count
            count += "rounded" in what or "error" in what
            if count == stop_at:  # noqa: B023
                raise Stop

        folder = tmp_path / str(stop_at)
        with pytest.raises(Stop):
            quantize_model(uneven(), "rtn", "fp8-tensor", work_dir=folder, progress=progress)
        result = quantize_model(uneven(), "rtn", "fp8-tensor", work_dir=folder)
        assert result.resumed == stop_at
        for name in whole.linears():
            assert result.model.tensors[f"{name}.weight"] == whole.tensors[f"{name}.weight"]


def test_the_granularity_decides_not_the_name():
    scheme = get_scheme("fp8-tensor").replace(weight=get_scheme("fp8-rowwise").weight)
    assert scheme.weight.granularity == Granularity(kind="channel")
    assert shared_scale([np.ones((2, 16), np.float32)], scheme) is None
