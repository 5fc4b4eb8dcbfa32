"""Figures and sections of the report: each one value, with all that is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawn

    from .result import StudyResult


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of one study: what stands above it, what to see in it, and how it is drawn."""

    title: str
    says: str
    draw: Callable[[], Drawn] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure that a report can have.

    Attributes:
        name: of its file and its place in the page: lower-case letters, digits and `_`.
        section: the name of the `Section` it stands in.
        make: the figure of a result; None where the result lacks the tables it is drawn from. Its `says` is one or more
            sentences that say what to see, with the numbers of the result.
        order: among the figures of its section; figures of one order stand by name.
    """

    name: str
    section: str
    make: Callable[[StudyResult], Drawing | None]
    order: float = 100.0


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report: a text, then its figures, then tables.

    Attributes:
        name: its anchor in the page; the figures name it.
        title: its heading.
        short: what the list of sections calls it; the title where it is empty.
        order: among the sections.
        text: the paragraph above the figures; empty for none.
        template: a file in `qsim/study/templates/sections` with what stands below the figures (Jinja); empty for none.
        numbered: whether its heading has a number.
    """

    name: str
    title: str
    order: float
    short: str = ""
    text: Callable[[StudyResult], str] | None = field(default=None, repr=False)
    template: str = ""
    numbered: bool = True
