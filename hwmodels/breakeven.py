"""Break-even points: where a condition flips as a batch or a field of a device grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError
from qsim.lazy import LazyModule

from .checks import check_count, check_number
from .device.build import field_value, number_range
from .device.load import Overrides, fixed_overrides, get_device
from .prediction import predict

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")


LEAST_TOLERANCE = 1e-12
LARGEST_BATCH = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Where a condition flips: the value, None when it never does in the range; `holds_at_start` what it was before."""

    value: float | None
    holds_at_start: bool


def break_even(
    condition: Callable[[float], bool], low: float, high: float, *, integer: bool = False, tolerance: float = 1e-3
) -> BreakEven:
    """The smallest value in [low, high] at which `condition` is no longer what it is at `low`.

    A coarse geometric search finds the first flip, bisection refines it, so a condition that flips more than once gives
    its first flip (to within the coarse step, a factor of 2^(1/4)).

    Arguments:
        condition: of a value; what it returns counts as true or false, and must not be NaN.
        low, high: ends of the search, with 0 < low < high.
        integer: only whole values are tried.
        tolerance: relative width of the interval that the flip is narrowed to, at least 1e-12 (what float64 resolves)
            and below 1.

    Raises:
        QsimError: ends or a tolerance outside these rules, or a condition that is NaN.
    """
    check_number(low=low, high=high, tolerance=tolerance)
    if not 0 < low < high:
        raise QsimError(f"break_even searches 0 < low < high: got {low:g}, {high:g}")
    if not LEAST_TOLERANCE <= tolerance < 1:
        raise QsimError(f"tolerance must be at least {LEAST_TOLERANCE:g} and below 1: got {tolerance:g}")

    def holds(value: float) -> bool:
        found = condition(value)
        if isinstance(found, float | np.floating) and np.isnan(found):
            raise QsimError(f"the condition of break_even is NaN at {value:g}: it must be true or false")
        return bool(found)

    points = np.geomspace(low, high, max(2, int(np.ceil(4 * (np.log2(high) - np.log2(low)))) + 1))
    if integer:
        points = np.unique(np.clip(np.round(points), np.ceil(low), np.floor(high)))
        if np.floor(high) < np.ceil(low):
            raise QsimError(f"break_even looks at whole values, and there is none from {low:g} to {high:g}")
    start = holds(float(points[0]))
    before = float(points[0])
    for after in map(float, points[1:]):
        if holds(after) != start:
            break
        before = after
    else:
        return BreakEven(value=None, holds_at_start=start)
    while (after - before > 1) if integer else (after / before > 1 + tolerance):
        middle = float(np.round((before + after) / 2)) if integer else float(np.sqrt(before) * np.sqrt(after))
        if not before < middle < after:  # no number lies between
            break
        if holds(middle) == start:
            before = middle
        else:
            after = middle
    return BreakEven(value=after, holds_at_start=start)


def first_batch(condition: Callable[[np.ndarray], Any], high: int) -> BreakEven:
    """The smallest batch from 1 to `high` at which `condition` is no longer what it is at 1, exactly.

    Arguments:
        condition: of an array of batches, for which one prediction answers all.
        high: the largest batch looked at.
    """
    check_count(high=high)
    if high > LARGEST_BATCH:
        raise QsimError(f"high must be at most {LARGEST_BATCH}, as every batch is looked at: got {high}")
    batches = np.arange(1, high + 1, dtype=np.float64)
    holds = np.broadcast_to(condition(batches), batches.shape)
    flipped = np.flatnonzero(holds != holds[0])
    return BreakEven(value=float(batches[flipped[0]]) if flipped.size else None, holds_at_start=bool(holds[0]))


def slower_from_batch(
    device: Any, model: Any, scheme: Any, over: Any = "bf16", *, context: int = 2048, high: int = 4096, **how: Any
) -> BreakEven:
    """The smallest decode batch at which `scheme` is no longer faster than `over` (or the other way round)."""

    def faster(batches: np.ndarray) -> Any:
        one = predict(device, model, scheme, "decode", batches, context, **how)
        other = predict(device, model, over, "decode", batches, context, **how)
        return one.time_s < other.time_s

    return first_batch(faster, high)


def compute_bound_from(
    device: Any, model: Any, scheme: Any = "bf16", *, field: str = "memory.bandwidth_gbytes_per_s", batch: int = 64,
    context: int = 2048, low: float | None = None, high: float | None = None, overrides: Overrides = None, **how: Any
) -> BreakEven:  # fmt: skip
    """The value of a device field at which the linear layers of a decode step stop being memory-bound.

    Arguments:
        field: key path of a number in a device's table.
        low, high: ends of the search in the field's unit; default from the device's own value (1 where it has none) to
            a thousand times that, within the plausible range of the field.
        overrides: of other fields of the device, as in `predict`.

    Raises:
        QsimError: a field that is no number of a device's table, or that is also in `overrides`; as `break_even`.
    """
    base = get_device(device, fixed_overrides(overrides, [field]))
    _, largest = number_range(field)
    now = field_value(base, field)
    low = low if low is not None else 1.0 if now is None else now
    check_number(low=low)

    def memory_bound(value: float) -> bool:
        p = predict(base, model, scheme, "decode", batch, context, overrides={field: value}, **how)
        products = [op for op in p.operators if op.kind in ("gemm", "fused")]
        compute = sum(op.flop / op.peak_flop_per_s for op in products)
        return bool(sum(op.traffic_bytes / op.bandwidth_bytes_per_s for op in products) > compute)

    return break_even(memory_bound, low, high if high is not None else min(1000 * low, largest))
