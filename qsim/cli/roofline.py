"""`qsim roofline`: a model's operators under a device's roofs."""

from __future__ import annotations

from typing import Any

import click

from qsim.errors import QsimError

from .hardware_options import (
    Count,
    chosen_devices,
    device_option,
    how_options,
    milliseconds,
    model_argument,
    scheme_option,
    set_option,
)
from .options import Picture, draw, given, plot_option
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb

_COLUMNS = (
    *(Column(name, name, left=True) for name in ("device", "scheme", "operator")),
    Column("FLOP/B", "flop_per_byte", "{:.3g}".format), Column("TFLOP/s", "tflop_per_s", "{:.3g}".format),
    Column("time", "time_s", milliseconds), Column("bound", "bound", left=True),
)  # fmt: skip


@verb("roofline")
@model_argument
@device_option(multiple=True)
@scheme_option(multiple=True)
@click.option("--phase", type=click.Choice(["decode", "prefill"]), multiple=True, default=("decode",),
              show_default=True, help="One decode step, or one prefill. Repeatable.")  # fmt: skip
@click.option("--batch", type=Count(), default=1, show_default=True, metavar="B",
              help="Batch size: sequences at once.")  # fmt: skip
@click.option("--context", type=Count(), default=2048, show_default=True, metavar="L",
              help="Tokens in the cache; the prompt of a prefill.")  # fmt: skip
@how_options
@set_option
@click.option("--path", metavar="scheme|batch=1:256",
              help="With --plot: each operator's path from scheme to scheme, in their order, or with "
              "the batch.")  # fmt: skip
@click.option("--layout", type=click.Choice(["panels", "overlay"]), default="panels", show_default=True,
              help="One panel for each device, or up to three devices on one.")  # fmt: skip
@click.option("--with", "beside", type=click.Choice(["time", "table"]), multiple=True,
              help="With --plot: bars of where the time goes, or the numbers, beside the roofline. "
              "Repeatable.")  # fmt: skip
@plot_option
@table_options
def roofline(
    model: str,
    device: tuple[str, ...],
    scheme: tuple[str, ...],
    phase: tuple[str, ...],
    batch: int,
    context: int,
    overrides: tuple[str, ...],
    path: str | None,
    layout: str,
    beside: tuple[str, ...],
    plot: Picture | None,
    form: Form,
    tensor_parallel: int,
    **how: Any,
) -> None:
    """Each operator has an intensity (operations per byte) and the rate it reaches; left of the ridge point it is bound
    by memory, right of it by arithmetic. MODEL is a name (llama-3-70b, ...) or a path to a Hugging Face config.json.

    \b
    Examples:
      qsim roofline llama-3-8b --device h100-sxm --scheme bf16 --scheme fp8-rowwise --plot roofline.svg
      qsim roofline llama-3-8b --device a100 --phase prefill --context 4096
      qsim roofline llama-3-70b --scheme bf16 --scheme w4a16-g128 --path batch=1:256 --size slide --plot paths.png
    """
    import hwmodels
    from hwmodels.describe import roofs
    from hwmodels.predicted import operator_rows

    from .roofline_view import path_of

    moves, batches = path_of(path)
    if moves == "batch" and given("batch"):
        raise QsimError("--path batch=... says which batches: leave --batch out")
    if moves == "scheme" and len(scheme) < 2:
        raise QsimError(f"--path scheme needs at least two --scheme, in the order of the path: got {len(scheme)}")
    if plot is None:
        flags = {"path": "path", "layout": "layout", "beside": "with"}
        for name in (flag for parameter, flag in flags.items() if given(parameter)):
            raise QsimError(f"--{name} is for the figure: give --plot FILE too")
    cases = [
        hwmodels.predict(d, model, s, ph, b, context, tensor_parallel=tensor_parallel, **how)
        for ph in dict.fromkeys(phase) for d in chosen_devices(device, overrides) for s in scheme
        for b in batches or (batch,)
    ]  # fmt: skip
    several = {"phase": len(set(phase)) > 1, "batch": bool(batches)}
    rows = [
        {"device": p.device.name, "scheme": p.scheme.name,
         **{key: value for key, value in (("phase", p.phase), ("batch", int(p.batch))) if several[key]},
         **r, "tflop_per_s": r["gflop"] / r["time_s"] / 1e3}
        for p in cases
        for r in operator_rows(p)
    ]  # fmt: skip
    if plot is not None:
        from .roofline_view import figure

        draw(figure(cases, path=moves, layout=layout, size=plot.size, beside=beside), plot)

    def table() -> None:
        for roof in roofs(cases):
            ridge = roof["peak_flop_per_s"] / roof["bandwidth_bytes_per_s"]
            click.echo(f"{roof['label']}: ridge at {ridge:.0f} operations per byte")
        more = [Column(key, key, left=True) for key in several if several[key]]
        print_table((*_COLUMNS[:2], *more, *_COLUMNS[2:]), rows, names=3 + len(more))

    if form != "table" or plot is None:
        deliver(form, rows, table)
