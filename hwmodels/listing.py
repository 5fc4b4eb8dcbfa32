"""What can be named, as tables: devices and models."""

from __future__ import annotations

from qsim.tables import Table

from .device.describe import device_row
from .device.device import Device
from .device.load import device_names, get_device
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
