"""What a roofline shows beside its points: all roofs, what kernels reach, memories, where the time goes, numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from matplotlib.text import Text

import hwmodels
from hwmodels.describe import reached
from hwmodels.device.load import device_names, get_device
from qsim.cli import main
from qsim.cli.roofline_view import figure as view
from qsim.cli.roofline_view import points_of, roofs_of
from qsim.errors import QsimError
from qsim.plots.beside import Numbers, Section
from qsim.plots.names import device_titles, format_title
from qsim.scheme import list_schemes

from .legible import faults

ROUNDING = 1 + 1e-12  # a ratio of two sums of a few dozen float64 numbers
SCHEMES = [s.name for s in list_schemes()]


def lines(figure: Figure, name: str) -> list[Any]:
    return [line for axes in figure.axes for line in axes.lines if line.get_label() == f"_{name}"]


@pytest.mark.parametrize("device", device_names())
def test_no_point_is_above_the_roof_of_its_format_and_every_declared_format_has_one(device: str) -> None:
    """Every scheme on some device; `tests/hwmodels/test_limits.py` has all of them on all."""
    chip = get_device(device)
    titles = {device: device_titles([chip.title])[0]}
    mine = [s for i, s in enumerate(SCHEMES) if i % 6 == device_names().index(device) % 6]
    cases = [hwmodels.predict(chip, "llama-3-8b", s, phase, 64, 2048) for s in mine for phase in ("decode", "prefill")]
    roofs = roofs_of(cases, titles)
    for p in points_of(cases, titles):
        under = [min(r.peak_flop_per_s, p.intensity * r.bandwidth_bytes_per_s) for r in roofs if r.format in p.formats]
        assert p.flop_per_s <= max(under) * ROUNDING, p
    assert {format_title(peak.input) for peak in chip.compute.peaks} <= {r.format for r in roofs}


@pytest.mark.parametrize("device", ["h100-sxm", "b200", "asic", "mi300x"])
def test_what_kernels_reach_is_between_the_products_and_the_data_sheet(device: str) -> None:
    cases = [hwmodels.predict(device, "llama-3-8b", s, ph, 64, 2048)
             for s in ("bf16", "fp8", "w4a16-g128") for ph in ("decode", "prefill")]  # fmt: skip
    found = {r["scheme"]: r for r in reached(cases)}
    chip = cases[0].device
    for p in cases:
        row = found[p.scheme.name or ""]
        for key in ("flop_per_s", "bandwidth_bytes_per_s"):
            low, middle, high = row[key]
            assert 0 < low < middle < high
        assert row["bandwidth_bytes_per_s"][1] <= chip.memory.bandwidth_bytes_per_s * ROUNDING
        assert row["flop_per_s"][1] <= (chip.peak_flop_per_s(row["format"]) or 0) * ROUNDING
        for op in (op for op in p.operators if op.shape and op.kernel == row["kernel"]):
            assert op.flop / op.time_s <= row["flop_per_s"][1] * ROUNDING
            assert op.traffic_bytes / op.time_s <= row["bandwidth_bytes_per_s"][1] * ROUNDING
    assert reached([hwmodels.predict(device, "llama-3-8b", fidelity="ideal")]) == []


def test_the_roofs_of_kernels_are_drawn_under_those_of_the_data_sheet_with_their_bands() -> None:
    cases = [hwmodels.predict("h200", "llama-3-8b", s, "decode", 16, 2048) for s in ("bf16", "w4a16-g128")]
    figure = view(cases)
    rows = {r["scheme"]: r for r in reached(cases)}
    drawn = lines(figure, "reach")
    assert len(drawn) == 2
    assert sorted(line.get_ydata()[-1] for line in drawn) == pytest.approx(
        sorted(r["flop_per_s"][1] / 1e12 for r in rows.values()), rel=1e-12)  # fmt: skip
    bands = [c for axes in figure.axes for c in axes.collections if c.get_label() == "_band"]
    assert len(bands) == 2
    assert max(line.get_linewidth() for line in lines(figure, "roof")) < min(line.get_linewidth() for line in drawn)
    said = " ".join(t.get_text() for t in figure.findobj(Text)).replace("\n", " ")
    for r in rows.values():
        assert r["generation"] in said  # whose kernels, and from when


def test_every_memory_with_a_known_bandwidth_has_its_slope() -> None:
    for device, names in (("asic", {"SRAM"}), ("sn40l-like", {"SRAM", "DDR"}), ("h100-sxm", set())):
        figure = view([hwmodels.predict(device, "llama-3-8b", "bf16", "prefill", 4, 2048)])
        tiers = {t.name: t for t in get_device(device).tiers if t.name in names}
        slopes = [line.get_ydata()[0] / line.get_xdata()[0] for line in lines(figure, "tier")]
        wanted = [t.bandwidth_bytes_per_s / 1e12 for t in tiers.values() if t.bandwidth_bytes_per_s]
        assert sorted(slopes) == pytest.approx(sorted(wanted), rel=1e-12)


def test_bars_of_time_are_as_long_as_the_steps_and_have_the_colours_of_the_points() -> None:
    cases = [hwmodels.predict("l40s", "llama-3-8b", s, "decode", 16, 2048) for s in ("bf16", "fp8-rowwise")]
    figure = view(cases, beside=["time"])
    axes = next(a for a in figure.axes if any(p.get_label() == "_bar" for c in a.containers for p in [c]))
    total = [0.0, 0.0]
    for patch in axes.patches:
        total[round(patch.get_y() + patch.get_height() / 2)] += patch.get_width()
    assert total == pytest.approx([float(p.time_s) for p in cases], rel=1e-9)
    colours = {tuple(np.round(p.get_facecolor()[:3], 3)) for p in axes.patches}
    markers = {tuple(np.round(_rgb(m.get_color()), 3)) for m in lines(figure, "marker")}
    assert len(colours & markers) == 2
    assert faults(figure) == []


def _rgb(color: Any) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def test_the_table_has_the_numbers_of_the_prediction() -> None:
    p = hwmodels.predict("l40s", "llama-3-8b", "bf16", "decode", 16, 2048)
    figure = view([p], beside=["time", "table"])
    cells = {t.get_text() for t in figure.findobj(Text)}
    op = max((op for op in p.operators if op.formats), key=lambda op: float(op.time_s))
    step, low, high = (f"{1e3 * float(t):.3g}" for t in (p.time_s, p.low_s, p.high_s))
    mine = (float(op.intensity), float(op.flop / op.time_s) / 1e12, 1e3 * float(op.time_s))
    for wanted in (
        *(f"{value:.3g}" for value in mine),
        op.generation,
        f"the whole step: {step} ms",
        f"80 % band: {low} to {high} ms",
    ):
        assert wanted in cells
    assert faults(figure) == []


def test_sections_of_a_table_stand_whole_in_columns_of_like_length() -> None:
    sections = tuple(Section(title=str(i), notes=("",), rows=(("a", "1"),) * (i + 1)) for i in range(6))
    columns = Numbers(heads=("x", "y"), sections=sections).columns(2)
    assert [s for column in columns for s in column] == list(sections)
    assert len(columns) == 2
    lengths = [sum(s.lines for s in column) for column in columns]
    assert max(lengths) <= sum(s.lines for s in sections[:4]) + 1e-9  # 4 and 2 sections
    assert Numbers(heads=("x",), sections=sections).columns(1) == [list(sections)]


def test_what_a_size_cannot_hold_beside_the_roofline_is_refused_in_a_sentence() -> None:
    cases = [hwmodels.predict("l40s", "llama-3-8b", s, "decode", b, 2048)
             for s in ("bf16", "fp8") for b in (1, 2, 4, 8, 16, 32, 64, 128, 256)]  # fmt: skip
    with pytest.raises(QsimError, match=r"a slide has .* inches beside the roofline, and 18 bars need"):
        view(cases, path="batch", size="slide", beside=["time"])
    with pytest.raises(QsimError, match="a square has .* inches .* 18 steps of numbers need"):
        view(cases, path="batch", size="square", beside=["table"])
    with pytest.raises(QsimError, match="a page has 20.0 inches .* ask for fewer"):
        view([c for c in cases for _ in range(6)], path="batch", beside=["time"])


@pytest.mark.parametrize("arguments", ["predict llama-3-8b --device l40s", "sweep llama-3-8b --tornado --device asic",
                                       "formats e4m3"])  # fmt: skip
def test_every_verb_that_draws_takes_a_size_and_a_theme_and_only_with_a_figure(arguments: str, tmp_path: Path) -> None:
    sizes = set()
    for size in ("page", "column"):
        plot = tmp_path / f"{size}.png"
        done = CliRunner().invoke(main, [*arguments.split(), "--size", size, "--theme", "print", "--plot", str(plot)])
        assert done.exit_code == 0, done.output
        head = plot.read_bytes()[16:24]
        sizes.add(int.from_bytes(head[:4], "big"))
    assert sizes == {1440, 700}  # 7.2 and 3.5 inches at 200 dots per inch
    refused = CliRunner().invoke(main, [*arguments.split(), "--size", "page"])
    assert "--size is for the figure: give --plot FILE too" in refused.output
