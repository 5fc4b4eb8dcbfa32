"""The lessons run from top to bottom, and show what they print."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9]_*.ipynb"))
EXACT = {"1", "6", "7"}
"""Lessons whose numbers are the same everywhere. The others measure this machine, or run a model whose float32 sums
depend on the order in which a processor adds: their words must be the same, and as many numbers."""

nbformat = pytest.importorskip("nbformat", reason="nbformat and nbclient run the lessons: pip install 'qsim[test]'")
pytest.importorskip("nbclient", reason="nbformat and nbclient run the lessons: pip install 'qsim[test]'")


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "examples" / "run_notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_notebooks"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """One kernel for all lessons: starting one and importing everything takes longer than most lessons."""
    with runner().kernel(timeout_s=120) as client:
        yield client


def printed(notebook: Any) -> list[str]:
    """The text that every cell shows; a stream may come in pieces."""
    out = []
    for cell in notebook.cells:
        parts = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                parts.append(output.text)
            elif "text/plain" in output.get("data", {}) and "image/png" not in output.data:
                parts.append(output.data["text/plain"])
        out.append("".join(parts))
    return out


def test_there_are_eight() -> None:
    assert [path.name[0] for path in LESSONS] == list("12345678")


@pytest.mark.parametrize("path", LESSONS, ids=[p.stem for p in LESSONS])
def test_a_lesson_opens_as_a_document(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith(f"# {path.name[0]}. ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {o.output_type for cell in code for o in cell.outputs}
    assert "error" not in kinds
    assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr"]
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert pictures
    assert path.stat().st_size < 250_000


@pytest.mark.parametrize("path", LESSONS, ids=[p.stem for p in LESSONS])
def test_a_lesson_runs_and_prints_what_it_shows(path: Path, kernel: Any) -> None:
    again = runner().execute(path, kernel)
    shown, now = printed(nbformat.read(path, as_version=4)), printed(again)
    if path.name[0] not in EXACT:
        shown, now = ([re.sub(r"[+-]?\d[\d.]*", "#", text).split() for text in some] for some in (shown, now))
    assert now == shown
