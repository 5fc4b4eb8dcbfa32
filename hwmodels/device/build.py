"""The table of a device's file, held against the known keys and their plausible ranges, made into a Device."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from qsim.errors import QsimError, nearest

from .device import Compute, Device, Link, Memory, OnChip, Peak, Power

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
KINDS = ("gpu", "asic-dataflow", "asic-sram", "asic", "cpu")

# key -> (SI factor, least and largest plausible value in the key's own unit)
NUMBERS: dict[str, tuple[float, float, float]] = {
    "units": (1, 1, 1e7),
    "vector_tflops": (1e12, 1e-3, 1e5),
    "dense_tflops": (1e12, 1e-3, 1e6),
    "flop_per_clock_per_unit": (1, 1, 1e7),
    "exp_per_clock_per_unit": (1, 1, 1e5),
    "clock_mhz": (1e6, 50, 1e4),
    "capacity_gbytes": (1e9, 1e-2, 1e5),
    "capacity_mbytes": (1e6, 1e-2, 1e6),
    "bandwidth_gbytes_per_s": (1e9, 0.5, 1e8),
    "bandwidth_gbytes_per_s_per_direction": (1e9, 0.1, 1e5),
    "latency_us": (1e-6, 1e-3, 1e4),
    "board_w": (1, 1, 1e5),
    "idle_w": (1, 1, 1e5),
    "layer_overhead_us": (1e-6, 1e-3, 1e5),
    "hop_latency_us": (1e-6, 1e-3, 1e5),
}

_TEXTS = ("title", "vendor", "kind", "calibration", "transfer_from", "compute_from", "notes")
_TABLES: dict[str, tuple[str, ...]] = {
    "": (*_TEXTS, "aliases", "fuses_layers", "layer_overhead_us", "hop_latency_us"),
    "compute": ("units", "vector_tflops", "exp_per_clock_per_unit"),
    "compute.peaks": (
        "input", "accumulate", "dense_tflops", "instruction", "flop_per_clock_per_unit", "clock_mhz", "source",
    ),
    "memory": ("name", "capacity_gbytes", "bandwidth_gbytes_per_s"),
    "on_chip": ("name", "capacity_mbytes", "bandwidth_gbytes_per_s"),
    "far": ("name", "capacity_gbytes", "bandwidth_gbytes_per_s"),
    "link": ("name", "bandwidth_gbytes_per_s_per_direction", "latency_us"),
    "power": ("board_w", "idle_w"),
}  # fmt: skip
_REQUIRED = (("title",), ("kind",), ("compute", "peaks"), ("memory", "capacity_gbytes"),
             ("memory", "bandwidth_gbytes_per_s"))  # fmt: skip


def field_value(device: Device, path: str) -> Any:
    """What a device's table holds at a key path; None where it lacks the key."""
    at: Any = device.table
    for part in path.split("."):
        at = at.get(part) if isinstance(at, Mapping) else None
    return at


def number_range(path: str) -> tuple[float, float]:
    """The least and the largest plausible value of a number of a device's table, in the unit of its key.

    Raises:
        QsimError: an unknown key, or one that holds no number.
    """
    check_key(path, "a device")
    last = _home(path)[1]
    if last not in NUMBERS:
        raise QsimError(f"{path} is a text, not a number that can be moved")
    return NUMBERS[last][1:]


def _frozen(value: Any) -> Any:
    return MappingProxyType({k: _frozen(v) for k, v in value.items()}) if isinstance(value, Mapping) else value


def thawed(value: Any) -> Any:
    return {k: thawed(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}.")
        else:
            yield path, value


def _home(path: str) -> tuple[str, str]:
    """The table a key path belongs to, and its last part; the label of a peak is left out."""
    parts = path.split(".")
    if parts[:2] == ["compute", "peaks"] and len(parts) == 4:
        return "compute.peaks", parts[3]
    return ".".join(parts[:-1]), parts[-1]


def check_key(path: str, file: str) -> None:
    """Refuse a key path that no device file has."""
    table, last = _home(path)
    if path.startswith("sources."):
        return
    known = _TABLES.get(table)
    if known is not None and last in known:
        return
    everything = [f"{t}.{k}" if t else k for t, keys in _TABLES.items() for k in keys]
    raise QsimError(f"{file}: {nearest('key', path, everything, cutoff=0.3)}")


def check_value(path: str, value: Any, file: str) -> None:
    _, last = _home(path)
    if last in NUMBERS:
        _, low, high = NUMBERS[last]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise QsimError(f"{file}: {path} must be a number, in the unit its name ends with: got {value!r}")
        if not 0 < value < math.inf:
            raise QsimError(f"{file}: {path} must be positive and finite (leave out what is absent): got {value!r}")
        if not low <= value <= high:
            raise QsimError(
                f"{file}: {path} = {value!r} is outside {low:g} to {high:g}; the key's unit is "
                f"{last.split('_', 1)[-1] if '_' in last else 'a count'}: is the value in another unit?"
            )
    elif last == "aliases":
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) and _NAME.fullmatch(v) for v in value):
            raise QsimError(f"{file}: {path} must be a list of lower-case names: got {value!r}")
    elif last == "fuses_layers":
        if not isinstance(value, bool):
            raise QsimError(f"{file}: {path} must be true or false: got {value!r}")
    elif not isinstance(value, str):
        raise QsimError(f"{file}: {path} must be a text: got {value!r}")


def set_value(table: dict[str, Any], path: str, value: Any) -> None:
    parts = path.split(".")
    for part in parts[:-1]:
        table = table.setdefault(part, {})
    table[parts[-1]] = value


def build(name: str, file: str, table: Mapping[str, Any]) -> Device:
    """The device of a table; every key and value is checked."""
    data: dict[str, Any] = {}
    for path, value in _flatten(table):
        check_key(path, file)
        if not path.startswith("sources."):
            check_value(path, value, file)
            set_value(data, path, value)
    for keys in _REQUIRED:
        at: Any = data
        for key in keys:
            at = at.get(key) if isinstance(at, Mapping) else None
        if at is None:
            raise QsimError(f"{file}: {'.'.join(keys)} is missing")
    if data["kind"] not in KINDS:
        raise QsimError(f"{file}: kind must be one of {', '.join(KINDS)}: got {data['kind']!r}")
    return _assemble(name, file, data, table)


def _si(table: Mapping[str, Any], key: str) -> float | None:
    value = table.get(key)
    return None if value is None else float(value) * NUMBERS[key][0]


def _tier(table: Mapping[str, Any] | None, file: str, where: str) -> Memory | None:
    if table is None:
        return None
    capacity, bandwidth = _si(table, "capacity_gbytes"), _si(table, "bandwidth_gbytes_per_s")
    if capacity is None or bandwidth is None:
        missing = "capacity_gbytes" if capacity is None else "bandwidth_gbytes_per_s"
        raise QsimError(f"{file}: {where}.{missing} is missing")
    return Memory(name=table.get("name", where), capacity_bytes=capacity, bandwidth_bytes_per_s=bandwidth)


def _cache(table: Mapping[str, Any] | None, file: str) -> OnChip | None:
    if table is None:
        return None
    capacity = _si(table, "capacity_mbytes")
    if capacity is None:
        raise QsimError(f"{file}: on_chip.capacity_mbytes is missing")
    bandwidth = _si(table, "bandwidth_gbytes_per_s")
    return OnChip(name=table.get("name", "on chip"), capacity_bytes=capacity, bandwidth_bytes_per_s=bandwidth)


def _link(table: Mapping[str, Any] | None, file: str) -> Link | None:
    if table is None:
        return None
    bandwidth, latency = _si(table, "bandwidth_gbytes_per_s_per_direction"), _si(table, "latency_us")
    if bandwidth is None or latency is None:
        missing = "bandwidth_gbytes_per_s_per_direction" if bandwidth is None else "latency_us"
        raise QsimError(f"{file}: link.{missing} is missing")
    return Link(name=table.get("name", "link"), bandwidth_bytes_per_s=bandwidth, latency_s=latency)


def _assemble(name: str, file: str, data: dict[str, Any], table: Mapping[str, Any]) -> Device:
    peaks = []
    for label, entry in data["compute"]["peaks"].items():
        if "dense_tflops" not in entry:
            raise QsimError(f"{file}: compute.peaks.{label}.dense_tflops is missing; leave out a peak that is absent")
        peaks.append(
            Peak(
                input=entry.get("input", label),
                accumulate=entry.get("accumulate", "float32"),
                flop_per_s=float(entry["dense_tflops"]) * 1e12,
                instruction=entry.get("instruction"),
                flop_per_clock_per_unit=_si(entry, "flop_per_clock_per_unit"),
                clock_hz=_si(entry, "clock_mhz"),
                source=entry.get("source", ""),
            )
        )
    memory = _tier(data["memory"], file, "memory")
    assert memory is not None
    on_chip, far = _cache(data.get("on_chip"), file), _tier(data.get("far"), file, "far")
    power = data.get("power")
    if power is not None and "board_w" not in power:
        raise QsimError(f"{file}: power.board_w is missing")
    units = data["compute"].get("units")
    return Device(
        name=name,
        title=data["title"],
        kind=data["kind"],
        vendor=data.get("vendor", ""),
        compute=Compute(
            units=units,
            peaks=tuple(peaks),
            vector_flop_per_s=_si(data["compute"], "vector_tflops"),
            exp_per_clock_per_unit=_si(data["compute"], "exp_per_clock_per_unit"),
        ),
        memory=memory,
        on_chip=on_chip,
        tiers=tuple(t for t in (on_chip, memory, far) if t is not None),
        link=_link(data.get("link"), file),
        power=None if power is None else Power(board_w=float(power["board_w"]), idle_w=_si(power, "idle_w")),
        calibration=data.get("calibration"),
        transfer_from=data.get("transfer_from"),
        compute_from=data.get("compute_from"),
        fuses_layers=data.get("fuses_layers", False),
        layer_overhead_s=_si(data, "layer_overhead_us"),
        hop_latency_s=_si(data, "hop_latency_us"),
        sources=MappingProxyType(dict(_flatten(table.get("sources", {})))),
        notes=data.get("notes", ""),
        file=file,
        table=_frozen(table),
    )
