"""`qsim sweep`: predictions over devices, schemes, batches, contexts and device fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .hardware_options import Numbers, device_option, how_options, scheme_option
from .options import check_one_output, console, plot_option, print_csv, print_json, show, table_options


@click.command(short_help="Predict over devices, schemes, batches and contexts.")
@click.argument("model", metavar="MODEL")
@device_option(multiple=True)
@scheme_option(multiple=True)
@click.option("--phase", type=click.Choice(["decode", "prefill"]), default="decode", show_default=True)
@click.option(
    "--batch", type=Numbers(), default="1:64", show_default=True, help="1,2,4 or 1:64 (doubling) or 1:64:8 (steps)."
)
@click.option("--context", type=Numbers(), default="2048", show_default=True, help="As --batch.")
@click.option("--field", multiple=True, metavar="KEY=V,V,...", help="Device field and the values to try. Repeatable.")
@click.option("--pareto", is_flag=True, help="Only the cases that no other beats in time a step and tokens/s.")
@click.option("--tornado", is_flag=True, help="Sensitivity of the first case to every device field instead.")
@how_options
@plot_option
@table_options
def sweep(
    model: str,
    device: tuple[str, ...],
    scheme: tuple[str, ...],
    phase: str,
    batch: tuple[int, ...],
    context: tuple[int, ...],
    field: tuple[str, ...],
    pareto: bool,
    tornado: bool,
    plot: Path | None,
    as_json: bool,
    as_csv: bool,
    **how: Any,
) -> None:
    """Predict over devices, schemes, batches and contexts.

    \b
    Examples:
      qsim sweep llama-3-8b --device h100-sxm --device l40s --scheme bf16 --scheme fp8 --batch 1:64
      qsim sweep llama-3-70b --device h200 --scheme fp8 --batch 1:256 --pareto --plot front.svg
      qsim sweep llama-3-8b --device asic --field memory.bandwidth_gbytes_per_s=2000,4000,8000
      qsim sweep llama-3-8b --device h100-sxm --tornado
    """
    check_one_output(as_json, as_csv)
    import hwmodels

    if tornado:
        table = hwmodels.tornado(device[0], model, scheme[0], phase, batch[0], context[0], **how)
        if plot is not None:
            _tornado_figure(table, f"{model} {scheme[0]} on {device[0]}: +-20 %", plot)
    else:
        fields = dict(_field(f) for f in field)
        table = hwmodels.sweep(
            list(device), model, list(scheme), phase, list(batch), list(context), fields=fields, **how
        )
        front = hwmodels.pareto(table[table.fits], least=["time_s"], most=["tokens_per_s"]) if pareto or plot else table
        if plot is not None:
            _pareto_figure(table, front, model, plot)
        table = front if pareto else table
    if as_json:
        print_json(table.to_dict("records"))
    elif as_csv:
        print_csv({str(k): v for k, v in row.items()} for row in table.to_dict("records"))
    else:
        _print(table)


def _field(text: str) -> tuple[str, list[float]]:
    key, sep, values = text.partition("=")
    try:
        numbers = [float(v) for v in values.split(",")]
    except ValueError:
        numbers = []
    if not sep or not numbers:
        raise ValueError(f"--field is KEY=V,V,..., like memory.bandwidth_gbytes_per_s=2000,4000: got {text!r}")
    return key, numbers


def _print(table: Any) -> None:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in table.columns:
        shown.add_column(
            str(name), justify="left" if str(table[name].dtype) in ("category", "object", "str") else "right"
        )
    for row in table.head(200).itertuples(index=False):
        shown.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row))
    show(console(), shown)
    if len(table) > 200:
        click.echo(f"... {len(table) - 200} more rows; --csv prints all")


def _pareto_figure(table: Any, front: Any, model: str, plot: Path) -> None:
    import numpy as np

    from qsim.plots.hardware import pareto_figure
    from qsim.plots.style import save

    rate, step = table.tokens_per_s.to_numpy(), table.time_s.to_numpy()
    on = np.isin(step, front.time_s.to_numpy()) & table.fits.to_numpy()
    labels = [f"{r.device} {r.scheme} b{r.batch:g}" for r in table.itertuples()]
    figure = pareto_figure(f"{model}: latency against throughput", 1e3 * step, rate, labels, on,
                           xlabel="time a step (ms)", ylabel="tokens/s")  # fmt: skip
    save(figure, plot)
    click.echo(f"wrote {plot}", err=True)


def _tornado_figure(table: Any, title: str, plot: Path) -> None:
    from qsim.plots.hardware import tornado_figure
    from qsim.plots.style import save

    figure = tornado_figure(title, list(table.field), 1e3 * table.low, 1e3 * table.high,
                            1e3 * float(table.base.iloc[0]),
                            xlabel="time a step (ms)")  # fmt: skip
    save(figure, plot)
    click.echo(f"wrote {plot}", err=True)
