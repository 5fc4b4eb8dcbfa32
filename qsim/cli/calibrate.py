"""`qsim calibrate`: fit a device's kernels to a CSV, or measure this computer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qsim.errors import QsimError
from qsim.files import write_text

from .options import Picture, draw, out_file_option, plot_option, wrote
from .progress import reporter
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb


@verb("calibrate")
@click.argument("csv", required=False, metavar="[CSV]", type=click.Path(path_type=Path))
@click.option("--device", metavar="NAME", help="Device that CSV was measured on; its peaks set the scale.")
@click.option("--serving", metavar="CSV", type=click.Path(path_type=Path),
              help="Fit the constants of serving engines on measured points (TTFT and TPOT) instead.")  # fmt: skip
@click.option("--host", is_flag=True, help="Measure this computer instead, and make it a device.")
@out_file_option("Write the TOML here.")
@plot_option
@table_options
def calibrate(
    csv: Path | None,
    device: str | None,
    serving: Path | None,
    host: bool,
    out: Path | None,
    plot: Picture | None,
    form: Form,
) -> None:
    """CSV has the columns kernel, m, n, k and latency_s (or median_s): one row per measured product. The result is a
    TOML with parameters, held-out errors and bands; a device file uses it with calibration = "PATH".

    With --host: measures memory bandwidth, matrix rate and the fused kernels of this package, and compares the
    speed-ups with what bandwidth allows. Takes about a minute.

    With --serving: the time that engines add to their kernels, from a CSV with the columns of
    hwmodels/measurements/README.md. The result is a TOML for qsim serve --constants.

    \b
    Examples:
      qsim calibrate timings.csv --device h100-sxm --out h100.mine.toml
      qsim calibrate --host --out host.toml --plot host.png
      qsim calibrate --serving rows.csv --out engines.toml
    """
    if [host, csv is not None, serving is not None].count(True) != 1:
        raise QsimError("calibrate takes a CSV, --serving or --host: give one of them")
    if serving is not None:
        _serving(serving, out, form)
        return
    if host:
        _host(out, plot, form)
        return
    if device is None:
        raise QsimError("--device names the device that the CSV was measured on")
    import hwmodels

    assert csv is not None
    if not csv.is_file():
        raise QsimError(f"{csv} does not exist")
    with reporter("calibrating") as say:
        say(f"fitting the kernels of {csv}")
        fitted = hwmodels.fit(csv, device, out=out)
    rows = [
        {"kernel": name, "rows": p.rows, "shapes": p.shapes, "t0_us": p.t0_s * 1e6, "eta_compute": p.eta_compute,
         "eta_memory": p.eta_memory, "p": p.p, "held_out_mape": p.held_out_mape.get("all"),
         "band_low": p.band["all"][0], "band_high": p.band["all"][1]}
        for name, p in fitted.items()
    ]  # fmt: skip
    deliver(form, rows, lambda: _table(rows))
    if out is not None:
        wrote(out)


def _serving(path: Path, out: Path | None, form: Form) -> None:
    from hwmodels.fitting.serving import constants_toml, fit_all, fit_rows, scorable
    from hwmodels.serving.points import read_points

    points = scorable(read_points(path))
    with reporter("calibrating") as say:
        fits = fit_all(points, say)
    if out is not None:
        write_text(out, constants_toml(fits, f"{path.name}, {len(points)} points"))
    rows = fit_rows(fits)
    deliver(form, rows, lambda: _table(rows))
    if out is not None:
        wrote(out)


def _host(out: Path | None, plot: Picture | None, form: Form) -> None:
    from hwmodels.fitting.host import host_device_toml, host_speedups, measure_host

    from .host_kernels import measure_kernels

    with reporter("calibrating") as say:
        kernels = measure_kernels(progress=say)
        say("memory bandwidth, matrix rate and float32 products")
        measured = measure_host(kernels)
    rows = host_speedups(measured)
    if out is not None:
        write_text(out, host_device_toml(measured))
        wrote(out)
    if plot is not None and rows:
        from qsim.plots.bars import measured_figure

        labels = [f"{r['scheme']}\n{r['N']}x{r['K']}, M={r['M']}" for r in rows]
        draw(measured_figure("Speed-up over float32 on this computer", labels, [r["predicted"] for r in rows],
                             [r["measured"] for r in rows], size=plot.size), plot)  # fmt: skip
    head = {
        "processor": measured.processor, "threads": measured.threads,
        "bandwidth_gbytes_per_s": measured.bandwidth_bytes_per_s / 1e9,
        "float32_gflop_per_s": measured.float32_flop_per_s / 1e9,
    }  # fmt: skip

    def table() -> None:
        click.echo(f"{head['processor']}, {head['threads']} threads: reads {head['bandwidth_gbytes_per_s']:.3g} GB/s, "
                   f"float32 {head['float32_gflop_per_s']:.4g} GFLOP/s")  # fmt: skip
        _table(rows)

    deliver(form, rows, table, whole={**head, "kernels": rows})


def _table(rows: list[dict[str, Any]]) -> None:
    print_table([Column(name, name, left=isinstance(value, str)) for name, value in rows[0].items()], rows)
