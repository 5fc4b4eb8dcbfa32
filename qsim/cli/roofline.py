"""`qsim roofline`: a model's operators under a device's roofs."""

from __future__ import annotations

from pathlib import Path

import click

from .hardware_options import (
    LARGEST,
    chosen_devices,
    device_option,
    how_options,
    milliseconds,
    model_argument,
    scheme_option,
    set_option,
)
from .options import draw, plot_option
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
@click.option("--phase", type=click.Choice(["decode", "prefill"]), default="decode", show_default=True,
              help="One decode step, or one prefill.")  # fmt: skip
@click.option("--batch", type=click.IntRange(max=LARGEST), default=1, show_default=True, metavar="B",
              help="Batch size: sequences at once.")  # fmt: skip
@click.option("--context", type=click.IntRange(max=LARGEST), default=2048, show_default=True, metavar="L",
              help="Tokens in the cache; the prompt of a prefill.")  # fmt: skip
@how_options
@set_option
@plot_option
@table_options
def roofline(
    model: str,
    device: tuple[str, ...],
    scheme: tuple[str, ...],
    phase: str,
    batch: int,
    context: int,
    overrides: tuple[str, ...],
    plot: Path | None,
    form: Form,
    tensor_parallel: int,
    profile: str,
    fidelity: str,
    strict: bool,
) -> None:
    """Each operator has an intensity (operations per byte) and the rate it reaches; left of the ridge point it is bound
    by memory, right of it by arithmetic. MODEL is a name (llama-3-70b, ...) or a path to a Hugging Face config.json.

    \b
    Examples:
      qsim roofline llama-3-8b --device h100-sxm --scheme bf16 --scheme fp8-rowwise --plot roofline.svg
      qsim roofline llama-3-8b --device a100 --phase prefill --context 4096
    """
    import hwmodels
    from hwmodels.describe import roofs
    from hwmodels.prediction import operator_rows

    cases = [
        hwmodels.predict(d, model, s, phase, batch, context, tensor_parallel=tensor_parallel, profile=profile,
                         fidelity=fidelity, strict=strict)
        for d in chosen_devices(device, overrides) for s in scheme
    ]  # fmt: skip
    rows = [
        {"device": p.device.name, "scheme": p.scheme.name, **r, "tflop_per_s": r["gflop"] / r["time_s"] / 1e3}
        for p in cases
        for r in operator_rows(p)
    ]
    if plot is not None:
        from qsim.plots.rooflines import Ceiling, Placed, roofline_figure

        ceilings = [Ceiling(**{k: v for k, v in c.items() if k != "label"}) for c in roofs(cases)]
        points = [
            Placed(label=r["operator"], device=r["device"], series=r["scheme"], intensity=r["flop_per_byte"],
                   flop_per_s=r["tflop_per_s"] * 1e12, share=r["share"])
            for r in rows if r["format"]
        ]  # fmt: skip
        case = f"{cases[0].architecture.name}, {phase}, batch {batch}, context {context}"
        draw(roofline_figure(f"{case}, TP {tensor_parallel}" if tensor_parallel > 1 else case, ceilings, points), plot)

    def table() -> None:
        for roof in roofs(cases):
            ridge = roof["peak_flop_per_s"] / roof["bandwidth_bytes_per_s"]
            click.echo(f"{roof['label']}: ridge at {ridge:.0f} operations per byte")
        print_table(_COLUMNS, rows, names=3)

    if form != "table" or plot is None:
        deliver(form, rows, table)
