"""`qsim validate`: predictions against measured and published numbers, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.errors import QsimError
from qsim.files import make_folder, write_text

from .options import wrote
from .progress import reporter
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb

if TYPE_CHECKING:
    from hwmodels.validation.serving import Exam


@verb("validate")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
              help="Folder with measured_gemm.csv, measured_attention.csv and published.csv; without it, our own "
              "tables only.")  # fmt: skip
@click.option("--serving", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="CSV",
              help="Compare measured serving points of this file alone, with the columns of "
              "hwmodels/measurements/README.md.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write validation.md and its figures into this folder.")  # fmt: skip
@table_options
def validate(data: Path | None, serving: Path | None, out: Path | None, form: Form) -> None:
    """Each shape is predicted by a fit that excluded it, so every error is out of sample.
    Our own tables and a sample of measured serving points take half a minute; with --data the published tables too,
    which takes another.

    \b
    Examples:
      qsim validate
      qsim validate --data DIR --out reports
      qsim validate --serving serving.csv
    """
    from hwmodels.validation.report import group_rows, render
    from hwmodels.validation.serving import exam_rows
    from hwmodels.validation.validate import validate as run

    if serving is not None:
        if data is not None or out is not None:
            raise QsimError("--serving compares serving points alone: leave out --data and --out")
        _serving(serving, form)
        return
    for name in ("measured_gemm", "measured_attention", "published") if data is not None else ():
        if data is not None and not (data / f"{name}.csv").is_file():  # said before the fits, which take a while
            raise QsimError(f"{data / name}.csv does not exist: --data names the folder with {name}.csv")
    if out is not None:
        make_folder(out)
    with reporter("validating") as say:
        say("fitting again without each measured shape" + (", and the published tables" if data is not None else ""))
        result = run(data)
        say("serving measured points")
        exam = _exam(None)
        if out is not None:
            say("drawing")
            figures = _figures(result, out)
    rows = group_rows(result)
    if out is not None:
        command = "qsim validate" + (" --data DIR" if data is not None else "") + " --out reports"
        write_text(out / "validation.md", render(result, command, figures, exam))
        wrote(out / "validation.md")
    found = exam_rows(exam)

    def table() -> None:
        _print(rows)
        _print_exam(exam, found)

    deliver(form, [*rows, *found], table)


def _exam(path: Path | None) -> Exam:
    from hwmodels.serving.points import read_points
    from hwmodels.validation.serving import examine

    return examine(read_points(path))


def _serving(path: Path, form: Form) -> None:
    from hwmodels.validation.serving import exam_rows

    with reporter("validating") as say:
        say(f"serving the points of {path}")
        exam = _exam(path)
    rows = exam_rows(exam)
    deliver(form, rows, lambda: _print_exam(exam, rows))


def _print_exam(exam: Exam, rows: list[dict[str, Any]]) -> None:
    for section in dict.fromkeys(r["section"] for r in rows):
        click.echo(f"\n{section}")
        print_table(_EXAM, [r for r in rows if r["section"] == section])
    for text in exam.remarks:
        click.echo(text)


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


_EXAM = (
    Column("points", "group", left=True), Column("rows", "rows"),
    Column("TPOT error", "tpot_percent", "{:.1f} %".format), Column("p90", "tpot_p90_percent", "{:.0f} %".format),
    Column("bias", "tpot_bias", "{:.2f}".format), Column("in band", "tpot_in_band", _share),
    Column("TTFT error", "ttft_percent", "{:.1f} %".format), Column("p90", "ttft_p90_percent", "{:.0f} %".format),
    Column("bias", "ttft_bias", "{:.2f}".format), Column("in band", "ttft_in_band", _share),
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
