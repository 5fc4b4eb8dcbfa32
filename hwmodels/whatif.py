"""Sweeps over devices, schemes, models, batch and context; Pareto fronts; break-even points; sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError

from .load import get_device
from .prediction import Prediction, predict, resolve_scheme

if TYPE_CHECKING:
    import pandas as pd


MEASURES: dict[str, Callable[[Prediction], Any]] = {
    "time_s": lambda p: p.time_s,
    "low_s": lambda p: p.low_s,
    "high_s": lambda p: p.high_s,
    "tokens_per_s": lambda p: p.tokens_per_s,
    "fits": lambda p: p.fits,
    "memory_gbytes": lambda p: p.footprint.total_bytes / 1e9,
}
"""Column of a sweep -> what it holds."""


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray | range) else [value]


def sweep(
    device: Any,
    model: Any,
    scheme: Any = "bf16",
    phase: Any = "decode",
    batch: Any = 1,
    context: Any = 2048,
    *,
    fields: Mapping[str, Sequence[Any]] | None = None,
    columns: Sequence[str] | None = None,
    **how: Any,
) -> pd.DataFrame:
    """Predictions over the product of all arguments that are lists, as a tidy table.

    Arguments:
        device, model, scheme, phase, batch, context: a value or a list of values.
        fields: device field -> values to try, e.g. `{"memory.bandwidth_gbytes_per_s": [2000, 4000]}`.
        columns: measures to keep, of `time_s, low_s, high_s, tokens_per_s, fits, memory_gbytes`; default all.
        how: further arguments of `predict`.

    Returns:
        One row a point: the arguments, the measures, `fidelity` and `kernel`. Batch and context are evaluated as one
        array a combination of the rest, so a million points take about a second.
    """
    import itertools

    import pandas as pd

    batches = np.asarray(_list(batch), dtype=np.float64)[:, None]
    contexts = np.asarray(_list(context), dtype=np.float64)[None, :]
    grid = np.broadcast_shapes(batches.shape, contexts.shape)
    wanted = tuple(columns or MEASURES)
    names = list(fields or {})
    combos = list(
        itertools.product(_list(device), _list(model), _list(scheme), _list(phase), *((fields or {})[n] for n in names))
    )
    frames: dict[str, list[Any]] = {}
    size = int(np.prod(grid))

    def keep(name: str, value: Any) -> None:
        frames.setdefault(name, []).append(value)

    for dev, mod, sch, ph, *values in combos:
        p = predict(
            dev, mod, sch, ph, batches, contexts, overrides=dict(zip(names, values, strict=True)) or None, **how
        )
        unknown = [c for c in wanted if c not in MEASURES]
        if unknown:
            raise QsimError(f"unknown column {unknown[0]!r}: one of {', '.join(MEASURES)}")
        constants = {
            "device": p.device.name, "model": p.architecture.name, "scheme": p.scheme.name or "custom", "phase": ph,
            **dict(zip(names, values, strict=True)), "fidelity": p.fidelity, "kernel": p.kernel,
        }  # fmt: skip
        for name, value in constants.items():
            keep(name, (value, size))
        keep("batch", np.broadcast_to(batches, grid).reshape(-1))
        keep("context", np.broadcast_to(contexts, grid).reshape(-1))
        for name in wanted:
            keep(name, np.broadcast_to(MEASURES[name](p), grid).reshape(-1))
    return pd.DataFrame({name: _column(parts) for name, parts in frames.items()})


def _column(parts: list[Any]) -> Any:
    import pandas as pd

    if isinstance(parts[0], tuple):
        labels = list(dict.fromkeys(value for value, _ in parts))
        codes: Any = np.repeat([labels.index(value) for value, _ in parts], [size for _, size in parts])
        if isinstance(labels[0], str):
            return pd.Categorical.from_codes(codes, categories=pd.Index(labels))
        return np.asarray(labels)[codes]
    return np.concatenate(parts)


def pareto(table: pd.DataFrame, least: Sequence[str] = (), most: Sequence[str] = ()) -> pd.DataFrame:
    """The rows that no other row beats in all of the columns (`least`: smaller is better, `most`: larger).

    Raises:
        ValueError: no column, or one that the table does not have.
    """
    for name in (*least, *most):
        if name not in table:
            raise QsimError(f"the table has no column {name!r}: it has {', '.join(map(str, table.columns))}")
    if not least and not most:
        raise QsimError("pareto needs at least one column in least or most")
    values = np.stack([*(table[c].to_numpy(float) for c in least), *(-table[c].to_numpy(float) for c in most)], axis=1)
    order = np.lexsort(values.T[::-1])
    kept: list[int] = []
    front = np.empty((0, values.shape[1]))
    for i in order:
        v = values[i]
        if front.size and np.any(np.all(front <= v, axis=1) & np.any(front < v, axis=1)):
            continue
        kept.append(int(i))
        front = np.vstack([front, v])
    return table.iloc[sorted(kept)].reset_index(drop=True)


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
    """
    if not 0 < low < high:
        raise QsimError(f"break_even searches 0 < low < high: got {low:g}, {high:g}")
    start = condition(low)
    points = low * (high / low) ** np.linspace(0, 1, max(2, int(np.ceil(4 * np.log2(high / low))) + 1))
    if integer:
        points = np.unique(np.round(points))
    before = low
    for after in points[1:]:
        if condition(float(after)) != start:
            break
        before = float(after)
    else:
        return BreakEven(value=None, holds_at_start=start)
    while (after - before > 1) if integer else (after / before > 1 + tolerance):
        middle = float(np.round((before + after) / 2)) if integer else float(np.sqrt(before * after))
        if condition(middle) == start:
            before = middle
        else:
            after = middle
    return BreakEven(value=float(after), holds_at_start=start)


def first_batch(condition: Callable[[np.ndarray], Any], high: int) -> BreakEven:
    """The smallest batch from 1 to `high` at which `condition` is no longer what it is at 1, exactly.

    Arguments:
        condition: of an array of batches, for which one prediction answers all.
        high: the largest batch looked at.
    """
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
    context: int = 2048, low: float | None = None, high: float | None = None, **how: Any
) -> BreakEven:  # fmt: skip
    """The value of a device field at which the linear layers of a decode step stop being memory-bound."""
    base = get_device(device)
    now = base.memory.bandwidth_bytes_per_s / 1e9 if field.startswith("memory.bandwidth") else None
    low = low if low is not None else (now or 1.0)

    def memory_bound(value: float) -> bool:
        p = predict(base, model, scheme, "decode", batch, context, overrides={field: value}, **how)
        flop = sum(op.flop for op in p.operators if op.kind in ("gemm", "fused"))
        traffic = sum(op.traffic_bytes for op in p.operators if op.kind in ("gemm", "fused"))
        compute = p.scheme.compute.name if p.scheme.compute is not None else "bfloat16"
        peak = p.device.peak_flop_per_s(compute) or p.device.peak_flop_per_s("bfloat16") or np.inf
        return bool(traffic / p.device.memory.bandwidth_bytes_per_s > flop / peak)

    return break_even(memory_bound, low, high if high is not None else 1000 * low)


def smallest_sram_gbytes(model: Any, scheme: Any = "bf16", *, chips: int = 1, kv_tokens: int = 0) -> float:
    """On-chip memory a chip needs, in GB, for `chips` chips to hold the weights and a cache of `kv_tokens` tokens."""
    from .architecture import get_architecture
    from .footprint import kv_bytes_per_token, model_weight_bytes

    arch, quant = get_architecture(model), resolve_scheme(scheme)
    total = model_weight_bytes(arch, quant) + kv_tokens * kv_bytes_per_token(arch, quant)
    return total / chips / 0.9 / 1e9


TORNADO_FIELDS = ("memory.bandwidth_gbytes_per_s", "compute.peaks.*.dense_tflops", "memory.capacity_gbytes",
                  "link.bandwidth_gbytes_per_s_per_direction", "layer_overhead_us")  # fmt: skip


def tornado(
    device: Any,
    model: Any,
    scheme: Any = "bf16",
    phase: str = "decode",
    batch: int = 1,
    context: int = 2048,
    *,
    change: float = 0.2,
    measure: Callable[[Prediction], float] = lambda p: float(p.time_s),
    **how: Any,
) -> pd.DataFrame:
    """How the result answers to each device field, batch and context moving by +-`change`, largest effect first."""
    import pandas as pd

    if not 0 < change < 1:
        raise QsimError(f"change is a share between 0 and 1: got {change}")
    base_device = get_device(device)
    base = measure(predict(base_device, model, scheme, phase, batch, context, **how))
    rows = []
    for field in TORNADO_FIELDS:
        values = _field_values(base_device, field)
        if not values:
            continue
        out = []
        for factor in (1 - change, 1 + change):
            overrides = {key: value * factor for key, value in values.items()}
            out.append(measure(predict(base_device, model, scheme, phase, batch, context, overrides=overrides, **how)))
        rows.append({"field": field.replace(".*", ""), "low": out[0], "high": out[1]})
    for name, value in (("batch", batch), ("context", context)):
        out = []
        for factor in (1 - change, 1 + change):
            moved = {"batch": batch, "context": context, name: max(1, round(value * factor))}
            out.append(measure(predict(base_device, model, scheme, phase, moved["batch"], moved["context"], **how)))
        rows.append({"field": name, "low": out[0], "high": out[1]})
    table = pd.DataFrame(rows).assign(base=base)
    table["effect"] = (table.high - table.low).abs() / base
    return table.sort_values("effect", ascending=False).reset_index(drop=True)


def _field_values(device: Any, field: str) -> dict[str, float]:
    from .load import _shipped_table, device_names

    if device.name not in device_names():
        return {}
    table: Any = {**_shipped_table(device.name)}
    if ".*." in field:
        return {
            f"compute.peaks.{label}.dense_tflops": e["dense_tflops"] for label, e in table["compute"]["peaks"].items()
        }
    for part in field.split("."):
        table = table.get(part) if isinstance(table, Mapping) else None
        if table is None:
            return {}
    return {field: table}
