"""The sections and figures of the report: those of `sections/`, of installed packages, and registered ones."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from qsim.errors import QsimError, nearest
from qsim.registry import add_installed

from .figure import Drawing, Figure, Section
from .result import StudyResult

ENTRY_POINTS = "qsim.study"
"""The entry-point group of installed packages: each entry is a `Figure` or a `Section`."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Registry:
    """What a report is made of, by name. A module of the folder `sections` has a `SECTION` and `FIGURES`.

    An entry of an installed package that cannot be loaded is left out, with a warning that names the package.
    """

    def __init__(self) -> None:
        self._sections: dict[str, Section] = {}
        self._figures: dict[str, Figure] = {}
        self._loaded = False

    @property
    def sections(self) -> tuple[Section, ...]:
        """In the order of the page."""
        self._load()
        return tuple(sorted(self._sections.values(), key=lambda s: (s.order, s.name)))

    @property
    def figures(self) -> tuple[Figure, ...]:
        """In the order of the page."""
        rank = {section.name: i for i, section in enumerate(self.sections)}
        return tuple(sorted(self._figures.values(), key=lambda f: (rank[f.section], f.order, f.name)))

    def register(self, value: Figure | Section) -> None:
        """Add a figure or a section; see `register`."""
        self._load()
        self._add(value)

    def forget(self, name: str) -> None:
        """Take a figure or a section that was registered out again; one that is not there is no error."""
        self._figures.pop(name, None)
        self._sections.pop(name, None)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules([str(Path(__file__).parent / "sections")]):
            found = importlib.import_module(f"{__package__}.sections.{module.name}")
            self._add(found.SECTION)
            for figure in found.FIGURES:
                self._add(figure)
        add_installed("figure", ENTRY_POINTS, self._add)

    def _add(self, value: Figure | Section) -> None:
        if not isinstance(value, Figure | Section):
            raise QsimError(f"a report is made of qsim.study.Figure and qsim.study.Section: got {type(value).__name__}")
        if not _NAME.fullmatch(value.name):
            raise QsimError(
                f"the name of a figure or section must be lower-case letters, digits and _: got {value.name!r}"
            )
        known: Figure | Section | None = self._figures.get(value.name) or self._sections.get(value.name)
        if known is not None and known != value and not _same_home(known, value):
            raise QsimError(f"the report has a figure or section {value.name!r} already: give the new one another name")
        if isinstance(value, Section):
            self._sections[value.name] = value
        elif value.section not in self._sections:
            raise QsimError(f"figure {value.name}: {nearest('section of the report', value.section, self._sections)}")
        else:
            self._figures[value.name] = value


def _same_home(known: Figure | Section, value: Figure | Section) -> bool:
    """Whether a module outside the package, as a notebook, has made its own value again."""
    homes = {getattr(v.make if isinstance(v, Figure) else v.text, "__module__", "") for v in (known, value)}
    return type(known) is type(value) and len(homes) == 1 and not next(iter(homes)).startswith(f"{__package__}.")


REPORT = Registry()
"""The sections and figures of every report."""


def register(value: Figure | Section) -> None:
    """Put a figure, or a section for figures, into every report that this program draws.

    In an installed package, an entry point of the group `qsim.study` does the same for the command line:

        [project.entry-points."qsim.study"]
        mine = "my_package.my_module:FIGURE"

    Registering the same value again changes nothing; another one of the same name and module takes its place.

    Raises:
        QsimError: neither a `Figure` nor a `Section`, a name that another one has or that is no word, a section that
            does not exist (register it first).
    """
    REPORT.register(value)


def drawings(result: StudyResult) -> Iterator[tuple[Figure, Drawing]]:
    """Every figure that the tables of the result allow, in the order of the report."""
    for figure in REPORT.figures:
        found = figure.make(result)
        if found is not None:
            yield figure, found
