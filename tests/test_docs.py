"""The API reference can be built, and its links lead somewhere."""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("pdoc") is None:
        pytest.skip("pdoc is not installed: pip install 'qsim[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "error", str(ROOT / "reports" / "docs.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_every_package_has_a_page(site: Path) -> None:
    packages = ("formats", "scheme", "tensorcore", "kernels", "models", "methods", "layouts", "checkpoints", "study")
    for package in packages:
        page = (site / "qsim" / f"{package}.html").read_text(encoding="utf-8")
        module = importlib.import_module(f"qsim.{package}")
        for name in module.__all__:
            assert f'id="{name}"' in page, f"qsim.{package}.{name} is exported and not in the reference"


def test_no_link_is_broken(site: Path) -> None:
    pages = {p: p.read_text(encoding="utf-8") for p in site.rglob("*.html")}
    anchors = {p: set(re.findall(r'\bid="([^"]+)"', text)) for p, text in pages.items()}
    checked = 0
    for page, text in pages.items():
        for target in map(html.unescape, re.findall(r'href="([^"]*)"', text)):
            if "://" in target or target.startswith(("data:", "mailto:")) or not target:
                continue
            file, _, anchor = target.partition("#")
            to = (page.parent / unquote(file)).resolve() if file else page
            assert to.exists(), f"{page.relative_to(site)} links to {target}"
            if anchor:
                assert unquote(anchor) in anchors[to], f"{page.relative_to(site)} links to {target}"
            checked += 1
    assert checked > len(pages), "every page links to others"


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "qsim" / "models" / "tiny" / "README.md", *ROOT.glob("reports/**/*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"
