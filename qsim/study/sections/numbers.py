"""All numbers: where the tables are, how the study was made, and its limits."""

from __future__ import annotations

from ..figure import Section

SECTION = Section(name="numbers", title="All numbers", order=1000, template="numbers.html", numbered=False)
FIGURES = ()
