"""`qsim sweep`: predictions over devices, schemes, batches, contexts and device fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.errors import QsimError

from .hardware_options import (
    Numbers,
    device_option,
    how_options,
    milliseconds,
    model_argument,
    scheme_option,
    set_option,
)
from .options import draw, plot_option
from .table import Column, Form, deliver, print_table, records, table_options, text_of
from .verbs import verb


@verb("sweep")
@model_argument
@device_option(multiple=True)
@scheme_option(multiple=True)
@click.option("--phase", type=click.Choice(["decode", "prefill"]), default="decode", show_default=True,
              help="One decode step, or one prefill.")  # fmt: skip
@click.option(
    "--batch",
    type=Numbers(),
    default="1:64",
    show_default=True,
    help="Sequences: 1,2,4 or 1:64 (doubling) or 1:64:8 (steps).",
)
@click.option("--context", type=Numbers(), default="2048", show_default=True, help="Tokens in the cache, as --batch.")
@click.option("--field", multiple=True, metavar="KEY=V,V,...", help="Device field and the values to try. Repeatable.")
@click.option("--pareto", is_flag=True, help="Show only the Pareto front of step time and throughput.")
@click.option("--tornado", is_flag=True, help="Sensitivity of the first case to every device field instead.")
@how_options
@set_option
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
    overrides: tuple[str, ...],
    plot: Path | None,
    form: Form,
    **how: Any,
) -> None:
    """One row for each combination. MODEL is a name (llama-3-70b, mixtral-8x7b, ...) or a path to a Hugging Face
    config.json.

    \b
    Examples:
      qsim sweep llama-3-8b --device h100-sxm --device l40s --scheme bf16 --scheme fp8-rowwise --batch 1:64
      qsim sweep llama-3-70b --device h200 --scheme fp8-rowwise --batch 1:256 --pareto --plot front.svg
      qsim sweep llama-3-8b --device asic --field memory.bandwidth_gbytes_per_s=2000,4000,8000
      qsim sweep llama-3-8b --device h100-sxm --tornado
    """
    import hwmodels

    changed = [hwmodels.get_device(name, overrides or None) for name in device]
    if tornado:
        if overrides:
            raise QsimError("--tornado moves every field from its own value: it takes no --set")
        table = hwmodels.tornado(device[0], model, scheme[0], phase, batch[0], context[0], **how)
        if plot is not None:
            _tornado_figure(table, f"{model} {scheme[0]} on {device[0]}: +-20 %", plot)
    else:
        fields = dict(_field(f) for f in field)
        table = hwmodels.sweep(changed, model, list(scheme), phase, list(batch), list(context), fields=fields, **how)
        front = hwmodels.pareto(table[table.fits], least=["time_s"], most=["tokens_per_s"]) if pareto or plot else table
        if plot is not None:
            _pareto_figure(table, front, model, plot)
        table = front if pareto else table
    deliver(form, records(table), lambda: _print(table))


def _field(text: str) -> tuple[str, list[float]]:
    key, sep, values = text.partition("=")
    try:
        numbers = [float(v) for v in values.split(",")]
    except ValueError:
        numbers = []
    if not key.strip() or not sep or not numbers:
        raise QsimError(f"--field is KEY=V,V,..., like memory.bandwidth_gbytes_per_s=2000,4000: got {text!r}")
    return key, numbers


def _print(table: Any) -> None:
    """What is the same in every row goes above the table, once."""
    if "base" in table:  # the sensitivity table
        print_table([_column(str(name), str(name)) for name in table.columns], records(table))
        return
    said = ("device", "model", "scheme", "phase", "batch", "context", "kernel", "fidelity")
    same = [name for name in said if table[name].nunique() == 1]
    if same:
        click.echo(", ".join(_said(name, table[name].iloc[0]) for name in same))
    hidden = {"low_s", "high_s", *same, *(("fits",) if table["fits"].all() else ())}
    columns = []
    for name in (str(c) for c in table.columns if c not in hidden):
        columns.append(_column(_HEADS.get(name, name.rpartition(".")[2]), name))
        if name == "time_s":
            columns.append(Column("80 % band", ("low_s", "high_s"), _band))
    names = sum(c.head in said or "." in str(c.keys) for c in columns)  # what was varied comes first
    print_table(columns, records(table.head(200)), names=max(1, names))
    if len(table) > 200:
        click.echo(f"... {len(table) - 200} more rows; --csv prints all")


def _said(name: str, value: Any) -> str:
    return f"{name} {value:g}" if name in ("batch", "context") else str(value)


_HEADS = {"time_s": "time", "tokens_per_s": "tokens/s", "memory_gbytes": "GB"}
_LEFT = {"device", "model", "scheme", "phase", "kernel", "fidelity", "field"}
_TIMES = {"time_s", "low", "high", "base"}


def _column(head: str, name: str) -> Column:
    form = milliseconds if name in _TIMES else "{:.1%}".format if name == "effect" else text_of
    return Column(head, name, form, left=name in _LEFT)


def _band(low_s: float, high_s: float) -> str:
    return f"{milliseconds(low_s)} to {milliseconds(high_s)}"


def _pareto_figure(table: Any, front: Any, model: str, plot: Path) -> None:
    import numpy as np

    from qsim.plots.hardware import pareto_figure

    rate, step = table.tokens_per_s.to_numpy(), table.time_s.to_numpy()
    on = np.isin(step, front.time_s.to_numpy()) & table.fits.to_numpy()
    labels = [f"{r.device} {r.scheme} b{r.batch:g}" for r in table.itertuples()]
    figure = pareto_figure(f"{model}: latency against throughput", 1e3 * step, rate, labels, on,
                           xlabel="time of a step (ms)", ylabel="tokens/s")  # fmt: skip
    draw(figure, plot)


def _tornado_figure(table: Any, title: str, plot: Path) -> None:
    from qsim.plots.hardware import tornado_figure

    figure = tornado_figure(title, list(table.field), 1e3 * table.low, 1e3 * table.high,
                            1e3 * float(table.base.iloc[0]),
                            xlabel="time of a step (ms)")  # fmt: skip
    draw(figure, plot)
