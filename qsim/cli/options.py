"""Options that mean the same in every verb, and how a table leaves the program."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qsim.errors import QsimError

if TYPE_CHECKING:
    from rich.console import Console

_F = TypeVar("_F", bound=Callable[..., Any])


def json_option(function: _F) -> _F:
    """`--json`: the same content as JSON on stdout. Passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def csv_option(function: _F) -> _F:
    """`--csv`: the same content as CSV on stdout, one header line. Passed as `as_csv`."""
    return click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")(function)


def plot_option(function: _F) -> _F:
    """`--plot FILE`: draw a figure into FILE. Passed as `plot`, a Path or None."""
    return click.option(
        "--plot",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Draw into FILE; .svg or .png decides the kind.",
    )(function)


def table_options(function: _F) -> _F:
    """`--json` and `--csv`."""
    return json_option(csv_option(function))


def console() -> Console:
    """A rich console on stdout: colours on a terminal only, width from COLUMNS or the terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, emoji=False)


def show(out: Console, renderable: Any) -> None:
    """Print a table without the blanks that rich pads its lines with."""
    with out.capture() as captured:
        out.print(renderable)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def plain(value: Any) -> Any:
    """A value that JSON can carry: Inf and NaN become the strings that `float()` reads, containers are walked."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
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


def print_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows on stdout; the columns are the keys of all rows in order of first appearance, absent is empty."""
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    click.echo(buffer.getvalue(), nl=False)


def emit(rows: Iterable[Mapping[str, Any]], *, as_json: bool, as_csv: bool) -> bool:
    """Print rows as JSON or CSV when asked to; False when neither was, and the caller prints its table.

    Raises:
        ValueError: both were asked for.
    """
    check_one_output(as_json, as_csv)
    if as_json:
        print_json([dict(row) for row in rows])
    elif as_csv:
        print_csv(rows)
    return as_json or as_csv


def check_one_output(as_json: bool, as_csv: bool) -> None:
    """Raise ValueError when both --json and --csv are given."""
    if as_json and as_csv:
        raise QsimError("--json and --csv both want stdout: give one of them")
