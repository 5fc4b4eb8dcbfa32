"""Devices from TOML: reading, overriding, checking.

The unit is in every key. A wrong file is refused with file, key and value; a number that only fits another unit
(bytes per second where gigabytes are read) falls outside the plausible range of its key and is refused too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from qsim.errors import QsimError, QsimTypeError, nearest, shown
from qsim.files import parse_toml, read_toml
from qsim.registry import add_installed

from .build import build, check_key, check_value, set_value, thawed
from .device import Device

Overrides: TypeAlias = Mapping[str, Any] | Sequence[str] | None
"""Key path of a field -> value, or texts `KEY=VALUE`."""
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
    device = build(name, str(file), read_toml(file))  # refused here rather than at first use
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
        device = build(path.stem, text, read_toml(path))
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
    return build(key, _FILES[key].name, parse_toml(text, _FILES[key].name))


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
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


def fixed_overrides(overrides: Overrides, moved: Iterable[str]) -> dict[str, Any]:
    """The overrides as a mapping; a field that is moved has no other value beside it."""
    changes = parse_overrides(overrides)
    both = next((name for name in moved if name in changes), None)
    if both is not None:
        raise QsimError(f"{both} is both overridden and moved: leave it out of one of them")
    return changes


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
    made = build(device.name, device.file, device.table) if device.table else None
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
    table = thawed(device.table)
    where = f"{device.file} (override)"
    for path, value in changes.items():
        check_key(path, where)
        check_value(path, value, where)
        set_value(table, path, value)
    new = build(device.name, device.file, table)
    title = new.title if "title" in changes else device.title
    return replace(new, title=title, overrides=MappingProxyType({**device.overrides, **changes}))
