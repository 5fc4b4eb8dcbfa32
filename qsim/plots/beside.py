"""Beside a roofline: bars of where the time goes, in its colours, and a table of the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qsim.errors import QsimError

from .labels import size_of
from .names import three_digits
from .style import LIGHT, SIZES

if TYPE_CHECKING:
    from .roofline import _Look

SHARE = 0.5
"""The part of a figure of fixed height that bars and table may take below the panels."""
MOST_IN = 20.0
"""The height that they may have in a figure that grows with them."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where the time of one step goes.

    Attributes:
        label: what tells it from the others, "" for the only one.
        key: device, scheme, case: what its colour stands for.
        parts_s: seconds of the operators that the roofline draws; other_s: of all others.
    """

    label: str
    device: str
    scheme: str
    case: str
    parts_s: tuple[tuple[str, float], ...]
    other_s: float

    @property
    def total_s(self) -> float:
        return sum(seconds for _, seconds in self.parts_s) + self.other_s


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows of a table under a title with notes below it: cells as they are written, the first one a name."""

    title: str
    notes: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def lines(self) -> float:
        return len(self.rows) + len(self.notes) + 1.6


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """A table in sections, which all have these heads."""

    heads: tuple[str, ...]
    sections: tuple[Section, ...]

    def columns(self, count: int) -> list[list[Section]]:
        """The sections in at most `count` columns side by side, in order, so that the longest is as short as can be."""
        every = sum(s.lines for s in self.sections)
        tried = sorted({every / count, *(sum(s.lines for s in self.sections[i:j]) for i in range(len(self.sections))
                                         for j in range(i + 1, len(self.sections) + 1))})  # fmt: skip
        for most in tried:
            out: list[list[Section]] = [[]]
            for section in self.sections:
                if out[-1] and sum(s.lines for s in out[-1]) + section.lines > most:
                    out.append([])
                out[-1].append(section)
            if len(out) <= count and max(s.lines for s in self.sections) <= most:
                return out
        return [list(self.sections)]


def numbers_lines(columns: Sequence[Sequence[Section]]) -> float:
    """Lines of the longest column, with the heads of the columns."""
    return 1.2 + max(sum(s.lines for s in column) for column in columns)


_ACROSS = {"slide": 3, "page": 2, "column": 1, "square": 2}
"""Columns of a table, by the size of the figure."""
_LINE_IN, _BAR_IN, _LETTER_IN = 0.175, 0.24, 0.063
"""A line of the table, a bar, and the mean letter of a table's type."""


def _type(scale: float) -> float:
    """The scale of a table's type: what is read at leisure may be smaller than what is read across a room."""
    return max(min(scale, 1.0), 0.75 * scale)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What stands beside a roofline: bars, a table, or both."""

    steps: tuple[Step, ...] = ()
    numbers: Numbers | None = None

    def heights_in(self, size: str, side: bool) -> list[float]:
        """The height of each part in inches."""
        scale = SIZES[size].scale
        bars = [scale * (_BAR_IN * len(self.steps) + 0.6)] if self.steps else []
        return bars + ([] if self.numbers is None else [_type(scale) * _LINE_IN * self.lines(size, side)])

    def lines(self, size: str, side: bool) -> float:
        """Lines of the longest column of the table, its heads among them."""
        if self.numbers is None:
            return 0.0
        return numbers_lines(self.columns(size, side))

    def columns(self, size: str, side: bool) -> list[list[Section]]:
        """The sections of the table in as many columns as the figure is wide for."""
        if self.numbers is None or side:
            return [] if self.numbers is None else self.numbers.columns(1)
        wide = max(len(text) for s in self.numbers.sections for text in (s.title, *s.notes)) * _LETTER_IN
        room = int(0.97 * SIZES[size].width_in / _type(SIZES[size].scale) / (wide + 0.25))
        return self.numbers.columns(max(1, min(room, _ACROSS[size])))

    def check(self, size: str, side: bool) -> None:
        """Refuse what a figure of this size cannot hold.

        Raises:
            QsimError: with how much there is and how much would fit.
        """
        fixed = SIZES[size].height_in
        room = MOST_IN if fixed is None else (0.95 if side else SHARE) * fixed
        need = sum(self.heights_in(size, side))
        if need > room:
            what = [f"{len(self.steps)} bars"] if self.steps else []
            what += [] if self.numbers is None else [f"{len(self.numbers.sections)} steps of numbers"]
            more = "" if fixed is None else "; --size page grows with them"
            raise QsimError(f"a {size} has {room:.1f} inches beside the roofline, and {' and '.join(what)} need "
                            f"{need:.1f}: ask for fewer devices, schemes or batches{more}")  # fmt: skip


def draw_bars(axes: Axes, steps: Sequence[Step], look: _Look) -> None:
    """A bar for each step: its operators in the colour of the step, named where there is room.

    Steps of several cases (decode and prefill) are drawn as shares, since their times differ by orders of magnitude.
    Call it when the figure is laid out.
    """
    shares = len({s.case for s in steps}) > 1
    longest = max(s.total_s for s in steps)
    font = 7.8 * look.scale
    room = 1 + 1.2 * size_of(axes, "88,888 ms", font)[0] / axes.bbox.width
    axes.set_xlim(0, room * (1.0 if shares else longest))
    thick = axes.bbox.height / axes.figure.dpi / (0.4 * look.scale)  # type: ignore[union-attr]
    axes.set_ylim(max(len(steps), thick) - 0.5, -0.6)  # few bars are no thicker than many
    for y, step in enumerate(steps):
        scale = 1 / step.total_s if shares else 1.0
        left = 0.0
        for i, (name, seconds) in enumerate(step.parts_s):
            width = seconds * scale
            color = look.colors[name] if look.color_by == "operator" else look.colors[getattr(step, look.color_by)]
            # pale enough to be written on; neighbours differ
            axes.barh([y], [width], left=[left], height=0.78, color=color, alpha=(0.5, 0.28)[i % 2], linewidth=0,
                      label="_bar")  # fmt: skip
            _name_part(axes, name, left, width, y, look)
            left += width
        if step.other_s:
            axes.barh([y], [step.other_s * scale], left=[left], height=0.78, color=LIGHT, linewidth=0, label="_bar")
            _name_part(axes, "other", left, step.other_s * scale, y, look)
        axes.annotate(f"{three_digits(1e3 * step.total_s)} ms", (step.total_s * scale, y), xytext=(4, 0), fontsize=font,
                      textcoords="offset points", va="center", color="#222222", label="_label")  # fmt: skip


def prepare_bars(axes: Axes, steps: Sequence[Step]) -> None:
    """Labels and ticks, before the figure is laid out."""
    axes.set_yticks(range(len(steps)), [s.label for s in steps])
    axes.set_ylim(len(steps) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    shares = len({s.case for s in steps}) > 1
    what = "where the time goes" + (" (shares)" if shares else "")
    axes.set_title(what, fontweight="normal", fontsize="medium")


def _name_part(axes: Axes, name: str, left: float, width: float, y: float, look: _Look) -> None:
    """Write the name of a part into it, or draw the marker of its operator, whichever fits."""
    font, pixels = 7.8 * look.scale, axes.figure.dpi / 72  # type: ignore[union-attr]
    room = axes.transData.transform((left + width, y))[0] - axes.transData.transform((left, y))[0]
    if size_of(axes, name, font)[0] + 4 * pixels < room:
        axes.text(left + width / 2, y, name, ha="center", va="center", fontsize=font, color="#222222", label="_label")
    elif name in look.shapes and room > 8 * look.scale * pixels:
        axes.plot([left + width / 2], [y], marker=look.shapes[name], markersize=5 * look.scale, color="#555555",
                  markeredgewidth=0, linestyle="none", scalex=False, scaley=False, label="_part")  # fmt: skip


def draw_table(figure: Figure, axes: Axes, beside: Beside, look: _Look, size: str, side: bool) -> None:
    """Sections in columns side by side: a title and a note, then names on the left and numbers on the right.

    Raises:
        QsimError: the figure is too narrow for the columns.
    """
    font, pixels = 7.8 * _type(look.scale), figure.dpi / 72
    numbers, columns = beside.numbers, beside.columns(size, side)
    if numbers is None:
        return
    if not side:  # labels of the panels above need not narrow it
        place = axes.get_position()
        axes.set_position((0.012, place.y0, 0.976, place.height))
    rows = [numbers.heads, *(row for section in numbers.sections for row in section.rows)]
    widths = [max(size_of(axes, row[j], font)[0] for row in rows) + 9 * pixels for j in range(len(numbers.heads))]
    titles = max(size_of(axes, text, font)[0] for s in numbers.sections for text in (s.title, *s.notes))
    wide = max(sum(widths), 1.08 * titles)
    gap = 18 * pixels
    if len(columns) * (wide + gap) - gap > axes.bbox.width:
        raise QsimError(f"a {size} is too narrow for the table of numbers: use --size page, slide or square")
    high = min(_type(look.scale) * _LINE_IN * figure.dpi, axes.bbox.height / numbers_lines(columns))
    if high < 1.15 * font * pixels:
        raise QsimError(f"a {size} is too low for the table of numbers: ask for fewer devices, schemes or batches")
    for c, sections in enumerate(columns):
        left = c * (wide + gap)
        y = axes.bbox.height - 0.6 * high

        def write(text: str, x: float, color: str, *, right: bool = False, y_from: float) -> None:
            axes.text(x / axes.bbox.width, y_from / axes.bbox.height, text, transform=axes.transAxes, fontsize=font,
                      ha="right" if right else "left", va="center", color=color, label="_cell")  # fmt: skip

        ends = [left + wide - sum(widths[j + 1 :]) for j in range(len(widths))]
        for j, head in enumerate(numbers.heads):
            write(head, left if j == 0 else ends[j], "#555555", right=j > 0, y_from=y)
        for section in sections:
            y -= 1.4 * high
            ends_of_rule = [left / axes.bbox.width, (left + wide) / axes.bbox.width]
            axes.plot(ends_of_rule, [(y + 0.6 * high) / axes.bbox.height] * 2, transform=axes.transAxes,
                      color="#B5B5B5", linewidth=0.6 * look.scale)  # fmt: skip
            write(section.title, left, "#222222", y_from=y)
            for note in section.notes:
                y -= high
                write(note, left, "#777777", y_from=y)
            for row in section.rows:
                y -= high
                for j, cell in enumerate(row):
                    write(cell, left if j == 0 else ends[j], "#222222", right=j > 0, y_from=y)
            y -= 0.2 * high
