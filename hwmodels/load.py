"""Devices from TOML: reading, overriding, checking.

The unit is in every key. A wrong file is refused with file, key and value; a number that only fits another unit
(bytes per second where gigabytes are read) falls outside the plausible range of its key and is refused too.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qsim.errors import QsimError
from qsim.files import parse_toml, read_toml

from .device import Compute, Device, Link, Memory, OnChip, Peak, Power

KINDS = ("gpu", "asic-dataflow", "asic-sram", "asic", "cpu")

# key -> (SI factor, least and largest plausible value in the key's own unit)
_NUMBERS: dict[str, tuple[float, float, float]] = {
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
_TEXTS = ("title", "vendor", "kind", "calibration", "transfer_from", "notes")
_TABLES: dict[str, tuple[str, ...]] = {
    "": (*_TEXTS, "fuses_layers", "layer_overhead_us", "hop_latency_us"),
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


@lru_cache(maxsize=1)
def device_names() -> tuple[str, ...]:
    """Names of the devices shipped as data."""
    folder = resources.files("hwmodels") / "devices"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def get_device(name: str | Path | Device, overrides: Mapping[str, Any] | Sequence[str] | None = None) -> Device:
    """A device by name, or from a TOML file, with fields changed.

    Arguments:
        name: one of `device_names()`, a path ending in `.toml`, or a device (returned as it is without overrides).
        overrides: key path -> value, as in the file and in its units: `{"memory.bandwidth_gbytes_per_s": 6000}`, or
            texts `"memory.bandwidth_gbytes_per_s=6000"` as the command line gives them.

    Raises:
        ValueError: unknown name (the nearest are listed), unknown key, or a value out of range; the message names
            file, key and value.
    """
    changes = _parse_overrides(overrides)
    if isinstance(name, Device):
        if not changes:
            return name
        name = name.name
    text = str(name)
    if text.endswith(".toml"):
        path = Path(text)
        if not path.is_file():
            raise QsimError(f"device file {text} does not exist")
        return _build(path.stem, text, read_toml(path), changes)
    key = text.strip().lower().replace("_", "-")
    key = _ALIASES.get(key, key)
    if key not in device_names():
        near = difflib.get_close_matches(key, [*device_names(), *_ALIASES], n=3, cutoff=0.3)
        raise QsimError(f"unknown device {text!r}: the nearest are {', '.join(near) or ', '.join(device_names())}")
    if not changes:
        return _shipped(key)
    return _build(key, f"{key}.toml", _shipped_table(key), changes)


_ALIASES = {
    "a100": "a100-sxm-80gb", "a100-sxm": "a100-sxm-80gb", "a100-80gb": "a100-sxm-80gb", "a100-40gb": "a100-sxm-40gb",
    "a100-pcie": "a100-pcie-80gb", "h100": "h100-sxm", "h200-sxm": "h200", "4090": "rtx-4090", "rtx4090": "rtx-4090",
    "rtx6000-ada": "rtx-6000-ada", "rtx6000ada": "rtx-6000-ada", "sn40l": "sn40l-like", "groq": "groq-like",
}  # fmt: skip


@lru_cache(maxsize=64)
def _shipped(key: str) -> Device:
    return _build(key, f"{key}.toml", _shipped_table(key), {})


@lru_cache(maxsize=64)
def _shipped_table(key: str) -> dict[str, Any]:
    return _read((resources.files("hwmodels") / "devices" / f"{key}.toml").read_text(encoding="utf-8"), f"{key}.toml")


def _read(text: str, file: str) -> dict[str, Any]:
    return parse_toml(text, file)


def _parse_overrides(overrides: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    if overrides is None:
        return {}
    if isinstance(overrides, Mapping):
        return dict(overrides)
    out: dict[str, Any] = {}
    for item in overrides:
        key, sep, value = item.partition("=")
        if not sep or not key.strip() or not value.strip():
            raise QsimError(f"an override is key=value, like memory.bandwidth_gbytes_per_s=6000: got {item!r}")
        try:
            out[key.strip()] = parse_toml(f"v = {value.strip()}", key)["v"]
        except QsimError:
            out[key.strip()] = value.strip()
    return out


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
    near = difflib.get_close_matches(path, everything, n=2, cutoff=0.3)
    raise QsimError(f"{file}: unknown key {path!r}; the nearest are {', '.join(near) or ', '.join(everything[:6])}")


def _check_value(path: str, value: Any, file: str) -> None:
    _, last = _home(path)
    if last in _NUMBERS:
        _, low, high = _NUMBERS[last]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise QsimError(f"{file}: {path} is a number, in the unit its name ends with: got {value!r}")
        if not math.isfinite(value) or value <= 0:
            raise QsimError(f"{file}: {path} must be positive and finite (leave out what is absent): got {value!r}")
        if not low <= value <= high:
            raise QsimError(
                f"{file}: {path} = {value!r} is outside {low:g} to {high:g}; the key's unit is "
                f"{last.split('_', 1)[-1] if '_' in last else 'a count'}: is the value in another unit?"
            )
    elif last == "fuses_layers":
        if not isinstance(value, bool):
            raise QsimError(f"{file}: {path} is true or false: got {value!r}")
    elif not isinstance(value, str):
        raise QsimError(f"{file}: {path} is a text: got {value!r}")


def _set(table: dict[str, Any], path: str, value: Any) -> None:
    parts = path.split(".")
    for part in parts[:-1]:
        table = table.setdefault(part, {})
    table[parts[-1]] = value


def _build(name: str, file: str, table: Mapping[str, Any], changes: Mapping[str, Any]) -> Device:
    data: dict[str, Any] = {}
    for path, value in _flatten(table):
        check_key(path, file)
        if not path.startswith("sources."):
            _check_value(path, value, file)
            _set(data, path, value)
    for path, value in changes.items():
        check_key(path, f"{file} (override)")
        _check_value(path, value, f"{file} (override)")
        _set(data, path, value)
    for keys in _REQUIRED:
        at: Any = data
        for key in keys:
            at = at.get(key) if isinstance(at, Mapping) else None
        if at is None:
            raise QsimError(f"{file}: {'.'.join(keys)} is missing")
    if data["kind"] not in KINDS:
        raise QsimError(f"{file}: kind is one of {', '.join(KINDS)}: got {data['kind']!r}")
    return _assemble(name, file, data, table.get("sources", {}), changes)


def _si(table: Mapping[str, Any], key: str) -> float | None:
    value = table.get(key)
    return None if value is None else float(value) * _NUMBERS[key][0]


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


def _assemble(name: str, file: str, data: dict[str, Any], sources: Mapping[str, Any], changes: Any) -> Device:
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
        fuses_layers=data.get("fuses_layers", False),
        layer_overhead_s=_si(data, "layer_overhead_us"),
        hop_latency_s=_si(data, "hop_latency_us"),
        sources=MappingProxyType(dict(_flatten(sources))),
        overrides=MappingProxyType(dict(changes)),
        notes=data.get("notes", ""),
    )
