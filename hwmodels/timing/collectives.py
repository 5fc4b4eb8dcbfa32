"""Time of a collective over several devices, from the measured libraries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qsim.errors import QsimError

from ..calibration.collectives import Collective
from ..device.device import Device
from .kernel import Estimate
from .parameters import calibration_named, calibration_of, is_kin, lenders

ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "alltoall": 1}
"""Collective -> how often a ring passes the message: an all-reduce scatters sums and gathers them."""


def collective(device: Device, op: str, message_bytes: Any, devices: int) -> Estimate:
    """A collective over `devices`, by the fastest library measured on the device at each size.

    Arguments:
        op: one of `ROUNDS`.
        message_bytes: the whole tensor of a device: what an all-gather ends with, what an all-to-all starts with.

    Where the width was not measured, a library's time is interpolated between the next narrower and wider ones (linear
    in the logarithms of width and time), or taken from the nearest with the ring's bytes of each device, (n-1)/n; a
    calibrated device without any takes the curves of its generation. Where none was measured: ring, 5 us + r(n-1)
    latencies + r(n-1)/n bytes / link bandwidth, with r of `ROUNDS`. All of these are `transferred`.

    Raises:
        ValueError: the device has no link.
    """
    if device.link is None:
        raise QsimError(f"{device.name} has no link: tensor_parallel and expert_parallel must be 1, got {devices}")
    steps = ROUNDS[op] * (devices - 1)
    wire = steps / devices * message_bytes / device.link.bandwidth_bytes_per_s
    own = calibration_of(device)
    curves = () if own is None else [c for c in own.collectives if c.op == op and c.gpus == devices]
    if curves:
        times = np.stack([c(message_bytes) for c in curves])
        fastest = times.argmin(axis=0)
        time = times.min(axis=0)
        low, high = (np.array([c.band[side] for c in curves])[fastest] for side in (0, 1))
        return Estimate(
            time_s=time, low_s=time * low, high_s=time * high, compute_s=0.0 * time, memory_s=wire, kind="calibrated",
            origin=f"{device.calibration}.collectives",
        )  # fmt: skip
    between = [] if own is None else _other_widths(own.collectives or _kin(device), op, devices, message_bytes)
    time = np.minimum.reduce(between) if between else 5e-6 + steps * device.link.latency_s + wire
    return Estimate(
        time_s=time, low_s=time * 0.6, high_s=time * 1.6, compute_s=0.0 * time, memory_s=wire, kind="transferred"
    )


def _kin(device: Device) -> Sequence[Collective]:
    """The collectives of the nearest board of the device's generation that has some."""
    tables = (calibration_named(name) for name in lenders(device) if is_kin(device, name))
    return next((t.collectives for t in tables if t is not None and t.collectives), ())


def _other_widths(collectives: Sequence[Collective], op: str, devices: int, message_bytes: Any) -> list[Any]:
    """Seconds of a collective at a width that was not measured, by each library that was at others."""
    found: dict[str, dict[int, Collective]] = {}
    for c in collectives:
        if c.op == op:
            found.setdefault(c.library, {})[c.gpus] = c
    times = []
    for curves in found.values():
        if devices in curves:
            times.append(curves[devices](message_bytes))
            continue
        under, over = ([n for n in curves if (n < devices) == below] for below in (True, False))
        if under and over:
            low, high = max(under), min(over)
            share = np.log(devices / low) / np.log(high / low)
            times.append(curves[low](message_bytes) ** (1 - share) * curves[high](message_bytes) ** share)
        else:
            near = max(under) if under else min(over)
            times.append(curves[near](message_bytes) * ((devices - 1) / devices) / ((near - 1) / near))
    return times
