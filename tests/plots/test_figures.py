from __future__ import annotations

import os
import stat
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from qsim.formats import get_format
from qsim.formats.describe import binades
from qsim.plots import style
from qsim.plots.formats import ErrorSeries, binade_figure, error_figure, format_figure


def _series(n: int) -> list[ErrorSeries]:
    x = np.exp2(np.arange(-4.0, 4.0))
    return [ErrorSeries(label=f"f{i}", magnitude=x, worst=0.1 / (i + 1) + 0 * x, rms=0.05 / (i + 1) + 0 * x, max=16.0)
            for i in range(n)]  # fmt: skip


def _figure(name: str) -> Figure:
    fmt = get_format(name)
    edge = fmt.smallest_normal if getattr(fmt, "has_subnormals", False) else None
    return format_figure(fmt.name, fmt.values, smallest_normal=edge)


@pytest.mark.parametrize(("name", "panels"), [("e4m3", 3), ("e2m1", 2), ("int8", 2), ("e8m0", 2), ("nf4", 2)])
def test_number_line_has_every_value(name: str, panels: int) -> None:
    figure = _figure(name)
    axes = figure.axes
    assert len(axes) == panels
    assert all(a.get_xlabel() for a in axes)
    assert axes[-1].get_ylabel()
    ticks = sum(len(lines.get_segments()) for lines in axes[0].collections)
    assert ticks == get_format(name).finite_count


def test_spacing_of_the_normals_is_within_its_octave() -> None:
    fmt = get_format("e4m3")
    normal = _figure("e4m3").axes[-1].lines[0].get_ydata()
    assert len(normal) == np.count_nonzero(fmt.values >= fmt.smallest_normal) - 1
    assert max(normal) == fmt.eps
    assert min(normal) > fmt.eps / 2


def test_wide_format_by_binades() -> None:
    fmt = get_format("bfloat16")
    rows = binades(fmt)
    first, last, spacing = (np.array([r[k] for r in rows]) for k in ("first", "last", "spacing"))
    figure = binade_figure(fmt.name, first, last, spacing, smallest_normal=fmt.smallest_normal)
    assert "0.0078125" in figure.get_suptitle().replace("\n", " ")


def test_error_figure_labels_every_series() -> None:
    axes = error_figure(_series(3)).axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["f0", "f1", "f2"]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    with pytest.raises(ValueError, match="got 8"):
        error_figure(_series(8))
    with pytest.raises(ValueError, match="got 0"):
        error_figure([])


def test_number_line_needs_values() -> None:
    with pytest.raises(ValueError, match="at least two values"):
        format_figure("x", np.array([1.0]))


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".svg", b"<?xml"), (".png", b"\x89PNG\r\n\x1a\n"), (".PNG", b"\x89PNG"), (".pdf", b"%PDF")]
)
def test_save_by_suffix_and_reproducibly(tmp_path: Path, suffix: str, begins: bytes) -> None:
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    style.save(_figure("e2m1"), first)
    style.save(_figure("e2m1"), second)
    assert first.read_bytes().startswith(begins)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, second.name]


def test_the_users_settings_neither_matter_nor_change(tmp_path: Path) -> None:
    style.save(_figure("e2m1"), tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True}):
        style.save(_figure("e2m1"), tmp_path / "b.svg")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_save_replaces_the_named_file_only(tmp_path: Path) -> None:
    real, link = tmp_path / "real.png", tmp_path / "link.png"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    style.save(_figure("e2m1"), link)
    assert link.is_symlink()
    assert real.read_bytes().startswith(b"\x89PNG")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("figure.eps", ValueError, r"\.svg, \.png or \.pdf"),
        ("figure", ValueError, r"\.svg, \.png or \.pdf"),
        ("nowhere/figure.png", FileNotFoundError, "does not exist"),
        ("folder.png", IsADirectoryError, "is a folder"),
        ("file.txt/figure.png", NotADirectoryError, "is not a folder"),
    ],
)
def test_paths_that_are_refused_leave_nothing(tmp_path: Path, path: str, error: type, said: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=said):
        style.save(_figure("e2m1"), tmp_path / path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        style.save(_figure("e2m1"), target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_quality_figure_has_every_row_in_its_section() -> None:
    from qsim.plots.losses import QualityPoint, quality_figure

    losses = {"RTN": (0.03, 0.002), "GPTQ": (0.02, 0.002), "FP8": (-0.0004, 0.0003)}
    points = [QualityPoint(section=s, name=f"{m} {s}", method=m, loss=v, error=e)
              for s in ("first", "second") for m, (v, e) in losses.items()]  # fmt: skip
    axes = quality_figure(points).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [p.name for p in points]
    assert [t.get_text() for t in axes.texts] == ["first", "second"]
    assert axes.get_xlim()[0] < min(p.loss - 2 * p.error for p in points)
    assert "bits per byte" in axes.get_xlabel()
