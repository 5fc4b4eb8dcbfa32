"""The API reference of both packages, from their docstrings, as a folder of HTML pages.

    python reports/docs.py site

A page for every package, with what it exports; packages that export nothing have a page for each module. The command
line documents itself (`qsim --help`).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def packages() -> Iterator[str]:
    """Names of the documented packages; names that they load on first use are loaded."""
    import qsim

    inner = [m.name for m in pkgutil.iter_modules(qsim.__path__, "qsim.") if m.ispkg and m.name != "qsim.cli"]
    for name in ("qsim", *inner, "hwmodels"):
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):
            vars(module).setdefault(exported, getattr(module, exported))
        if name == "qsim" or name.removeprefix("qsim.") not in qsim.__all__:  # what qsim exports has a page by that
            yield name
    # former places: of a package, and of functions, which have the names of those files
    yield from ("!qsim.algorithms", "!qsim.quantize", "!hwmodels.predict", "!hwmodels.roofline")


def build(out: Path) -> None:
    """Write the pages into a folder."""
    import pdoc
    import pdoc.render

    pdoc.render.configure(docformat="google", search=False, show_source=False, footer_text="qsim")
    with warnings.catch_warnings():
        # an alias in quotes cannot be evaluated in `Alias | None`; the page then shows it as it is written
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        pdoc.pdoc(*packages(), output_directory=out)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    print(f"wrote {sys.argv[1]}/index.html")
