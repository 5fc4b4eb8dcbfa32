"""Tensors, accumulators, claims: what the middle of the report is drawn from."""

from __future__ import annotations

import numpy as np
import pytest

import hwmodels
from qsim.formats import cast
from qsim.scheme import quantize
from qsim.study import StudySpec
from qsim.study import quality as q
from qsim.study import tensors as t
from qsim.study.accumulator import accumulator_rows, adder, compute_format, ways
from qsim.study.rows import QualityRow
from qsim.study.run import Run
from qsim.study.spec import Accumulator
from qsim.study.trust import claim_rows
from qsim.tensorcore import matmul_floats


@pytest.fixture(scope="module")
def layer(spec: StudySpec) -> t.Layer:
    return t.outlier_layer(spec, q.subject(spec))


def test_histograms_hold_every_error_once(layer: t.Layer) -> None:
    histograms, errors = t.error_tables(layer)
    for tensor in ("weight", "activations"):
        for fmt in t.FORMATS:
            assert sum(h.share for h in histograms if (h.tensor, h.format) == (tensor, fmt)) == pytest.approx(1)
    by = {(e.tensor, e.format): e for e in errors}
    y = quantize(layer.weight, "mxfp4").dequantize()
    relative = np.linalg.norm(y - layer.weight) / np.linalg.norm(layer.weight)
    assert by["weight", "MXFP4"].rms_relative == pytest.approx(relative, rel=1e-5)
    assert by["weight", "MXFP4"].sqnr_db == pytest.approx(-20 * np.log10(relative), rel=1e-5)
    assert by["weight", "INT8, scale per row"].sqnr_db > by["weight", "INT4, groups of 128"].sqnr_db + 15


def test_smoothing_moves_the_largest_channels_into_the_weights(spec: StudySpec, layer: t.Layer) -> None:
    rows, notes = t.channel_rows(spec, q.subject(spec), layer)
    assert "synthetic" in notes[0]  # a random model has no outliers
    before, after = (np.array([getattr(r, n) for r in rows]) for n in ("activation_max", "smoothed_activation_max"))
    assert before.max() / np.median(before) > 20
    assert after.max() / np.median(after) < 0.3 * before.max() / np.median(before)
    for r in rows:  # s cancels: what the product can reach is the same
        assert r.activation_max * r.weight_max == pytest.approx(r.smoothed_activation_max * r.smoothed_weight_max)


def test_keeping_all_channels_would_leave_no_error(layer: t.Layer) -> None:
    rows = list(t.salient_rows(layer, 0))
    start = {r.chosen_by: r.relative_error for r in rows if r.kept_percent == 0}
    assert len(set(start.values())) == 1
    for way in start:
        errors = [r.relative_error for r in rows if r.chosen_by == way]
        assert errors == sorted(errors, reverse=True)
    w, x = layer.weight, layer.inputs.astype(np.float64)
    off = quantize(w, "w3a16-g128").dequantize() - w
    assert start["chance"] == pytest.approx(np.linalg.norm(x @ off.T) / np.linalg.norm(x @ w.T.astype(np.float64)))


def test_accumulator_errors_are_those_of_the_instruction(spec: StudySpec) -> None:
    rows = {(r.way, r.data, r.k): r for r in accumulator_rows(spec)}
    k = 512
    rng = np.random.default_rng([spec.quality.seed, k])
    a, b = (cast(rng.random((64, k)).astype(np.float32), "e4m3") for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    got = matmul_floats(a, b, instruction="hopper.wgmma.f32.e4m3")
    row = rows["h100-sxm: FP8", "one sign", k]
    assert row.relative_error == pytest.approx(np.linalg.norm(got - exact) / np.linalg.norm(exact))
    assert row.bias < 0
    assert rows["h100-sxm: FP8, promoted every 128", "one sign", 2048].relative_error < 1e-3
    assert rows["h100-sxm: FP8", "one sign", 2048].relative_error > 1e-2
    assert rows["a100-sxm-80gb: BF16", "one sign", 2048].relative_error < 1e-6


def test_devices_of_one_instruction_share_a_curve() -> None:
    labels = list(ways(StudySpec()))
    assert {"l40s, rtx-4090: FP8", "h100-sxm, h200: FP8"} < set(labels)
    assert len(labels) == 7


def test_the_adder_is_the_devices_own_or_as_given() -> None:
    h100, asic = hwmodels.get_device("h100-sxm"), hwmodels.get_device("asic")
    own = adder(h100, Accumulator(fraction_bits=9), "float8_e4m3fn")
    assert own is not None
    assert (own.instruction.name, own.status, own.parameters) == (
        "hopper.wgmma.f32.e4m3", "established", "L=32, F=13, rz_e8m13",
    )  # fmt: skip
    given = adder(asic, Accumulator(products=64, fraction_bits=9), "float8_e4m3fn")
    assert given is not None
    assert (given.instruction.products, given.instruction.fraction_bits, given.status) == (64, 9, "given")
    assert adder(asic, None, "float8_e4m3fn") is None
    integers = adder(asic, Accumulator(), "int8")
    assert integers is not None
    assert integers.instruction.output == "s32"
    assert adder(hwmodels.get_device("sn40l-like"), Accumulator(), "float8_e4m3fn") is None  # it has no FP8


def test_a_scheme_is_multiplied_in_its_format_or_in_sixteen_bit() -> None:
    assert compute_format("fp8-tensor", "full") == "float8_e4m3fn"
    assert compute_format("fp8-tensor", "weights") == "bfloat16"
    assert compute_format("w8a8-channel-token", "full") == "int8"
    assert compute_format("w4a16-g128", "full") == "bfloat16"


def test_claims_about_quality_are_computed_from_the_losses() -> None:
    def row(method: str, loss: float) -> QualityRow:
        return QualityRow(method=method, variant="full", bits_per_byte=2.0, bits_per_byte_se=0.01, loss=loss,
                          loss_se=0.001, perplexity=4.0, kl=None, kl_se=None, top1_agreement=None, bytes_scored=1,
                          model_bits=4.0, notes="")  # fmt: skip

    rows = [row("rtn:w4a16-g128", 0.04), row("gptq:w4a16-g128", 0.03), row("awq:w4a16-g128", 0.02)]
    claims = [c for c in claim_rows(rows) if c.topic == "quality"]
    assert [(c.value, c.claimed) for c in claims] == [(pytest.approx(0.75), "0.85"), (pytest.approx(0.5), "0.51")]
    assert all(c.low < c.value < c.high for c in claims)
    assert not [c for c in claim_rows([]) if c.topic == "quality"]


def test_trust_comes_from_the_validation(run: Run) -> None:
    sections = {row.section for row in run.result.trust}
    assert any("whole steps" in s for s in sections)
    assert "Kernels that this study used, shapes left out of the fit" in sections
    assert len(run.result.trust_points) > 100
