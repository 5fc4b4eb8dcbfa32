"""Modules that are imported when something of them is looked up: parts of a package, and heavy libraries."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str, parts: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names import their module when they are first looked up.

    Arguments:
        package: its `__name__`.
        parts: name -> the module of the package that has it.
    """

    def find(name: str) -> Any:
        if name in parts:
            return getattr(importlib.import_module(f".{parts[name]}", package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*vars(sys.modules[package]), *parts})


class LazyModule:
    """Stands for a module in a namespace, so that `typing.get_type_hints` finds it, without importing it.

    Arguments:
        name: of the module, as in an import statement.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"LazyModule({self._name!r})"
