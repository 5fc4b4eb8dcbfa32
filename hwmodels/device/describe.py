"""Devices as rows of plain values, for tables, JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .device import Device


def device_row(device: Device) -> dict[str, Any]:
    """One line per device: dense peaks in TFLOP/s, memory, link, power, ridge point, calibration."""

    def peak(*formats: str) -> float | None:
        for fmt in formats:
            value = device.peak_flop_per_s(fmt)
            if value is not None:
                return value / 1e12
        return None

    ridge = device.ridge_flop_per_byte("bfloat16")
    return {
        "device": device.name,
        "kind": device.kind,
        "16 bit": peak("bfloat16", "float16"),
        "fp8": peak("float8_e4m3fn", "float8_e4m3fnuz"),
        "int8": peak("int8"),
        "4 bit": peak("nvfp4", "float4_e2m1fn", "int4"),
        "GB": device.memory.capacity_bytes / 1e9,
        "GB/s": device.memory.bandwidth_bytes_per_s / 1e9,
        "link GB/s": None if device.link is None else device.link.bandwidth_bytes_per_s / 1e9,
        "W": None if device.power is None else device.power.board_w,
        "ridge": None if ridge is None else round(ridge, 1),
        "kernels": device.calibration or (f"from {device.transfer_from}" if device.transfer_from else "assumed"),
    }


def device_sources(device: Device) -> Iterator[dict[str, Any]]:
    """Every number of a device with its source and, for peaks, the tensor-core instruction behind it."""
    for peak in device.compute.peaks:
        yield {
            "device": device.name,
            "field": f"peak {peak.input}, accumulate {peak.accumulate}",
            "value": f"{peak.flop_per_s / 1e12:g} TFLOP/s",
            "instruction": peak.instruction or "",
            "source": peak.source,
        }
    values = {
        "memory.capacity_gbytes": f"{device.memory.capacity_bytes / 1e9:g}",
        "memory.bandwidth_gbytes_per_s": f"{device.memory.bandwidth_bytes_per_s / 1e9:g}",
        "compute.units": "" if device.compute.units is None else f"{device.compute.units:g}",
        "power.board_w": "" if device.power is None else f"{device.power.board_w:g}",
    }
    for key, source in device.sources.items():
        if key in device.overrides:
            continue
        yield {"device": device.name, "field": key, "value": values.get(key, ""), "instruction": "", "source": source}
    for key, value in device.overrides.items():
        yield {
            "device": device.name,
            "field": key,
            "value": str(value),
            "instruction": "",
            "source": "set by the caller",
        }
