"""Sweeps, Pareto fronts, break-even, sensitivity."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import hwmodels
from hwmodels.breakeven import BreakEven, compute_bound_from, first_batch, slower_from_batch
from hwmodels.whatif import smallest_sram_gbytes
from tests.counting import python_calls


def test_a_sweep_is_tidy_and_equals_single_predictions() -> None:
    table = hwmodels.sweep(["h100", "l40s"], "llama-3-8b", ["bf16", "fp8-tensor"], "decode", [1, 8], [512, 4096])
    assert len(table) == 16
    assert list(table.columns[:4]) == ["device", "model", "scheme", "phase"]
    here = (table.device == "l40s") & (table.scheme == "fp8-tensor")
    row = table[here & (table.batch == 8) & (table.context == 4096)]
    one = hwmodels.predict("l40s", "llama-3-8b", "fp8-tensor", "decode", 8, 4096)
    assert row.time_s.item() == pytest.approx(float(one.time_s))
    assert row.fits.item() == bool(one.fits)


def test_device_fields_can_be_swept() -> None:
    key = "memory.bandwidth_gbytes_per_s"
    table = hwmodels.sweep("asic", "llama-3-8b", "bf16", fields={key: [1000, 2000, 4000]})
    assert list(table[key]) == [1000, 2000, 4000]
    assert table.time_s.is_monotonic_decreasing


def test_a_sweep_of_many_points_takes_hardly_more_calls_than_one_of_few() -> None:
    """Batches and contexts are one array, worked on in a few pieces: a million points take about a second."""

    def swept(batches: int, contexts: int) -> None:
        b, c = np.arange(1, batches + 1), np.arange(1, contexts + 1) * 8
        assert len(hwmodels.sweep("h200", "llama-3-8b", "bf16", "decode", b, c)) == batches * contexts

    swept(2, 2)
    assert python_calls(lambda: swept(512, 1024)) < 2 * python_calls(lambda: swept(2, 2))


def test_a_sweep_of_prefills_in_pieces_is_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = (np.arange(1, 81), np.arange(1, 101) * 8)
    args = ("h200", "llama-3-8b", "bf16", "prefill", *sizes)
    whole = hwmodels.sweep(*args, price=2.0)
    monkeypatch.setattr(hwmodels.whatif, "BLOCK", 1000)
    pieces = hwmodels.sweep(*args, price=2.0)
    for name in whole.columns:
        assert (whole[name] == pieces[name]).all(), name


def test_a_prediction_is_the_same_whether_its_shapes_were_asked_for_before_or_not() -> None:
    from hwmodels.calibration.between import _kept

    again = lambda: [  # noqa: E731
        float(hwmodels.predict(device, "llama-3-8b", "bf16", "decode", batch, 2048, overrides=change).time_s)
        for device in ("h200", "h100-sxm") for batch in (1, 300, 7)
        for change in ({}, {"memory.bandwidth_gbytes_per_s": 2000})
    ]  # fmt: skip
    _kept.cache_clear()
    first = again()
    assert again() == first
    assert _kept.cache_info().hits > 0
    fresh = []
    for device in ("h200", "h100-sxm"):
        for batch in (1, 300, 7):
            for change in ({}, {"memory.bandwidth_gbytes_per_s": 2000}):
                _kept.cache_clear()
                p = hwmodels.predict(device, "llama-3-8b", "bf16", "decode", batch, 2048, overrides=change)
                fresh.append(float(p.time_s))
    assert fresh == first


def test_large_and_small_sweeps_agree() -> None:
    batches, contexts = np.arange(1, 101), np.arange(64, 128)
    table = hwmodels.sweep("h200", "llama-3-8b", "fp8-tensor", "prefill", batches, contexts)
    for batch, context in ((1, 64), (50, 100), (100, 127)):
        row = table[(table.batch == batch) & (table.context == context)]
        one = hwmodels.predict("h200", "llama-3-8b", "fp8-tensor", "prefill", batch, context)
        assert row.time_s.item() == pytest.approx(float(one.time_s))


def test_pareto_keeps_what_nothing_beats() -> None:
    table = pd.DataFrame({"t": [1, 2, 3, 2, 1.0], "r": [1, 5, 4, 5, 0.5]})
    front = hwmodels.pareto(table, least=["t"], most=["r"])
    assert list(zip(front.t, front.r, strict=True)) == [(1, 1), (2, 5), (2, 5)]
    with pytest.raises(ValueError, match="no column 'x'"):
        hwmodels.pareto(table, least=["x"])
    with pytest.raises(ValueError, match="at least one"):
        hwmodels.pareto(table)


def test_break_even_finds_the_flip() -> None:
    assert hwmodels.break_even(lambda x: x < 37, 1, 1000, integer=True).value == 37
    assert hwmodels.break_even(lambda x: x < 3.7, 1, 10).value == pytest.approx(3.7, rel=2e-3)
    assert hwmodels.break_even(lambda x: True, 1, 10).value is None
    with pytest.raises(ValueError, match="0 < low < high"):
        hwmodels.break_even(lambda x: True, 5, 1)


def test_the_first_batch_is_the_first_of_all() -> None:
    assert first_batch(lambda b: (b < 5) | (b > 7), 100).value == 5  # holds again from 8: a coarse search misses it
    assert first_batch(lambda b: b > 3, 100) == BreakEven(value=4, holds_at_start=False)
    assert first_batch(lambda b: True, 100) == BreakEven(value=None, holds_at_start=True)
    found = slower_from_batch("l40s", "llama-3-8b", "fp8-block128", high=1024)
    assert found.value is not None
    batches = np.arange(1, int(found.value) + 1)
    one, other = (hwmodels.predict("l40s", "llama-3-8b", s, "decode", batches, 2048) for s in ("fp8-block128", "bf16"))
    faster = np.asarray(one.time_s < other.time_s)
    assert faster[:-1].all()
    assert not faster[-1]


def test_the_batch_that_makes_four_bits_slower() -> None:
    """Measured on an H200: tinygemm gains 1.47 at batch 1 and loses at batch 16; humming's layers lose from 256."""
    found = slower_from_batch("h200", "llama-3-8b", "w4a16-g128", stack="pytorch-2.11")
    fused = slower_from_batch("h200", "llama-3-8b", "w4a16-g128")
    assert found.holds_at_start
    assert found.value is not None
    assert fused.value is not None
    assert 2 < found.value < 16 < 64 < fused.value < 512
    one = hwmodels.predict("h200", "llama-3-8b", "w4a16-g128", "decode", int(found.value), 2048, stack="pytorch-2.11")
    assert float(one.time_s) >= float(hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", int(found.value)).time_s)


def test_the_bandwidth_that_makes_decode_compute_bound() -> None:
    found = compute_bound_from("h100", "llama-3-8b", batch=64)
    assert found.value is not None
    # intensity of the linear layers at batch 64 is about 62 operations per byte
    assert found.value == pytest.approx(989.4e12 / 62 / 1e9, rel=0.03)


def test_the_sram_that_holds_a_model() -> None:
    assert smallest_sram_gbytes("llama-3-8b", "bf16") == pytest.approx(16.06 / 0.9, rel=1e-2)
    assert smallest_sram_gbytes("llama-3-8b", "w4a16-g128", chips=100) < 0.07


def test_tornado_ranks_bandwidth_first_in_decode() -> None:
    table = hwmodels.tornado("h100", "llama-3-8b", "bf16", "decode", 1, 1024)
    assert table.field.iloc[0] == "memory.bandwidth_gbytes_per_s"
    assert table.low.iloc[0] > table.base.iloc[0] > table.high.iloc[0]
    prefill = hwmodels.tornado("h100", "llama-3-8b", "bf16", "prefill", 1, 8192)
    assert set(prefill.field.head(2)) == {"compute.peaks.dense_tflops", "context"}
    with pytest.raises(ValueError, match="between 0 and 1"):
        hwmodels.tornado("h100", "llama-3-8b", change=2)


def test_unknown_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown column 'speed'"):
        hwmodels.sweep("h100", "llama-3-8b", columns=["speed"])
