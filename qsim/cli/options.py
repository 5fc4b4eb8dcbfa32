"""Options that mean the same in every verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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


def plot_option(function: _F) -> _F:
    """`--plot FILE`: draw a figure into FILE. Passed as `plot`, a Path that can be written, or None."""
    return click.option(
        "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", callback=_can_be_drawn,
        help="Draw into FILE; .svg, .png or .pdf decides the kind.",
    )(function)  # fmt: skip


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


SIZES = ("slide", "page", "column", "square")
THEMES = ("light", "dark", "print")
"""As in `qsim.plots.style`, which is slow to import."""


def look_options(function: _F) -> _F:
    """`--size` and `--theme` of a figure; passed as `size` and `theme`."""
    size = click.option("--size", type=click.Choice(SIZES), default="page", show_default=True,
                        help="What the figure is made for.")  # fmt: skip
    theme = click.option("--theme", type=click.Choice(THEMES), default="light", show_default=True,
                         help="Colours of the figure; print is black, grey and white.")  # fmt: skip
    return size(theme(function))


def given(name: str) -> bool:
    """Whether the option of a parameter was given on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is not None and source is not click.core.ParameterSource.DEFAULT


def draw(figure: Figure, plot: Path, theme: str = "light") -> None:
    """Write a figure, and say so on stderr."""
    from qsim.plots.style import save

    save(figure, plot, theme=theme)
    wrote(plot)


def wrote(path: Path) -> None:
    """Say on stderr that a file is there."""
    click.echo(f"wrote {path}", err=True)
