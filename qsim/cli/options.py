"""Options that mean the same in every verb."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from qsim.errors import QsimError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_F = TypeVar("_F", bound=Callable[..., Any])


def _can_be_drawn(_ctx: click.Context, _param: click.Parameter, plot: Path | None) -> Path | None:
    """Refuse a figure's path before any work is done."""
    if plot is not None:
        from qsim.plots.style import check_path

        check_path(plot)
    return plot


SIZES = ("slide", "page", "column", "square")
THEMES = ("light", "dark", "print")
"""As in `qsim.plots.style`, which is slow to import."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure to draw: the file, what it is made for, and its colours."""

    path: Path
    size: str
    theme: str


def plot_option(function: _F) -> _F:
    """`--plot FILE`, with `--size` and `--theme`: draw a figure into FILE. Passed as `plot`, a `Picture` or None."""

    @functools.wraps(function)
    def with_picture(*args: Any, plot: Path | None, size: str, theme: str, **more: Any) -> Any:
        for name in (n for n in ("size", "theme") if plot is None and given(n)):
            raise QsimError(f"--{name} is for the figure: give --plot FILE too")
        picture = None if plot is None else Picture(path=plot, size=size, theme=theme)
        return function(*args, plot=picture, **more)

    file = click.option(
        "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", callback=_can_be_drawn,
        help="Draw into FILE; .svg, .png or .pdf decides the kind.",
    )  # fmt: skip
    size = click.option("--size", type=click.Choice(SIZES), default="page", show_default=True,
                        help="With --plot: what the figure is made for.")  # fmt: skip
    theme = click.option("--theme", type=click.Choice(THEMES), default="light", show_default=True,
                         help="With --plot: colours; print is black, grey and white.")  # fmt: skip
    return cast(_F, file(size(theme(with_picture))))


def _in_a_folder(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a file whose folder is not there before any work is done."""
    if path is not None and not path.parent.is_dir():
        raise QsimError(f"{path}: the folder {path.parent} does not exist")
    return path


def out_file_option(help: str) -> Callable[[_F], _F]:
    """`--out FILE`: a file to write. Passed as `out`, a Path in a folder that exists, or None."""
    return click.option(
        "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", callback=_in_a_folder, help=help
    )  # fmt: skip


def given(name: str) -> bool:
    """Whether the option of a parameter was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not None and source is not click.core.ParameterSource.DEFAULT


def draw(figure: Figure, plot: Picture) -> None:
    """Write a figure, and say so on stderr."""
    from qsim.plots.style import save

    save(figure, plot.path, theme=plot.theme)
    wrote(plot.path)


def wrote(path: Path) -> None:
    """Say on stderr that a file is there."""
    click.echo(f"wrote {path}", err=True)
