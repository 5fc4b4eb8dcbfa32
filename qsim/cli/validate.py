"""`qsim validate`: predictions against measured and published numbers, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.files import make_folder, write_text

from .options import check_one_output, console, print_csv, print_json, show, table_options


@click.command(short_help="Hold predictions against measured and published numbers.")
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Folder with measured_gemm.csv, measured_attention.csv and published.csv; without it, our own "
              "tables only.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Write validation.md and its figures into this folder.")  # fmt: skip
@table_options
def validate(data: Path | None, out: Path | None, as_json: bool, as_csv: bool) -> None:
    """Hold predictions against measured and published numbers.

    Fits again without every shape that it then predicts: no row of the report has been seen by the fit behind it.
    Our own tables take some ten seconds; with --data the published ones too, which takes a minute.

    \b
    Examples:
      qsim validate
      qsim validate --data DIR --out reports
    """
    check_one_output(as_json, as_csv)
    from hwmodels.report import group_rows, render
    from hwmodels.validate import validate as run

    result = run(data)
    rows = group_rows(result)
    if out is not None:
        make_folder(out)
        figures = _figures(result, out)
        command = "qsim validate" + (" --data DIR" if data is not None else "") + " --out reports"
        write_text(out / "validation.md", render(result, command, figures))
        click.echo(f"wrote {out / 'validation.md'}", err=True)
    if as_json:
        print_json(rows)
    elif as_csv:
        print_csv(rows)
    else:
        _print(rows)


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    out = console()
    for section in dict.fromkeys(r["section"] for r in rows):
        click.echo(f"\n{section}")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("group", "rows", "error", "required", "met", "in band"):
            left = name in ("group", "met")
            table.add_column(
                name, justify="left" if left else "right", no_wrap=True, min_width=24 if name == "group" else 7
            )
        for r in rows:
            if r["section"] == section:
                table.add_row(
                    r["group"], str(r["rows"]), f"{r['mape_percent']:.1f} %",
                    "" if r["required_percent"] is None else f"{r['required_percent']:g} %",
                    "" if r["passed"] is None else "yes" if r["passed"] else "NO",
                    "" if r["band_coverage"] is None else f"{r['band_coverage']:.0%}",
                )  # fmt: skip
        show(out, table)


def _figures(result: Any, folder: Path) -> list[tuple[str, str]]:
    from qsim.plots.hardware import Compared, comparison_figure
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
        save(comparison_figure(title, groups), folder / file)
        made.append((title, file))
    return made


def _speedup_figure(folder: Path) -> tuple[str, str]:
    from hwmodels.validate import layer_speedups
    from qsim.plots.hardware import Band, speedup_figure
    from qsim.plots.style import save

    curves = [
        Band(label=str(kernel), x=t.M.to_numpy(float), value=t.predicted.to_numpy(), low=t.low.to_numpy(),
             high=t.high.to_numpy(),
             measured=t.measured.to_numpy())
        for kernel, t in layer_speedups().groupby("kernel", sort=False)
    ]  # fmt: skip
    title = "H200: speed-up of the five Llama-3-8B layers, lines fitted, circles measured"
    save(speedup_figure(title, curves, xlabel="tokens in the step, M"), folder / "validation_speedup.png")
    return "Speed-up against batch", "validation_speedup.png"
