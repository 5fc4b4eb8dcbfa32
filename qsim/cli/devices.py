"""`qsim devices`: what is known of GPUs and ASICs, side by side."""

from __future__ import annotations

import click

from qsim.errors import QsimError

from .hardware_options import chosen_devices, set_option
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


_NUMBERS = ("16 bit", "fp8", "int8", "4 bit", "GB", "GB/s", "link GB/s", "W", "ridge")
_COLUMNS = (
    Column("device", "device", left=True), *(Column(name, name, _number) for name in _NUMBERS),
    Column("kernels", "kernels", left=True, fold=True), Column("kind", "kind", left=True),
)  # fmt: skip
_SOURCES = (
    Column("device", "device", left=True), Column("field", "field", left=True), Column("value", "value", left=True),
    Column("instruction", "instruction", left=True), Column("source", "source", left=True, fold=True),
)  # fmt: skip


_KERNELS = (
    Column("device", "device", left=True), Column("family", "family", left=True), Column("engine", "engine", left=True),
    Column("version", "version", left=True), Column("year", "year", _number), Column("format", "format", left=True),
    Column("fidelity", "fidelity", left=True), Column("shapes", "shapes", _number),
    Column("error %", "held-out error %", _number), Column("schemes", "schemes", left=True, fold=True),
)  # fmt: skip


@verb("devices")
@click.argument("names", nargs=-1, metavar="[DEVICE...]")
@click.option("--sources", is_flag=True, help="Where every number comes from.")
@click.option("--kernels", is_flag=True, help="The kernel families that can run there, and what their times rest on.")
@set_option
@table_options
def devices(names: tuple[str, ...], sources: bool, kernels: bool, overrides: tuple[str, ...], form: Form) -> None:
    """Peaks are dense, in TFLOP/s or TOP/s; an empty cell means that the device has no such arithmetic. Without DEVICE:
    all of them.

    \b
    Examples:
      qsim devices
      qsim devices h100-sxm l40s --sources
      qsim devices h200 --kernels
      qsim devices asic --set memory.bandwidth_gbytes_per_s=8000
    """
    from hwmodels.device.describe import device_row, device_sources
    from hwmodels.device.load import device_names
    from hwmodels.listing import kernel_rows

    found = chosen_devices(names or device_names(), overrides)
    if kernels and sources:
        raise QsimError("--sources and --kernels are two tables: give one of them")
    if kernels:
        rows = [row for d in found for row in kernel_rows(d)]
        deliver(form, rows, lambda: print_table(_KERNELS, rows, names=2))
        return
    rows = [row for d in found for row in device_sources(d)] if sources else [device_row(d) for d in found]
    deliver(form, rows, lambda: print_table(_SOURCES if sources else _COLUMNS, rows, names=1 + sources))
