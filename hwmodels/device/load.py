"""Devices from TOML: reading, overriding, checking.

The unit is in every key. A wrong file is refused with file, key and value; a number that only fits another unit
(bytes per second where gigabytes are read) falls outside the plausible range of its key and is refused too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qsim.errors import QsimError, QsimTypeError, nearest, shown
from qsim.files import parse_toml, read_toml
from qsim.registry import add_installed

from .device import Compute, Device, Link, Memory, OnChip, Peak, Power

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
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


ENTRY_POINTS = "hwmodels.devices"
"""The entry-point group of installed packages: each entry is the path of a device's TOML file."""
_FILES: dict[str, Path | Traversable] = {}
"""Name -> file of every device that is known by its name."""


@lru_cache(maxsize=1)
def _shipped() -> frozenset[str]:
    """Names of the devices that are shipped as data; they are known from here on."""
    found = (resources.files("hwmodels") / "devices").iterdir()
    _FILES.update({file.name[:-5]: file for file in found if file.name.endswith(".toml")})
    return frozenset(_FILES)


@lru_cache(maxsize=1)
def _find() -> None:
    """The devices that are shipped, and those of installed packages."""
    _shipped()
    add_installed("device", ENTRY_POINTS, _add_file)


def _add_file(path: str | Path) -> None:
    file = Path(path)
    name = file.stem.lower().replace("_", "-")
    device = _build(name, str(file), read_toml(file))  # refused here rather than at first use
    for wanted in (name, *device.table.get("aliases", ())):
        if wanted in _shipped() or _aliases().get(wanted, name) != name:
            raise QsimError(f"{file}: hwmodels has a device {wanted!r} already; give yours another name")
    _FILES[name] = file
    _aliases.cache_clear()
    _by_name.cache_clear()


def register_device(path: str | Path) -> Device:
    """Make a device of your own known by name: to `get_device`, `list_devices`, `predict` and, while this program runs,
    the command line. Its name is the file's, without `.toml`; `aliases` in it are further names.

    A path works wherever a name does, without this. In an installed package an entry point of the group
    `hwmodels.devices` makes the name known to every program:

        [project.entry-points."hwmodels.devices"]
        mine = "my_package:PATH_OF_TOML"

    Raises:
        QsimError: the file is wrong, or a name of it is that of another device.
        OSError: it cannot be read.
    """
    _find()
    _add_file(path)
    return _by_name(Path(path).stem.lower().replace("_", "-"))


def device_names() -> tuple[str, ...]:
    """Names of all devices: those shipped as data, those of installed packages, and those registered."""
    _find()
    return tuple(sorted(_FILES))


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    """Every alias -> the device it is of."""
    return {alias: name for name in _FILES for alias in _by_name(name).table.get("aliases", ())}


def get_device(name: str | Path | Device, overrides: Mapping[str, Any] | Sequence[str] | None = None) -> Device:
    """A device by name, or from a TOML file, with fields changed.

    A device carries the table that it was made from. An override is a function of that table alone: what comes back is
    the device that the file would give if it held the new values, so overrides of a device that was already changed, or
    of a file of one's own, add up.

    Arguments:
        name: one of `device_names()` or an alias of one, a path ending in `.toml`, or a device (returned as it is
            without overrides).
        overrides: key path -> value, as in the file and in its units: `{"memory.bandwidth_gbytes_per_s": 6000}`, or
            texts `"memory.bandwidth_gbytes_per_s=6000"` as the command line gives them.

    Raises:
        QsimError: unknown name (the nearest are listed), unknown key, or a value out of range; the message names
            file, key and value. A device whose values are not those of its table has no overrides either.
    """
    changes = parse_overrides(overrides)
    if isinstance(name, Device):
        return _changed(name, changes) if changes else name
    if not isinstance(name, str | Path):
        raise QsimTypeError(f"a device is a name, a path or a Device: got {type(name).__name__}")
    text = str(name)
    if text.endswith(".toml"):
        path = Path(text)
        if not os.path.isfile(path):
            raise QsimError(f"device file {shown(text)} does not exist")
        device = _build(path.stem, text, read_toml(path))
        return _changed(device, changes) if changes else device
    key = text.strip().lower().replace("_", "-")
    names = device_names()
    if key not in names:
        key = _aliases().get(key, key)
    if key not in names:
        raise QsimError(nearest("device", text, [*names, *_aliases()], cutoff=0.3, all_below=len(names)))
    return _changed(_by_name(key), changes) if changes else _by_name(key)


@lru_cache(maxsize=128)
def _by_name(key: str) -> Device:
    text = _FILES[key].read_text(encoding="utf-8")
    return _build(key, _FILES[key].name, parse_toml(text, _FILES[key].name))


def parse_overrides(overrides: Mapping[str, Any] | Sequence[str] | None) -> dict[str, Any]:
    """Overrides as a mapping from key path to value; texts are read as `KEY=VALUE` with VALUE as in TOML.

    Raises:
        QsimError: a text without key or value, or a key given twice.
    """
    if overrides is None:
        return {}
    if isinstance(overrides, Mapping):
        wrong = next((key for key in overrides if not isinstance(key, str)), None)
        if wrong is not None:
            raise QsimError(f"an override names its field by a text like memory.bandwidth_gbytes_per_s: got {wrong!r}")
        return dict(overrides)
    out: dict[str, Any] = {}
    for item in [overrides] if isinstance(overrides, str) else overrides:
        key, sep, value = (part.strip() for part in str(item).partition("="))
        if not sep or not key or not value:
            raise QsimError(f"an override must be key=value, like memory.bandwidth_gbytes_per_s=6000: got {item!r}")
        if key in out:
            raise QsimError(f"{key} is overridden twice, with {out[key]!r} and with {value}: give one value")
        out[key] = parse_value(value)
    return out


def parse_value(text: str) -> Any:
    """A value as TOML writes it; a text that is no TOML value stands for itself."""
    try:
        return parse_toml(f"v = {text}", "an override")["v"]
    except QsimError:
        return text


def overrides_by_device(names: Sequence[str], items: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """The overrides of each of several devices, from texts `KEY=VALUE` (for all) and `DEVICE:KEY=VALUE` (for one).

    Arguments:
        names: devices as they were asked for: names, aliases or paths.
        items: texts; a value for one device goes before the value for all.

    Returns:
        A mapping for each of `names`, and the keys that change more than one device.

    Raises:
        QsimError: as `parse_overrides`; a prefix that is none of `names`.
    """
    _find()
    aliases = _aliases()
    known = [{name, aliases.get(name, name), Path(name).stem if name.endswith(".toml") else name} for name in names]
    common: list[str] = []
    single: list[list[str]] = [[] for _ in names]
    for item in items:
        key, sep, value = item.partition("=")
        prefix, colon, field = key.rpartition(":")
        if not colon:
            common.append(item)
            continue
        wanted = prefix.strip()
        at = [i for i, labels in enumerate(known) if {wanted, aliases.get(wanted, wanted)} & labels]
        if not at:
            raise QsimError(f"{item!r} changes {wanted}, which is not among the devices: {', '.join(names)}")
        for i in at:
            single[i].append(f"{field}{sep}{value}")
    general = parse_overrides(common)
    return [general | parse_overrides(mine) for mine in single], list(general) if len(names) > 1 else []


def _changed(device: Device, changes: Mapping[str, Any]) -> Device:
    """The device that the table gives with `changes` in it; the name stays, as callers may have given one of theirs."""
    made = _build(device.name, device.file, device.table) if device.table else None
    apart = ("name", "title", "table", "overrides")
    differs = [
        f.name for f in fields(Device) if f.name not in apart and getattr(made, f.name, None) != getattr(device, f.name)
    ]
    if made is None or differs:
        what = f"its {differs[0]} is not what its table says" if made is not None else "it has no table"
        raise QsimError(
            f"device {device.name} was not made by get_device ({what}), so {next(iter(changes))} cannot be overridden: "
            "read it from a TOML, or change it by overrides only"
        )
    table = _thawed(device.table)
    where = f"{device.file} (override)"
    for path, value in changes.items():
        check_key(path, where)
        _check_value(path, value, where)
        _set(table, path, value)
    new = _build(device.name, device.file, table)
    title = new.title if "title" in changes else device.title
    return replace(new, title=title, overrides=MappingProxyType({**device.overrides, **changes}))


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
    if last not in _NUMBERS:
        raise QsimError(f"{path} is a text, not a number that can be moved")
    return _NUMBERS[last][1:]


def _frozen(value: Any) -> Any:
    return MappingProxyType({k: _frozen(v) for k, v in value.items()}) if isinstance(value, Mapping) else value


def _thawed(value: Any) -> Any:
    return {k: _thawed(v) for k, v in value.items()} if isinstance(value, Mapping) else value


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


def _check_value(path: str, value: Any, file: str) -> None:
    _, last = _home(path)
    if last in _NUMBERS:
        _, low, high = _NUMBERS[last]
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


def _set(table: dict[str, Any], path: str, value: Any) -> None:
    parts = path.split(".")
    for part in parts[:-1]:
        table = table.setdefault(part, {})
    table[parts[-1]] = value


def _build(name: str, file: str, table: Mapping[str, Any]) -> Device:
    """The device of a table; every key and value is checked."""
    data: dict[str, Any] = {}
    for path, value in _flatten(table):
        check_key(path, file)
        if not path.startswith("sources."):
            _check_value(path, value, file)
            _set(data, path, value)
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
        fuses_layers=data.get("fuses_layers", False),
        layer_overhead_s=_si(data, "layer_overhead_us"),
        hop_latency_s=_si(data, "hop_latency_us"),
        sources=MappingProxyType(dict(_flatten(table.get("sources", {})))),
        notes=data.get("notes", ""),
        file=file,
        table=_frozen(table),
    )
