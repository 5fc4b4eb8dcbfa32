"""Predictions as rows of plain values, for tables, JSON and CSV."""

from __future__ import annotations

from typing import Any

import numpy as np

from .device.device import Device
from .predicted import Prediction
from .timing.execution import OperatorTime
from .timing.families import FAMILIES, get_family
from .timing.kernel import DATAFLOW, gemm
from .timing.peaks import format_peak
from .workload.operators import gemm_cost


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
        "expert_parallel": p.expert_parallel,
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


_SHAPES = ((4096, 4096), (8192, 8192), (16384, 8192))
"""N and K of the products on which a kernel family reaches its best; with the products of the step itself."""
_ROWS = 2.0 ** np.arange(15)


def reached(predictions: list[Prediction]) -> list[dict[str, Any]]:
    """The best rate and bandwidth that the kernels of the linear layers reach on each device in each scheme.

    The family is that of the product with the most time. Its calibration is asked at 1 to 16384 tokens for weights of
    4096 to 16384 features, and the products of the steps count too, so that none of them lies above.

    Returns:
        One row for each device and scheme: `device`, `scheme`, `kernel`, `generation`, `fidelity`, `format`, and as
        (low, reached, high) of an 80 % band `flop_per_s` and `bandwidth_bytes_per_s`. Ideal predictions have none.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for p in predictions:
        products = [op for op in p.operators if (op.shape or op.kind == "fused") and op.fidelity != "ideal"]
        if not products:
            continue
        longest = max(products, key=lambda op: float(op.time_s))
        mine = [op for op in products if op.kernel == longest.kernel]
        row = found.get((p.device.name, str(p.scheme.name)))
        if row is None:
            rates, bands = _asked(p.device, longest)
        else:
            rates, bands = row["flop_per_s"], row["bandwidth_bytes_per_s"]
        for op in mine:
            rates.append(tuple(float(op.flop / t) for t in (op.high_s, op.time_s, op.low_s)))
            bands.append(tuple(float(op.traffic_bytes / t) for t in (op.high_s, op.time_s, op.low_s)))
        found[p.device.name, str(p.scheme.name)] = {
            "device": p.device.name, "scheme": p.scheme.name, "kernel": longest.kernel, "format": longest.formats[0],
            "generation": longest.generation, "fidelity": longest.fidelity, "flop_per_s": rates,
            "bandwidth_bytes_per_s": bands,
        }  # fmt: skip
    keys = ("flop_per_s", "bandwidth_bytes_per_s")
    return [{**row, **{key: max(row[key], key=lambda band: band[1]) for key in keys}} for row in found.values()]


def _asked(device: Device, op: OperatorTime) -> tuple[list[Any], list[Any]]:
    """Rates and bandwidths, each with its band, of the families of an operator over sizes; empty for a fused layer,
    whose shares are assumed."""
    rates: list[Any] = []
    bands: list[Any] = []
    for name in op.kernel.split(" or "):
        if name not in FAMILIES:
            peak, bandwidth = op.peak_flop_per_s * DATAFLOW[0], op.bandwidth_bytes_per_s * DATAFLOW[1]
            low, high = (float(t / op.time_s) for t in (op.low_s, op.high_s))
            rates.append((peak / high, peak, peak / low))
            bands.append((bandwidth / high, bandwidth, bandwidth / low))
            continue
        family = get_family(name)
        for n, k in _SHAPES:
            e = gemm(device, _ROWS, n, k, name, compute=op.formats[0], stands_in=op.fidelity == "transferred")
            cost = gemm_cost(_ROWS, n, k, weight_bytes=family.weight_bits / 8 * n * k,
                             activation_bytes=family.activation_bytes, output_bytes=family.output_bytes)  # fmt: skip
            for amount, into in ((cost.flop, rates), (cost.traffic_bytes, bands)):
                at = int(np.argmax(amount / e.time_s))
                into.append(tuple(float(amount[at] / t[at]) for t in (e.high_s, e.time_s, e.low_s)))
    return rates, bands
