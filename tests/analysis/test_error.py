from __future__ import annotations

import math

import numpy as np
import pytest

from qsim.analysis import error
from qsim.analysis.formats import common_max, compare
from qsim.formats import get_format


def test_metrics_on_numbers_done_by_hand() -> None:
    x, y = [1.0, -2.0, 0.0, 4.0], [1.5, -2.0, 0.0, 3.0]
    assert error.max_abs_error(x, y) == 1
    assert error.mean_abs_error(x, y) == 1.5 / 4
    assert error.rms_error(x, y) == pytest.approx(math.sqrt(1.25 / 4))
    assert error.sqnr_db(x, y) == pytest.approx(10 * math.log10(21 / 1.25))
    assert error.relative_error(x, y).tolist() == [0.5, 0, 0, 0.25]
    assert error.relative_error_quantiles(x, y, [0.5, 1.0]).tolist() == [0.25, 0.5]


def test_corner_cases() -> None:
    assert error.sqnr_db([1.0], [1.0]) == math.inf
    assert error.sqnr_db([0.0], [1.0]) == -math.inf
    assert error.relative_error([0.0], [1.0]).tolist() == [math.inf]


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ([1.0], [1.0, 2.0], r"one shape: got \(1,\) and \(2,\)"),
        ([], [], "at least one element"),
        ([1.0, math.nan], [1.0, 1.0], r"reference must be finite: got 1 NaN or Inf, the first at \(1,\)"),
        ([[1.0]], [[math.inf]], r"approximation must be finite.*\(0, 0\)"),
    ],
)
def test_what_metrics_refuse(x: list, y: list, said: str) -> None:
    for metric in (error.max_abs_error, error.rms_error, error.sqnr_db, error.relative_error):
        with pytest.raises(ValueError, match=said):
            metric(x, y)


def test_bins_are_octaves_and_edges_go_up() -> None:
    below = math.nextafter(2.0, 0.0)  # log2 rounds it to 1
    c = error.error_against_magnitude([1.0, below, 2.0, -8.0, 0.0], [1.0, below, 3.0, -8.0, 5.0])
    assert c.low.tolist() == [1, 2, 4, 8]
    assert c.count.tolist() == [2, 1, 0, 1]
    assert c.worst[[0, 1, 3]].tolist() == [0, 0.5, 0]
    assert math.isnan(c.worst[2])
    assert math.isnan(c.rms[2])


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 7])
def test_every_value_is_in_its_bin(bins: int) -> None:
    x = np.exp2(np.random.default_rng(0).uniform(-8, 8, 2000))
    c = error.error_against_magnitude(x, x * (1 + 2**-20), bins_per_octave=bins)
    expected = np.histogram(x, np.append(c.low, c.high[-1]))[0]
    assert c.count.tolist() == expected.tolist()


def test_curve_refuses() -> None:
    with pytest.raises(ValueError, match="at least 1: got 0"):
        error.error_against_magnitude([1.0], [1.0], bins_per_octave=0)
    with pytest.raises(ValueError, match="non-zero"):
        error.error_against_magnitude([0.0], [1.0])


def test_worst_case_of_formats_is_the_theory() -> None:
    e4m3, e5m2, int8 = compare(["e4m3", "e5m2", "int8"])
    # a midpoint just above a power of two: half a spacing u over 1 + u / 2
    for found, mantissa_bits in ((e4m3, 3), (e5m2, 2)):
        normal = (found.curve.low >= found.format.smallest_normal) & (found.curve.low < found.max)
        assert found.curve.worst[normal] == pytest.approx(1 / (2 ** (mantissa_bits + 1) + 1))
    assert (int8.scale, int8.max) == (448 / 127, 448)
    assert int8.label == "int8 (scaled: max = 448)"
    assert e4m3.label == "float8_e4m3fn"
    step = 448 / 127  # in [256, 512) the first midpoint of the integer grid is 73.5 steps
    assert int8.curve.worst[int8.curve.low == 256] == pytest.approx(0.5 * step / (73.5 * step - 0 * step), rel=0.02)


def test_scaling_choices() -> None:
    assert common_max([get_format("int8")]) == 1
    assert compare(["int8", "nf4"])[0].max == 1
    assert compare(["int8"], scaled_max=6)[0].max == 6
    assert {f.max for f in compare(["e4m3", "e5m2"], align=True)} == {448}
    with pytest.raises(ValueError, match="at least one format"):
        compare([])
    with pytest.raises(ValueError, match="positive and finite"):
        compare(["int8"], scaled_max=-1)
    with pytest.raises(ValueError, match="block format"):
        compare(["mxfp4"])
