"""Predictions as rows of plain values, for tables, JSON and CSV."""

from __future__ import annotations

from typing import Any

import numpy as np

from .predicted import Prediction
from .timing.peaks import format_peak


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
        **_energy(p),
        "notes": list(p.notes),
    }


def _energy(p: Prediction) -> dict[str, Any]:
    """Mean power of a device, joules of the step and of a token with their band; None where power is unknown."""
    e, tokens = p.energy, float(p.tokens_per_s * p.time_s)
    values = (None,) * 5 if e is None else tuple(map(float, (e.power_w, e.energy_j, *(
        j / tokens for j in (e.energy_j, e.low_j, e.high_j)
    ))))  # fmt: skip
    names = ("power_w", "energy_j", "joule_per_token", "joule_per_token_low", "joule_per_token_high")
    basis = {"energy_fidelity": None if e is None else e.fidelity, "energy_origin": None if e is None else e.origin}
    return {**dict(zip(names, values, strict=True)), **basis}


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
