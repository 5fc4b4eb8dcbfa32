"""A black-box fused kernel: its pipeline is recovered from its outputs, and a change at one place is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import qsim
from qsim.kernels import get_pipeline, linear, list_pipelines, pack, probe_pipeline
from qsim.kernels.alternatives import PLACES, differing
from qsim.kernels.trace import example_scheme

AGAIN = ("humming.w2a16", "humming.w3a16", "humming.mxfp4_a16", "cublaslt.bf16", "marlin.w4a16",
         "deepgemm.fp8_block128", "cutlass.fp8_rowwise", "cutlass.w8a8_int8",
         "scaled_mm_precise.fp8_tensor")  # fmt: skip
"""Rows whose pipeline another row has, or nearly."""


def box(row):
    return lambda x, weight: linear(x, pack(weight), exact=True, kernel=row)


def asymmetric():
    zeros = qsim.get_scheme("w4a16-g128")
    return replace(zeros, weight=replace(zeros.weight, scale_format="bfloat16"), name="")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(row.name, marks=pytest.mark.exhaustive) if row.name in AGAIN else row.name
        for row in list_pipelines()
    ],
)
def test_every_row_is_recovered_from_its_outputs(name):
    row = get_pipeline(name)
    found = probe_pipeline(box(row), example_scheme(row), tokens=max(16, row.fewest_tokens))
    assert row.name in found.rows
    assert found.unknown == found.differs == ()
    assert any(not differing(way, row) for way in found.pipelines)
    known = [place for place in PLACES if len(found.at(place)) == 1]
    assert {"instruction", "promotion", "parts of K", "output"} <= set(known)
    assert name in found.summary()
    if name == "humming.w4a16":  # without zero points a fused multiply-add gives the same numbers
        assert found.at("operand") == ("fold", "fma")


def test_zero_points_tell_a_fused_multiply_add_from_a_folded_scale():
    for name, operand in (("humming.w4a16", "fold"), ("tinygemm.w4a16", "fma")):
        assert probe_pipeline(box(get_pipeline(name)), asymmetric()).at("operand") == (operand,)


@pytest.mark.parametrize(
    ("name", "change", "place"),
    [
        ("humming.w8a16", {"chain": 64, "promotion": "add"}, "promotion"),
        ("humming.w8a16", {"instruction": "ampere.mma.f32.bf16"}, "instruction"),
        ("humming.w8a16", {"k_order": get_pipeline("triton.w4a16").k_order}, "order of K"),
        ("humming.w8a16", {"slices": 4, "slice_block": 128}, "parts of K"),
        ("humming.w8a16", {"epilogue": ("times channel scale", "round to bfloat16")}, "scales and roundings"),
        ("humming.w8a16", {"epilogue": ("round to bfloat16", "times channel scale"), "output": "float32"}, "output"),
        ("humming.w4a8_fp8", {"operand": "integers"}, "operand"),
        ("scaled_mm_precise.fp8_group128", {"promotion": "ffma_a_first"}, "promotion"),
        ("scaled_mm.fp8_tensor", {"instruction": "ada.mma.f32.e4m3"}, "instruction"),
        (
            "humming.w8a8_int8",
            {"epilogue": ("times channel scale", "round to bfloat16", "times token scale", "round to bfloat16")},
            "scales and roundings",
        ),
    ],
)
def test_a_kernel_that_differs_from_a_row_at_one_place_is_told_so(name, change, place):
    row = get_pipeline(name)
    changed = replace(row, name="black.box", status="assumed", **change)
    found = probe_pipeline(box(changed), example_scheme(row))
    assert found.rows == ()
    assert (found.nearest, found.differs) == (name, (place,))
    assert any(not differing(way, changed) for way in found.pipelines)
    assert f"{name}, which differs in: {place}" in found.summary()


def test_what_no_pipeline_does_is_unknown_at_the_places_that_show_it():
    row = get_pipeline("humming.w8a16")

    def cut(x, weight):  # BF16 by truncation
        out = linear(x, pack(weight), exact=True, kernel=replace(row, epilogue=row.epilogue[:-1], output="float32"))
        return (out.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    found = probe_pipeline(cut, example_scheme(row))
    assert "output" in found.unknown
    assert found.pipelines == found.rows == ()
    assert found.nearest == "humming.w8a16"
    assert "unknown: nothing here gives these bits" in found.summary()


def test_an_order_that_nothing_has_is_unknown_though_single_products_are_explained():
    fp8 = get_pipeline("humming.w4a8_fp8")

    def backwards(x, weight):  # groups of K from the last one on
        (codes, scales), reverse = x, np.arange(weight.shape[1]).reshape(-1, 128)[::-1].reshape(-1)
        turned = replace(weight, codes=np.ascontiguousarray(weight.codes[:, reverse]),
                         scales=np.ascontiguousarray(weight.scales[:, ::-1]))  # fmt: skip
        return box(fp8)((np.ascontiguousarray(codes[:, reverse]), scales), turned)

    found = probe_pipeline(backwards, example_scheme(fp8))
    assert found.unknown == ("instruction", "promotion", "order of K", "parts of K")
    assert found.at("scales and roundings") == (fp8.epilogue,)
    assert found.nearest == "humming.w4a8_fp8"


def test_bf16_codes_are_taken_as_outputs():
    row = get_pipeline("humming.w4a8_int8")
    found = probe_pipeline(lambda x, w: np.asarray(qsim.encode(box(row)(x, w), "bfloat16")), example_scheme(row))
    assert found.rows == ("humming.w4a8_int8",)


def test_the_probe_of_the_package_takes_either_kind():
    row = get_pipeline("humming.w4a8_fp8")
    found = qsim.probe(box(row), kind="pipeline", scheme=example_scheme(row))
    assert found.rows == ("humming.w4a8_fp8",)
    product = qsim.probe(lambda a, b: a.astype(np.int64) @ b.T.astype(np.int64), input="s8")
    assert product.integer == "exact"
    for words, call in {
        "kind must be": lambda: qsim.probe(box(row), kind="kernel"),
        "needs the scheme": lambda: qsim.probe(box(row), kind="pipeline"),
        "needs input": lambda: qsim.probe(box(row)),
        "scheme belongs": lambda: qsim.probe(box(row), input="bf16", scheme="W4A16"),
        "input belongs": lambda: qsim.probe(box(row), kind="pipeline", scheme="W4A16", input="bf16"),
    }.items():
        with pytest.raises(qsim.QsimError, match=words):
            call()


def test_what_cannot_be_probed_is_refused():
    row = get_pipeline("humming.w8a16")
    with pytest.raises(qsim.QsimError, match="tokens must be at least 1"):
        probe_pipeline(box(row), example_scheme(row), tokens=0)
    with pytest.raises(qsim.QsimError, match=r"outputs of shape \(16, 16\): got \(16, 15\)"):
        probe_pipeline(lambda x, w: box(row)(x, w)[:, :15], example_scheme(row))
    with pytest.raises(qsim.QsimError, match="can be probed: got bfloat16 by bfloat16"):
        probe_pipeline(box(row), "bf16")
    with pytest.raises(qsim.QsimError, match="no pipeline here multiplies"):
        probe_pipeline(box(row), replace(asymmetric(), activation=_int8()))
    with pytest.raises(qsim.QsimError, match="a place must be one of"):
        probe_pipeline(box(row), example_scheme(row)).at("rounding")


def _int8():
    return qsim.get_scheme("w8a8-channel-token").activation
