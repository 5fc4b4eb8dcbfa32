"""`qsim validate`: predictions against measured and published numbers, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.errors import QsimError
from qsim.files import make_folder, write_text

from .options import wrote
from .progress import reporter
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb


@verb("validate")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Folder with measured_gemm.csv, measured_attention.csv and published.csv; without it, our own "
              "tables only.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write validation.md and its figures into this folder.")  # fmt: skip
@table_options
def validate(data: Path | None, out: Path | None, form: Form) -> None:
    """Each shape is predicted by a fit that excluded it, so every error is out of sample.
    Our own tables take some ten seconds; with --data the published ones too, which takes a minute.

    \b
    Examples:
      qsim validate
      qsim validate --data DIR --out reports
    """
    from hwmodels.validation.report import group_rows, render
    from hwmodels.validation.validate import validate as run

    for name in ("measured_gemm", "measured_attention", "published") if data is not None else ():
        if data is not None and not (data / f"{name}.csv").is_file():  # said before the fits, which take a while
            raise QsimError(f"{data / name}.csv does not exist: --data names the folder with {name}.csv")
    if out is not None:
        make_folder(out)
    with reporter("validating") as say:
        say("fitting again without each measured shape" + (", and the published tables" if data is not None else ""))
        result = run(data)
        if out is not None:
            say("drawing")
            figures = _figures(result, out)
    rows = group_rows(result)
    if out is not None:
        command = "qsim validate" + (" --data DIR" if data is not None else "") + " --out reports"
        write_text(out / "validation.md", render(result, command, figures))
        wrote(out / "validation.md")
    deliver(form, rows, lambda: _print(rows))


def _print(rows: list[dict[str, Any]]) -> None:
    for section in dict.fromkeys(r["section"] for r in rows):
        click.echo(f"\n{section}")
        print_table(_COLUMNS, [r for r in rows if r["section"] == section])


def _met(passed: bool | None) -> str:
    return "" if passed is None else "yes" if passed else "NO"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


_COLUMNS = (
    Column("group", "group", left=True), Column("rows", "rows"), Column("error", "mape_percent", "{:.1f} %".format),
    Column("required", "required_percent", lambda v: "" if v is None else f"{v:g} %"),
    Column("met", "passed", _met, left=True), Column("in band", "band_coverage", _share),
)  # fmt: skip


def _figures(result: Any, folder: Path) -> list[tuple[str, str]]:
    from qsim.plots.measured import Compared, comparison_figure
    from qsim.plots.style import save

    made = [_speedup_figure(folder)]
    titles = {
        "H200 linear": ("Linear layers, held out", "validation_layers.png"),
        "H200 whole": ("Whole steps, H200", "validation_steps.png"),
        "Published product": ("Product tables, held out", "validation_tables.png"),
        "Published attention": ("Attention tables, held out", "validation_attention.png"),
    }
    for start, (title, file) in titles.items():
        mine = result.points[result.points.section.str.startswith(start)]
        if len(mine) == 0:
            continue
        if start == "Published product":
            mine = mine.assign(name=mine.name.str.split(" ").str[0])
        groups = [
            Compared(label=str(name), measured_s=g.measured_s.to_numpy(), predicted_s=g.predicted_s.to_numpy(),
                     low_s=g.low_s.to_numpy(), high_s=g.high_s.to_numpy())
            for name, g in mine.groupby("name")
        ]  # fmt: skip
        save(comparison_figure(groups, title=title), folder / file)
        made.append((title, file))
    return made


def _speedup_figure(folder: Path) -> tuple[str, str]:
    from hwmodels.validation.validate import layer_speedups
    from qsim.plots.speedup import Curve, speedup_figure
    from qsim.plots.style import save

    curves = [
        Curve(label=str(kernel), x=t.M.to_numpy(float), value=t.predicted.to_numpy(), low=t.low.to_numpy(),
             high=t.high.to_numpy(),
             measured=t.measured.to_numpy())
        for kernel, t in layer_speedups().groupby("kernel", sort=False)
    ]  # fmt: skip
    title = "H200: speed-up of the five Llama-3-8B layers, lines fitted, circles measured"
    figure = speedup_figure({"": curves}, title=title, xlabel="tokens in the step, M")
    save(figure, folder / "validation_speedup.png")
    return "Speed-up against batch", "validation_speedup.png"
