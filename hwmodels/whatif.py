"""Sweeps over devices, schemes, models, batch and context; Pareto fronts; break-even points; sensitivity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError
from qsim.lazy import LazyModule

from .breakeven import BreakEven, break_even, compute_bound_from, first_batch, slower_from_batch
from .checks import check_count, check_not_negative, check_number, check_steps
from .device.build import field_value
from .device.device import Device
from .device.load import Overrides, fixed_overrides, get_device
from .energy import price_of
from .predicted import Prediction
from .prediction import predict, resolve_scheme

__all__ = [
    "BreakEven", "break_even", "compute_bound_from", "first_batch", "pareto", "slower_from_batch",
    "smallest_sram_gbytes", "sweep", "tornado",
]  # fmt: skip

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = LazyModule("pandas")


MEASURES: dict[str, Callable[[Prediction], Any]] = {
    "time_s": lambda p: p.time_s,
    "low_s": lambda p: p.low_s,
    "high_s": lambda p: p.high_s,
    "tokens_per_s": lambda p: p.tokens_per_s,
    "fits": lambda p: p.fits,
    "memory_gbytes": lambda p: p.footprint.total_bytes / 1e9,
    "joule_per_token": lambda p: np.nan if p.energy is None else p.joule_per_token,
}
"""Column of a sweep -> what it holds."""
DEFAULT_COLUMNS = tuple(name for name in MEASURES if name != "joule_per_token")
COST = "cost_per_million_tokens"


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
    tensor_parallel: Any = 1,
    overrides: Overrides = None,
    fields: Mapping[str, Sequence[Any]] | None = None,
    columns: Sequence[str] | None = None,
    price: float | Mapping[str, float] | None = None,
    **how: Any,
) -> pd.DataFrame:
    """Predictions over the product of all arguments that are lists, as a tidy table.

    Arguments:
        device, model, scheme, phase, batch, context, tensor_parallel: a value or a list of values.
        overrides: device fields that are changed in every row, as in `predict`.
        fields: device field -> values to try, e.g. `{"memory.bandwidth_gbytes_per_s": [2000, 4000]}`.
        columns: measures to keep, of `time_s, low_s, high_s, tokens_per_s, fits, memory_gbytes, joule_per_token`;
            default all but the last.
        price: per hour of a device, one for all or by the device's name; adds the column `cost_per_million_tokens`.
        how: further arguments of `predict`.

    Returns:
        One row for each point: the arguments, the measures, `fidelity` and `kernel` (those of most of the points).
        Batches and contexts are evaluated as arrays, so a million points take a fraction of a second.

    Raises:
        QsimError: an empty list, an unknown column, a field that is also in `overrides`; and as `predict`.
    """
    import itertools

    import pandas as pd

    lists = {
        "device": _list(device), "model": _list(model), "scheme": _list(scheme), "phase": _list(phase),
        "tensor_parallel": _list(tensor_parallel), "batch": _list(batch), "context": _list(context),
        **{name: _list(values) for name, values in (fields or {}).items()},
    }  # fmt: skip
    empty = next((name for name, values in lists.items() if not values), None)
    if empty is not None:
        raise QsimError(f"{empty} is an empty list: a sweep needs at least one value of each argument")
    wanted = tuple(DEFAULT_COLUMNS if columns is None else columns)
    unknown = [c for c in wanted if c not in MEASURES]
    if unknown:
        raise QsimError(f"unknown column {unknown[0]!r}: one of {', '.join(MEASURES)}")
    check_steps(batch=lists["batch"], context=lists["context"])
    batches = np.asarray(lists.pop("batch"), dtype=np.float64)[:, None]
    contexts = np.asarray(lists.pop("context"), dtype=np.float64)[None, :]
    grid = np.broadcast_shapes(batches.shape, contexts.shape)
    names = list(fields or {})
    changes = fixed_overrides(overrides, names)
    lists["device"] = [get_device(d, changes) for d in lists["device"]]
    frames: dict[str, list[Any]] = {}
    size = int(np.prod(grid))

    def keep(name: str, value: Any) -> None:
        frames.setdefault(name, []).append(value)

    for dev, mod, sch, ph, tp, *values in itertools.product(*lists.values()):
        chip = get_device(dev, dict(zip(names, values, strict=True)))
        order, parts = _blocks(batches, contexts, ph)
        blocks = [predict(chip, mod, sch, ph, *sizes, tensor_parallel=tp, **how) for sizes in parts]
        p = blocks[0]
        constants = {
            "device": p.device.name, "model": p.architecture.name, "scheme": p.scheme.name or "custom", "phase": ph,
            "tensor_parallel": tp, **dict(zip(names, values, strict=True)),
            "fidelity": _most([b.fidelity for b in blocks]), "kernel": _most([b.kernel for b in blocks]),
        }  # fmt: skip
        for name, value in constants.items():
            keep(name, (value, size))
        keep("batch", np.broadcast_to(batches, grid).reshape(-1))
        keep("context", np.broadcast_to(contexts, grid).reshape(-1))
        hourly = None if price is None else price_of(price, p.device.name)
        measures = {name: MEASURES[name] for name in wanted}
        if hourly is not None:
            measures[COST] = lambda block, hourly=hourly: block.cost_per_million_tokens(hourly)  # type: ignore[misc]
        for name, measure in measures.items():
            found = [
                np.broadcast_to(measure(block), np.broadcast_shapes(b.shape, c.shape)).reshape(-1)
                for block, (b, c) in zip(blocks, parts, strict=True)
            ]
            whole = found[0] if len(found) == 1 else np.concatenate(found)
            keep(name, whole if order is None else whole[order])
    return pd.DataFrame({name: _column(parts) for name, parts in frames.items()})


BLOCK = 1 << 17
"""Points of one call of `predict` in a sweep of prefills: few enough that their arrays stay near the processor."""


def _blocks(batches: Any, contexts: Any, phase: str) -> tuple[Any, list[tuple[Any, Any]]]:
    """Batches and contexts of a grid in blocks, and where each of its points then stands; None for their own order.

    Of a decode step, products and small operators depend on the batch alone, so that one array of all points is little
    work. Those of a prefill depend on its tokens: points with as many stand together, to be worked on once.
    """
    size = batches.size * contexts.size
    if size <= BLOCK or phase == "decode":
        return None, [(batches, contexts)]
    order = np.argsort((batches * contexts).reshape(-1), kind="stable")
    b, c = (np.broadcast_to(v, (len(batches), contexts.size)).reshape(-1)[order] for v in (batches, contexts))
    stands = np.empty(size, dtype=np.intp)
    stands[order] = np.arange(size)
    return stands, [(b[i : i + BLOCK], c[i : i + BLOCK]) for i in range(0, size, BLOCK)]


def _most(labels: Sequence[str]) -> str:
    """The label of most blocks, the first of these."""
    return max(dict.fromkeys(labels), key=labels.count)


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


def smallest_sram_gbytes(model: Any, scheme: Any = "bf16", *, chips: int = 1, kv_tokens: int = 0) -> float:
    """On-chip memory a chip needs, in GB, for `chips` chips to hold the weights and a cache of `kv_tokens` tokens."""
    from .workload.architecture import get_architecture
    from .workload.footprint import kv_bytes_per_token, model_weight_bytes

    check_count(chips=chips)
    check_not_negative(kv_tokens=kv_tokens)
    arch, quant = get_architecture(model), resolve_scheme(scheme)
    total = model_weight_bytes(arch, quant) + kv_tokens * kv_bytes_per_token(arch, quant)
    return total / chips / 0.9 / 1e9


TORNADO_FIELDS = ("memory.bandwidth_gbytes_per_s", "compute.peaks.*.dense_tflops", "compute.vector_tflops",
                  "compute.exp_per_clock_per_unit", "memory.capacity_gbytes", "on_chip.capacity_mbytes",
                  "link.bandwidth_gbytes_per_s_per_direction", "link.latency_us", "layer_overhead_us",
                  "hop_latency_us")  # fmt: skip
"""The fields of a device that a time or a footprint depends on; all peaks move together."""


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
    overrides: Overrides = None,
    **how: Any,
) -> pd.DataFrame:
    """How the result answers to each device field, batch and context moving by +-`change`, largest effect first.

    Arguments:
        change: share, between 0 and 1.
        measure: number of a prediction that is looked at.
        overrides: device fields that are changed first, as in `predict`; the moved fields start from there.

    Returns:
        A row for each of `TORNADO_FIELDS` that the device's table holds, and for batch and context: `field`, `low` and
        `high` (the measure with the field lowered and raised), `base`, `effect` (their distance as a share of `base`).
    """
    import pandas as pd

    check_number(change=change)
    check_count(batch=batch, context=context)
    if not 0 < change < 1:
        raise QsimError(f"change must be a share between 0 and 1: got {change}")
    chip = get_device(device, overrides)
    base = measure(predict(chip, model, scheme, phase, batch, context, **how))
    rows = []
    for field in TORNADO_FIELDS:
        values = _field_values(chip, field)
        if not values:
            continue
        out = []
        for factor in (1 - change, 1 + change):
            moved = get_device(chip, {key: value * factor for key, value in values.items()})
            out.append(measure(predict(moved, model, scheme, phase, batch, context, **how)))
        rows.append({"field": field.replace(".*", ""), "low": out[0], "high": out[1]})
    for name, value in (("batch", batch), ("context", context)):
        out = []
        for factor in (1 - change, 1 + change):
            sizes = {"batch": batch, "context": context, name: max(1, round(value * factor))}
            out.append(measure(predict(chip, model, scheme, phase, sizes["batch"], sizes["context"], **how)))
        rows.append({"field": name, "low": out[0], "high": out[1]})
    table = pd.DataFrame(rows).assign(base=base)
    table["effect"] = (table.high - table.low).abs() / base
    return table.sort_values("effect", ascending=False, kind="stable").reset_index(drop=True)


def _field_values(device: Device, field: str) -> dict[str, float]:
    """Key path -> value of a field of the device's table; several for the peaks, none where the table lacks it."""
    if ".*." in field:
        head, _, last = field.partition(".*.")
        labels = device.table["compute"]["peaks"]
        return {f"{head}.{label}.{last}": entry[last] for label, entry in labels.items()}
    value = field_value(device, field)
    return {} if value is None else {field: value}
