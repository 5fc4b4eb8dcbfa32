"""The gallery shows every kind of figure, each with a command that there is."""

from __future__ import annotations

import html
import re
from pathlib import Path

from qsim.cli import main
from qsim.study.registry import REPORT

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "reports" / "gallery"
PAGE = (GALLERY / "index.html").read_text(encoding="utf-8")


def test_every_picture_of_the_gallery_is_there() -> None:
    found = re.findall(r'(?:src|srcset)="([^"]+)"', PAGE)
    assert len(found) >= 40
    assert [name for name in found if not (GALLERY / name).is_file()] == []
    drawn = {name for name in found if "/" not in name}
    assert drawn == {path.name for path in GALLERY.glob("*.svg")}  # and none is left of a figure that went


def test_every_figure_of_the_gallery_has_its_command() -> None:
    commands = [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", PAGE)]
    assert len(commands) == PAGE.count("<figure")
    for command in commands:
        program, verb, *_ = command.split()
        if program == "qsim":
            assert verb in main.list_commands(None), command  # type: ignore[arg-type]
        elif verb != "-m":
            assert (ROOT / verb).is_file(), command


def test_every_verb_that_draws_and_every_figure_of_a_study_is_in_the_gallery() -> None:
    shown = {text.split()[1] for text in re.findall(r"<pre>(.*?)</pre>", PAGE) if text.startswith("qsim")}
    draws = {
        name
        for name in main.list_commands(None)  # type: ignore[arg-type]
        if any(p.name == "plot" for p in main.get_command(None, name).params)
    }  # type: ignore[arg-type, union-attr]
    assert draws <= shown
    for figure in REPORT.figures:
        assert f'id="{figure.name}"' in PAGE
