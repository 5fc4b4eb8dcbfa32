"""How results leave the program: as a table on a terminal, as JSON, or as CSV.

A verb gives rows and declares its columns once. JSON and CSV hold the rows with all their keys and digits; the table
shows the columns. No cell is ever cut: where a table is wider than the terminal, texts that may be folded are folded,
then the columns are shown in groups below each other, each with those that name the row. Output that goes into a file
or a pipe has no width, unless COLUMNS says one.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import click

from qsim.errors import QsimError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_F = TypeVar("_F", bound=Callable[..., Any])
Row: TypeAlias = Mapping[str, Any]
Form: TypeAlias = Literal["table", "json", "csv"]

READABLE = 120
"""Columns of running text where the output has no width of its own."""
NARROWEST = 12
"""Columns that a folded text keeps at least, even where one group of columns would then fit."""


def json_option(function: _F) -> _F:
    """`--json`, for a verb without a table; passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def table_options(function: _F) -> _F:
    """`--json` and `--csv`; the verb is called with `form`, one of `table`, `json` and `csv`."""

    @functools.wraps(function)
    def chosen(*args: Any, as_json: bool, as_csv: bool, **more: Any) -> Any:
        if as_json and as_csv:
            raise QsimError("--json and --csv both want stdout: give one of them")
        return function(*args, form="json" if as_json else "csv" if as_csv else "table", **more)

    return json_option(click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")(chosen))  # type: ignore[return-value]


def deliver(form: Form, rows: Iterable[Row], table: Callable[[], object], *, whole: Any = None) -> None:
    """Print a result in the form that was asked for.

    Arguments:
        rows: what CSV holds, and JSON without `whole`.
        table: prints what a terminal shows.
        whole: what JSON holds, where that is more than the rows.
    """
    if form == "json":
        print_json(list(rows) if whole is None else whole)
    elif form == "csv":
        print_csv(rows)
    else:
        table()


def records(frame: Any) -> list[dict[str, Any]]:
    """The rows of a pandas table."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def plain(value: Any) -> Any:
    """A value that JSON can carry: Inf and NaN become the strings that `float()` reads, containers are walked."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):  # NumPy scalars
        return plain(value.item())
    return value


def print_json(value: Any) -> None:
    """Indented JSON on stdout."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def print_csv(rows: Iterable[Row]) -> None:
    """Rows on stdout, one header line; the columns are the keys of all rows in order of first appearance.

    Absent is empty; a list is its values with semicolons between.
    """
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "; ".join(map(str, v)) if isinstance(v, list | tuple) else v for k, v in row.items()})
    click.echo(buffer.getvalue(), nl=False)


# --- the terminal -----------------------------------------------------------------------------------------------


def width() -> int | None:
    """Columns that a line may have: COLUMNS, or the terminal's; None for a file or a pipe."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def console() -> Console:
    """A rich console on stdout for running text: colours on a terminal only."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, emoji=False, force_jupyter=False, width=width() or READABLE)


def text_of(value: Any) -> str:
    """A value in a cell: nothing for None, four digits of a float, yes or no."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    """A paragraph on stdout, folded at the width of the terminal."""
    click.echo(textwrap.fill(text, width() or READABLE))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    `keys` are the keys of the row that it shows, which `form` makes a text or a rich Text of. A row without the first
    of them leaves the cell empty. `left` aligns to the left; `fold` says that the text may go over several lines where
    the terminal is narrow, at blanks only, so that no number is broken.
    """

    head: str
    keys: str | tuple[str, ...]
    form: Callable[..., str | Text] = text_of
    left: bool = False
    fold: bool = False

    def cell(self, row: Row) -> Text:
        """What a row shows in this column."""
        from rich.text import Text

        keys = (self.keys,) if isinstance(self.keys, str) else self.keys
        made = self.form(*(row.get(k) for k in keys)) if keys[0] in row else ""
        return made if isinstance(made, Text) else Text(made)


def print_table(
    columns: Sequence[Column], rows: Iterable[Row], *, title: str = "", lined: bool = False, gap: int = 2,
    indent: int = 0, names: int = 1,
) -> None:  # fmt: skip
    """Print a table on stdout. A column of texts that may be folded is left out where no row has one.

    Arguments:
        columns: from left to right.
        title: a bold line above.
        lined: a line under the heads.
        gap: blanks between columns.
        indent: blanks before the first one.
        names: how many columns at the left name a row; they are repeated in every group of columns.
    """
    from rich.text import Text

    cells = [[column.cell(row) for column in columns] for row in rows]
    said = [i for i, c in enumerate(columns) if i < names or not c.fold or not cells or any(row[i] for row in cells)]
    columns, cells = [columns[i] for i in said], [[row[i] for i in said] for row in cells]
    limit = width()
    room = None if limit is None else limit - indent
    out = console()

    def put(line: Text) -> None:
        line.rstrip()
        out.print(line, soft_wrap=True)

    if title:
        put(Text(title, "bold"))
    for number, (shown, widths) in enumerate(_groups(columns, cells, room, gap, names)):
        if number:
            put(Text(""))
        used = [columns[i] for i in shown]
        put(_line([Text(c.head, "bold") for c in used], used, widths, gap, indent))
        if lined:
            rule = 2 * indent + sum(widths) + gap * (len(widths) - 1)
            put(Text("─" * (rule if limit is None else min(rule, limit))))
        for row in cells:
            for line in _folded([row[i] for i in shown], used, widths):
                put(_line(line, used, widths, gap, indent))


def _groups(
    columns: Sequence[Column], cells: Sequence[Sequence[Text]], room: int | None, gap: int, names: int
) -> list[tuple[list[int], list[int]]]:
    """Which columns stand side by side, and how wide each is."""
    natural = [max([len(c.head), *(row[i].cell_len for row in cells)]) for i, c in enumerate(columns)]
    least = [
        min(natural[i], max([NARROWEST, len(c.head), *(_longest_word(row[i].plain) for row in cells)]))
        if c.fold else natural[i] for i, c in enumerate(columns)
    ]  # fmt: skip
    every = list(range(len(columns)))
    if room is None or _total(least, every, gap) <= room:
        return [(every, _widened(natural, least, every, room, gap))]
    groups: list[list[int]] = []
    for i in every[names:]:
        if groups and _total(least, [*groups[-1], i], gap) <= room:
            groups[-1].append(i)
        else:
            groups.append([*every[:names], i])
    return [(g, _widened(natural, least, g, room, gap)) for g in groups or [every]]


def _total(widths: Sequence[int], shown: Sequence[int], gap: int) -> int:
    return sum(widths[i] for i in shown) + gap * (len(shown) - 1)


def _widened(natural: list[int], least: list[int], shown: list[int], room: int | None, gap: int) -> list[int]:
    """Widths of some columns: what is left of the room goes to those that are folded, from the left."""
    if room is None:
        return [natural[i] for i in shown]
    rest = max(0, room - _total(least, shown, gap))
    widths = []
    for i in shown:
        more = min(rest, natural[i] - least[i])
        rest -= more
        widths.append(least[i] + more)
    return widths


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def _folded(row: Sequence[Text], columns: Sequence[Column], widths: Sequence[int]) -> list[list[Text]]:
    """The lines that a row takes."""
    from rich.text import Text

    parts = [
        [Text(line) for line in textwrap.wrap(cell.plain, w, break_long_words=False, break_on_hyphens=False)]
        if column.fold and cell.cell_len > w else [cell] for cell, column, w in zip(row, columns, widths, strict=True)
    ]  # fmt: skip
    height = max(map(len, parts))
    return [[part[i] if i < len(part) else Text("") for part in parts] for i in range(height)]


def _line(cells: Sequence[Text], columns: Sequence[Column], widths: Sequence[int], gap: int, indent: int) -> Text:
    from rich.text import Text

    line = Text(" " * indent)
    for i, (cell, column, w) in enumerate(zip(cells, columns, widths, strict=True)):
        blank = " " * max(0, w - cell.cell_len)
        line.append(" " * (gap if i else 0) + ("" if column.left else blank))
        line.append_text(cell)
        line.append(blank if column.left else "")
    return line
