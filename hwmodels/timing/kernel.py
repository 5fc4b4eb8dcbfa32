"""Time of one kernel: a soft roofline with the parameters of its family on the device, and the band around it.

Fidelity of an estimate:

* `ideal`: the datasheet roofline, a floor that no kernel beats;
* `calibrated`: parameters fitted to this kernel on this device; where there are none it is `transferred`;
* `transferred`: efficiencies of a similar kernel or device at this device's peaks, with a wide band.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.reprs import one_line

from ..calibration.between import KEPT, corrected
from ..checks import check_positive
from ..device.device import Device
from ..device.load import get_device
from ..workload.operators import CAUSAL_TILE, Cost, gemm_cost
from .families import FAMILIES, get_family
from .parameters import (
    LARGE_TRANSFER,
    TRANSFER_BAND,
    calibration_named,
    calibration_of,
    check_fidelity,
    kernel_parameters,
    lenders,
    transferred,
)
from .peaks import kernel_peak

if TYPE_CHECKING:
    from ..calibration.fitted import Curve, Parameters
    from .family import KernelFamily

IDEAL_MISS = 1.85
"""Datasheet rooflines miss measured layers by 26 to 85 %: the high end of an ideal estimate."""
LEAST_CALL_US = {
    "a100": 4.09, "h100": 3.30, "h200": 3.33, "l40s": 2.73, "b200": 2.47, "b300": 2.45, "gb200": 2.52, "gb300": 2.56,
    "rtx-pro-6000": 2.46,
}  # fmt: skip
"""Calibration -> the least time of a 16-bit product of up to 16 x 1024 x 1024 in a CUDA graph, median of its engines
(`fitting.tables_2026.least_calls`). It waits for latency alone, and so do element-wise kernels of small steps."""
DATAFLOW = (0.70, 0.85)
"""Assumed shares of peak and bandwidth of a fused dataflow part: nothing is published to fit them on."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds with an 80 % band, and the two limits they come from. Fields broadcast."""

    time_s: Any
    low_s: Any
    high_s: Any
    compute_s: Any
    memory_s: Any
    kind: str
    origin: str = ""

    __repr__ = one_line


def soft_roofline(compute_s: Any, memory_s: Any, p: float) -> Any:
    """(compute^p + memory^p)^(1/p): p = 1 adds the two times, a large p takes the larger. Arrays broadcast."""
    top = np.maximum(compute_s, memory_s)
    low = np.minimum(compute_s, memory_s)
    return top * (1 + (low / top) ** p) ** (1 / p)


def estimate(
    device: Device, cost: Cost, peak: float, p: Parameters, x: Any, surface: Any, k: Any = 0.0,
    cost_at: Callable[[Any], Cost] = lambda _: Cost(flop=0.0, traffic_bytes=0.0),
    cost_key: tuple[Any, ...] | None = None,
) -> Estimate:  # fmt: skip
    """Soft roofline of a cost, corrected, with its band.

    Arguments:
        x: the size (M, sequence length) that picks the band.
        surface: the coordinates of the correction, None without.
        k: length of the inner loop, for its latency.
        cost_at: the cost at other sizes, along a last axis; needed with `surface` (see `hwmodels.calibration.between`).
        cost_key: all that `cost_at` and `k` depend on; None where they are too much to remember.
    """
    compute, memory = _limits(device, cost, peak, p, k)
    floor = np.maximum(cost.flop / peak, cost.traffic_bytes / device.memory.bandwidth_bytes_per_s)
    time = p.t0_s + soft_roofline(compute, memory, p.p)
    if surface is not None and len(p.sizes):
        size, a, b = surface

        def soft_at(sizes: Any) -> Any:
            return p.t0_s + soft_roofline(*_limits(device, cost_at(sizes), peak, p, np.asarray(k)[..., None]), p.p)

        falls = p.kind == "calibrated" and p.measured(a, b)
        key = None if cost_key is None else (peak, device.memory.bandwidth_bytes_per_s, *cost_key)
        time = corrected(p, time, soft_at, size, a, b, device.compute.units, falls, key)
    time = np.maximum(time, np.maximum(floor, p.floor_s) if p.floor_s else floor)
    low, high = band_factors(p, x, surface)
    return Estimate(
        time_s=time, low_s=np.maximum(time * low, floor), high_s=time * high, compute_s=compute, memory_s=memory,
        kind=p.kind, origin=p.origin,
    )  # fmt: skip


def _limits(device: Device, cost: Cost, peak: float, p: Parameters, k: Any) -> tuple[Any, Any]:
    """Seconds of arithmetic and of traffic at the reached shares of the two peaks."""
    compute = cost.flop / (p.eta_compute * peak) + k * p.tau_s_per_k
    if p.exp_weight and device.compute.exp_per_s:
        compute = compute + p.exp_weight * cost.exp / device.compute.exp_per_s
    work = cost.tile_work if p.tile_keys == CAUSAL_TILE else 1 + (cost.tile_work - 1) * p.tile_keys / CAUSAL_TILE
    return compute * work, cost.traffic_bytes / (p.eta_memory * device.memory.bandwidth_bytes_per_s)


def band_factors(p: Parameters, x: Any, shape: Any) -> tuple[Any, Any]:
    """Factors on the time: of the regime of x, and narrower the nearer `shape` is to a measured one."""
    from ..calibration.fitted import REGIME_EDGES, REGIMES

    if not p.band:
        family = FAMILIES.get(p.kernel)
        half = TRANSFER_BAND[family is None or family.sixteen_bit]
        if family is None or family.sixteen_bit:
            return 1 - half, 1 + half
        return 1 - half, np.where(np.asarray(x) > REGIME_EDGES[1], LARGE_TRANSFER, 1 + half)[()]

    pairs = np.array([p.band.get(name, p.band["all"]) for name in REGIMES])
    at = pairs[np.searchsorted(REGIME_EDGES, x, side="left")]
    low, high = at[..., 0], at[..., 1]
    if p.neighbours is None or shape is None or "known" not in p.band:
        return low, high
    share = p.neighbours.known(shape[1], shape[2])
    near = np.log(p.band["known"])
    return (
        np.exp(-np.sqrt((1 - share) * np.log(low) ** 2 + share * near[0] ** 2)),
        np.exp(np.sqrt((1 - share) * np.log(high) ** 2 + share * near[1] ** 2)),
    )


def ideal(cost: Cost, peak: float, device: Device) -> Estimate:
    """The datasheet roofline of a cost."""
    compute = cost.flop / peak
    memory = cost.traffic_bytes / device.memory.bandwidth_bytes_per_s
    time = np.maximum(compute, memory)
    return Estimate(
        time_s=time, low_s=time, high_s=time * IDEAL_MISS, compute_s=compute, memory_s=memory, kind="ideal",
        origin="datasheet",
    )  # fmt: skip


def gemm(
    device: Device | str,
    m: Any,
    n: Any,
    k: Any,
    kernel: str = "cublas_bf16",
    *,
    fidelity: str = "calibrated",
    weight_bytes: Any = None,
    compute: str | None = None,
    stands_in: bool = False,
) -> Estimate:
    """Time of y[M,N] = x[M,K] w[N,K]^T by a kernel family, with its band.

    Arguments:
        device: value or name.
        m, n, k: tokens, output features, input features; arrays broadcast.
        kernel: family (`hwmodels.kernel_families`).
        fidelity: see the module.
        weight_bytes: exact bytes of the packed weight; None takes the family's bits per weight.
        compute: peak to price against, where the family runs in another format on this device.
        stands_in: the family was measured with weights of another width: the same time, but `transferred`.

    Raises:
        ValueError: sizes that are not positive, an unknown kernel, or a format the device has no path for.
    """
    device = get_device(device)
    family = get_family(kernel)
    check_fidelity(fidelity)
    check_positive(M=m, N=n, K=k, **({} if weight_bytes is None else {"weight_bytes": weight_bytes}))
    m, n, k = (np.asarray(v, dtype=np.float64) for v in (m, n, k))
    weight = family.weight_bits / 8 * n * k if weight_bytes is None else weight_bytes
    cost = gemm_cost(
        m, n, k, weight_bytes=weight, activation_bytes=family.activation_bytes, output_bytes=family.output_bytes
    )
    peak = kernel_peak(device, family, compute, fidelity)
    if fidelity == "ideal":
        return ideal(cost, peak, device)
    p = kernel_parameters(device, kernel, fidelity)
    if stands_in and p.kind != "transferred":
        p = transferred(p, f"{kernel} on {device.calibration}, weights of another width", kin=True)
    wide = [np.asarray(v, dtype=np.float64)[..., None] for v in (n, k, weight)]

    def cost_at(sizes: Any) -> Cost:
        return gemm_cost(
            sizes, wide[0], wide[1], weight_bytes=wide[2], activation_bytes=family.activation_bytes,
            output_bytes=family.output_bytes,
        )  # fmt: skip

    weights = np.asarray(weight, dtype=np.float64)
    key = (weights.tobytes(), k.tobytes(), family.name) if weights.size <= KEPT and k.size <= KEPT else None
    return estimate(device, cost, peak, p, m, (m, n, k), k, cost_at, key)


def gemm_time(
    device: Device | str,
    M: Any,
    N: Any,
    K: Any,
    kernel: str = "cublas_bf16",
    *,
    fidelity: str = "calibrated",
    activation_quantize: bool | None = None,
    **more: Any,
) -> Any:
    """Seconds of y[M,N] = x[M,K] w[N,K]^T; arguments broadcast. `gemm` gives the band too.

    Arguments:
        activation_quantize: add the run-time quantisation of x as a kernel of its own, where the family's time does not
            hold it already. None does so for families that are known as layers from 16-bit activations (humming with
            8-bit activations); False is the product alone.
    """
    device = get_device(device)
    time = gemm(device, M, N, K, kernel, fidelity=fidelity, **more).time_s
    family = get_family(kernel)
    wanted = family.layer_from_16_bit if activation_quantize is None else activation_quantize
    if wanted and not family.includes_quantize and family.activation_bytes == 1:
        time = time + _quantize_s(device, M, K, family, fidelity)
    return time[()] if isinstance(time, np.ndarray) else time


def _quantize_s(device: Device, m: Any, k: Any, family: KernelFamily, fidelity: str) -> Any:
    """Seconds of quantising x[M,K]: by the stack's own kernel where it was measured, else as an element-wise kernel."""
    own = calibration_of(device)
    measured = {} if own is None or fidelity != "calibrated" else own.quantize
    for stack in family.stacks:
        if stack in measured:
            return measured[stack](m, k, device.memory.bandwidth_bytes_per_s)
    return small(device, np.asarray(m, dtype=np.float64) * k * 3.0, row=k, fidelity=fidelity).time_s


def small(device: Device, traffic_bytes: Any, *, row: Any = 0, fidelity: str = "calibrated") -> Estimate:
    """Time of an element-wise kernel that moves `traffic_bytes`, or that reduces over rows of `row` elements first.

    Where they were not measured, an H200's curve is lent: its bytes at this device's bandwidth, its latencies by how
    long the shortest kernels take here (`latency_share`).
    """
    bandwidth = device.memory.bandwidth_bytes_per_s
    floor = traffic_bytes / bandwidth
    if fidelity == "ideal":
        return Estimate(
            time_s=floor, low_s=floor, high_s=floor * IDEAL_MISS, compute_s=0.0 * floor, memory_s=floor, kind="ideal"
        )
    own = calibration_of(device)
    if own is not None and own.small is not None and fidelity == "calibrated":
        time = own.small(traffic_bytes) + own.small.reduction_s(row)
        kind, half = "calibrated", 0.25
    else:
        curve, share = _lent_curve(), latency_share(device)
        alike = traffic_bytes * (LENT_BANDWIDTH_BYTES_PER_S / bandwidth)
        time = curve(alike) + (share - 1) * curve.time_s[0] + share * curve.reduction_s(row)
        kind, half = "transferred", 0.40
    time = np.maximum(time, floor)
    return Estimate(
        time_s=time, low_s=time * (1 - half), high_s=time * (1 + half), compute_s=0.0 * floor, memory_s=floor, kind=kind
    )


LENT = "h200"
"""The calibration that holds element-wise kernels."""
LENT_BANDWIDTH_BYTES_PER_S = 4.8e12


def _lent_curve() -> Curve:
    table = calibration_named(LENT)
    assert table is not None
    assert table.small is not None
    return table.small


def latency_share(device: Device) -> float:
    """How long the shortest kernels take, on an H200 1: of the device, or the nearest of its generation."""
    near = (device.calibration, *lenders(device))
    return next(LEAST_CALL_US[name] for name in near if name in LEAST_CALL_US) / LEAST_CALL_US[LENT]


def launch_gap_s(device: Device) -> float:
    """Time of a kernel that does nothing, inside a CUDA graph; measured, or an H200's by how long kernels take here."""
    own = calibration_of(device)
    if own is not None and own.small is not None:
        return own.small.graph_gap_s
    return _lent_curve().graph_gap_s * latency_share(device)
