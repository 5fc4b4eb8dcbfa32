"""`qsim devices`: what is known of GPUs and ASICs, side by side."""

from __future__ import annotations

import click

from .hardware_options import set_option
from .options import console, emit, show, table_options


@click.command(short_help="List GPUs and ASICs with their peaks, bandwidths and sources.")
@click.argument("names", nargs=-1, metavar="[DEVICE...]")
@click.option("--sources", is_flag=True, help="Where every number comes from.")
@set_option
@table_options
def devices(names: tuple[str, ...], sources: bool, overrides: tuple[str, ...], as_json: bool, as_csv: bool) -> None:
    """List GPUs and ASICs with their peaks, bandwidths and sources.

    Peaks are dense, in TFLOP/s or TOP/s; absent means that the device has no such arithmetic. Without DEVICE: all.

    \b
    Examples:
      qsim devices
      qsim devices h100-sxm l40s --sources
      qsim devices asic --set memory.bandwidth_gbytes_per_s=8000
    """
    from hwmodels.describe import device_row, device_sources
    from hwmodels.load import device_names, get_device

    found = [get_device(name, overrides or None) for name in names or device_names()]
    rows = [row for d in found for row in device_sources(d)] if sources else [device_row(d) for d in found]
    if emit(rows, as_json=as_json, as_csv=as_csv):
        return
    from rich.table import Table

    out = console()
    if not sources and out.width < 100:  # what 80 columns hold; --csv has everything
        rows = [{k: v for k, v in row.items() if k not in ("kind", "link GB/s")} for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0) if not sources else (0, 1))
    for i, name in enumerate(rows[0]):
        left = isinstance(rows[0][name], str)
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=not sources or i == 0)
    for row in rows:
        table.add_row(*("" if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in row.values()))
    show(out, table)
