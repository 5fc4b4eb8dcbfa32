"""A study as a TOML file: what `qsim study FILE` reads, written so that a person can change it."""

from __future__ import annotations

from typing import Any

import tomli_w

from .spec import DEFAULT_DEVICES, StudySpec, to_table

_HEAD = "# A qsim study. `qsim study --file study.toml --out FOLDER` runs it; what is left out has its default.\n\n"


def to_toml(spec: StudySpec) -> str:
    """The whole study as TOML; methods and unchanged devices by name."""
    table = to_table(spec)
    table["methods"] = [_method(m) for m in table["methods"]]
    shipped = {d.name: d for d in DEFAULT_DEVICES}
    devices = []
    for device, entry in zip(spec.speed.devices, table["speed"]["devices"], strict=True):
        plain = device == shipped.get(device.name) and device.accumulator is None
        devices.append(device.name if plain else {k: v for k, v in entry.items() if v not in ("", {})})
    table["speed"]["devices"] = devices
    return _HEAD + tomli_w.dumps(table)


def _method(entry: dict[str, Any]) -> Any:
    return entry if entry["options"] else f"{entry['algorithm']}:{entry['scheme']}"
