"""The figure of distances between kernels: every pair once, the model's losses with their errors, all of it legible."""

from __future__ import annotations

import numpy as np
import pytest

from qsim.errors import QsimError
from qsim.plots.distance import Change, distance_figure

from .legible import faults

NAMES = ("exact", "BF16 weights, exact", "humming", "cuBLASLt", "Triton", "tinygemm")
CHANGES = [Change(label=name, bits_per_byte=1e-3 * i, error=5e-4) for i, name in enumerate(NAMES[1:])]


def _shares() -> np.ndarray:
    """A share of its own for every pair: 1, 2, ... tenths of a per cent."""
    shares = np.zeros((6, 6))
    lower = np.tril_indices(6, -1)
    shares[lower] = np.arange(1, 16) / 1000
    return shares + shares.T


def test_every_pair_of_kernels_is_written_once_in_per_cent() -> None:
    axes = distance_figure(NAMES, {"symmetric": _shares()}).axes[0]
    assert {text.get_text() for text in axes.texts} == {f"{i / 10:.2f}" for i in range(1, 16)}
    assert len(axes.texts) == 15
    last = axes.texts[-1]  # Triton and tinygemm
    assert last.get_text() == "1.50"
    assert [t.get_text() for t in axes.get_yticklabels()] == list(NAMES[1:])
    assert [t.get_text().replace("\n", " ") for t in axes.get_xticklabels()] == list(NAMES[:-1])


def test_equal_kernels_are_a_zero_and_one_output_in_ten_thousand_is_not() -> None:
    shares = np.array([[0, 0, 1e-4], [0, 0, 0.394], [1e-4, 0.394, 0]])
    axes = distance_figure(NAMES[:3], {"x": shares}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0", "0.010", "39.4"]


def test_what_the_model_loses_has_its_standard_error() -> None:
    figure = distance_figure(NAMES, {"symmetric": _shares()}, CHANGES)
    axes = figure.axes[-1]
    points = axes.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points[:, 0], [1e3 * c.bits_per_byte for c in CHANGES], rtol=1e-12)
    bars = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([np.ptp(bar[:, 0]) / 2 for bar in bars], 0.5, rtol=1e-12)  # two float64 operations
    assert "standard error" in axes.get_xlabel()


@pytest.mark.parametrize("changes", [CHANGES, ()])
def test_distances_are_legible(changes: list[Change]) -> None:
    panels = {"symmetric, K = 4096": _shares(), "zero points, K = 4096": 66 * _shares()}
    assert not faults(distance_figure(NAMES, panels, changes, title="The same INT4 weights by other kernels"))


def test_a_figure_of_distances_needs_a_share_for_every_pair() -> None:
    with pytest.raises(QsimError, match=r"shares of 6 kernels must have shape \(6, 6\): got \(5, 5\) \(symmetric\)"):
        distance_figure(NAMES, {"symmetric": np.zeros((5, 5))})
    with pytest.raises(QsimError, match="at least one panel"):
        distance_figure(NAMES, {})
