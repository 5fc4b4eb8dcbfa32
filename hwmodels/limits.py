"""The roofline: the least time a device needs, and which of its two limits sets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from qsim.reprs import one_line

from .checks import check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of arithmetic and of traffic; the larger is the bound. Fields broadcast."""

    compute_s: Any
    memory_s: Any

    __repr__ = one_line

    @property
    def time_s(self) -> Any:
        return np.maximum(self.compute_s, self.memory_s)

    @property
    def bound(self) -> Any:
        return np.where(self.compute_s > self.memory_s, "compute", "memory")[()]


def roofline(flop: Any, traffic_bytes: Any, peak_flop_per_s: float, bandwidth_bytes_per_s: float) -> Roofline:
    """Times of `flop` operations and `traffic_bytes` bytes at the two peaks (arrays broadcast).

    Raises:
        QsimError: an amount that is negative, a peak that is not positive, or what is no finite number.
    """
    check_not_negative(flop=flop, traffic_bytes=traffic_bytes)
    check_positive(peak_flop_per_s=peak_flop_per_s, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    flop, traffic_bytes = (np.asarray(v, dtype=np.float64)[()] for v in (flop, traffic_bytes))
    return Roofline(
        compute_s=flop / np.asarray(peak_flop_per_s, dtype=np.float64)[()],
        memory_s=traffic_bytes / np.asarray(bandwidth_bytes_per_s, dtype=np.float64)[()],
    )
