"""Time of one kernel: a soft roofline with the parameters of its family on the device, and the band around it.

Fidelity of an estimate:

* `ideal`: the datasheet roofline, a floor that no kernel beats;
* `calibrated`: parameters fitted to this kernel on this device; where there are none it is `transferred`;
* `transferred`: efficiencies of a similar kernel or device at this device's peaks, with a wide band.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError
from qsim.reprs import one_line

from ..calibration.between import KEPT, corrected
from ..calibration.collectives import Collective
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
    is_kin,
    kernel_parameters,
    lenders,
    transferred,
)
from .peaks import kernel_peak

if TYPE_CHECKING:
    from ..calibration.fitted import Parameters
    from .family import KernelFamily

IDEAL_MISS = 1.85
"""Datasheet rooflines miss measured layers by 26 to 85 %: the high end of an ideal estimate."""
SMALL_T0_S = 2e-6
SMALL_ETA = 0.8
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
    low, high = _band(p, x, surface)
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


def _band(p: Parameters, x: Any, shape: Any) -> tuple[Any, Any]:
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
    """Time of an element-wise kernel that moves `traffic_bytes`, or that reduces over rows of `row` elements first."""
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
        time = SMALL_T0_S + traffic_bytes / (SMALL_ETA * bandwidth)
        kind, half = "transferred", 0.40
    return Estimate(
        time_s=time, low_s=time * (1 - half), high_s=time * (1 + half), compute_s=0.0 * floor, memory_s=floor, kind=kind
    )


def launch_gap_s(device: Device) -> float:
    """Time of a kernel that does nothing, inside a CUDA graph; measured, or that of an H200."""
    for name in (device.calibration, "h200"):
        table = calibration_named(name)
        if table is not None and table.small is not None:
            return table.small.graph_gap_s
    raise AssertionError("the H200 calibration has small kernels")


def all_reduce(device: Device, traffic_bytes: Any, devices: int) -> Estimate:
    """All-reduce of `traffic_bytes` over `devices`, by the fastest library measured on the device at each size.

    Where the width was not measured, a library's time is interpolated between the next narrower and wider ones (linear
    in the logarithms of width and time), or taken from the nearest with the ring's bytes of each device, (n-1)/n; a
    calibrated device without any takes the curves of its generation. Where none was measured: ring, 5 us + 2(n-1)
    latencies + 2(n-1)/n bytes / link bandwidth. All of these are `transferred`.

    Raises:
        ValueError: the device has no link.
    """
    if device.link is None:
        raise QsimError(f"{device.name} has no link: tensor_parallel must be 1, got {devices}")
    steps = 2 * (devices - 1)
    wire = steps / devices * traffic_bytes / device.link.bandwidth_bytes_per_s
    own = calibration_of(device)
    curves = () if own is None else [c for c in own.collectives if c.op == "all_reduce" and c.gpus == devices]
    if curves:
        times = np.stack([c(traffic_bytes) for c in curves])
        fastest = times.argmin(axis=0)
        time = times.min(axis=0)
        low, high = (np.array([c.band[side] for c in curves])[fastest] for side in (0, 1))
        return Estimate(
            time_s=time, low_s=time * low, high_s=time * high, compute_s=0.0 * time, memory_s=wire, kind="calibrated",
            origin=f"{device.calibration}.collectives",
        )  # fmt: skip
    between = [] if own is None else _other_widths(own.collectives or _kin(device), devices, traffic_bytes)
    time = np.minimum.reduce(between) if between else 5e-6 + steps * device.link.latency_s + wire
    return Estimate(
        time_s=time, low_s=time * 0.6, high_s=time * 1.6, compute_s=0.0 * time, memory_s=wire, kind="transferred"
    )


def _kin(device: Device) -> Sequence[Collective]:
    """The collectives of the nearest board of the device's generation that has some."""
    tables = (calibration_named(name) for name in lenders(device) if is_kin(device, name))
    return next((t.collectives for t in tables if t is not None and t.collectives), ())


def _other_widths(collectives: Sequence[Collective], devices: int, traffic_bytes: Any) -> list[Any]:
    """Seconds of an all-reduce at a width that was not measured, by each library that was at others."""
    found: dict[str, dict[int, Collective]] = {}
    for c in collectives:
        if c.op == "all_reduce":
            found.setdefault(c.library, {})[c.gpus] = c
    times = []
    for curves in found.values():
        if devices in curves:
            times.append(curves[devices](traffic_bytes))
            continue
        under, over = ([n for n in curves if (n < devices) == below] for below in (True, False))
        if under and over:
            low, high = max(under), min(over)
            share = np.log(devices / low) / np.log(high / low)
            times.append(curves[low](traffic_bytes) ** (1 - share) * curves[high](traffic_bytes) ** share)
        else:
            near = max(under) if under else min(over)
            times.append(curves[near](traffic_bytes) * ((devices - 1) / devices) / ((near - 1) / near))
    return times
