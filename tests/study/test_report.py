"""The page: whole, self-contained, readable by people and machines, and quiet in a browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qsim.study.registry import REPORT, drawings
from qsim.study.report import render
from qsim.study.result import TABLES
from qsim.study.run import Run
from tests.plots.legible import faults

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
                if (found := shutil.which(name))), None)  # fmt: skip
VOID = {"meta", "link", "br", "img", "hr", "input"}


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return (written / "index.html").read_text(encoding="utf-8")


class Structure(HTMLParser):
    """Open and close tags in balance; identifiers, references and attributes that fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.fetches: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._look(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._look(tag, attrs)

    def _look(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "data", "poster", "srcset"):
                (self.references if (value or "").startswith("#") else self.fetches).append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"


@pytest.fixture(scope="module")
def structure(page: str) -> Structure:
    found = Structure()
    found.feed(page)
    return found


def test_the_page_is_well_formed_and_asks_for_nothing(structure: Structure, page: str) -> None:
    assert structure.open == []
    assert structure.fetches == ["data:,"]  # the icon, so that no browser looks for one
    assert "script" not in structure.tags
    assert "@import" not in page
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page))


def test_identifiers_are_unique_and_references_lead_somewhere(structure: Structure) -> None:
    assert len(structure.ids) == len(set(structure.ids))
    assert {r[1:] for r in structure.references} <= set(structure.ids)


def test_the_report_answers_in_order(page: str) -> None:
    heads = re.findall(r'<h2 id="(\w+)">', page)
    assert heads == re.findall(r'<a href="#(\w+)">', page[page.index("<nav") : page.index("</nav>")])
    assert heads[0] == "when", "the answer comes first"
    assert heads[-1] == "numbers"


def test_every_figure_says_what_to_see(run: Run, page: str) -> None:
    made = list(drawings(run.result))
    profiles = [f for f in REPORT.figures if f.name == "outlier_profiles"]  # of the embedded model only
    assert [figure for figure, _ in made] == [f for f in REPORT.figures if f not in profiles]
    for name, d in ((figure.name, d) for figure, d in made):
        assert len(d.says) > 60
        assert d.says.rstrip().endswith(".")
        figure = page[page.index(f'<figure id="{name}">') :]
        figure = figure[: figure.index("</figure>")]
        assert figure.count("<svg") == 1  # the page holds each figure once
        assert figure.count('role="img"') == 1
        assert "<text" in figure, "its text can be searched and read aloud"
        assert "<figcaption>" in figure
        assert "nan" not in d.says.lower().split()


def test_every_text_of_every_figure_of_a_study_can_be_read(run: Run) -> None:
    for figure, d in drawings(run.result):
        assert faults(d.draw()) == [], figure.name


def test_every_answer_stands_with_its_band_and_tag(run: Run, page: str) -> None:
    tables = re.findall(r'<table class="when">(.*?)</table>', page, re.DOTALL)
    assert len(tables) == 2
    cells = [cell for t in tables for cell in re.findall(r"<td data-device(.*?)</td>", t, re.DOTALL)]
    assert len(cells) == len(run.result.decisions)
    for cell, d in zip(cells, run.result.decisions, strict=True):
        assert d.device in cell
        if d.method is None:
            assert "nothing that loses at most" in cell
        else:
            assert f'class="tag {d.fidelity}"' in cell
            assert f'class="tag {d.basis}">loss {d.basis}' in cell
            assert " to " in cell
            assert d.title is not None
            assert d.title in cell


def test_the_page_begins_with_answers_and_the_small_model_is_a_lesson_below(run: Run, page: str) -> None:
    heads = re.findall(r'<h2 id="(\w+)">', page)
    assert heads.index("when") < heads.index("target") < heads.index("why") < heads.index("quality")
    target = page[page.index('<h2 id="target">') : page.index('<h2 id="why">')]
    assert "of a score" in target
    assert 'class="tag near"' in target
    assert 'class="tag law"' not in target[: target.index("llama-3-70b")]
    assert "bits per byte" not in target
    assert "Beside what practitioners recommend" in page
    said = html.unescape(page)
    assert all(a.why in said or a.agrees for a in run.result.agreement)


def test_the_embedded_model_is_said_to_teach_mechanisms_not_rankings(run: Run) -> None:
    from dataclasses import replace

    lesson = next(s for s in REPORT.sections if s.name == "quality")
    assert lesson.text is not None
    assert "not rankings" not in lesson.text(run.result)
    tiny = replace(run.result, measured=replace(run.result.measured, model="tiny"))
    assert lesson.text(tiny).startswith("tiny teaches mechanisms, not rankings")


def test_a_title_with_markup_stays_text(run: Run, tmp_path: Path) -> None:
    from dataclasses import replace

    from qsim.study.report import render

    result = replace(run.result, spec=replace(run.result.spec, title="<script>alert(1)</script>"))
    assert "<script>" not in render(result, [])


def test_a_study_without_quality_figures_still_has_a_page(run: Run, tmp_path: Path) -> None:
    from qsim.study import write_study

    names = ("exact", "histograms", "tensor_errors", "channels", "salient", "accumulators", "claims", "trust",
             "trust_points", "notes")  # fmt: skip
    empty: dict[str, Any] = dict.fromkeys(names, ())
    write_study(replace(run.result, **empty), tmp_path / "bare")
    assert (tmp_path / "bare" / "index.html").exists()


@pytest.mark.parametrize("table", [*TABLES, "all"])
def test_a_study_without_any_of_its_tables_still_has_a_page(run: Run, table: str) -> None:
    empty: dict[str, Any] = dict.fromkeys(TABLES if table == "all" else (table,), ())
    bare = replace(run.result, **empty)
    page = render(bare, [])
    assert "llama-3-8b" in page
    for figure, drawing in drawings(bare):
        assert drawing.title
        assert figure.name


def opened(page: str, folder: Path, width: int) -> tuple[str, str]:
    """The document after loading, and what the browser's console said, under a policy that reports every request."""
    assert BROWSER is not None
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    file = folder / f"page{width}.html"
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    file.write_text(page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">{meta}'), encoding="utf-8")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
        "--virtual-time-budget=2000", "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed: the page was not opened in a browser")
def test_a_browser_opens_it_without_error_or_request(page: str, tmp_path: Path) -> None:
    for width in (1280, 390):
        document, console = opened(page, tmp_path, width)
        assert "How far to trust" in document
        assert console == ""
    _, console = opened(page.replace("</body>", "<img src='picture.png'></body>"), tmp_path, 500)
    assert "Content Security Policy" in console  # so a request would have been seen


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed: the width was not measured")
def test_nothing_is_wider_than_a_phone(written: Path, tmp_path: Path) -> None:
    """The page, in a frame 390 pixels wide, does not scroll sideways."""
    assert BROWSER is not None
    probe = tmp_path / "probe.html"
    page = (written / "index.html").read_text(encoding="utf-8")
    measure = "<script>addEventListener('load',()=>{document.title='W'+document.documentElement.scrollWidth})</script>"
    probe.write_text(page.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<body style='margin:0'><iframe id=f src='{probe.as_uri()}' width=390 height=800 style='border:0'></iframe>"
        "<script>const t=setInterval(()=>{try{document.title=f.contentDocument.title}catch(e){document.title=''+e}},50)"
        "</script>", encoding="utf-8",
    )  # fmt: skip
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=600,900", "--virtual-time-budget=4000", "--dump-dom",
        frame.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>W(\d+)</title>", done.stdout)
    assert found, done.stdout[:300]
    assert int(found[1]) <= 390
