"""What is claimed of the methods, on the embedded model."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.methods import apply_folds, get_method, quantize_model
from qsim.models import evaluate, load, tiny_text, with_outliers

from .test_pipeline import folds_of

TEST_BYTES = 8192


@pytest.fixture(scope="module")
def model():
    return load("tiny")


@pytest.fixture(scope="module")
def text():
    return tiny_text("calibration")[:4096]


@pytest.mark.parametrize("options", [{}, {"act_order": True}], ids=["plain", "act_order"])
def test_gptq_never_loses_more_than_rounding(model, text, options):
    frame = quantize_model(model, "gptq", "w3a16-g128", text, **options).records
    assert len(frame) == 56
    assert (frame.output_error <= frame.rtn_output_error).all()
    assert (frame.fallback == "").all()


def test_awq_never_loses_more_than_rounding_on_its_objective(model, text):
    """The output of attention, of the MLP, and of down_proj; a single q or k may lose more, see the record."""
    frame = quantize_model(model, "awq", "w3a16-g128", text, view_windows=2).records
    searched = frame[frame.objective.notna()]
    assert len(searched) == 8 * 6
    assert (searched.objective <= searched.rtn_objective).all()
    assert (frame.error_ratio[~frame.layer.str.endswith(("q_proj", "k_proj"))] < 1).all()


def test_smoothing_is_exact_before_rounding(model):
    outliers = with_outliers(model, magnitude=100)
    ids = np.frombuffer(tiny_text("calibration")[:512].encode(), np.uint8)[:512].astype(int)
    folded = apply_folds(outliers, folds_of(outliers, get_method("smoothquant").make(), ids))
    exact = outliers.logits(ids)
    assert np.abs(folded.logits(ids) - exact).max() < 1e-4 * np.abs(exact).max()


def test_outliers_break_plain_int8_and_smoothquant_repairs_it(model, text):
    outliers = with_outliers(model, magnitude=100)
    lost = {}
    for method in ("rtn", "smoothquant"):
        quantised = quantize_model(outliers, method, "w8a8-tensor", text).model
        e = evaluate(quantised, tiny_text("test"), max_bytes=TEST_BYTES, reference=model)
        lost[method] = e.bits_per_byte_delta / (e.bits_per_byte - e.bits_per_byte_delta)
    assert lost["rtn"] > 0.5
    assert lost["smoothquant"] < 0.02
