"""Devices and predictions as rows of plain values, for tables, JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .device import Device
from .peaks import format_peak
from .prediction import Prediction


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


def operator_rows(prediction: Prediction) -> list[dict[str, Any]]:
    """The operator table of a prediction with scalar arguments."""
    total = float(prediction.time_s)
    return [
        {
            "operator": op.name,
            "calls": int(op.calls),
            "time_s": float(op.time_s),
            "low_s": float(op.low_s),
            "high_s": float(op.high_s),
            "share": float(op.time_s) / total,
            "gflop": float(op.flop) / 1e9,
            "mbytes": float(op.traffic_bytes) / 1e6,
            "flop_per_byte": float(op.intensity),
            "bound": str(op.bound),
            "kernel": op.kernel,
            "format": "+".join(op.formats),
            "fidelity": op.fidelity,
        }
        for op in prediction.operators
    ]


def prediction_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction with scalar arguments as one flat row."""
    p = prediction
    memory = p.footprint
    return {
        "device": p.device.name,
        "model": p.architecture.name,
        "scheme": p.scheme.name,
        "phase": p.phase,
        "batch": int(np.max(p.batch)),
        "context": int(np.max(p.context)),
        "tensor_parallel": p.tensor_parallel,
        "profile": p.profile,
        "fidelity": p.fidelity,
        "kernel": p.kernel,
        "time_s": float(p.time_s),
        "low_s": float(p.low_s),
        "high_s": float(p.high_s),
        "tokens_per_s": float(p.tokens_per_s),
        "bound": p.bound,
        "mbu": float(p.mbu),
        "mfu": float(p.mfu),
        "fits": bool(p.fits),
        "largest_batch": p.largest_batch,
        "weights_gbytes": memory.weights_bytes / 1e9,
        "kv_cache_gbytes": float(memory.kv_cache_bytes) / 1e9,
        "total_gbytes": float(memory.total_bytes) / 1e9,
        "capacity_gbytes": memory.capacity_bytes / 1e9,
        "energy_at_most_j": None if p.energy_j is None else float(p.energy_j),
        "notes": list(p.notes),
    }


def roofs(predictions: list[Prediction]) -> list[dict[str, Any]]:
    """The ceilings that the operators of a list of predictions run under.

    Returns:
        One row for each device (and number of its chips that work at once) and format that an operator multiplies in:
        `device`, `format`, `label`, `peak_flop_per_s`, `bandwidth_bytes_per_s`. No operator lies above the highest
        roof of its formats.
    """
    found: dict[str, dict[str, Any]] = {}
    for p in predictions:
        for op in p.operators:
            for fmt in op.formats:
                # chips of an SRAM part that work at once: their peaks add up as their bandwidths do
                chips = op.bandwidth_bytes_per_s / p.device.memory.bandwidth_bytes_per_s
                peak = format_peak(p.device, fmt) * chips
                bandwidth = op.bandwidth_bytes_per_s
                label = f"{p.device.name} {fmt}: {peak / 1e12:.0f} T, {bandwidth / 1e9:.0f} GB/s"
                found[label] = {"device": p.device.name, "format": fmt, "label": label, "peak_flop_per_s": peak,
                                "bandwidth_bytes_per_s": bandwidth}  # fmt: skip
    return list(found.values())
