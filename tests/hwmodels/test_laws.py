"""Laws of engines: known laws are found again, and a row never counts for itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hwmodels.validation.laws import Prefill, fit_law, prefill_engine, prefill_law, prefill_time


def _rows(t0_s: float, eta: float) -> list[Prefill]:
    return [
        Prefill(engine="e", model=model, integer=False, parallel=False, layers=layers, kernels_s=kernels,
                time_s=layers * t0_s + kernels / eta)
        for model, layers, kernels in (("a", 32, 5e-3), ("a", 32, 5e-2), ("b", 40, 1e-2), ("b", 40, 2e-1))
    ]  # fmt: skip


def test_known_laws_are_found_again() -> None:
    t0, eta = prefill_law(_rows(5e-5, 0.8) * 20)
    assert (t0, eta) == (pytest.approx(5e-5, rel=0.05), pytest.approx(0.8, rel=0.02))
    moved = np.array([2e-3, 5e-3, 2e-2] * 40)
    assert fit_law(moved, 3e-3 + moved / 0.9) == (pytest.approx(3e-3, rel=0.02), pytest.approx(0.9, rel=0.02))


def test_a_row_and_its_model_do_not_count_for_themselves() -> None:
    rows = _rows(5e-5, 0.8)
    spoiled = [dataclasses.replace(r, time_s=100.0) if r.model == "a" else r for r in rows]
    assert prefill_time(rows[0], rows) == prefill_time(rows[0], spoiled)
    assert prefill_time(rows[0], rows)[1] == 2


def test_kinds_are_kept_apart_where_there_are_enough_rows() -> None:
    rows = _rows(5e-5, 0.8)
    slow = [dataclasses.replace(r, integer=True, time_s=3 * r.time_s) for r in rows]
    time, count = prefill_time(rows[0], [*rows, *slow])
    assert count == 2
    assert time == pytest.approx(prefill_time(rows[0], rows)[0])
    wide = dataclasses.replace(rows[0], parallel=True)
    assert prefill_time(wide, rows)[1] == 2  # no other row on several devices: those on one


def test_without_other_rows_the_kernels_stand_alone() -> None:
    row = _rows(5e-5, 0.8)[0]
    assert prefill_time(row, [row]) == (row.kernels_s, 0)


@pytest.mark.parametrize(
    ("row", "engine"),
    [("SQ-FT-OPT-13B-128", "FasterTransformer, 2022"),
     ("TC-4090-pf-TRTLLM-w4-2048", "TensorRT-LLM in TinyChat's comparison"),
     ("TC-4090-pf-LLaMA-2-7B-2048-w4", "TinyChat"), ("X-1", "X-1")],
)  # fmt: skip
def test_engines_by_row(row: str, engine: str) -> None:
    assert prefill_engine(row) == engine
