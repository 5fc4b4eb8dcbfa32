"""A figure is one value in one file: from outside the package too, through the API and the command."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from qsim.errors import QsimError
from qsim.study import Drawing, Figure, Section, register, write_figures, write_study
from qsim.study.registry import ENTRY_POINTS, REPORT, drawings
from qsim.study.result import TABLES, StudyResult, to_json
from qsim.study.rows import ProfileRow
from qsim.study.run import Run

from ..guides import blocks, install

ROOT = Path(__file__).parents[2]
TITLE = "How to add a figure"


@pytest.fixture
def bare(run: Run) -> StudyResult:
    """The small study with the tables of one figure only, so that little is drawn."""
    names = set(TABLES) - {"methods", "decisions", "speed", "capacity"}
    empty: dict[str, Any] = dict.fromkeys(names, ())
    return replace(run.result, **empty)


@pytest.fixture
def loaded() -> Iterator[dict[str, Any]]:
    """The module of the example; its figure is in no report afterwards."""
    module: dict[str, Any] = {"__name__": "my_package.memory"}
    exec(compile(blocks(TITLE, "python")[0], "memory.py", "exec"), module)
    yield module
    REPORT.forget("memory")
    REPORT.forget("mine")


def test_a_registered_figure_stands_in_its_section_and_is_written_as_a_file(
    loaded: dict[str, Any], bare: StudyResult, tmp_path: Path
) -> None:
    assert "memory" not in {f.name for f in REPORT.figures}
    register(loaded["FIGURE"])
    register(loaded["FIGURE"])  # again changes nothing
    (drawn,) = (d for f, d in drawings(bare) if f.name == "memory")
    write_study(bare, tmp_path / "s")
    page = (tmp_path / "s" / "index.html").read_text(encoding="utf-8")
    section = page[page.index('<h2 id="fits">') : page.index('<h2 id="trust">')]
    assert '<figure id="memory">' in section
    assert drawn.says in section
    assert [p.name for p in write_figures(bare, tmp_path / "f", kind="png", only=["memory"])] == ["memory.png"]


def test_an_installed_figure_is_drawn_by_the_command(bare: StudyResult, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(to_json(bare), encoding="utf-8")
    install(tmp_path, TITLE, ENTRY_POINTS)
    asked = ["study", "figures", str(tmp_path / "study.json"), "--out", str(tmp_path / "f"), "--only", "memory"]
    command = [sys.executable, "-m", "qsim", *asked]
    path = f"{tmp_path}:{ROOT}"
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "<text" in (tmp_path / "f" / "memory.svg").read_text(encoding="utf-8")


def test_a_section_of_ones_own_has_a_heading_a_number_and_a_place_in_the_list(
    loaded: dict[str, Any], bare: StudyResult, tmp_path: Path
) -> None:
    register(Section(name="mine", title="What I looked at", order=6.5, text=lambda result: "My text."))
    register(replace(loaded["FIGURE"], section="mine"))
    write_study(bare, tmp_path / "s")
    page = (tmp_path / "s" / "index.html").read_text(encoding="utf-8")
    heads = re.findall(r"<h2 [^>]*>(.*?)</h2>", page)
    assert "9. What I looked at" in heads
    assert "10. How far to trust each number" in heads
    assert '<a href="#mine">What I looked at</a>' in page
    assert "<p>My text.</p>" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Speed up"}, "lower-case letters"),
        ({"name": "rooflines"}, "already: give the new one another name"),
        ({"name": "why"}, "already"),
        ({"section": "whys"}, "why"),
    ],
)
def test_a_figure_that_does_not_fit_is_refused_in_a_sentence(change: dict[str, str], said: str) -> None:
    figure = Figure(**{"name": "new", "section": "why", "make": lambda result: None, **change})  # type: ignore[arg-type]
    before = REPORT.figures
    with pytest.raises(QsimError, match=said):
        register(figure)
    with pytest.raises(QsimError, match=r"Figure and qsim\.study\.Section: got str"):
        register("rooflines")  # type: ignore[arg-type]
    assert REPORT.figures == before


def test_a_figure_that_a_study_does_not_have_is_refused_with_those_it_has(run: Run, tmp_path: Path) -> None:
    with pytest.raises(QsimError, match="rooflines"):
        write_figures(run.result, tmp_path / "f", only=["roofline"])
    assert not (tmp_path / "f").exists()


def test_an_entry_that_cannot_be_loaded_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from qsim.study.registry import Registry

    broken = EntryPoint(name="lost", value="no_such_module_at_all:FIGURE", group=ENTRY_POINTS)
    monkeypatch.setattr("qsim.registry.entry_points", lambda group: [broken] if group == ENTRY_POINTS else [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Registry().figures
    assert any("figure lost of an installed package cannot be loaded" in str(w.message) for w in caught)
    assert [f.name for f in found] == [f.name for f in REPORT.figures]


def test_every_field_of_rows_is_a_table_and_no_other_is() -> None:
    plain = {"schema_version", "spec", "quick", "environment", "measured", "notes", "synthetic_outliers"}
    assert set(TABLES) == {f.name for f in fields(StudyResult)} - plain


def test_a_drawing_is_made_for_every_figure_of_the_small_study(run: Run) -> None:
    profile = ProfileRow(profile="opt-13b-like", method="rtn:mxfp4", loss=0.4, loss_se=0.02, base_bits_per_byte=0.9,
                         bytes_scored=4096, notes="")  # fmt: skip
    given = replace(run.result, profiles=(profile,))  # of the embedded model only, which the small study is not of
    made = {figure.name: d for figure, d in drawings(given)}
    assert len(made) == len(REPORT.figures)
    assert "opt-13b-like: MXFP4" in made["outlier_profiles"].says
    assert all(isinstance(d, Drawing) for d in made.values())
