"""`qsim sweep`: predictions over devices, schemes, batches, contexts and device fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from qsim.errors import QsimError

from .hardware_options import (
    Numbers,
    chosen_devices,
    device_option,
    how_options,
    milliseconds,
    model_argument,
    price_option,
    scheme_option,
    set_option,
    titles_of,
)
from .options import Picture, draw, plot_option
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
    help="Batch sizes: 1,2,4 or 1:64 (doubling) or 1:64:8 (steps).",
)
@click.option(
    "--context", type=Numbers(), default="2048", show_default=True, help="Context lengths in tokens, as --batch."
)
@click.option("--field", multiple=True, metavar="KEY=V,V,...", help="Device field and the values to try. Repeatable.")
@click.option("--pareto", is_flag=True, help="Show only the Pareto front of step time and throughput.")
@click.option("--tornado", is_flag=True, help="Sensitivity to every device field instead, at one batch and context.")
@price_option
@how_options(several_tp=True)
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
    price: tuple[str, ...],
    overrides: tuple[str, ...],
    tensor_parallel: tuple[int, ...],
    plot: Picture | None,
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
      qsim sweep llama-3-8b --device h100-sxm --tornado --batch 1
      qsim sweep llama-3-70b --device h200 --scheme fp8 --tp 1 --tp 2 --tp 4 --batch 16
      qsim sweep llama-3-8b --device h200 --device l40s --price h200=3.5 --price l40s=0.9
    """
    import hwmodels
    from hwmodels.energy import prices_of
    from hwmodels.whatif import DEFAULT_COLUMNS

    chips = chosen_devices(device, overrides)
    fields = _fields(field)
    if tornado:
        if pareto:
            raise QsimError("--tornado and --pareto are two tables: give one of them")
        if price:
            raise QsimError("--tornado shows times: it takes no --price")
        sizes = _only("batch", batch), _only("context", context)
        table = _tornado(chips, model, scheme, phase, *sizes, fields, tensor_parallel, how)
        if plot is not None:
            _tornado_figure(table, titles_of(chips), plot)
    else:
        prices = prices_of(price, list(dict.fromkeys(chip.name for chip in chips)))
        table = hwmodels.sweep(chips, model, list(scheme), phase, list(batch), list(context), fields=fields,
                               tensor_parallel=list(tensor_parallel), columns=(*DEFAULT_COLUMNS, "joule_per_token"),
                               price=prices if price else None, **how)  # fmt: skip
        front = hwmodels.pareto(table[table.fits], least=["time_s"], most=["tokens_per_s"]) if pareto or plot else table
        if plot is not None:
            _pareto_figure(table, front, titles_of(chips), plot)
        table = front if pareto else table
    deliver(form, records(table), lambda: _print(table))


def _fields(texts: Sequence[str]) -> dict[str, list[Any]]:
    from hwmodels.device.load import parse_value

    fields: dict[str, list[Any]] = {}
    for text in texts:
        key, sep, values = text.partition("=")
        parts = [v.strip() for v in values.split(",")]
        if not sep or not key.strip() or not all(parts):
            raise QsimError(f"--field must be KEY=V,V,..., like memory.bandwidth_gbytes_per_s=2000,4000: got {text!r}")
        if key.strip() in fields:
            raise QsimError(f"--field {key.strip()} is given twice: give all its values in one")
        fields[key.strip()] = [parse_value(v) for v in parts]
    return fields


def _only(name: str, values: tuple[int, ...]) -> int:
    """The one batch or context of a sensitivity table; the first of the default's."""
    source = click.get_current_context().get_parameter_source(name)
    if len(values) > 1 and source is not click.core.ParameterSource.DEFAULT:
        raise QsimError(f"--tornado looks at one {name}: got --{name} with {len(values)} values")
    return values[0]


def _tornado(
    chips: list[Any],
    model: str,
    schemes: Sequence[str],
    phase: str,
    batch: int,
    context: int,
    fields: Mapping[str, list[Any]],
    tensor_parallel: Sequence[int],
    how: Mapping[str, Any],
) -> Any:
    """A sensitivity table for each device, scheme, TP and value of the fields; what varies is a column."""
    import itertools

    import pandas as pd

    import hwmodels

    parts = []
    for chip, scheme, tp, *values in itertools.product(chips, schemes, tensor_parallel, *fields.values()):
        moved = dict(zip(fields, values, strict=True))
        table = hwmodels.tornado(hwmodels.get_device(chip, moved), model, scheme, phase, batch, context,
                                 tensor_parallel=tp, **how)  # fmt: skip
        case = {"device": chip.name, "scheme": scheme, "tensor_parallel": tp, **moved}
        parts.append(pd.DataFrame({**{k: [v] * len(table) for k, v in case.items()}, **table}))
    table = pd.concat(parts, ignore_index=True)
    case = {"model": hwmodels.get_architecture(model).name, "phase": phase, "batch": batch, "context": context}
    return table.assign(**case)[[*case, *table.columns]]


def _print(table: Any) -> None:
    """What is the same in every row goes above the table, once."""
    known = ("device", "model", "scheme", "phase", "tensor_parallel", "batch", "context", "kernel", "fidelity")
    said = [name for name in known if name in table]
    same = [name for name in said if table[name].nunique() == 1]
    if same:
        click.echo(", ".join(_said(name, table[name].iloc[0]) for name in same))
    hidden = {"low_s", "high_s", *same, *(("fits",) if "fits" in table and table["fits"].all() else ())}
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
    if name == "tensor_parallel":
        return f"TP {value}"
    return f"{name} {value:g}" if name in ("batch", "context") else str(value)


_HEADS = {"time_s": "time", "tokens_per_s": "tokens/s", "memory_gbytes": "GB", "tensor_parallel": "TP",
          "joule_per_token": "J/token", "cost_per_million_tokens": "cost/1e6 tokens"}  # fmt: skip
_LEFT = {"device", "model", "scheme", "phase", "kernel", "fidelity", "field"}
_TIMES = {"time_s", "low", "high", "base"}


def _column(head: str, name: str) -> Column:
    form = milliseconds if name in _TIMES else "{:.1%}".format if name == "effect" else text_of
    return Column(head, name, form, left=name in _LEFT)


def _band(low_s: float, high_s: float) -> str:
    return f"{milliseconds(low_s)} to {milliseconds(high_s)}"


def _pareto_figure(table: Any, front: Any, titles: dict[str, str], plot: Picture) -> None:
    import numpy as np

    from qsim.plots import names
    from qsim.plots.tradeoff import pareto_figure

    rate, step = table.tokens_per_s.to_numpy(), table.time_s.to_numpy()
    on = np.isin(step, front.time_s.to_numpy()) & table.fits.to_numpy()
    several = table.device.nunique() > 1
    labels = [
        f"{titles[r.device] + ' ' if several else ''}{names.scheme_title(r.scheme)} b{r.batch:g}"
        for r in table.itertuples()
    ]
    where = "" if several else f" on {titles[table.device.iloc[0]]}"
    title = f"{names.model_title(table.model.iloc[0])}{where}: latency against throughput (b: batch)"
    figure = pareto_figure(title, 1e3 * step, rate, labels, on, xlabel="time of a step (ms)", ylabel="tokens/s",
                           size=plot.size)  # fmt: skip
    draw(figure, plot)


def _tornado_figure(table: Any, titles: dict[str, str], plot: Picture) -> None:
    from qsim.plots import names
    from qsim.plots.bars import tornado_figure

    case = [str(c) for c in table.columns if c not in ("field", "low", "high", "base", "effect")]
    several = next((name for name in case if table[name].nunique() > 1), None)
    if several is not None:
        raise QsimError(f"--tornado draws one case: --plot with several values of {several} is a figure for each")
    first = table.iloc[0]
    moved = [f"{name.rpartition('.')[2]} {first[name]:g}" for name in case if "." in name]
    what = f"{names.model_title(first.model)} {names.scheme_title(first.scheme)} on {titles[first.device]}"
    title = ", ".join([what, first.phase, *moved, "\N{PLUS-MINUS SIGN}20 % of each field"])
    figure = tornado_figure(title, list(map(names.field_title, table.field)), 1e3 * table.low, 1e3 * table.high,
                            1e3 * float(first.base), size=plot.size,
                            xlabel=f"time of a {'step' if first.phase == 'decode' else 'prefill'} (ms)")  # fmt: skip
    draw(figure, plot)
