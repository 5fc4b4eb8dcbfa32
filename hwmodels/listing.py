"""What can be named, as tables: devices, models and kernel families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qsim.errors import QsimError
from qsim.scheme import list_schemes
from qsim.tables import Table

from .calibration.fitted import Parameters
from .calibration.store import calibrated_names
from .device.describe import device_row
from .device.device import Device
from .device.load import device_names, get_device
from .timing.families import ATTENTION, FAMILIES
from .timing.family import AttentionFamily, KernelFamily
from .timing.parameters import attention_parameters, calibration_named, kernel_parameters
from .timing.peaks import priced_format
from .workload.architecture import Architecture, architecture_names, get_architecture
from .workload.hub import hub_ids


def list_devices() -> Table[Device]:
    """The devices shipped as data: dense peaks in TFLOP/s or TOP/s, memory, link, power, ridge point.

    Iterating gives the devices.
    """
    devices = tuple(get_device(name) for name in device_names())
    rows = [device_row(device) for device in devices]
    return Table(columns=tuple(rows[0]), rows=tuple(tuple(row.values()) for row in rows), values=devices)


def list_models() -> Table[Architecture]:
    """The architectures shipped as data, each with a Hugging Face id that has its shapes. Iterating gives them."""
    models = tuple(get_architecture(name) for name in architecture_names())
    first: dict[str, str] = {}
    for hub_id, name in hub_ids().items():
        first.setdefault(name, hub_id)
    return Table(
        columns=("model", "parameters (1e9)", "layers", "hidden", "heads", "KV heads", "experts", "Hugging Face"),
        rows=tuple(
            (m.name, round(float(m.parameters) / 1e9, 2), m.layers, m.hidden, m.heads, m.kv_heads,
             m.experts if m.experts > 1 else None, first.get(m.name))
            for m in models
        ),
        values=models,
    )  # fmt: skip


def kernel_families(device: str | Path | Device | None = None) -> Table[KernelFamily | AttentionFamily]:
    """The kernel families: whose each is and from when, the format it multiplies in, and what stands behind its times.

    Arguments:
        device: only families that the device can run, with what their times rest on there; None lists all.

    Returns:
        One row per family and iterating gives them. Columns: family, engine, version, year, stacks, format, schemes (of
        `qsim.list_schemes`), measured on (calibrations); with a device also fidelity and origin of its times there, and
        shapes and held-out error (in percent, on shapes that the fit had not seen) of the fit that they come from.

    Raises:
        QsimError: an unknown device.
    """
    chip = None if device is None else get_device(device)
    rows: list[tuple[Any, ...]] = []
    values: list[KernelFamily | AttentionFamily] = []
    everything: list[KernelFamily | AttentionFamily] = [*FAMILIES.values(), *ATTENTION.values()]
    for family in everything:
        used = None if chip is None else _used(chip, family)
        if chip is not None and used is None:
            continue
        product = isinstance(family, KernelFamily)
        runs = family.runs if isinstance(family, KernelFamily) else None
        schemes = [] if runs is None else [s.name for s in list_schemes() if runs(s)]
        stacks = ", ".join(family.stacks) if isinstance(family, KernelFamily) else ""
        head = (
            family.name,
            family.engine,
            family.version,
            family.year,
            stacks,
            family.compute if product else "attention",
            ", ".join(schemes),
            ", ".join(_measured_on(family)),
        )
        rows.append(head if used is None else (*head, *_behind(used)))
        values.append(family)
    columns = ("family", "engine", "version", "year", "stacks", "format", "schemes", "measured on")
    more = () if chip is None else ("fidelity", "origin", "shapes", "held-out error %")
    return Table(columns=(*columns, *more), rows=tuple(rows), values=tuple(values))


def _used(device: Device, family: KernelFamily | AttentionFamily) -> Parameters | None:
    """The parameters of a family on a device, None where it cannot run there."""
    try:
        if isinstance(family, AttentionFamily):
            return attention_parameters(device, family.phases[0], family.name)
        priced_format(device, family, None)
        return kernel_parameters(device, family.name)
    except QsimError:
        return None


def _behind(used: Parameters) -> tuple[str, str, int | None, float | None]:
    error = used.held_out_mape.get("all")
    return used.kind, used.origin, used.shapes or None, None if error is None else round(100 * error, 1)


def _measured_on(family: KernelFamily | AttentionFamily) -> list[str]:
    found = []
    for name in calibrated_names():
        table = calibration_named(name)
        assert table is not None
        mine = table.kernels if isinstance(family, KernelFamily) else {key.split(".")[0] for key in table.attention}
        if family.name in mine:
            found.append(name)
    return [*found, *(getattr(family, "measured", {}))]


def kernel_rows(device: Device) -> list[dict[str, object]]:
    """`kernel_families` of a device as flat rows, the device's name first."""
    table = kernel_families(device)
    return [{"device": device.name, **dict(zip(table.columns, row, strict=True))} for row in table.rows]
