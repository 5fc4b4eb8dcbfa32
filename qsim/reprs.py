"""How values of many fields show themselves: on one line, with what differs from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

WIDTH = 120
"""Characters of such a line."""


def one_line(value: Any) -> str:
    """The repr of a frozen dataclass as a line of at most 120 characters, to be its `__repr__`.

    Fields at their default are left out, numbers have five digits, values with a name show it, arrays and collections
    say how much they hold. What does not fit ends in three dots; the fields themselves hold everything.
    """
    given = [(f, getattr(value, f.name)) for f in fields(value) if f.repr]
    said = [f"{f.name}={_short(entry)}" for f, entry in given if not _is_default(f, entry)]
    text = f"{type(value).__name__}({', '.join(said)})"
    return text if len(text) <= WIDTH else text[: WIDTH - 4].rstrip(", ") + "...)"


def _is_default(field: Field[Any], value: Any) -> bool:
    if field.default is not MISSING:
        return type(value) is type(field.default) and bool(value == field.default)
    return field.default_factory is not MISSING and not value


def _short(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape == ():
        value = value.item()
    elif shape is not None:
        return f"array of shape {tuple(shape)}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if is_dataclass(value) and isinstance(getattr(value, "name", None), str):
        return str(value.name)  # type: ignore[union-attr]
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, Mapping):
        return f"{len(value)} entries"
    if isinstance(value, tuple | list) and len(value) > 2:
        return f"{len(value)} of {type(value[0]).__name__}"
    return repr(value)
