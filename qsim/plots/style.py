"""The look that all figures share, and how a figure becomes a file.

Figures are made without pyplot: no window and no figure that lives on. Colours are Okabe and Ito's, which
readers with any common colour vision tell apart (Color Universal Design, 2008); lines also differ in dash and marker.
"""

from __future__ import annotations

import io
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from qsim.errors import QsimError, nearest
from qsim.files import write_bytes

from .theme import with_theme

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, LIGHT = "#6B6B6B", "#D9D9D9"

CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Colours of series in order; yellow is left out, it is too light for a line on white."""

DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
"""Line styles in order, to go with `CYCLE` where series cross."""

MARKERS = "osD^vP*X"
"""Markers of series in order, to go with `CYCLE`."""

WIDTH_IN = 7.2
"""Figure width in inches: a page's column, and readable at 100 % on a screen."""

SUFFIXES = (".svg", ".png", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a figure is made for: its width, its height (None: as much as it needs), and how large its type is.

    `scale` multiplies every size of type and line; the smallest type of a figure is 7 points at scale 0.9 or more.
    """

    width_in: float
    height_in: float | None
    scale: float


SIZES = {
    "slide": Size(width_in=13.333, height_in=7.5, scale=1.5),
    "page": Size(width_in=WIDTH_IN, height_in=None, scale=1.0),
    "column": Size(width_in=3.5, height_in=None, scale=0.9),
    "square": Size(width_in=7.5, height_in=7.5, scale=1.1),
}
"""By name: a 16:9 slide, a page's text width, a column of a two-column paper, a square for a post or a poster."""

_RC: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "axes.labelcolor": "#222222",
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": True,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "qsim",  # the same figure is the same file
}

_SCALED = ("font.size", "axes.titlesize", "axes.titlepad", "axes.labelsize", "axes.linewidth", "grid.linewidth",
           "xtick.labelsize", "ytick.labelsize", "legend.fontsize", "lines.linewidth")  # fmt: skip


def check_size(size: str) -> None:
    """Refuse a size that `SIZES` does not have.

    Raises:
        QsimError: with the sizes there are.
    """
    if size not in SIZES:
        raise QsimError(nearest("size of figures", size, SIZES))


def styled(scale: float = 1.0, *, size: str | None = None) -> AbstractContextManager[None]:
    """A context with this project's settings over matplotlib's own defaults, whatever the user's matplotlibrc says.

    Figures are built and saved inside it; the settings of the caller are back afterwards.

    Arguments:
        scale: of type and lines; see `SIZES`.
        size: a name of `SIZES`, whose scale stands instead.

    Raises:
        QsimError: no such size.
    """
    if size is not None:
        check_size(size)
        scale = SIZES[size].scale
    settings: Any = dict(matplotlib.rcParamsDefault)
    del settings["backend"]  # not ours to choose; figures here need none
    settings.update(_RC)
    settings.update({key: scale * settings[key] for key in _SCALED})
    return matplotlib.rc_context(settings)


def new_figure(height_in: float, width_in: float = WIDTH_IN, *, size: str = "page") -> Figure:
    """An empty figure that lays itself out. Call it inside `styled()`.

    Arguments:
        height_in, width_in: in inches, on a page.
        size: a name of `SIZES`: its width and height stand instead; where it has no height, the page's grows with the
            type.
    """
    found = SIZES[size]
    if size != "page":
        width_in, height_in = found.width_in, found.height_in or height_in * found.scale + _LEGEND_IN
    return Figure(figsize=(width_in, height_in), layout="constrained")


_LEGEND_IN = 0.35
"""What the legend of a narrow figure takes more than that of a page, whose entries stand side by side."""


def check_path(path: str | os.PathLike[str]) -> Path:
    """The path, if a figure can be written there; called before any work is done.

    Raises:
        ValueError: a suffix other than .svg, .png and .pdf.
        FileNotFoundError, NotADirectoryError, IsADirectoryError: no such folder, or the path is one.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        kinds = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise QsimError(f"a figure must be written as {kinds}, by the file's suffix: got {str(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file in it")
    if not path.parent.exists():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path}: {path.parent} is not a folder")
    return path


def save(figure: Figure, path: str | os.PathLike[str], *, theme: str = "light") -> Path:
    """Write a figure as SVG, PNG or PDF, by the suffix; the same figure gives the same bytes.

    The file appears whole or not at all: it is drawn in memory, written beside the target and moved there. An
    existing file of that name is replaced, nothing else is touched. Text in an SVG is text, which can be searched and
    read aloud.

    Arguments:
        theme: a name of `THEMES`; the figure's colours are changed in place.

    Returns:
        The path written.

    Raises:
        ValueError, OSError: see `check_path`; a folder that cannot be written to.
    """
    path = check_path(path)
    with_theme(figure, theme)
    write_bytes(path, rendered(figure, path.suffix.lower()[1:]))
    return path


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of an SVG, PNG or PDF file."""
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}[kind]
    with styled():
        figure.savefig(buffer, format=kind, metadata=metadata)
    if kind != "svg":
        return buffer.getvalue()
    return buffer.getvalue().replace(b"'DejaVu Sans'", _SVG_FONTS)


_SVG_FONTS = b"'DejaVu Sans', Verdana, 'Bitstream Vera Sans', sans-serif"
"""Fonts of nearly the same widths, for readers without the one that the figure was measured with."""
