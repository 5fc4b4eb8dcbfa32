"""The roofline: the least time a device needs, and which of its two limits sets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of arithmetic and of traffic; the larger is the bound. Fields broadcast."""

    compute_s: Any
    memory_s: Any

    @property
    def time_s(self) -> Any:
        return np.maximum(self.compute_s, self.memory_s)

    @property
    def bound(self) -> Any:
        return np.where(self.compute_s > self.memory_s, "compute", "memory")[()]


def roofline(flop: Any, traffic_bytes: Any, peak_flop_per_s: float, bandwidth_bytes_per_s: float) -> Roofline:
    """Times of `flop` operations and `traffic_bytes` bytes at the two peaks (arrays broadcast)."""
    return Roofline(compute_s=flop / peak_flop_per_s, memory_s=traffic_bytes / bandwidth_bytes_per_s)
