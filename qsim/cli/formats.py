"""`qsim formats`: the catalogue, one format in full, several compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from qsim.errors import QsimError
from qsim.formats.catalogue import get_element_format, get_format, list_formats
from qsim.formats.describe import binades, codes, describe, special_codes
from qsim.formats.spec import BlockFormat, FloatFormat

from .options import Picture, draw, plot_option
from .table import Form, console, deliver, table_options
from .verbs import verb

if TYPE_CHECKING:
    from qsim.analysis.formats import FormatError


@verb("formats")
@click.argument("names", nargs=-1, metavar="[FORMAT...]")
@click.option("--compare", is_flag=True, help="Relative error against magnitude of the FORMATs, side by side.")
@click.option("--scaled-max", type=float, metavar="X",
              help="With --compare: scale integers and codebooks so that their largest value is X. "
              "[default: the smallest maximum of the float formats beside them, else 1]")  # fmt: skip
@click.option("--align", is_flag=True,
              help="With --compare: scale the float formats to that maximum too.")  # fmt: skip
@plot_option
@table_options
def formats(
    names: tuple[str, ...],
    compare: bool,
    scaled_max: float | None,
    align: bool,
    plot: Picture | None,
    form: Form,
) -> None:
    """Without FORMAT: all of them, with their limits. With one: its limits and the table of its values, and with
    --plot its number line and spacing. Names are those of ml_dtypes and OCP (float8_e4m3fn, e4m3, mxfp4), and any
    by their grammar (float7_e3m3fn, binary8p4se).

    \b
    Examples:
      qsim formats
      qsim formats e4m3
      qsim formats e4m3 --plot e4m3.svg
      qsim formats --compare e4m3 e5m2 int8 --plot error.png
    """
    if not compare and (scaled_max is not None or align):
        raise QsimError("--scaled-max and --align belong to --compare")
    if compare:
        _compare(names, scaled_max, align, plot, form)
    elif not names:
        if plot is not None:
            raise QsimError("--plot draws one format, or several with --compare: name them")
        _list(form)
    elif len(names) == 1:
        _show(names[0], plot, form)
    else:
        raise QsimError(f"one format is shown at a time: got {' '.join(names)}; use --compare for several")


def _list(form: Form) -> None:
    from .format_view import print_catalogue

    rows = [describe(f) for f in list_formats()]
    deliver(form, rows, lambda: print_catalogue(rows, console()))


def _show(name: str, plot: Picture | None, form: Form) -> None:
    from .format_view import print_format

    fmt = get_format(name)
    limits = describe(fmt)
    if plot is not None:
        _plot_one(get_element_format(fmt), plot)
    table: dict[str, Any] = {}
    if not isinstance(fmt, BlockFormat):
        if fmt.storage_bits <= 8:
            table = {"codes": codes(fmt)}
        elif isinstance(fmt, FloatFormat):
            table = {"special_codes": special_codes(fmt), "binades": binades(fmt)}
    rows = next(iter(table.values()), [limits])
    deliver(form, rows, lambda: print_format(fmt, limits, console()), whole=limits | table)


def _plot_one(fmt: Any, plot: Picture) -> None:
    import numpy as np

    from qsim.plots.formats import binade_figure, format_figure

    edge = fmt.smallest_normal if isinstance(fmt, FloatFormat) and fmt.has_subnormals else None
    if fmt.bits <= 10:
        figure = format_figure(fmt.name, fmt.values, smallest_normal=edge, size=plot.size)
    else:
        rows = binades(fmt)
        first, last, spacing = (np.array([row[key] for row in rows]) for key in ("first", "last", "spacing"))
        figure = binade_figure(fmt.name, first, last, spacing, smallest_normal=edge, size=plot.size)
    draw(figure, plot)


def _compare(
    names: tuple[str, ...], scaled_max: float | None, align: bool, plot: Picture | None, form: Form
) -> None:  # fmt: skip
    if not names:
        raise QsimError("--compare needs formats: for instance qsim formats --compare e4m3 e5m2 int8")
    for name in names:  # a wrong name is said before Numba is loaded
        get_element_format(name)
    from qsim.analysis.formats import compare

    found = compare(names, scaled_max=scaled_max, align=align)
    if plot is not None:
        from qsim.plots.formats import ErrorSeries, error_figure

        series = [
            ErrorSeries(label=e.label, magnitude=e.curve.magnitude, worst=e.curve.worst, rms=e.curve.rms, max=e.max)
            for e in found
        ]
        draw(error_figure(series, size=plot.size), plot)
    from .format_view import print_comparison

    if form != "table" or plot is None:
        deliver(form, _curve_rows(found), lambda: print_comparison(found, console()))


def _curve_rows(found: list[FormatError]) -> list[dict[str, Any]]:
    return [
        {
            "format": e.format.name,
            "scale": e.scale,
            "max": e.max,
            "from": float(low),
            "to": min(float(high), e.max),
            "worst_relative_error": float(worst),
            "rms_relative_error": float(rms),
        }
        for e in found
        for low, high, worst, rms in zip(e.curve.low, e.curve.high, e.curve.worst, e.curve.rms, strict=True)
    ]
