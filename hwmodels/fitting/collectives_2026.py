"""Curves of the measured collectives of 2026: robust against single points, judged at sizes left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..calibration.collectives import Collective
from ..calibration.surface import Array

LIBRARIES = ("nccl", "trtllm", "vllm_graph", "sglang_graph")
"""Those that run in a CUDA graph; the `_eager` rows show the launch from Python below 1 MB."""


def collectives(table: Any, device: str) -> list[Collective]:
    """The curves of a device (name as in the table): of every library its newest version, 16 and 8 bit together.

    What one transfers depends on the bytes, not on what they mean: rows of equal size are replaced by their median.
    """
    rows = table[(table.device == device) & table.library.isin(LIBRARIES)]
    out = []
    for (library, op), part in rows.groupby(["library", "op"]):
        version = max(part.version.unique(), key=_order)
        for gpus, mine in part[part.version == version].groupby("gpus"):
            times = mine.groupby("message_bytes").latency_s.median()
            size, time = times.index.to_numpy(dtype=np.float64), times.to_numpy(dtype=np.float64)
            left_out = np.array([_at(np.delete(size, i), np.delete(time, i), size[i]) for i in range(1, len(size) - 1)])
            ratio = time[1:-1] / left_out
            low, high = np.quantile(ratio, [0.1, 0.9])
            out.append(
                Collective(
                    library=library, version=version, op=op, gpus=int(gpus), message_bytes=size, time_s=smooth(time),
                    held_out_mape=float(np.abs(1 / ratio - 1).mean()), band=(min(1.0, low), max(1.0, high)),
                )
            )  # fmt: skip
    return out


def newest(table: Any) -> Any:
    """The rows of the newest version of every library on every device."""
    rows = table[table.library.isin(LIBRARIES)]
    versions = rows.groupby(["device", "library", "op"]).version.transform(lambda v: max(v.unique(), key=_order))
    return rows[rows.version == versions]


def smooth(time: Array) -> Array:
    """Times at increasing sizes without single points that stand out, and without falls.

    The median of three neighbours keeps a step (another protocol begins) and drops a peak; a fall that is left is
    spread evenly (isotonic regression on the logarithms): a caller could always send more.
    """
    from scipy.optimize import isotonic_regression

    logs = np.log(time)
    middle = np.median(np.stack([logs[:-2], logs[1:-1], logs[2:]]), axis=0)
    # the smallest message has one neighbour: it is at most as slow as the second of the three smallest
    first = min(logs[0], np.median(logs[:3]))
    return np.asarray(np.exp(isotonic_regression(np.concatenate([[first], middle, [logs[-1]]])).x))


def _at(size: Array, time: Array, where: float) -> float:
    return float(np.exp(np.interp(np.log(where), np.log(size), np.log(smooth(time)))))


def _order(version: str) -> tuple[tuple[int, ...], int]:
    """Versions in order: 1.3.0rc10 after 1.2.0rc5, a release after its candidates."""
    release, _, candidate = version.partition("rc")
    return tuple(int(v) for v in release.split(".")), int(candidate) if candidate else 10**6
