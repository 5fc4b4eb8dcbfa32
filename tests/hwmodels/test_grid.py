"""The grid correction: equal to SciPy's interpolation, true to a known function, carried over gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

import hwmodels
from hwmodels.calibration.grid import Grid, fit_grid
from hwmodels.calibration.store import load_calibration
from hwmodels.calibration.surface import TILES, wave_efficiency
from hwmodels.timing.parameters import kernel_parameters

KNOTS = (np.arange(0.0, 8.0), np.array([10.0, 10.585, 11.0, 12.0, 13.0]), np.array([10.0, 11.0, 13.0]))


def _points(n: int, spread: float = 0.0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(7)
    return tuple(2.0 ** rng.uniform(k[0] - spread, k[-1] + spread, n) for k in KNOTS)


def test_equal_to_scipy_inside_and_constant_outside() -> None:
    values = np.random.default_rng(2).standard_normal([len(k) for k in KNOTS])
    grid, other = Grid(knots=KNOTS, values=values), RegularGridInterpolator(KNOTS, values)
    points = _points(500, spread=2.0)
    clamped = np.stack([np.clip(np.log2(p), k[0], k[-1]) for p, k in zip(points, KNOTS, strict=True)], axis=1)
    assert np.allclose(grid(*points), other(clamped), atol=1e-12)
    x, a, b = points
    assert grid(x[:, None], a[None, :7], b[0]).shape == (500, 7)
    assert float(grid(x[0], a[0], b[0])) == pytest.approx(float(other(clamped[:1])[0]))


def test_a_step_is_found_where_a_polynomial_would_smear_it() -> None:
    x, a, b = _points(4000)
    truth = 0.3 * (np.log2(a) > 11.5) + 0.05 * np.log2(x)
    grid = fit_grid(x, a, b, truth, knots=KNOTS, units=None, smooth=1e-3, ridge=1e-6)
    far = np.abs(np.log2(a) - 11.5) > 0.6
    assert np.abs(grid(x, a, b) - truth)[far].max() < 0.08
    assert np.abs(grid(x, a, b) - truth).mean() < 0.03


def test_waves_are_separated_from_the_rest() -> None:
    x, a, b = _points(4000)
    truth = -0.4 * np.log2(wave_efficiency(x, a, 132, TILES[1]))
    with_waves = fit_grid(x, a, b, truth, knots=KNOTS, units=132, smooth=0.01, ridge=0.1)
    without = fit_grid(x, a, b, truth, knots=KNOTS, units=None, smooth=0.01, ridge=0.1)
    error = [np.abs(g(x, a, b, 132) - truth).mean() for g in (with_waves, without)]
    assert error[0] < 0.6 * error[1]  # a fine grid follows waves too, but less well


def test_corners_without_rows_take_their_neighbours_value() -> None:
    x, a, b = _points(2000)
    near = np.log2(b) < 11.0
    grid = fit_grid(
        x[near], a[near], b[near], np.full(near.sum(), 0.2), knots=KNOTS, units=None, smooth=1.0, ridge=1e-6
    )
    assert grid(x, a, b) == pytest.approx(np.full(2000, 0.2), abs=0.01)


def test_our_kernels_take_over_what_the_table_says_of_shapes() -> None:
    shipped = load_calibration("h200")
    assert shipped is not None
    for name, scale in (("cublas_bf16", 1.0), ("cublas_fp8", 0.5)):
        borrowed = shipped.kernels[name].borrowed
        assert borrowed is not None
        assert (borrowed.kernel, borrowed.k_scale) == ("trtllm_bf16", scale)
        donor = shipped.kernels["trtllm_bf16"].surface
        assert isinstance(donor, Grid)
        assert float(borrowed(64, 4096, 8192, 132)) == float(donor(64, 4096, 8192 * scale, 132))
    assert shipped.kernels["cublas_int8"].borrowed is None
    # without kinship nothing of a shape goes to another device
    assert kernel_parameters(hwmodels.get_device("mi300x"), "cublas_fp8").borrowed is None


def test_a_shape_from_a_kernel_without_a_grid_is_refused(tmp_path: Path) -> None:
    text = """
    [kernels.cublas_fp8]
    t0_us = 3.0
    eta_compute = 0.7
    eta_memory = 0.8
    p = 3.0
    shape_of = "cublas_bf16"
    shape_k_scale = 0.5
    """
    path = tmp_path / "odd.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="takes its shape from cublas_bf16"):
        load_calibration(str(path))
