"""A study as a TOML file: what `qsim study --file` reads, and written so that a person can change it.

The file and the value are one: `read_spec("study.toml")` gives a `StudySpec`, `to_toml` the file again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from qsim.errors import QsimError, nearest
from qsim.files import read_toml

from .method import Method
from .spec import DEFAULT_DEVICES, Accumulator, Case, DeviceSpec, Quality, Speed, StudySpec

_ADAPTER: TypeAdapter[StudySpec] = TypeAdapter(StudySpec)


def read_spec(path: str | Path) -> StudySpec:
    """A study file (TOML) as a value; what it leaves out has its default.

    Relative paths in the file are relative to the file.

    Raises:
        ValueError: not TOML, or a key or value that no study has; the message names file, key and value.
        OSError: it cannot be read.
    """
    path = Path(path)
    return _relative_to(spec_of(read_toml(path), str(path)), path.parent)


def spec_of(table: Mapping[str, Any], where: str = "study") -> StudySpec:
    """A study from the table of a file; `where` names it in messages.

    Raises:
        ValueError: see `read_spec`.
    """
    try:
        return _ADAPTER.validate_python(dict(table))
    except ValidationError as error:
        raise QsimError(f"{where}: {_first(error)}") from None


def to_table(spec: StudySpec) -> dict[str, Any]:
    """The study as plain values, as JSON and a study file hold them."""
    found: dict[str, Any] = _ADAPTER.dump_python(spec, mode="json", exclude_none=True)
    return found


def _first(error: ValidationError) -> str:
    """The first fault in one sentence: where, what, and what was given."""
    fault = error.errors(include_url=False)[0]
    at = ".".join(str(part) for part in fault["loc"])
    start = f"{at}: " if at else ""
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        last = str(fault["loc"][-1])
        return f"{at}: {nearest('key', last, _keys(), cutoff=0.5)}"
    message = fault["msg"].removeprefix("Value error, ")
    given = fault.get("input")
    said = isinstance(given, dict | tuple | list) or repr(given) in message
    return start + message + ("" if said else f": got {given!r}")


def _keys() -> list[str]:
    kinds: tuple[Any, ...] = (StudySpec, Quality, Speed, Method, DeviceSpec, Case, Accumulator)
    return [f.name for kind in kinds for f in fields(kind)]


def _relative_to(spec: StudySpec, folder: Path) -> StudySpec:
    def place(text: str) -> str:
        return str(folder / text) if text and os.path.exists(folder / text) and not Path(text).is_absolute() else text

    q, s = spec.quality, spec.speed
    return replace(
        spec,
        quality=replace(q, model=place(q.model), text=place(q.text), calibration=place(q.calibration)),
        speed=replace(
            s,
            models=tuple(place(m) for m in s.models),
            devices=tuple(replace(d, name=place(d.name)) for d in s.devices),
        ),
    )


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
